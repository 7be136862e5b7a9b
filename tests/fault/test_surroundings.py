"""Places and settings of a machine that runs must not mind (the rows beside the matrix)."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llmkit.errors import WriteError
from llmkit.storage import paths
from tests.harness import SURROUNDINGS, Server

from . import runs
from .runs import Job


def llmkit(*arguments: object, streams: str = "", **environment: str) -> int:
    """The exit code of a command line that a shell starts, with its streams as they are told."""
    command = f'exec "$@" {streams}'
    return subprocess.run(
        ["sh", "-c", command, "sh", sys.executable, "-m", "llmkit", *map(str, arguments)],
        env={**os.environ, **SURROUNDINGS, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=280,
        check=False,
    ).returncode


@pytest.mark.parametrize(
    "name", ["mit Leerzeichen", "été-日本-😀", "-dash", "a=b", "'quoted\"", "%s{0}"]
)
def test_any_name_of_a_directory_will_do(
    trials: Server, job: Job, reference: dict[str, str], tmp_path: Path, name: str
) -> None:
    text = tmp_path / name / f"{name}.txt"
    text.parent.mkdir()
    shutil.copy(job.arguments[2], text)
    moved = Job(("pretrain", "--text", str(text), *job.arguments[3:]))
    ended = trials.run(*moved.at(tmp_path / name / "run"), environment={"LC_ALL": "C"})
    assert ended.code == 0, ended.err
    assert runs.result(tmp_path / name / "run") == reference


def test_a_name_that_is_not_utf_8_is_refused_before_any_work(
    trials: Server, job: Job, tmp_path: Path
) -> None:
    ended = trials.run(*job.at(Path(str(tmp_path) + "/run\udcff")))
    assert ended.code == 73, ended.err
    assert "not UTF-8" in ended.err
    assert "tokenizer" not in ended.err


def test_a_link_to_a_directory_is_as_good_as_the_directory(
    trials: Server, job: Job, reference: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    ended = trials.run(*job.at(tmp_path / "link"))
    assert ended.code == 0, ended.err
    assert (tmp_path / "link").is_symlink()
    assert runs.result(tmp_path / "elsewhere") == reference


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_files_have_the_rights_that_the_umask_leaves(
    trials: Server, job: Job, tmp_path: Path, umask: int, mode: int
) -> None:
    ended = trials.run(*job.at(tmp_path / "run"), umask=umask)
    assert ended.code == 0, ended.err
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in files} == {
        path.name: oct(mode) for path in files
    }


def test_the_run_directory_may_stand_on_another_device(
    trials: Server, job: Job, reference: dict[str, str], tmp_path: Path
) -> None:
    other = Path("/dev/shm")
    if not os.access(other, os.W_OK) or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no other device here")
    run = other / f"llmkit-{os.getpid()}"
    try:
        ended = trials.run(*job.at(run), environment={"TMPDIR": str(tmp_path)})
        assert ended.code == 0, ended.err
        assert runs.result(run) == reference
    finally:
        shutil.rmtree(run, ignore_errors=True)


def test_a_run_needs_no_directory_for_temporary_files(
    trials: Server, job: Job, reference: dict[str, str], tmp_path: Path
) -> None:
    """One that is full or may not be written is the same as none."""
    ended = trials.run(*job.at(tmp_path / "run"), environment={"TMPDIR": "/proc/none"})
    assert ended.code == 0, ended.err
    assert runs.result(tmp_path / "run") == reference


def test_a_user_without_a_home_is_reported_where_a_cache_may_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unknown(_: object) -> None:
        raise KeyError("no such user")

    for name in ("HOME", "LLMKIT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(WriteError) as fault:
        paths.cache_directory()
    assert "set LLMKIT_CACHE" in fault.value.next


@pytest.mark.parametrize(
    ("streams", "code"),
    [("2>/dev/full", 78), ("2>&-", 78), ("<&- >&- 2>&-", 78), ("2>/dev/null", 78)],
)
def test_a_fault_keeps_its_code_where_nobody_listens(streams: str, code: int) -> None:
    assert llmkit("pretrain", "lr=1", streams=streams) == code


@pytest.mark.slow
def test_a_run_whose_streams_are_all_closed_is_done_all_the_same(
    job: Job, trials: Server, reference: dict[str, str], tmp_path: Path
) -> None:
    cache_of_trials = str(trials.directory / "cache")
    run = tmp_path / "run"
    assert llmkit(*job.at(run), streams="<&- >&- 2>&-", LLMKIT_CACHE=cache_of_trials) == 0
    assert runs.result(run) == reference
    assert (run / ".lock").read_text().startswith("process ")


def test_a_reader_of_stderr_that_goes_away_takes_no_run_down(
    job: Job, trials: Server, reference: dict[str, str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-m", "llmkit", *job.at(run), "--json"]
    environment = {**os.environ, **SURROUNDINGS, "LLMKIT_CACHE": str(trials.directory / "cache")}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        process.stderr.close()
        assert json.loads(process.stdout.read())["step"] == runs.STEPS
    assert process.returncode == 0
    assert runs.result(run) == reference


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("ACCELERATE_DYNAMO_BACKEND", "nonsense", 78),
        ("ACCELERATE_USE_MEGATRON_LM", "true", 78),
        ("ACCELERATE_DEBUG_MODE", "maybe", 78),
        ("MPLBACKEND", "nonsense", 0),
        ("LLMKIT_CACHE", "/etc/passwd", 73),
    ],
)
def test_what_a_library_reads_in_the_environment_is_not_a_bug(
    trials: Server, job: Job, tmp_path: Path, name: str, value: str, code: int
) -> None:
    ended = trials.run(*job.at(tmp_path / "run"), environment={name: value})
    assert ended.code == code, ended.err
