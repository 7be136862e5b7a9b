"""The second look at the documents agrees with the first."""

from __future__ import annotations

import pytest

from llmkit.config.load import load
from llmkit.errors import ConfigError, DataError
from llmkit.evaluation.survey import survey


def data(*paths, **keys):
    named = [f"data.{key}={value}" for key, value in keys.items()]
    files = f"data.test_files=[{', '.join(map(str, paths))}]"
    return load("evaluate", None, [files, *named]).config.data


@pytest.fixture
def files(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\n \ntwo 家\n", encoding="utf-8")
    (tmp_path / "b.txt").write_text("\nthree\n", encoding="utf-8")
    return tmp_path / "a.txt", tmp_path / "b.txt"


def test_blank_documents_are_left_out_and_files_are_the_domains(files, watch) -> None:
    found = survey(data(*files, document="line"), "test_files", None, watch)
    assert found.characters == len("onetwo 家three")
    assert found.domains == tuple(map(str, files))
    assert list(found.domain_of_document) == [0, 0, 1]


def test_a_column_names_the_domains(tmp_path, watch) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,kind\nhello,x\n ,y\n\nbye,z\nagain,x\n")
    found = survey(data(path), "test_files", "kind", watch)
    assert found.domains == ("x", "z")
    assert list(found.domain_of_document) == [0, 1, 0]


def test_a_column_that_is_not_there_is_named(tmp_path, watch) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,kind\nhello,x\n")
    with pytest.raises(DataError, match="'sort'"):
        survey(data(path), "test_files", "sort", watch)


def test_plain_text_has_no_columns(files, watch) -> None:
    with pytest.raises(ConfigError, match="no columns"):
        survey(data(*files), "test_files", "kind", watch)
