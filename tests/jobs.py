"""What several files of tests need: data, command lines, and what runs wrote."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, FunctionType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast

from llmkit.cli import app
from llmkit.data.text.token_file import TokenFile
from llmkit.models import build
from llmkit.reporting.held_out import HeldOut, read_held_out

Call = Callable[..., dict[str, Any]]
"""Runs a command line: the fixture `call`."""

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
SHARED = ROOT.parent / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared data sets")

WORDS = "the cat sat on a mat and saw how far the little dog had run away from home".split()
TINY = (
    "model.config.hidden_size=32", "model.config.num_hidden_layers=2",
    "tokenizer.vocab_size=300", "data.block_size=16", "train.global_batch_size=8",
    "train.micro_batch_size=4", "train.compile=false", "generation.max_new_tokens=4",
)  # fmt: skip
"""Overrides for a tiny model."""


def changed(line: Iterable[Any], *changes: str) -> list[Any]:
    """A command line, some of its keys changed."""
    keys = {change.partition("=")[0] for change in changes}
    return [*(each for each in line if str(each).partition("=")[0] not in keys), *changes]


def tiny(*changes: str) -> list[str]:
    """Overrides for a tiny model, some of them changed."""
    return changed(TINY, *changes)


def write_table(
    path: Path, rows: Iterable[Sequence[object]], columns: Sequence[str] = ("text", "label")
) -> Path:
    """A CSV file."""
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


def token_file(documents: list[list[int]], opening: int, closing: int) -> TokenFile:
    """Documents as tokens, framed by ids."""
    stream: list[int] = []
    starts: list[int] = []
    for document in documents:
        if opening != closing or not stream:
            stream.append(opening)
        starts.append(len(stream) - 1)
        stream += [*document, closing]
    return TokenFile(
        ids=np.array(stream, np.uint16),
        starts=np.array(starts),
        document_bytes=np.array([len(document) for document in documents]),
        n_bytes=sum(map(len, documents)),
        opening=opening,
        closing=closing,
        max_id=max(stream),
        blank=0,
        undecodable=0,
        lost=0.0,
        fingerprint="",
    )


def metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def spikes(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl on spikes of the loss."""
    return [line for line in metrics(run) if "loss_spike" in line]


def weights(run: Path) -> dict[str, torch.Tensor]:
    """The weights of the finished model."""
    return load_file(run / "final" / "model.safetensors")


def assert_same(a: Path, b: Path) -> None:
    """Two runs logged the same bytes and ended with the same weights."""
    assert (a / "metrics.jsonl").read_bytes() == (b / "metrics.jsonl").read_bytes()
    one, other = weights(a), weights(b)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def assert_close(a: Path, b: Path, rel: float = 1e-3, abs: float | None = None) -> None:
    """Two runs logged the same figures up to rounding."""
    for one, other in zip(metrics(a), metrics(b), strict=True):
        assert one.keys() == other.keys()
        if "samples" not in one:
            assert one == pytest.approx(other, rel=rel, abs=abs)


def assert_held_out_agrees(run: Path) -> HeldOut:
    """What a run wrote of each held-out unit adds up to the validation figures of its result, which
    lie in their intervals."""
    found = read_held_out(run)
    assert found is not None
    validation = json.loads((run / "run.json").read_text())["result"]["validation"]
    for name, value in found.figures().items():
        assert value == pytest.approx(validation[name], rel=1e-4, abs=1e-6), name
    for name, (low, high) in found.intervals().items():
        assert low <= found.figures()[name] <= high, name
    return found


def assert_choices_explained(run: Path) -> dict[str, str]:
    """A run gives the reason of each value that it chose; returns them."""
    facts = json.loads((run / "run.json").read_text())
    chosen = [key for key, origin in facts["origins"].items() if origin == "auto"]
    assert len(chosen) > 10
    assert list(facts["reasons"]) == chosen
    return dict(facts["reasons"])


def finetuning(tables: Mapping[str, Path], *keys: object) -> tuple[object, ...]:
    """A command line for a table to train on, and one to validate or test with."""
    held_out = [f"data.{name}_files={path}" for name, path in tables.items() if name != "train"]
    return ("finetune", "--csv", tables["train"], *held_out, *keys)


def finetuned(factory: pytest.TempPathFactory, line: Iterable[object]) -> dict[str, Any]:
    """Where a finished run is, and what it measured."""
    run = factory.mktemp("runs") / "reference"
    assert app.run_command([*map(str, line), "--output-dir", str(run), "--quiet"]) == 0
    return {"run": run, **json.loads((run / "evaluation.json").read_text())}


def write_parts(
    factory: pytest.TempPathFactory, suffix: str, write: Callable[[Path, Any], Path], **parts: Any
) -> dict[str, Path]:
    """A file for each part of a data set."""
    directory = factory.mktemp("tables")
    return {name: write(directory / f"{name}.{suffix}", rows) for name, rows in parts.items()}


def save_new_model(
    path: Path, own: PreTrainedTokenizerFast, kind: str = "llama", hidden: int = 32, layers: int = 2
) -> Path:
    """A tiny causal model that knows nothing, without a chat template."""
    shape: dict[str, Any] = {"hidden_size": hidden, "num_hidden_layers": layers}
    if kind == "llama":
        shape["num_attention_heads"] = 2
    special = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    config = build.model_config(kind, shape, len(own), 128, special)
    build.causal_model(config, 0).save_pretrained(path)
    own.save_pretrained(path)
    return path


def resume_killed(
    trials: Any, call: Call, line: Sequence[object], run: Path, lines: int = 20
) -> dict[str, Any]:
    """The result of a run that was killed after a checkpoint, when its metrics had so many lines,
    and resumed."""
    process = trials.start(*line, "--output-dir", run)
    process.until_lines(run / "metrics.jsonl", lines)
    assert process.end(signal.SIGKILL).code == -signal.SIGKILL
    return resumed(call, line, run)


def resume_shortened(call: Call, line: Sequence[object], run: Path) -> dict[str, Any]:
    """The result of a finished run that has lost its newest checkpoint and its final model."""
    shutil.rmtree(sorted((run / "checkpoints").iterdir())[-1])
    shutil.rmtree(run / "final")
    return resumed(call, line, run)


def resumed(call: Call, line: Sequence[object], run: Path) -> dict[str, Any]:
    """The result of a run that continues."""
    result = call(*line, "--output-dir", run)
    assert result["code"] == 0, result["said"]
    assert "resuming from step" in result["said"], result["said"]
    return result


def assert_resumes_to_the_bit(
    call: Call, line: Sequence[object], directory: Path, *lost: str
) -> tuple[Path, dict[str, Any]]:
    """A run that has lost its end and these files is resumed like one that was never interrupted;
    returns the whole one, and the result of the other."""
    runs = [directory / name for name in ("whole", "resumed")]
    for run in runs:
        result = call(*line, "--output-dir", run)
        assert result["code"] == 0, result["said"]
    for name in lost:
        (runs[1] / name).unlink()
    result = resume_shortened(call, line, runs[1])
    assert_same(*runs)
    return runs[0], result


def assert_processes_agree(
    llmkit: Any, line: Sequence[object], directory: Path, rel: float = 1e-3
) -> list[dict[str, Any]]:
    """One and two processes give the same figures; returns both results."""
    found = []
    for processes in (1, 2):
        run = directory / str(processes)
        done = llmkit(*line, "--output-dir", run, "--json", processes=processes)
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout))
    assert_close(directory / "1", directory / "2", rel=rel, abs=1e-5)
    return found


def sign(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes a manifest and makes its own hash right again."""
    path = directory / "manifest.json"
    manifest = json.loads(path.read_text())["manifest"]
    change(manifest)
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps({"manifest": manifest, "sha256": digest}))


@contextmanager
def calls_of(*functions: FunctionType) -> Iterator[list[dict[str, Any]]]:
    """The arguments of each call of some functions in this thread meanwhile."""
    found: list[dict[str, Any]] = []
    codes = [function.__code__ for function in functions]

    def note(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and frame.f_code in codes:
            found.append(dict(frame.f_locals))

    sys.setprofile(note)
    try:
        yield found
    finally:
        sys.setprofile(None)
