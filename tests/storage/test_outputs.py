"""What only output of llmkit is never data, however a directory or a glob finds it."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import pytest

from llmkit.config.schema import PredictConfig
from llmkit.data.readers import files
from llmkit.errors import InputNotFound
from llmkit.reporting import predictions
from llmkit.reporting import results as evaluations
from llmkit.reporting.predictions import Prediction
from llmkit.storage import atomic, cache, resumable

RECORD = json.dumps({"command": "finetune", "arguments": [], "environment": {}})


def found(*entries: object) -> set[str]:
    return {each.path.name for each in files.find([str(e) for e in entries], "data.test_files")}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "a.txt").write_text("text\n")
    (tmp_path / "b.jsonl").write_text('{"text": "x", "label": "y"}\n')
    return tmp_path


def fill(directory: Path) -> None:
    (directory / "merges.txt").write_text("a b\n")


def built(directory: Path) -> dict[str, str]:
    fill(directory)
    return {}


def make_run(run: Path, record: str | None = RECORD, checkpoint: bool = False) -> None:
    run.mkdir(parents=True)
    (run / "metrics.jsonl").write_text('{"step": 1}\n')
    if record is not None:
        (run / "run.json").write_text(record)
    if checkpoint:
        atomic.commit(run / "checkpoints" / "step-0000000001", fill, {"step": 1})


@pytest.mark.parametrize("place", ["runs/x", "deep/er/runs/x", "x", "own/x"])
@pytest.mark.parametrize(
    ("record", "checkpoint"), [(RECORD, False), (RECORD[:20], False), (None, True), (RECORD, True)]
)
def test_a_run_is_not_data(corpus: Path, place: str, record: str | None, checkpoint: bool) -> None:
    before = found(corpus)
    make_run(corpus / place, record, checkpoint)
    (corpus / place / "predicted").mkdir()
    (corpus / place / "predicted" / "new.csv").write_text("text,label\na,b\n")
    assert found(corpus) == before
    assert found(f"{corpus}/**/*.*") == before
    for entry in (corpus / place, f"{corpus / place}/*.jsonl"):
        with pytest.raises(InputNotFound, match="only output of llmkit"):
            found(entry)


def test_a_model_of_a_run_and_the_cache_are_not_data(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = found(corpus)
    atomic.commit(corpus / "copied-final", fill, {"step": 1})
    monkeypatch.setenv("LLMKIT_CACHE", str(corpus / "cache"))
    (corpus / "cache").mkdir()
    (corpus / "cache" / "notes.txt").write_text("x")
    monkeypatch.setenv("LLMKIT_CACHE", str(corpus / "earlier"))
    name = f"tokenizer-{cache.key('x')}"
    cache.open_or_build(name, built, lambda label, total: nullcontext(print), print)
    monkeypatch.delenv("LLMKIT_CACHE")
    assert found(corpus / "own") == {"a.txt"}
    (corpus / "cache" / "notes.txt").unlink()
    assert found(corpus) == found(f"{corpus}/**/*.*") == before


def test_results_are_not_data(corpus: Path) -> None:
    before = found(corpus)
    with resumable.open_result_lines(corpus / "said.jsonl", {"model": "m"}) as written:
        written.add({"prompt": "a", "text": "b"})
    rows = [Prediction(("long " * 90000,), "y", {"y": 0.9, "z": 0.1}, {"id": 3})]
    for name in ("labels.jsonl", "labels.csv"):
        with predictions.open_predictions(
            PredictConfig(output=str(corpus / name)), {}, print
        ) as writer:
            writer.write(rows)
    for name in ("result.json", "result.txt"):
        evaluations.write_result(corpus / name, {"command": "evaluate", "perplexity": 2.0})
    evaluations.write_lines(corpus / "samples.jsonl", [{"text": "x"}])
    assert found(corpus) == found(f"{corpus}/**/*.*") == before
    assert found(corpus / "labels.csv") == {"labels.csv"}


def test_files_that_only_look_alike_are_data(corpus: Path) -> None:
    (corpus / "run.json").write_text('{"command": "make"}')
    (corpus / "manifest.json").write_text('{"name": "a web application"}')
    (corpus / "run.jsonl").write_text('{"text": "x", "label": "a", "probabilities": "high"}\n')
    (corpus / "c.csv").write_text("text,label,probability_of_rain,town\na,b,c,d\n")
    assert found(corpus) >= {"a.txt", "b.jsonl", "run.jsonl", "c.csv"}
