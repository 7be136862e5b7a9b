"""The domains and characters of a text, as a second look at its documents would find them."""

from __future__ import annotations

import json

import pytest

from llmkit.config.load import load_config
from llmkit.config.schema import Config
from llmkit.data.readers.files import Sources
from llmkit.data.text.prepare import held_out_domains, tokens_of
from llmkit.errors import ConfigError, DataError, InputNotFound
from llmkit.evaluation.segments import Survey, survey_files, survey_mixture
from llmkit.models import tokenizer as tokenizers
from llmkit.progress import Watch

KEY = "data.test_files"
TOKENIZER = tokenizers.train_bpe(["text"], 300)


def config_of(*paths, **keys) -> Config:
    named = [f"data.{key}={value}" for key, value in keys.items()]
    return load_config("evaluate", None, [f"{KEY}=[{', '.join(map(str, paths))}]", *named]).config


@pytest.fixture
def survey(watch):
    def survey(config: Config, column: str | None = None) -> Survey:
        found = Sources(config).of(KEY)
        tokens = tokens_of(found, KEY, config, TOKENIZER, watch, print)
        return survey_files(tokens, found, config.data, column)

    return survey


@pytest.fixture
def files(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\n \ntwo 家\n", encoding="utf-8")
    (tmp_path / "b.txt").write_text("\nthree\n", encoding="utf-8")
    return tmp_path / "a.txt", tmp_path / "b.txt"


def test_blank_documents_are_skipped_and_files_are_the_domains(files, survey) -> None:
    found = survey(config_of(*files, document="line"))
    assert found.characters == len("onetwo 家three")
    assert found.domains == tuple(map(str, files))
    assert found.domain_of_document.tolist() == [0, 0, 1]


def test_a_file_without_text_is_not_a_domain(files, survey) -> None:
    blank = files[0].with_name("c.txt")
    blank.write_text(" \n")
    found = survey(config_of(files[0], blank, files[1]))
    assert found.domains == tuple(map(str, files))
    assert found.domain_of_document.tolist() == [0, 1]


def test_characters_and_files_are_known_without_reading_the_text(files, watch) -> None:
    config = config_of(*files)
    found = Sources(config).of(KEY)
    tokens = tokens_of(found, KEY, config, TOKENIZER, watch, print)
    for path in files:
        path.unlink()
    assert survey_files(tokens, found, config.data, None).characters == len(
        "one\n\n \ntwo 家\n\nthree\n"
    )


def test_a_token_file_without_characters_is_the_same_and_its_text_is_counted(files, watch) -> None:
    config = config_of(*files)
    new = tokens_of(Sources(config).of(KEY), KEY, config, TOKENIZER, watch, print)
    manifest = new.path / "manifest.json"
    written = json.loads(manifest.read_text())["manifest"]
    info = {name: value for name, value in written["info"].items() if name != "derived"}
    held = {
        name: {"bytes": file["size"], "sha256": file["sha256"]}
        for name, file in written["files"].items()
    }
    earlier = {"fingerprint": new.fingerprint, "info": info, "files": held}
    manifest.write_text(json.dumps(earlier))
    old = tokens_of(Sources(config).of(KEY), KEY, config, TOKENIZER, watch, print)
    assert old.reused
    assert (old.characters, old.fingerprint) == (new.characters, new.fingerprint)


def test_a_column_names_the_domains(tmp_path, survey) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,kind\nhello,x\n ,y\n\nbye,z\nagain,x\n")
    found = survey(config_of(path), "kind")
    assert found.domains == ("x", "z")
    assert found.domain_of_document.tolist() == [0, 1, 0]


def mixture(files, *overrides: str) -> Config:
    named = [f"data.mixture.{path.stem}.files={path}" for path in files]
    return load_config("evaluate", None, [*named, "data.document=line", *overrides]).config


def surveyed(config: Config, watch: Watch) -> Survey:
    return survey_mixture(config, Sources(config), watch)


def test_the_domains_of_a_mixture_are_surveyed_by_what_they_hold_out(files, watch) -> None:
    def held_out(config: Config) -> Survey:
        return survey_mixture(
            config, held_out_domains(config, Sources(config), TOKENIZER, watch, print)
        )

    found = held_out(mixture(files, "data.validation_fraction=0.9"))
    assert found.domains == ("a", "b")
    assert 0 < found.characters < len("onetwo 家three")
    given = mixture(files, f"data.mixture.a.validation_files={files[0]}",
                    f"data.mixture.b.validation_files={files[1]}")  # fmt: skip
    whole = held_out(given)
    assert whole.characters == len("onetwo 家three")
    assert whole.domain_of_document.tolist() == [0, 0, 1]


def test_a_mixture_has_its_own_domains_and_must_hold_text_out(files, watch) -> None:
    with pytest.raises(ConfigError, match=r"given by data\.mixture"):
        survey_mixture(mixture(files, "evaluation.domain_column=kind"), {})
    nothing = mixture(files, "data.validation_fraction=0")
    with pytest.raises(InputNotFound, match="has held-out text"):
        held_out_domains(nothing, Sources(nothing), TOKENIZER, watch, print)


def test_a_column_that_is_not_there_is_named(tmp_path, survey) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,kind\nhello,x\n")
    with pytest.raises(DataError, match="'sort'"):
        survey(config_of(path), "sort")


def test_plain_text_has_no_columns(files, survey) -> None:
    with pytest.raises(ConfigError, match="no columns"):
        survey(config_of(*files), "kind")
