"""Trackers: one run of each for one of ours, with every figure once, whatever happens."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from llmkit.errors import ConfigError
from llmkit.reporting.console import Console
from llmkit.reporting.trackers import SENT_FILE, Tracking, tracking
from tests.harness import Server
from tests.jobs import WORDS, metrics, tiny

Points = Counter[tuple[str, int, float]]
INSTALLED = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"needs {name}"),
    )
    for name in ("tensorboard", "mlflow", "trackio")
]


class Store:
    """Where the trackers of a test keep their runs, and what is in them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.mlflow = directory / "mlflow.db"
        self.trackio = directory / "trackio"
        self.environment = {
            "MLFLOW_TRACKING_URI": f"sqlite:///{self.mlflow}",
            "TRACKIO_DIR": str(self.trackio),
        }

    def points(self, name: str, run: Path) -> Points:
        """Every (figure, step, value) that a tracker holds, as often as it is there."""
        if name == "tensorboard":
            events = EventAccumulator(str(run / "llmkit"), size_guidance={"scalars": 0}).Reload()
            return Counter(
                (tag, event.step, round(event.value, 4))
                for tag in events.Tags()["scalars"]
                for event in events.Scalars(tag)
            )
        if name == "mlflow":
            rows = self._rows(self.mlflow, "select key, step, value from metrics")
            return Counter((key, step, round(value, 4)) for key, step, value in rows)
        rows = self._rows(self.trackio / "llmkit.db", "select step, metrics from metrics")
        return Counter(
            (key, step, round(value, 4))
            for step, found in rows
            for key, value in json.loads(found).items()
        )

    def runs(self, name: str, run: Path) -> int:
        """The number of runs that a tracker holds."""
        if name == "tensorboard":
            return len({path.parent for path in run.glob("llmkit/events*")})
        if name == "mlflow":
            return len(self._rows(self.mlflow, "select distinct run_uuid from metrics"))
        return len(self._rows(self.trackio / "llmkit.db", "select distinct run_name from metrics"))

    def _rows(self, path: Path, question: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(path)) as database:
            return database.execute(question).fetchall()


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    made = Store(tmp_path)
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    return made


def figures(run: Path) -> Points:
    """Every (figure, step, value) of metrics.jsonl."""
    return Counter(
        (key, record["step"], round(value, 4))
        for record in metrics(run)
        for key, value in record.items()
        if isinstance(value, int | float) and key != "step"
    )


@pytest.mark.parametrize("name", INSTALLED)
def test_a_run_that_is_killed_and_resumed_is_one_run_with_every_figure_once(
    trials: Server, store: Store, tmp_path: Path, name: str
) -> None:
    text, run = tmp_path / "text.txt", tmp_path / "run"
    text.write_text("\n".join(" ".join(WORDS[n % 7 :]) for n in range(60)))
    command = (
        "pretrain", "--text", text, "-o", run, f"report_to={name}", "train.max_steps=30",
        "train.logging_steps=1", "train.save_steps=7", "train.eval_steps=6", *tiny(), "--json",
    )  # fmt: skip
    for lines in (5, 12, 19):
        trial = trials.start(*command, environment=store.environment)
        trial.until_lines(run / "metrics.jsonl", lines)
        trial.end(signal.SIGKILL)
    done = trials.run(*command, environment=store.environment)
    assert done.code == 0, done.err
    assert json.loads(done.out)["step"] == 30  # nothing of a tracker is on stdout
    assert figures(run) - store.points(name, run) == Counter()
    twice = {point: n for point, n in store.points(name, run).items() if n > 1}
    assert twice == {}
    assert store.runs(name, run) == 1


def test_a_tracker_that_is_added_later_receives_all_figures(
    trials: Server, store: Store, tmp_path: Path
) -> None:
    text, run = tmp_path / "text.txt", tmp_path / "run"
    text.write_text("\n".join(" ".join(WORDS[n % 7 :]) for n in range(60)))
    command = ("pretrain", "--text", text, "-o", run, "train.max_steps=4", *tiny())
    assert trials.run(*command).code == 0
    assert not (run / SENT_FILE).exists()
    assert trials.run(*command, "report_to=tensorboard").code == 0
    assert store.points("tensorboard", run) == figures(run)


@pytest.mark.parametrize("name", INSTALLED)
def test_figures_with_any_name_are_sent_once_and_in_the_same_run(
    store: Store, tmp_path: Path, name: str
) -> None:
    run = tmp_path / "mine"
    run.mkdir()
    for _ in range(2):
        with tracking((name,), run, {"long": "x" * 9000, "rate": 0.1}, Console()) as track:
            assert track is not None
            track.log({"loss": 1.0, "loss/domain (ä)": 2.0}, 1)
            track.log({"validation_loss": 3.0}, 1)
    assert sum(store.points(name, run).values()) == 3
    assert store.runs(name, run) == 1


class Broken:
    """A tracker whose server is gone."""

    def __init__(self) -> None:
        self.writer = self

    def add_scalar(self, name: str, value: float, step: int) -> None:
        raise ConnectionError("the server is gone\nmore")


def test_a_tracker_that_fails_is_reported_once_and_training_continues(tmp_path: Path) -> None:
    console = Console()
    with tracking(("tensorboard",), tmp_path, {}, console) as track:
        assert track is not None
        whole, track.started["tensorboard"] = track.started["tensorboard"], Broken()
        track.log({"loss": 1.0}, 1)
        track.log({"loss": 2.0}, 2)
        whole.finish()
    assert len(console.warnings) == 1
    assert (
        "tensorboard failed, and is sent nothing more: the server is gone;" in console.warnings[0]
    )
    assert Tracking(tmp_path, console).sent["tensorboard"].step == -1  # resuming sends them


def test_the_disk_is_not_waited_for_between_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[int] = []
    monkeypatch.setattr(os, "fsync", waits.append)
    with tracking(("tensorboard",), tmp_path, {}, Console()) as track:
        assert track is not None
        waits.clear()
        for step in range(20):
            track.log({"loss": 1.0, "rate": 0.1}, step)
        assert waits == []
        assert Tracking(tmp_path, Console()).sent["tensorboard"].step == -1
        track.flush()
        assert Tracking(tmp_path, Console()).sent["tensorboard"].step == 19
        assert sum(Store(tmp_path).points("tensorboard", tmp_path).values()) == 40
        track.log({"loss": 2.0}, 20)
    assert Tracking(tmp_path, Console()).sent["tensorboard"].step == 20
    assert sum(Store(tmp_path).points("tensorboard", tmp_path).values()) == 41


def test_a_record_that_cannot_be_written_stops_no_run(tmp_path: Path) -> None:
    console = Console()
    with tracking(("tensorboard",), tmp_path, {}, console) as track:
        assert track is not None
        track.path.unlink()
        track.path.mkdir()
        track.log({"loss": 1.0}, 1)
        track.flush()
    assert any("trackers may receive figures twice" in text for text in console.warnings)


def test_a_tracker_that_cannot_start_is_refused_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "llmkit").write_text("in the way")
    with (
        pytest.raises(ConfigError, match="report_to=tensorboard cannot start"),
        tracking(("tensorboard",), tmp_path, {}, Console()),
    ):
        pass


@pytest.mark.parametrize("content", ["", "{", "[]", '{"tensorboard": 1}', '{"tensorboard": {}}'])
def test_a_damaged_record_begins_a_new_run_of_the_tracker(tmp_path: Path, content: str) -> None:
    (tmp_path / SENT_FILE).write_text(content)
    assert Tracking(tmp_path, Console()).sent == {}


def test_without_trackers_nothing_is_written(tmp_path: Path) -> None:
    with tracking((), tmp_path, {}, Console()) as track:
        assert track is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", INSTALLED)
def test_no_tracker_reaches_for_the_network(store: Store, tmp_path: Path, name: str) -> None:
    script = (
        "import sys\n"
        "def watch(event, arguments):\n"
        "    if event in ('socket.connect', 'socket.getaddrinfo'):\n"
        "        print(event, arguments, file=sys.stderr); raise SystemExit(9)\n"
        "sys.addaudithook(watch)\n"
        "from pathlib import Path\n"
        "from accelerate import PartialState\n"
        "from llmkit.reporting.console import Console\n"
        "from llmkit.reporting.trackers import tracking\n"
        "PartialState()\n"
        "with tracking((sys.argv[1],), Path(sys.argv[2]), {'a': 1}, Console()) as track:\n"
        "    track.log({'loss': 1.0}, 1)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, name, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
