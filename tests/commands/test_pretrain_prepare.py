"""`llmkit prepare` makes what `pretrain` makes, with any number of processes and interruptions."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmkit.cli.app import run_command
from llmkit.data.readers import ranges
from tests.harness import contents
from tests.jobs import WORDS

KEYS = ("data.document=line", "data.block_size=16", "tokenizer.vocab_size=300")
TRAINING = (
    "model.config.hidden_size=32", "model.config.num_hidden_layers=1", "train.max_steps=3",
    "train.global_batch_size=4", "train.compile=false", "train.precision=fp32",
    "train.logging_steps=1", "generation.max_new_tokens=2",
)  # fmt: skip

SIZE = 3000
Prepare = Callable[..., dict[str, Any]]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Text of about 40 KB, which is cut into units of about 3 KB."""
    path = tmp_path / "text.txt"
    path.write_text("".join(f"{' '.join(WORDS[n % 7 :])} {n}\n" for n in range(400)))
    return path


@pytest.fixture
def prepare(
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Prepare:
    """Prepares the text into a cache of this name, and returns the result."""

    def run(cache: str, *arguments: object, code: int = 0) -> dict[str, Any]:
        monkeypatch.setenv("LLMKIT_CACHE", str(tmp_path / cache))
        monkeypatch.setattr(ranges, "RANGE_BYTES", SIZE)
        capsys.readouterr()
        line = ["prepare", "--text", text, *KEYS, "--json", *arguments]
        assert run_command([str(word) for word in line]) == code
        result: dict[str, Any] = json.loads(capsys.readouterr().out)
        return result

    return run


def files(cache: Path) -> dict[str, Any]:
    """What a cache holds of text: tokenizers, token files and their units."""
    found = contents(cache)
    return {name: found[name] for name in found if re.match(r"\.?(tok|text)[^.]*/", name)}


def test_pretrain_finds_what_was_prepared_and_learns_the_same(
    prepare: Prepare, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = prepare("ahead", "--workers", 2)
    [train, validation] = made["texts"]
    assert train["shards"] == len(list(Path(train["path"]).glob("ids-*"))) > 5
    before = files(tmp_path / "ahead")
    for cache, size in (("ahead", SIZE), ("alone", 1 << 25)):
        monkeypatch.setenv("LLMKIT_CACHE", str(tmp_path / cache))
        monkeypatch.setattr(ranges, "RANGE_BYTES", size)
        line = [
            "pretrain",
            "--text",
            str(text),
            *KEYS,
            *TRAINING,
            "-o",
            str(tmp_path / f"{cache}-run"),
        ]
        assert run_command([*line, "--quiet"]) == 0
    assert files(tmp_path / "ahead") == before
    facts = json.loads((tmp_path / "ahead-run" / "run.json").read_text())
    hashes = [train["hash"], validation["hash"]]
    assert list(facts["content"].values()) == hashes
    metrics = [tmp_path / f"{cache}-run" / "metrics.jsonl" for cache in ("ahead", "alone")]
    assert metrics[0].read_bytes() == metrics[1].read_bytes()


def test_each_worker_of_several_completes_the_same_set(prepare: Prepare, tmp_path: Path) -> None:
    hashes = {prepare("one", "--workers", 1)["hash"]}
    for worker in (1, 0):
        hashes.add(prepare("two", "--worker", worker, "--of", 2, "--workers", 1)["hash"])
    assert len(hashes) == 1
    assert files(tmp_path / "one") == files(tmp_path / "two")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGKILL, None)])
def test_a_preparation_that_is_stopped_resumes_to_the_same_bytes(
    prepare: Prepare, tmp_path: Path, number: signal.Signals, code: int | None
) -> None:
    cache = tmp_path / "stopped"
    if not (process := os.fork()):
        prepare("stopped", "--workers", 2, code=code or 0)
        os._exit(75)
    while len(list(cache.glob("tokens-*.units/[!.]*"))) < 1:
        assert os.waitpid(process, os.WNOHANG) == (0, 0)
        time.sleep(0.01)
    os.kill(process, number)
    status = os.waitpid(process, 0)[1]
    assert os.waitstatus_to_exitcode(status) == (code or -number)
    assert list(cache.glob("tokens-*.units/[!.]*"))
    made = prepare("stopped", "--workers", 1)
    assert made["hash"] == prepare("whole", "--workers", 1)["hash"]
    assert files(cache) == files(tmp_path / "whole")


def test_a_complete_set_is_recognised_without_tokenizing(
    prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepare("again")
    monkeypatch.setattr("llmkit.data.text.token_file.TokenEncoder", None)
    second = prepare("again", "--worker", 1, "--of", 3)
    assert {**first, "seconds": 0} == {**second, "seconds": 0}


def test_a_dry_run_estimates_and_writes_nothing(prepare: Prepare, tmp_path: Path) -> None:
    outline = prepare("dry", "--workers", 2, "--dry-run")
    made = prepare("made")
    assert not (tmp_path / "dry").exists()
    assert (outline["files"], outline["processes"]) == (1, 2)
    n_bytes, n_tokens = (sum(part[name] for part in made["texts"]) for name in ("bytes", "tokens"))
    assert outline["text_bytes"] == pytest.approx(n_bytes, rel=0.1)
    assert outline["tokens"] == pytest.approx(n_tokens, rel=0.2)


@pytest.mark.parametrize(
    ("arguments", "code", "what"),
    [
        (["--text", "missing.txt"], 66, "does not exist"),
        (["--worker", "2", "--of", "2"], 2, "no worker 2 of 2"),
        (["--worker", "1"], 2, "needs `--of N`"),
        (["--of", "2"], 2, "needs `--worker I`"),
        (["--workers", "0"], 2, "int >= 1"),
        (["--ray", "http://localhost:1"], 2, "needs `--of N`"),
        (["data.document=page"], 78, "data.document"),
    ],
)
def test_what_cannot_be_prepared_is_refused_before_any_work(
    prepare: Prepare, tmp_path: Path, arguments: list[str], code: int, what: str
) -> None:
    fault = prepare("refused", *arguments, code=code)["error"]
    assert what in json.dumps(fault)
    assert not (tmp_path / "refused").exists()


def test_a_full_disk_is_reported_and_the_parts_before_it_are_kept(
    prepare: Prepare, tmp_path: Path
) -> None:
    if not (process := os.fork()):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
        fault = prepare("full", "--workers", 2, code=73)["error"]
        os._exit(0 if "LLMKIT_CACHE" in fault["next"] else 1)
    assert os.waitpid(process, 0)[1] == 0
    assert prepare("full")["hash"] == prepare("whole")["hash"]
    assert files(tmp_path / "full") == files(tmp_path / "whole")
