"""Terminals get colors, unless NO_COLOR is set (https://no-color.org)."""

from __future__ import annotations

import os
import pty
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llmkit.cli import app
from tests.jobs import WORDS, tiny

COLOR = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])(?:;\d+)*m")
"""A foreground or background color; bold and dim text have none."""

Shown = Callable[..., str]


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Iterator[Shown]:
    """What a command line prints on a terminal."""
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "FORCE_COLOR", "GITHUB_ACTIONS", "PY_COLORS", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    ours, theirs = pty.openpty()
    parts: list[bytes] = []

    def read() -> None:
        while not (parts and parts[-1].endswith(b"\0")):
            parts.append(os.read(ours, 65536))

    def run(*arguments: object) -> str:
        parts.clear()
        reader = threading.Thread(target=read)
        reader.start()
        with monkeypatch.context() as patched, os.fdopen(os.dup(theirs), "w") as terminal:
            for name in ("stdout", "stderr"):
                patched.setattr(f"sys.{name}", terminal)
            try:
                app.run_command([*map(str, arguments)])
            finally:
                terminal.write("\0")
                terminal.flush()
                reader.join()
        return b"".join(parts).decode()

    yield run
    os.close(ours)
    os.close(theirs)


@pytest.fixture
def training(tmp_path: Path) -> tuple[object, ...]:
    """The command line of a run of two steps."""
    text = tmp_path / "text.txt"
    text.write_text(" ".join(WORDS * 20))
    return ("pretrain", "--text", text, *tiny("train.max_steps=2"))


def test_no_color_is_obeyed_by_tables_and_progress(
    shown: Shown, training: tuple[object, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert COLOR.search(shown(*training, "--dry-run"))
    monkeypatch.setenv("NO_COLOR", "1")
    for more, words in (("--dry-run", "parameters"), (f"-o{tmp_path / 'run'}", "step 2/2")):
        found = shown(*training, more)
        assert words in found
        assert COLOR.search(found) is None


def test_no_color_is_obeyed_by_help_and_errors(
    shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    for arguments, words in (
        (["finetune", "--help"], "Usage: llmkit finetune"),
        (["finetune", "--csv", "none.csv"], "does not exist"),
        (["finetune", "--cvs", "none.csv"], "--csv"),
    ):
        found = shown(*arguments)
        assert words in found
        assert COLOR.search(found) is None
