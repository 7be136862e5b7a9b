"""`merge --train` is the commands of a seed, of its experts and of their merge."""

from __future__ import annotations

import json
import random
import shlex
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from llmkit.cli.sweep.experts import plan_experts
from llmkit.cli.sweep.plan import CommandLine
from llmkit.config.given import GivenOption
from llmkit.errors import ConfigError, UsageError, WriteError
from tests.harness import Ended, Server
from tests.jobs import WORDS, metrics, tiny

MIXTURE = "data: {document: line, mixture: {code: {files: code.txt}, poems: {files: poems.txt}}}\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("experts.yaml").write_text(MIXTURE)
    return tmp_path


def line(*overrides: str, options: tuple[GivenOption, ...] = ()) -> CommandLine:
    return CommandLine("merge", Path("experts.yaml"), overrides, options, ("--quiet",))


def commands(asked: CommandLine) -> list[str]:
    return [shlex.join(run.words) for run in plan_experts(asked).runs]


OUTPUT = GivenOption("--output-dir", "output_dir", "all")


def test_the_commands_are_those_of_the_runs_by_themselves(here: Path) -> None:
    asked = line("train.max_steps=9", "merge.into=moe", "seed=2", options=(OUTPUT,))
    begin, end = "pretrain experts.yaml train.max_steps=9 seed=2", "--quiet"
    assert commands(asked) == [
        f"{begin} --output-dir all/seed {end}",
        f"{begin} --model all/seed --expert code --output-dir all/code {end}",
        f"{begin} --model all/seed --expert poems --output-dir all/poems {end}",
        "merge experts.yaml merge.into=moe seed=2 --expert code=all/code --expert poems=all/poems "
        f"--output-dir all/merged {end}",
    ]
    needs = [list(run.needs) for run in plan_experts(asked).runs]
    assert needs == [[], ["seed"], ["seed"], ["seed", "code", "poems"]]


def test_what_is_there_already_is_not_trained(here: Path) -> None:
    options = (
        OUTPUT,
        GivenOption("--model", "model.name_or_path", "some/seed"),
        GivenOption("--expert", "merge.experts.code", "other/code"),
    )
    assert commands(line(options=options)) == [
        "pretrain experts.yaml --model some/seed --expert poems --output-dir all/poems --quiet",
        "merge experts.yaml --expert code=other/code --expert poems=all/poems "
        "--output-dir all/merged --quiet",
    ]


def test_runs_are_beside_the_seed_that_the_config_names(here: Path) -> None:
    Path("experts.yaml").write_text(f"output_dir: runs/first\n{MIXTURE}")
    plan = plan_experts(line())
    assert [str(run.directory) for run in plan.runs] == [
        "runs/first", "runs/code", "runs/poems", "runs/merged"
    ]  # fmt: skip
    assert plan.claimed() is plan
    assert not Path("runs").exists()
    assert "--output-dir" not in plan.all_words()


def test_the_same_command_finds_its_runs_and_another_gets_new_ones(here: Path) -> None:
    plan = plan_experts(line())
    assert plan.directory == Path("runs/experts-code-poems-1")
    assert plan.claimed().runs[1].directory == plan.directory / "code"
    assert plan_experts(line()).directory == plan.directory
    assert plan_experts(line("seed=3")).directory == Path("runs/experts-code-poems-2")


@pytest.mark.parametrize(
    ("config", "overrides", "what"),
    [
        ("data: {document: line}\n", (), "two domains"),
        (MIXTURE.replace("poems:", "seed:"), (), "called seed"),
        (MIXTURE.replace("poems:", "merged:"), (), "called merged"),
        (MIXTURE, ("data.mixture.poems.weight=0", "data.mixture.code.weight=1"), "two domains"),
        (MIXTURE, ("merge.without=[code]",), "makes a new merge"),
    ],
)
def test_what_gives_no_experts_is_refused(
    here: Path, config: str, overrides: tuple[str, ...], what: str
) -> None:
    Path("experts.yaml").write_text(config)
    with pytest.raises((ConfigError, UsageError), match=what):
        plan_experts(line(*overrides))


def test_a_directory_that_is_a_run_is_kept(here: Path) -> None:
    Path("all").mkdir()
    Path("all/run.json").write_text("{}")
    with pytest.raises(WriteError, match="holds a run"):
        plan_experts(line(options=(OUTPUT,))).check_place()


Run = Callable[..., Ended]
PATIENCE = 280.0
"""Seconds for five processes, each of which loads the libraries."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the text of two domains and a config."""
    place, chance = tmp_path_factory.mktemp("story"), random.Random(0)
    for name, words in (("code", WORDS[::2]), ("poems", WORDS[1::2])):
        lines = (" ".join(chance.choices(words, k=12)) for _ in range(60))
        (place / f"{name}.txt").write_text("\n".join(lines) + "\n")
    keys = tiny("train.max_steps=8", "train.logging_steps=1", "train.save_steps=2")
    (place / "experts.yaml").write_text(MIXTURE)
    (place / "keys").write_text(shlex.join(key for key in keys if "output_dir" not in key))
    return place


@pytest.fixture(scope="module")
def llmkit(place: Path, trials: Server) -> Run:
    """Runs `merge --train` there."""
    keys = shlex.split((place / "keys").read_text())

    def run(*arguments: object) -> Ended:
        words = ("merge", "experts.yaml", "--train", *keys, *map(str, arguments))
        return trials.start(*words, directory=str(place)).end(patience=PATIENCE)

    return run


@pytest.fixture(scope="module")
def story(llmkit: Run, place: Path) -> dict:
    """All runs of a seed, two experts and their merge."""
    ended = llmkit("-o", "all", "--json")
    assert ended.code == 0, ended.err
    return dict(json.loads(ended.out))


@pytest.mark.slow
def test_the_result_is_that_of_the_merge_with_all_runs(story: dict, place: Path) -> None:
    assert [(run["name"], run["status"]) for run in story["runs"]] == [
        (name, "finished") for name in ("seed", "code", "poems", "merged")
    ]
    merged = json.loads((place / "all/merged/run.json").read_text())["result"]
    assert merged.items() <= story.items()
    assert story["domains"].keys() == {"code", "poems"}


@pytest.mark.slow
def test_nothing_that_is_finished_is_done_again(story: dict, llmkit: Run, place: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in place.glob("all/*/run.json")}
    again = llmkit("-o", "all", "--json")
    assert again.code == 0, again.err
    assert json.loads(again.out)["runs"] == story["runs"]
    assert before == {path: path.stat().st_mtime_ns for path in place.glob("all/*/run.json")}
    shutil.rmtree(place / "all/merged")
    third = llmkit("-o", "all", "--json")
    assert json.loads(third.out)["domains"] == story["domains"]
    assert (
        before.items()
        >= {
            path: path.stat().st_mtime_ns
            for path in place.glob("all/*/run.json")
            if path.parent.name != "merged"
        }.items()
    )


@pytest.mark.slow
def test_a_dry_run_trains_nothing(llmkit: Run, place: Path) -> None:
    assert llmkit("-o", "dry", "--json", "--dry-run").code == 0
    assert not (place / "dry").exists()


@pytest.mark.slow
def test_the_printed_commands_give_the_same_runs(
    story: dict, llmkit: Run, place: Path, trials: Server, tmp_path: Path
) -> None:
    printed = llmkit("-o", "all", "--print")
    assert printed.code == 0, printed.err
    lines = printed.out.splitlines()
    keys = shlex.split((place / "keys").read_text())
    seed = ["pretrain", "experts.yaml", *keys, "--output-dir", "all/seed"]
    assert lines[0] == shlex.join(["llmkit", *seed])
    for name in ("code.txt", "poems.txt", "experts.yaml"):
        shutil.copy(place / name, tmp_path)
    for number in (0, 2, 1, 3):  # experts in any order
        ended = trials.run(*shlex.split(lines[number])[1:], directory=str(tmp_path))
        assert ended.code == 0, ended.err
    for name in ("seed", "code", "poems"):
        assert metrics(tmp_path / "all" / name) == metrics(place / "all" / name)
    for path in (place / "all/merged/final").rglob("*.safetensors"):
        other = tmp_path / path.relative_to(place)
        assert other.read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_done_and_the_same_command_continues(
    story: dict, place: Path, trials: Server
) -> None:
    keys = shlex.split((place / "keys").read_text())
    words = ["merge", "experts.yaml", "--train", *keys, "-o", "stopped", "--json"]
    trial = trials.start(*words, directory=str(place))
    trial.until_there(place, "stopped/code/checkpoints/step-*")
    ended = trial.end(signal.SIGINT)
    assert ended.code == 130, ended.err
    found = [run["status"] for run in json.loads(ended.out)["runs"]]
    assert found == ["finished", "interrupted", "not started", "not started"]
    again = trials.start(*words, directory=str(place)).end(patience=PATIENCE)
    assert again.code == 0, again.err
    assert json.loads(again.out)["domains"] == story["domains"]
    for name in ("seed", "code", "poems"):
        assert metrics(place / "stopped" / name) == metrics(place / "all" / name)
    records = [place / run / "code/final/experts.json" for run in ("stopped", "all")]
    assert records[0].read_bytes() == records[1].read_bytes()


@pytest.mark.slow
def test_a_seed_that_fails_starts_no_expert(llmkit: Run, place: Path) -> None:
    ended = llmkit("-o", "bad", "train.learning_rate=1e30", "--json")
    assert ended.code == 79, ended.err
    found = json.loads(ended.out)
    assert [run["status"] for run in found["runs"]] == ["failed", *["not started"] * 3]
    assert "since it needs a run that failed" in ended.err
    assert not (place / "bad/code").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("keys", "what"),
    [
        (("merge.into=moe", "model.architecture=gpt2"), "no mixture of experts"),
        (("merge.into=moe", "merge.top_k=3"), "3 of 2 experts"),
        (("merge.into=moe", "merge.shared=law"), "no expert of law"),
        (("merge.intoo=moe",), "merge.into"),
    ],
)
def test_a_merge_that_cannot_be_made_is_refused_before_anything_is_trained(
    llmkit: Run, place: Path, keys: tuple[str, ...], what: str
) -> None:
    ended = llmkit("-o", "none", *keys)
    assert ended.code == 78, ended.err
    assert what in ended.err
    assert not (place / "none").exists()
