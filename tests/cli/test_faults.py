"""How each kind of fault ends: its message, its exit code, and nothing more."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmkit.cli.faults import reported
from llmkit.errors import ConfigError, LlmkitError


def exit_code(work: Callable[[], object], **options: Any) -> int:
    """The exit code after a piece of work and the report of its error."""
    with reported(**options) as outcome:
        work()
    return outcome.code


def failing(fault: BaseException) -> Callable[[], int]:
    """A piece of work that fails."""

    def work() -> int:
        raise fault

    return work


def test_a_bug_leaves_its_traceback_in_a_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert exit_code(failing(ZeroDivisionError("by \x1b[31mnought"))) == 1
    out, err = capsys.readouterr()
    (report,) = tmp_path.iterdir()
    assert out == ""
    assert "error[internal]: a bug in llmkit: ZeroDivisionError" in err
    assert str(report) in err
    assert "\x1b" not in err
    assert "Traceback" not in err
    assert "Traceback" in report.read_text()


def test_a_developer_sees_the_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMKIT_DEBUG", "1")
    assert exit_code(failing(ZeroDivisionError())) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_bug_is_reported_even_where_no_file_can_be_written(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/no/such/directory")
    assert exit_code(failing(ZeroDivisionError())) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_fault_is_reported_by_one_process_of_a_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for rank, said in (("0", "error[bad-config]: wrong"), ("1", "")):
        monkeypatch.setenv("RANK", rank)
        assert exit_code(failing(ConfigError("wrong"))) == 78
        err = capsys.readouterr().err
        assert err.startswith(said)
        assert bool(err) == bool(said)


def test_every_fault_ends_with_its_own_code(capsys: pytest.CaptureFixture[str]) -> None:
    for kind in LlmkitError.__subclasses__():
        assert exit_code(failing(kind("what", where="there"))) == kind.exit_code
        assert f"error[{kind.name}]: what\nwhere: there\n" in capsys.readouterr().err


def test_ctrl_c_gives_130_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(failing(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err.startswith("error[interrupted]")


def without_privileges(*arguments: str, where: Path) -> subprocess.CompletedProcess[str]:
    """A command line by a user for whom permissions count; not so for root, who needs setpriv."""
    command = [sys.executable, "-m", "llmkit", *arguments]
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("root ignores permissions, and setpriv is not installed")
        rights = "-dac_override,-dac_read_search"
        command = ["setpriv", "--bounding-set", rights, *command]
    return subprocess.run(command, cwd=where, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("arguments", "place"),
    [
        (("pretrain", "--text", "data"), "data/closed cannot be read: Permission denied"),
        (("pretrain", "--text", "data/closed/a.txt"), "data/closed/a.txt"),
        (("generate", "--model", "data/closed", "--prompt", "a"), "data/closed/config.json"),
        (("report", "data/closed"), "data/closed/run.json"),
    ],
)
def test_what_may_not_be_read_is_input_that_is_missing(
    arguments: tuple[str, ...], place: str, tmp_path: Path
) -> None:
    """Also a directory within another: its files would be missing from the data."""
    closed = tmp_path / "data" / "closed"
    closed.mkdir(parents=True)
    (closed.parent / "b.txt").write_text("text")
    closed.chmod(0)
    done = without_privileges(*arguments, where=tmp_path)
    closed.chmod(0o755)
    assert done.returncode == 66, done.stderr
    assert place in done.stderr
    assert "Permission denied" in done.stderr
