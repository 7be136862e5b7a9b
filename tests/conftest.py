"""What holds for all tests: one thread, no hub, a cache of their own, one server that starts
processes, nothing left behind, and no failure because the machine is busy."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from llmkit.progress import Watch
from tests.harness import Server

# before the libraries are imported
os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", ORT_DISABLE_TELEMETRY="1")
# A shell that starts the tests in the background ignores Ctrl-C for them and all their children.
signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Makes the directory of a finished run of a classifier, or of one whose files are given."""

    def written(name: str = "mine", accuracy: float = 0.8, **files: Any) -> Path:
        directory = tmp_path / name
        directory.mkdir()
        validation = {
            "examples": 10,
            "loss": 0.5,
            "accuracy": accuracy,
            "intervals": {"accuracy": [accuracy - 0.1, accuracy + 0.1]},
            "per_class": {"good": {}, "<b>bad</b>": {}},
            "confusion_matrix": [[5, 1], [1, 3]],
            "baseline": {"majority": {"accuracy": 0.6}, "tfidf": {"accuracy": 0.7}},
        }
        facts = {
            "command": "finetune",
            "arguments": ["finetune", "--csv", "my reviews.csv"],
            "content": {"validation data": "abc"},
            "environment": {"torch": "2"},
            "warnings": ["only <i>three</i> rows"],
            "limits": ["only <i>three</i> rows"],
            "result": {"step": 2, "seconds": 3.0, "parameters": 1000, "validation": validation},
        }
        lines = [
            {"step": 1, "train_loss": 0.9},
            {"step": 2, "train_loss": 0.6},
            {"step": 2, "validation_loss": 0.5, "validation_accuracy": accuracy},
        ]
        content = {
            "run.json": json.dumps(facts),
            "config.yaml": f"seed: 1\ntrain: {{learning_rate: {accuracy}}}\n"
            "data: {train_files: [my reviews.csv]}\nmodel: {architecture: bert}\n",
            "metrics.jsonl": "".join(json.dumps(line) + "\n" for line in lines),
            "evaluation.json": json.dumps({"validation": validation}),
            **{key.replace("_", ".", 1): value for key, value in files.items()},
        }
        for file, text in content.items():
            if text is not None:
                (directory / file).write_text(text, encoding="utf-8")
        return directory

    return written


@pytest.fixture(autouse=True, scope="session")
def cache_of_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of the tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def watch() -> Watch:
    """A display that shows nothing."""

    @contextmanager
    def silent(label: str, total: int) -> Iterator[Callable[[int], None]]:
        yield lambda amount: None

    return silent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The collection of real data."""
    from tests.jobs import SHARED

    if not SHARED.is_dir():
        pytest.skip(f"needs the test data collection at {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def trials(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Where trials are started."""
    server = Server(tmp_path_factory.mktemp("trials"))
    yield server
    server.close()


@pytest.fixture(autouse=True)
def nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test that has not ended all that it started, or that left a temporary file."""
    yield
    if "trials" in request.fixturenames:
        assert request.getfixturevalue("trials").leftovers() == []
