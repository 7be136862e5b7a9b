"""The second look at the documents agrees with the first."""

from __future__ import annotations

import pytest

from llmkit.config.load import load
from llmkit.config.schema import Config
from llmkit.data.prepare import held_out_domains
from llmkit.errors import ConfigError, DataError, InputNotFound
from llmkit.evaluation.survey import survey, survey_mixture
from llmkit.models import tokenizer as tokenizers


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


def mixture(files, *overrides: str) -> Config:
    named = [f"data.mixture.{path.stem}.files={path}" for path in files]
    return load("evaluate", None, [*named, "data.document=line", *overrides]).config


def test_the_domains_of_a_mixture_are_surveyed_by_what_they_hold_out(files, watch) -> None:
    found = survey_mixture(mixture(files, "data.validation_fraction=0.9"), watch)
    assert found.domains == ("a", "b")
    assert 0 < found.characters < len("onetwo 家three")
    given = mixture(files, f"data.mixture.a.validation_files={files[0]}",
                    f"data.mixture.b.validation_files={files[1]}")  # fmt: skip
    whole = survey_mixture(given, watch)
    assert whole.characters == len("onetwo 家three")
    assert list(whole.domain_of_document) == [0, 0, 1]


def test_a_mixture_has_its_own_domains_and_must_hold_text_out(files, watch) -> None:
    with pytest.raises(ConfigError, match=r"those of data\.mixture"):
        survey_mixture(mixture(files, "evaluation.domain_column=kind"), watch)
    nothing = mixture(files, "data.validation_fraction=0")
    with pytest.raises(InputNotFound, match="holds text out"):
        held_out_domains(nothing, tokenizers.train_bpe(["text"], 300), watch, print)


def test_a_column_that_is_not_there_is_named(tmp_path, watch) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,kind\nhello,x\n")
    with pytest.raises(DataError, match="'sort'"):
        survey(data(path), "test_files", "sort", watch)


def test_plain_text_has_no_columns(files, watch) -> None:
    with pytest.raises(ConfigError, match="no columns"):
        survey(data(*files), "test_files", "kind", watch)
