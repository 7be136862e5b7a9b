"""`llmkit pretrain` on domains without names: found by the seed, and kept by all that follows."""

from __future__ import annotations

import json
import random
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from llmkit.data.text.clusters import DOMAINS
from tests.jobs import assert_same, changed, tiny

from .conftest import Run

TOPICS = {
    "code": "def return import class self for in range print lambda yield assert".split(),
    "poem": "床前 明月 光疑 是地 上霜 舉頭 望明 低頭 思故 鄉".split(),
    "sea": "wave wind sail ship harbour storm tide water captain shore".split(),
}
NAMES = ["domain-0", "domain-1", "domain-2"]
FOUND = ("data.domains=auto", "data.num_domains=3", "data.document=line")
SIZES = tiny(*FOUND, "train.max_steps=8", "train.save_steps=2", "train.eval_steps=4",
             "train.logging_steps=2")  # fmt: skip


def lines(count: int = 60) -> list[str]:
    draw = random.Random(0)
    made = [" ".join(draw.choices(words, k=draw.randint(5, 30)))
            for words in TOPICS.values() for _ in range(count)]  # fmt: skip
    draw.shuffle(made)
    return made


def topic_of(text: str) -> str:
    return next(name for name, words in TOPICS.items() if set(words) & set(text.split()))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "mixed.txt"
    path.write_text("\n".join(lines()) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def seed(llmkit: Run, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "seed"
    done = llmkit("pretrain", "--text", text, *SIZES, "-o", run, "--json")
    assert done.returncode == 0, done.stderr
    (run.parent / "told").write_text(done.stderr)
    return run


def facts(run: Path) -> dict[str, Any]:
    return json.loads((run / "run.json").read_text())


def domain_of(run: Path, topic: str) -> str:
    """The found domain of a topic."""
    found = facts(run)["data"]["domains"]
    return next(name for name, each in found.items() if topic_of(each["example"]) == topic)


def test_what_is_in_each_domain_is_reported(seed: Path) -> None:
    found = facts(seed)["data"]["domains"]
    assert list(found) == NAMES
    told = (seed.parent / "told").read_text()
    for name, each in found.items():
        assert each["documents"] == 60
        own = TOPICS[topic_of(each["example"])]
        assert {*each["words"].split(", ")} & set(own)
        assert f"{name}  {each['bytes'] / sum(e['bytes'] for e in found.values()):.0%}" in told
        assert each["example"] in told
    assert sum(each["bytes"] for each in found.values()) == sum(len(s.encode()) for s in lines())
    page = (seed / "report.html").read_text()
    assert all(each["words"] in page for each in found.values())


def test_every_domain_has_its_figures(seed: Path) -> None:
    result = facts(seed)["result"]
    assert list(result["domains"]) == NAMES
    assert {f"loss/{name}" for name in NAMES} < result["validation"].keys()
    assert sum(each["share"] for each in result["domains"].values()) == pytest.approx(1)


def test_a_killed_run_resumes_with_its_domains(seed, llmkit, trials, text, tmp_path) -> None:
    run = tmp_path / "killed"
    command = ["pretrain", "--text", text, *SIZES, "-o", run]
    process = trials.start(*command)
    process.until_lines(run / "metrics.jsonl", 3)
    process.end(signal.SIGKILL)
    again = llmkit(*command)
    assert again.returncode == 0, again.stderr
    assert "domains found in data.train_files when the run began" in again.stderr
    assert_same(run, seed)
    assert (run / DOMAINS).read_bytes() == (seed / DOMAINS).read_bytes()


def test_its_config_repeats_the_run(seed, llmkit, tmp_path) -> None:
    done = llmkit("pretrain", seed / "config.yaml", "-o", tmp_path / "again")
    assert done.returncode == 0, done.stderr
    assert facts(tmp_path / "again")["content"] == facts(seed)["content"]


@pytest.fixture(scope="module")
def branches(llmkit: Run, seed: Path, text: Path) -> dict[str, Path]:
    """The expert of each domain, from a copy of the seed's model alone. The expert of code is
    trained where other files hold the same text, and more of it."""
    away = seed.parent / "away"
    shutil.copytree(seed / "final", away / "model")
    extra = [line for line in lines(90) if line not in lines()]
    for number, some in enumerate((lines()[:50], lines()[50:], extra)):
        path = away / "text" / f"{number}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(some) + "\n", encoding="utf-8")
    runs = {}
    for name in NAMES:
        is_code = name == domain_of(seed, "code")
        runs[name] = seed.parent / name
        done = llmkit(
            "pretrain", "--text", away / "text" if is_code else text, *SIZES, "--model",
            away / "model", "--expert", name, "-o", runs[name], "--json",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert f"domains found in data.train_files by {away / 'model'}" in done.stderr
    return runs


def test_branches_have_the_domains_of_the_seed(seed, branches) -> None:
    for name, run in branches.items():
        for place in (run, run / "final"):
            assert (place / DOMAINS).read_bytes() == (seed / DOMAINS).read_bytes()
        content = facts(run)["content"]
        assert content.pop("seed")  # the model that it begins with
        is_same = content == facts(seed)["content"]
        assert is_same is (name != domain_of(seed, "code"))
        for each in facts(run)["data"]["domains"].values():
            assert each["documents"] >= 60
            assert {*each["words"].split(", ")} & set(TOPICS[topic_of(each["example"])])
        result = facts(run)["result"]
        assert result["validation"]["loss"] == result["validation"][f"loss/{name}"]


@pytest.mark.parametrize("into", ["ensemble", "moe"])
def test_a_merge_is_measured_on_the_domains_of_the_seed(seed, branches, llmkit, text, into) -> None:
    merged, path = seed.parent / into, seed.parent / "experts.yaml"
    path.write_text(f"data: {{train_files: '{text}', domains: auto, num_domains: 3, "
                    "document: line}\n")  # fmt: skip
    given = [f"--expert={name}={run}" for name, run in branches.items()]
    done = llmkit("merge", path, *given, f"merge.into={into}", "-o", merged, "--json")
    assert done.returncode == 0, done.stderr
    assert list(json.loads(done.stdout)["domains"]) == NAMES
    assert (merged / "final" / DOMAINS).read_bytes() == (seed / DOMAINS).read_bytes()
    done = llmkit("evaluate", path, "--model", merged, "--model", seed, "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["by_domain"]
    assert [(Path(row["model"]).name, row["domain"]) for row in rows] == [
        (model, name) for model in (into, "seed") for name in NAMES
    ]


def test_a_dry_run_shows_the_domains_and_writes_nothing(llmkit, seed, text, tmp_path) -> None:
    done = llmkit("pretrain", "--text", text, *SIZES, "-o", tmp_path / "run", "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["data"]["domains"] == facts(seed)["data"]["domains"]
    assert not (tmp_path / "run").exists()


def test_masked_models_have_domains_too(llmkit, text, tmp_path) -> None:
    masked = ("train.objective=masked", "train.max_steps=2", "train.eval_steps=2")
    done = llmkit("pretrain", "--text", text, *changed(SIZES, *masked), "-o", tmp_path / "run",
                  "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert list(json.loads(done.stdout)["domains"]) == NAMES


@pytest.mark.slow
def test_two_processes_find_what_one_finds(llmkit, seed, text, tmp_path) -> None:
    done = llmkit("pretrain", "--text", text, *SIZES, "-o", tmp_path / "two", processes=2)
    assert done.returncode == 0, done.stderr
    assert facts(tmp_path / "two")["content"] == facts(seed)["content"]


@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        (("data.document=file",), 65, "1 document cannot be divided into 3 domains"),
        (("data.num_domains=2",), 78, "has 3 domains, not 2"),
        (("data.mixture.poems.files=x",), 78, "'poems' cannot be combined"),
        (("data.train_files=[]",), 66, "data.train_files is not given"),
    ],
)
def test_what_does_not_fit_is_refused(llmkit, seed, text, tmp_path, changes, code, said) -> None:
    model = ("--model", seed) if "num_domains" in changes[0] else ()
    given = () if "train_files" in changes[0] else ("--text", text)
    done = llmkit("pretrain", *given, *changed(SIZES, *changes), *model, "-o", tmp_path / "run")
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr
    assert "Traceback" not in done.stderr
