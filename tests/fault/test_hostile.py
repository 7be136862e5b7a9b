"""Files made to do harm: refused, with a canary that proves that nothing ran (F31 to F36, F40)."""

from __future__ import annotations

import json
import os
import pickle
import pty
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from llmkit.models import tokenizer as tokenizers
from tests.harness import SURROUNDINGS, Server, contents
from tests.jobs import sign

from .runs import Job


class Payload:
    """What runs a command when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.canary), "w"))


@pytest.fixture(scope="module")
def harmless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with its tokenizer."""
    directory = tmp_path_factory.mktemp("harmless") / "model"
    tokenizer = tokenizers.train_bpe(["the cat sat on a mat"] * 9, 300)
    tokenizer.save_pretrained(directory)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1, "max_position_embeddings": 32}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape, **heads)).save_pretrained(
        directory
    )
    return directory


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A file that only a payload makes."""
    return tmp_path / "canary"


@pytest.fixture
def model(harmless: Path, tmp_path: Path) -> Path:
    """A copy of the model, to be made hostile."""
    return Path(shutil.copytree(harmless, tmp_path / "model"))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def as_pickle(model: Path, canary: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(canary)))


def as_disguised_pickle(model: Path, canary: Path) -> None:
    (model / "model.safetensors").write_bytes(pickle.dumps(Payload(canary)))


def as_disguised_zip(model: Path, canary: Path) -> None:
    with zipfile.ZipFile(model / "model.safetensors", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Payload(canary)))


def with_code(model: Path, canary: Path) -> None:
    (model / "modeling.py").write_text(f"open({str(canary)!r}, 'w')\n")
    edit(model / "config.json", auto_map={"AutoModelForCausalLM": "modeling.Evil"})


def with_tokenizer_code(model: Path, canary: Path) -> None:
    (model / "evil.py").write_text(f"open({str(canary)!r}, 'w')\n")
    edit(model / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", None]})


def with_index(name: Any) -> Callable[[Path, Path], None]:
    def make(model: Path, canary: Path) -> None:
        index = {"metadata": {}, "weight_map": {"model.embed_tokens.weight": name}}
        (model / "model.safetensors.index.json").write_text(json.dumps(index))

    return make


HOSTILE: dict[str, tuple[Callable[[Path, Path], object], int]] = {
    "pickle": (as_pickle, 77),
    "pickle called safetensors": (as_disguised_pickle, 65),
    "zip called safetensors": (as_disguised_zip, 65),
    "code": (with_code, 77),
    "code of the tokenizer": (with_tokenizer_code, 77),
    "trust": (lambda model, _: edit(model / "config.json", trust_remote_code=True), 77),
    "kernel": (
        lambda model, _: edit(model / "config.json", _attn_implementation_internal="evil/kernel"),
        77,
    ),
    "nested kernel": (
        lambda model, _: edit(
            model / "config.json", text_config={"a": [{"_experts_implementation_internal": "x"}]}
        ),
        77,
    ),
    "file above": (with_index("../../etc/passwd"), 77),
    "file elsewhere": (with_index("/etc/passwd"), 77),
    "no file name": (with_index(["model.safetensors"]), 77),
    "deep config": (lambda model, _: deep(model / "config.json"), 65),
    "deep tokenizer": (lambda model, _: deep(model / "tokenizer.json"), 65),
    "adapter of a hub model": (
        lambda model, _: (model / "adapter_config.json").write_text(
            json.dumps({"base_model_name_or_path": "evil/base", "peft_type": "LORA"})
        ),
        65,
    ),
}


def deep(path: Path) -> None:
    path.write_text('{"a": ' * 100_000 + "1" + "}" * 100_000)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_model_is_refused_and_runs_nothing(
    trials: Server, jobs: dict[str, Job], model: Path, canary: Path, tmp_path: Path, name: str
) -> None:
    make, code = HOSTILE[name]
    make(model, canary)
    text = jobs["pretrain"].arguments[2]
    run, guard = tmp_path / "run", tmp_path / "guard"
    command = ("pretrain", "--model", model, "--text", text, "train.max_steps=1")
    ended = trials.run(*command, "data.block_size=16", "--output-dir", run, guard=str(guard))
    assert ended.code == code, ended
    for part in ("error[", "where:", "next:"):
        assert part in ended.err
    assert not canary.exists()
    assert guard.read_text() == ""
    assert not (run / "final").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors"])
def test_a_checkpoint_whose_tensors_are_a_pickle_is_refused_and_runs_nothing(
    trials: Server, jobs: dict[str, Job], canary: Path, tmp_path: Path, name: str
) -> None:
    """Its manifest is in order: a manifest shows damage, and is not a signature."""
    run, guard, job = tmp_path / "run", tmp_path / "guard", jobs["pretrain"]
    assert trials.run(*job.at(run)).code == 0
    checkpoint = run / "checkpoints" / "step-0000000012"
    (checkpoint / name).write_bytes(pickle.dumps(Payload(canary)))
    size = (checkpoint / name).stat().st_size
    digest = contents(checkpoint)[name]
    entry = {"size": size, "sha256": digest}
    sign(checkpoint, lambda manifest: manifest["files"].update({name: entry}))
    ended = trials.run(*job.at(run), guard=str(guard))
    assert ended.code in (65, 76), ended
    assert not canary.exists()
    assert guard.read_text() == ""


def test_a_whole_run_starts_no_program_and_reaches_for_no_network(
    trials: Server, jobs: dict[str, Job], tmp_path: Path
) -> None:
    guard = tmp_path / "guard"
    for command, job in jobs.items():
        ended = trials.run(*job.at(tmp_path / command), guard=str(guard))
        assert ended.code == 0, ended.err
    assert guard.read_text() == ""


def test_the_guard_sees_a_program(trials: Server, tmp_path: Path) -> None:
    guard = tmp_path / "guard"
    assert trials.run(function="start_a_program", keywords={}, guard=str(guard)).code == 0
    assert "os.system" in guard.read_text()


@pytest.fixture
def hub(harmless: Path, tmp_path: Path) -> Path:
    """A cache of the hub that holds the model as `evil/model`."""
    repository = tmp_path / "hub" / "hub" / "models--evil--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    shutil.copytree(harmless, repository / "snapshots" / ("0" * 40))
    return tmp_path / "hub"


def from_hub(hub: Path, text: str, run: Path) -> subprocess.CompletedProcess[str]:
    """A run from the cached model, on a terminal that nobody answers at."""
    _, terminal = pty.openpty()
    command = ("pretrain", "--model", "evil/model", "--text", text, "train.max_steps=1")
    return subprocess.run(
        [sys.executable, "-m", "llmkit", *command, "data.block_size=16", "--output-dir", str(run)],
        env={**os.environ, **SURROUNDINGS, "HF_HOME": str(hub)},
        stdin=terminal,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def test_a_hub_model_with_code_is_refused_without_a_question(
    jobs: dict[str, Job], hub: Path, canary: Path, tmp_path: Path
) -> None:
    (snapshot,) = hub.glob("hub/models--evil--model/snapshots/*")
    with_code(snapshot, canary)
    code = {"AutoConfig": "modeling.Evil", "AutoModelForCausalLM": "modeling.Evil"}
    edit(snapshot / "config.json", model_type="evil", auto_map=code)
    ended = from_hub(hub, jobs["pretrain"].arguments[2], tmp_path / "run")
    assert ended.returncode == 77, ended.stderr
    assert "[y/N]" not in ended.stdout + ended.stderr
    assert not canary.exists()


def test_a_hub_model_that_was_not_fetched_whole_is_reported_by_its_file(
    jobs: dict[str, Job], hub: Path, tmp_path: Path
) -> None:
    (weights,) = hub.glob("hub/models--evil--model/snapshots/*/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    ended = from_hub(hub, jobs["pretrain"].arguments[2], tmp_path / "run")
    assert ended.returncode == 65, ended.stderr
    assert "evil/model" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_labels_that_look_like_paths_make_no_files(
    trials: Server, jobs: dict[str, Job], tmp_path: Path
) -> None:
    table = tmp_path / "rows.csv"
    rows = Path(jobs["finetune"].arguments[2]).read_text()
    table.write_text(rows.replace(",good", ",../../good").replace(",bad", f",{tmp_path}/bad"))
    before = {path.name for path in tmp_path.iterdir()}
    command = [str(table) if part.endswith(".csv") else part for part in jobs["finetune"].arguments]
    ended = trials.run(*command, "--output-dir", tmp_path / "run")
    assert ended.code == 0, ended.err
    assert {path.name for path in tmp_path.iterdir()} == before | {"run"}
    names = json.loads((tmp_path / "run" / "final" / "config.json").read_text())["id2label"]
    assert set(names.values()) == {"../../good", f"{tmp_path}/bad"}
