"""The README's commands run as they are written; its translation and the Dockerfile fit."""

from __future__ import annotations

import gzip
import json
import random
import re
import shlex
import shutil
import signal
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from tests.dirty import mojibake
from tests.harness import Server
from tests.jobs import ROOT, WORDS, tiny, write_table

README = ROOT / "README.md"
CHINESE = ROOT / ".github" / "README.zh.md"
DOCKERFILE = ROOT / ".github" / "Dockerfile"


def blocks(path: Path) -> list[tuple[str, str]]:
    """The language and the text of each code block."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", path.read_text(encoding="utf-8"), re.M | re.S)
    return [(language, text) for language, text in found]


def commands() -> list[list[str]]:
    """The arguments of each llmkit command in a shell block, in order, but for those that need a
    cluster or several processes: `tests/commands/test_launch.py` and `tests/cli` have them."""
    shell = "".join(text for language, text in blocks(README) if language == "sh")
    shell = re.sub(r"^(torchrun .* -m|docker run .*) (?=llmkit )", "", shell, flags=re.M)
    lines = (shlex.split(line, comments=True) for line in shell.splitlines())
    found = [words[1:] for words in lines if words[:1] == ["llmkit"]]
    return [each for each in found if not {"launch", "--slurm", "--ray"} & {*each}]


def jobs() -> list[list[str]]:
    """The arguments of each command in the table of jobs."""
    rows = re.findall(r"^\|[^|]*\| `llmkit ([^`]*)` \|$", README.read_text(encoding="utf-8"), re.M)
    return [shlex.split(row) for row in rows]


def sentences(chance: random.Random) -> Iterator[str]:
    """Any number of sentences."""
    while True:
        yield " ".join(chance.choices(WORDS, k=9))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the files that the README and the configs name."""
    place, made = tmp_path_factory.mktemp("readme"), sentences(random.Random(0))
    shutil.copytree(ROOT / "configs", place / "configs")
    texts = ("corpus.txt", "other.txt", "code.txt", "poems.txt", "reports/a.txt", "general/a.txt")
    for name in (*texts, "code/a.py"):
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text("".join(f"{next(made)}\n" for _ in range(60)))
    (place / "dirty").mkdir()
    for number in range(40):
        text = f"{next(made)}\n{next(made)}"
        (place / "dirty" / f"{number}.txt").write_text(text)
        (place / "dirty" / f"{number}-copy.txt").write_text(text.replace("\n", " "))
    (place / "dirty" / "empty.txt").touch()
    (place / "dirty" / "wrong.txt").write_text(mojibake("Über allen Gipfeln ist Ruh'"))
    for name in ("reviews.csv", "test.csv", "new.csv"):
        rows = [(f"{word} {next(made)}", word) for _ in range(30) for word in ("good", "bad")]
        write_table(place / name, rows)
    translated = [(next(made), next(made)) for _ in range(40)]
    write_table(place / "pairs.csv", translated, ("source", "target"))
    (place / "keys.txt").write_text("my-key\n")
    words = "".join(f"Bob B-PER\nsaw O\n{number} O\n\n" for number in range(40))
    (place / "words.conll").write_text(words)
    columns_of = {
        "chats": ("prompt", "response"),
        "prompts": ("prompt",),
        "pairs": ("prompt", "chosen", "rejected"),
    }
    for name, columns in columns_of.items():
        rows = [{column: next(made) for column in columns} for _ in range(40)]
        (place / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    with gzip.open(place / "more.jsonl.gz", "wt") as file:
        file.writelines(f"{json.dumps({'body': next(made)})}\n" for _ in range(40))
    return place


@pytest.fixture(scope="module")
def followed(trials: Server, place: Path) -> Path:
    """The same, after all commands of the shell blocks. Models are tiny and train for one step; the
    runs of a sweep are only listed, and nothing is uploaded."""
    for command in commands():
        changes: tuple[str, ...] = ()
        if command[0] in ("push", "serve") or {"--sweep", "--dry-run"} & set(command):
            changes = ("--dry-run",)
        elif command[0] == "pretrain" and "--model" not in command:
            changes = tuple(tiny("train.max_steps=1", "data.block_size=256"))
        elif command[0] in ("pretrain", "finetune"):
            changes = ("train.max_steps=1", "train.compile=false")
        ended = trials.run(*command, *changes, directory=str(place))
        assert ended.code == 0, (command, ended.err)
    return place


def test_the_commands_run_in_order(followed: Path) -> None:
    names = {path.parent.name for path in followed.glob("runs/*/final")}
    assert {"mine", "stars", "assistant", "merged"} <= names
    assert (followed / "labels.csv").is_file()
    assert (followed / "experts.html").is_file()


def test_a_dirty_folder_is_cleaned_trained_on_and_reported(followed: Path) -> None:
    account = json.loads((followed / "cleaned" / "clean.json").read_text())
    removed = {name: each["documents"] for name, each in account["removed"].items()}
    assert removed == {"empty": 1, "near_duplicate": 40}
    assert account["edits"]["mojibake"]["documents"] == 1
    assert "41 documents of 82 are kept" in (followed / "cleaned" / "report.html").read_text()
    counted = json.loads((followed / "runs" / "clean" / "run.json").read_text())["data"]["text"][""]
    assert 41 <= counted["train"]["documents"] + counted["validation"]["documents"] <= 42
    assert (followed / "runs" / "clean" / "report.html").is_file()


def test_the_jobs_of_the_table_pass_their_checks(trials: Server, followed: Path) -> None:
    assert len(jobs()) > 5
    for job in jobs():
        trains = job[0] in ("pretrain", "finetune") or "--train" in job
        dry = ["--dry-run"] if trains else []
        ended = trials.run(*job, *dry, directory=str(followed))
        assert ended.code == 0, (job, ended.err)


def test_plain_transformers_reads_what_they_made(
    followed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The example of the functions is run by `tests/api/test_calls_example.py`."""
    [example] = [text for _, text in blocks(README) if "from transformers import" in text]
    monkeypatch.chdir(followed)
    exec(compile(example, "README.md", "exec"), {})
    assert "'label': 'good'" in capsys.readouterr().out.replace("'bad'", "'good'")


def test_the_served_models_answer_the_client_of_openai(
    trials: Server, followed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    [command] = [each for each in commands() if each[0] == "serve"]
    running = trials.start(*command, "--port", 0, directory=str(followed))
    [url] = re.findall(r"serving at (\S+)\n", running.until(r"serving at \S+\n"))
    [example] = [text for _, text in blocks(README) if "from openai import" in text]
    exec(compile(example.replace("http://127.0.0.1:8000", url), "README.md", "exec"), {})
    ended = running.end(signal.SIGTERM)
    assert ended.code == 0, ended.err
    text, found = capsys.readouterr().out.split("{'object': 'list'")
    assert text
    assert "'label': 'good'" in found.replace("'bad'", "'good'")


def test_onnx_runtime_computes_what_was_exported(
    followed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    [example] = [text for _, text in blocks(README) if "import numpy, onnxruntime" in text]
    monkeypatch.chdir(followed)
    exec(compile(example, "README.md", "exec"), {})
    assert capsys.readouterr().out.startswith("[array([[")
    assert (followed / "mine.gguf").is_file()


def test_what_the_readme_names_is_there() -> None:
    for path in (README, CHINESE):
        text = path.read_text(encoding="utf-8")
        links = re.findall(r"\]\(([^)]*)\)", text)
        assert links
        for link in links:
            assert (path.parent / link).is_file(), link
        for name in re.findall(r"`((?:\.github|configs|scripts)/[\w./*-]*)", text):
            assert list(ROOT.glob(name)), name
    assert (ROOT / ".github" / "demo.png").stat().st_size < 100_000


def without_comments(text: str) -> list[str]:
    """The lines of a code block up to a comment or a column of explanations."""
    return [re.split(r" {2,}|#", line.strip())[0].strip() for line in text.splitlines()]


def test_the_translation_has_the_same_code_and_headings() -> None:
    """The map of the code stays in the English README, which the translation links."""
    ours = [(language, without_comments(text)) for language, text in blocks(README)[:-1]]
    assert ours == [(language, without_comments(text)) for language, text in blocks(CHINESE)]
    outside = [
        re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
        for path in (README, CHINESE)
    ]
    english, chinese = (re.findall(r"^#+(?= )", text, re.M) for text in outside)
    assert english == chinese
    english, chinese = (
        {" ".join(code.split()) for code in re.findall(r"`([^`]+)`", text)} for text in outside
    )
    assert english - chinese == chinese - english == set()


def test_the_dockerfile_copies_what_the_package_is_built_from() -> None:
    text = DOCKERFILE.read_text()
    lines = re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.M)
    copied = {name for line in lines for name in line.split()}
    sent = (ROOT / ".github" / "Dockerfile.dockerignore").read_text().splitlines()
    assert copied == {line[1:] for line in sent if line.startswith("!")}
    assert all((ROOT / name).exists() for name in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    included = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert set(included) <= copied
    versions = set(re.findall(r"^FROM python:([\d.]+)", text, re.M))
    assert len(versions) == 1
    assert versions.pop() in SpecifierSet(project["project"]["requires-python"])
