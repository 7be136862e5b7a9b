"""The request of a run identifies it, and its name says what it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmkit.config.load import load_config
from llmkit.config.schema import Config
from llmkit.errors import ConfigError
from llmkit.training import run_identity


def config(*keys: str) -> Config:
    return load_config("pretrain", None, ["data.train_files=a.txt", *keys]).config


def test_what_changes_a_number_identifies_a_run_and_all_differences_are_reported() -> None:
    recorded = {
        "requested": run_identity.identifying_keys(config("seed=1", "train.max_steps=5")),
        "resolved": {},
        "content": {"training data": "abc"},
    }
    same = config("seed=1", "train.max_steps=9", "train.logging_steps=3", "generation.top_k=4")
    run_identity.check_same_run(recorded, same, {"training data": "abc"}, "where", Path("run"))
    assert run_identity.changed_length(recorded, same) == {"train.max_steps": [5, 9]}
    other = config("seed=2", "train.max_steps=5", "train.optimizer=adamw")
    with pytest.raises(ConfigError) as fault:
        run_identity.check_same_run(recorded, other, {"training data": "x"}, "", Path("run"))
    for part in ("seed was 1, is now 2", "train.optimizer was", "the training data"):
        assert part in fault.value.what


def test_keys_that_only_use_a_model_do_not_identify_its_training() -> None:
    before = run_identity.identifying_keys(config())
    recorded = {"requested": {**before, "merge.into": "ensemble"}, "resolved": {}, "content": {}}
    same = config().changed(merge={"into": "moe"})
    run_identity.check_same_run(recorded, same, {}, "where", Path("run"))
    of = run_identity.request_of
    assert of(same, "pretrain") == of(config(), "pretrain")
    assert of(same, "merge") == {"command": "merge", "merge.into": "moe"}


@pytest.mark.parametrize(
    ("files", "name"),
    [
        (["reviews.csv"], "reviews"),
        (["/data/v1.2-reviews.jsonl.gz"], "v1.2-reviews"),
        (["my data/über uns (neu).txt"], "über-uns-neu"),
        (["texts/"], "texts"),
        (["texts/**/*.txt"], "texts"),
        (["hub:roneneldan/TinyStories:plain@train"], "TinyStories"),
        (["a.txt", "b.txt", "c.txt"], "a-and-2-more"),
        (["../-.txt"], "inner"),
        (["\udcff.txt"], "here"),
        (["हिन्दी.txt"], "हिन्दी"),
        ([f"{'x' * 300}.txt"], "x" * 40),
    ],
)
def test_a_run_is_named_after_its_data(
    files: list[str], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "inner" / "here"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    asked = Config().changed(data={"train_files": tuple(files)})
    assert run_identity.default_prefix(asked, "finetune") == f"finetune-{name}"


def test_a_run_of_a_mixture_is_named_after_its_domains() -> None:
    given = ["data.mixture.novels.files=a.txt", "data.mixture.code.files=b.py"]
    asked = load_config("pretrain", None, given).config
    assert run_identity.default_prefix(asked, "pretrain") == "pretrain-novels-code"


def test_a_run_of_an_earlier_llmkit_is_found_by_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = Path("runs/pretrain-0123abcd")
    state = run / "checkpoints" / "step-0000000001" / "state.json"
    state.parent.mkdir(parents=True)
    asked = run_identity.identifying_keys(config("seed=3"))
    del asked["train.adam_beta1"]  # a key that it did not know yet
    state.write_text(json.dumps({"identity": {"requested": asked, "resolved": {}}}))
    (run / "run.json").write_text(json.dumps({"command": "pretrain"}))
    (run / "config.yaml").write_text("data:\n  train_files: [a.txt]\n")
    assert run_identity.default_run(config("seed=3"), "pretrain") == run
    for other in (config(), config("seed=3", "data.train_files=b.txt")):
        assert run_identity.default_run(other, "pretrain") is None
    assert run_identity.default_run(config("seed=3"), "finetune") is None
