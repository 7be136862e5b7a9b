"""The command of each run is complete: run alone it is the same run."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmkit.cli.sweep.plan import CommandLine, plan_sweep
from llmkit.config.given import GivenOption
from llmkit.errors import UsageError, WriteError

TEXT = GivenOption("--text", "data.train_files", ["a.txt", "-b.txt"])


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def line(*overrides: str, options: tuple[GivenOption, ...] = (TEXT,)) -> CommandLine:
    return CommandLine("pretrain", None, overrides, options, ("--allow-code",))


def test_a_command_has_all_options_in_their_places_and_its_own_directory() -> None:
    options = (
        GivenOption("--output-dir", "output_dir", "mine", after=0),
        GivenOption("--model", "model.name_or_path", "m", after=1),
        TEXT,
    )
    plan = plan_sweep(line("model.name_or_path=x", "seed=1,2", options=options))
    assert plan.runs[1].words == [
        "pretrain", "model.name_or_path=x", "--model", "m", "seed=2", "--text", "a.txt",
        "--text=-b.txt", "--output-dir", "mine/seed=2", "--allow-code",
    ]  # fmt: skip


def test_the_same_sweep_finds_its_directory_and_another_gets_a_new_one() -> None:
    name = "pretrain-a-and-1-more-sweep"
    plan = plan_sweep(line("seed=1,2"))
    assert plan.directory == Path(f"runs/{name}-1")
    assert not Path("runs").exists()
    assert plan.claimed().directory == Path(f"runs/{name}-1")
    assert plan_sweep(line("seed=2,1")).directory == Path(f"runs/{name}-1")
    assert plan_sweep(line("seed=1,3")).directory == Path(f"runs/{name}-2")
    assert plan_sweep(line("seed=1,2", "resume=never")).directory == Path(f"runs/{name}-2")
    swept = plan_sweep(line("data.train_files=a.txt,b.txt", options=()))
    assert swept.directory == Path("runs/pretrain-sweep-1")


def test_a_plan_that_another_sweep_overtakes_gets_the_next_directory() -> None:
    slow, fast = plan_sweep(line("seed=1,2")), plan_sweep(line("seed=3,4"))
    assert slow.directory == fast.directory
    first, second = fast.claimed(), slow.claimed()
    assert second.directory.name == "pretrain-a-and-1-more-sweep-2"
    assert second.runs[0].directory == second.directory / "seed=1"
    assert first.directory != second.directory


@pytest.mark.parametrize(
    "overrides", [("train.learning_rate=1e-3,0.001",), ("data.train_files=x,y",)]
)
def test_two_names_for_one_run_are_refused(overrides: tuple[str, ...]) -> None:
    late = (GivenOption("--text", "data.train_files", ["z"]),)
    with pytest.raises(UsageError, match="are the same run"):
        plan_sweep(line(*overrides, options=late)).check_different()


@pytest.mark.parametrize("name", ["run.json", "sweep.json", "report.html"])
def test_files_that_no_sweep_wrote_are_kept(name: str) -> None:
    Path("mine").mkdir()
    Path("mine", name).write_text("{}")
    with pytest.raises(WriteError, match=r"holds a|not written by `llmkit report`"):
        plan_sweep(line("seed=1,2", "output_dir=mine")).check_place()
    assert Path("mine", name).read_text() == "{}"
