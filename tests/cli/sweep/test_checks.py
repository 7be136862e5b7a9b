"""What is wrong with any configuration is reported before the first run, all of it at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmkit.cli.sweep.checks import SweepFaults, failed_runs, stopped_sweep
from llmkit.cli.sweep.grid import Configuration
from llmkit.cli.sweep.plan import CommandLine, PlannedRun
from llmkit.config.checks import Faults
from llmkit.config.schema import Config
from llmkit.errors import ConfigError, DataError, Diverged, InputNotFound, LlmkitError, Stopped


def run(name: str) -> PlannedRun:
    config = Config(output_dir=str(Path("d") / name))
    line = CommandLine("pretrain", None, [], [])
    return PlannedRun(Configuration(name, {}, []), config, Faults("pretrain"), line)


RUNS = [run(f"seed={number}") for number in range(5)]


def collected(faults: dict[int, LlmkitError]) -> SweepFaults:
    found = SweepFaults(RUNS)
    for number, each in enumerate(RUNS):
        with found.collected(each):
            if number in faults:
                raise faults[number]
    return found


def test_a_fault_of_all_configurations_is_that_of_the_single_command() -> None:
    fault = InputNotFound("a.txt does not exist", where="data.train_files")
    with pytest.raises(InputNotFound) as raised:
        collected(dict.fromkeys(range(5), fault)).check()
    assert raised.value is fault


def test_other_faults_name_their_configurations_and_keep_a_common_class() -> None:
    with pytest.raises(DataError, match="2 of 5 configurations cannot run") as raised:
        collected({1: DataError("bad row", where="a:3", next="x"), 2: DataError("empty")}).check()
    lines = raised.value.where.split("\n       ")
    assert lines == ["seed=1: bad row (a:3); x", "seed=2: empty"]
    with pytest.raises(ConfigError) as raised:
        collected({**dict.fromkeys(range(4), DataError("bad")), 4: InputNotFound("gone")}).check()
    assert "seed=0; seed=1; seed=2 and 1 more: bad" in raised.value.where
    collected({}).check()


def test_a_signal_stops_the_checks() -> None:
    with pytest.raises(Stopped), SweepFaults(RUNS).collected(RUNS[0]):
        raise Stopped("stopped by SIGTERM")


def test_errors_of_a_sweep_hold_its_runs_and_say_what_is_done_and_what_remains() -> None:
    states = ["finished", "finished", "interrupted", "failed", "not started"]
    runs = [each.described(state) for each, state in zip(RUNS, states, strict=True)]
    figures = {"sweep_dir": "d", "runs": runs}
    fault = stopped_sweep(figures, Stopped("stopped by SIGTERM"))
    assert isinstance(fault, Stopped)
    assert fault.kept.split("\n       ") == [
        "2 finished: seed=0; seed=1", "1 to resume: seed=2", "1 failed: seed=3",
        "1 not started: seed=4",
    ]  # fmt: skip
    diverged = Diverged("not finite", where="step 3")
    failed = failed_runs(figures, [("seed=3", diverged), ("seed=4", DataError("bad"))])
    assert failed.exit_code == Diverged.exit_code
    assert "seed=3: not finite (step 3)" in failed.where
    assert failed.kept == "2 finished runs, in d"
    assert failed.found == fault.found == figures
