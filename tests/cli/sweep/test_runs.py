"""A sweep as a user runs it: each run is that of its single command, whatever others do."""

from __future__ import annotations

import json
import random
import shlex
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from llmkit.cli import app
from tests.harness import Ended, Server
from tests.jobs import WORDS, assert_same, tiny

KEYS = (*tiny(), "train.max_steps=8", "train.logging_steps=1")
RATES = "train.learning_rate=1e-3,1e30,3e-3"
Run = Callable[..., Ended]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a text of 60 lines."""
    chance = random.Random(0)
    directory = tmp_path_factory.mktemp("sweep")
    lines = (" ".join(chance.choices(WORDS, k=chance.randint(3, 30))) for _ in range(60))
    (directory / "words.txt").write_text("\n".join(lines) + "\n")
    return directory


@pytest.fixture(scope="module")
def llmkit(here: Path, trials: Server) -> Run:
    """Runs a command line there, on that text."""

    def run(*arguments: object) -> Ended:
        line = ("pretrain", "--text", "words.txt", *KEYS, *arguments)
        return trials.run(*line, directory=str(here))

    return run


@pytest.fixture(scope="module")
def swept(llmkit: Run) -> Ended:
    """A sweep of three runs, one of which diverges."""
    return llmkit(RATES, "--sweep", "--json")


SWEEP = "runs/pretrain-words-sweep-1"


def test_a_run_that_fails_stops_no_other_and_is_in_code_and_summary(swept: Ended) -> None:
    assert swept.code == 79, swept.err
    found = json.loads(swept.out)
    assert [run["status"] for run in found["runs"]] == ["finished", "failed", "finished"]
    assert found["error"]["what"] == "1 of 3 runs failed"
    assert "learning_rate=1e30: the loss or gradient" in found["error"]["where"]
    assert found["runs"][1]["error"]["code"] == 79
    assert found["runs"][1]["keys"] == {"train.learning_rate": 1e30}
    assert found["best"] == "learning_rate=3e-3"
    assert found["runs"][2]["result"]["validation"]["perplexity"] > 1


def test_the_page_says_that_choosing_the_best_makes_its_figure_optimistic(
    swept: Ended, here: Path
) -> None:
    found = json.loads(swept.out)
    assert found["page"] == f"{SWEEP}/report.html"
    page = (here / found["page"]).read_text()
    for text in ("3e-3 has the best bits per byte", "which is therefore too optimistic"):
        assert text in page
        assert text in " ".join(found["sentences"])
    assert "(unfinished)" in page


def test_a_run_of_a_sweep_is_that_of_its_printed_command(
    swept: Ended, llmkit: Run, here: Path, trials: Server
) -> None:
    """Also of another name, in another process: the runs share nothing."""
    assert swept.code == 79
    printed = llmkit(RATES, "--sweep", "--print")
    lines = printed.out.splitlines()
    assert [line.split()[-1] for line in lines] == [
        f"{SWEEP}/learning_rate={rate}" for rate in ("1e-3", "1e30", "3e-3")
    ]
    words = [*shlex.split(lines[2])[1:-1], "alone"]
    assert trials.run(*words, directory=str(here)).code == 0
    assert_same(here / "alone", here / SWEEP / "learning_rate=3e-3")


def test_finished_runs_are_not_repeated_and_compared_again(
    swept: Ended, llmkit: Run, here: Path
) -> None:
    assert swept.code == 79
    record = here / SWEEP / "learning_rate=1e-3" / "run.json"
    before = record.stat().st_mtime_ns
    done = llmkit("train.learning_rate=1e-3,3e-3", "--sweep", "-o", SWEEP)
    assert done.code == 0, done.err
    assert record.stat().st_mtime_ns == before
    assert "run 1 of 2: learning_rate=1e-3: finished before" in done.err
    assert "checking" not in done.err
    rows = [line.split() for line in done.out.splitlines()]
    assert ["*", "0.003"] in [row[:2] for row in rows]
    assert "2 runs in" in done.out


def test_a_finished_run_of_another_config_is_refused_before_the_first(
    swept: Ended, llmkit: Run
) -> None:
    assert swept.code == 79
    done = llmkit("train.learning_rate=1e-3,5e-3", "seed=9", "--sweep", "-o", SWEEP)
    assert done.code == 78
    assert "learning_rate=1e-3: option --output-dir: " in done.err
    assert "seed was 0, is now 9" in done.err
    assert "run 1 of" not in done.err


def test_a_report_of_all_files_of_a_sweep_is_one_of_its_runs(swept: Ended, here: Path) -> None:
    assert swept.code == 79
    everything = sorted(map(str, (here / SWEEP).iterdir()))
    assert f"{here / SWEEP}/sweep.json" in everything
    visible = [path for path in everything if not Path(path).name.startswith(".")]
    pages = [here / "all.html", here / "dir.html"]
    assert app.run_command(["report", *visible, "-o", str(pages[0])]) == 0
    assert app.run_command(["report", str(here / SWEEP), "-o", str(pages[1])]) == 0
    assert pages[0].read_text() == pages[1].read_text()
    assert "3 runs compared" in pages[0].read_text()


STOPPED = ("train.max_steps=300,3", "-o", "stopped", "--sweep")


@pytest.fixture(scope="module")
def stopped(here: Path, trials: Server) -> Ended:
    """A sweep that SIGTERM has stopped in its first run."""
    line = ("pretrain", "--text", "words.txt", *KEYS, *STOPPED)
    trial = trials.start(*line, directory=str(here))
    trial.until("step 5/300")
    return trial.end(signal.SIGTERM)


@pytest.mark.slow
def test_a_signal_stops_a_sweep_after_saving_and_says_what_remains(stopped: Ended) -> None:
    assert stopped.code == 75
    assert "checkpoint stopped/max_steps=300/checkpoints/step-" in stopped.err
    for text in ("1 to resume: max_steps=300", "1 not started: max_steps=3"):
        assert text in stopped.err


@pytest.mark.slow
def test_the_same_command_continues_a_stopped_sweep(stopped: Ended, llmkit: Run) -> None:
    assert stopped.code == 75
    again = llmkit(*STOPPED)
    assert again.code == 0, again.err
    assert "resuming from step" in again.err
    assert "2 runs in stopped: 2 finished." in again.out


def test_ctrl_c_before_the_first_run_ends_at_once_with_its_code(here: Path, trials: Server) -> None:
    line = ("pretrain", "--text", "words.txt", *KEYS, "seed=1,2", "-o", "early", "--sweep")
    trial = trials.start(*line, directory=str(here))
    trial.until("checking all of them")
    ended = trial.end(signal.SIGINT)
    assert ended.code == 130
    assert "2 not started: seed=1; seed=2" in ended.err
    assert not (here / "early").exists()


def test_a_dry_run_makes_every_check_and_creates_nothing(llmkit: Run, here: Path) -> None:
    before = sorted((here / "runs").glob("*")) if (here / "runs").exists() else []
    sizes = "model.config.hidden_size=32,33"
    wrong = llmkit("train.max_steps=1", sizes, "seed=1,2", "--sweep", "--dry-run")
    assert wrong.code == 78
    assert "2 of 4 configurations cannot run; none was started" in wrong.err
    assert "hidden_size=33,seed=1; hidden_size=33,seed=2: llama rejects" in wrong.err
    good = llmkit("train.max_steps=1", "seed=1,2", "--sweep", "--dry-run", "--json")
    runs = json.loads(good.out)["runs"]
    assert [run["status"] for run in runs] == ["not started"] * 2
    assert runs[0]["report"]["parameters"] > 0
    assert (sorted((here / "runs").glob("*")) if (here / "runs").exists() else []) == before


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("--sweep",), 2, "needs a key with several values"),
        (("--print",), 2, "`--print` needs `--sweep`"),
        (("seed=1,2", "--sweep", "--print-config"), 2, "`--sweep --dry-run` lists the runs"),
        (("seed=1,2",), 78, "add `--sweep`"),
        (("lr=1e-3,3e-3", "--sweep"), 78, "write `train.learning_rate=1e-3,3e-3`"),
        (("seed=1,x,-1", "--sweep"), 78, "seed=x: argument seed=x: seed: should be int >= 0"),
        (("data.train_files=words.txt,no.txt", "--sweep"), 66, "no.txt does not exist"),
        (("tokenizer.vocab_size='1\n',2", "--sweep", "--print"), 78, "should be"),
    ],
)
def test_what_cannot_work_is_refused_without_the_libraries(
    arguments: tuple[str, ...], code: int, text: str, llmkit: Run
) -> None:
    ended = llmkit(*arguments)
    assert ended.code == code, ended.err
    assert text in ended.err


def test_under_torchrun_a_sweep_says_how_to_start_its_runs(here: Path, trials: Server) -> None:
    environment = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9"}
    line = ("pretrain", "--text", "words.txt", "seed=1,2", "--sweep")
    ended = trials.run(*line, directory=str(here), environment=environment)
    assert ended.code == 2
    assert "--sweep --print" in ended.err
