import hashlib
import json
import multiprocessing
import os
import signal
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from llmkit.errors import LlmkitError, WriteError
from llmkit.progress import Watch
from llmkit.storage import cache, paths


def build(directory: Path) -> dict[str, Any]:
    (directory / "ids").write_bytes(bytes(1000))
    (directory / "starts").write_bytes(b"12345678")
    return {"n": 3}


def never(directory: Path) -> dict[str, Any]:
    raise AssertionError("built again")


def contents(path: Path) -> list[str]:
    return sorted(each.name for each in path.iterdir())


def test_an_entry_is_built_once_and_then_opened(own_cache: Path, watch: Watch) -> None:
    first = cache.open_or_build("name", build, watch, print)
    second = cache.open_or_build("name", never, watch, print)
    assert (first.reused, second.reused) == (False, True)
    assert first.info == second.info == {"n": 3}
    assert first.fingerprint == second.fingerprint
    assert contents(own_cache) == ["name", "name.lock"]


@pytest.mark.parametrize("name", ["ids", "starts", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "remove", "longer"])
def test_a_damaged_entry_is_quarantined_and_built_again(
    own_cache: Path, watch: Watch, name: str, damage: str
) -> None:
    path = cache.open_or_build("name", build, watch, print).path / name
    content = path.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(
            {"flip": flipped, "cut": content[:-1], "empty": b"", "longer": content + b"x"}[damage]
        )
    said: list[str] = []
    entry = cache.open_or_build("name", build, watch, said.append)
    assert not entry.reused
    assert "damaged" in said[0]
    assert len([each for each in contents(own_cache) if each.startswith(".corrupt-name-")]) == 1
    assert cache.open_or_build("name", never, watch, print).reused


def earlier_entry(path: Path) -> str:
    """Makes an entry as llmkit did before its manifests were those of `atomic`; its fingerprint."""
    path.mkdir(parents=True)
    info = build(path)
    files = {
        each.name: {
            "bytes": each.stat().st_size,
            "sha256": hashlib.sha256(each.read_bytes()).hexdigest(),
        }
        for each in sorted(path.iterdir())
    }
    fingerprint = hashlib.sha256(json.dumps([files, info]).encode()).hexdigest()[:32]
    manifest = {"fingerprint": fingerprint, "info": info, "files": files}
    (path / "manifest.json").write_text(json.dumps(manifest, indent=2))
    return fingerprint


def test_an_entry_of_an_earlier_llmkit_is_used_and_is_what_would_be_built_now(
    own_cache: Path, watch: Watch
) -> None:
    fingerprint = earlier_entry(own_cache / "name")
    earlier = cache.open_or_build("name", never, watch, print)
    now = cache.open_or_build("other", build, watch, print)
    assert earlier.fingerprint == now.fingerprint == fingerprint
    assert earlier.info == now.info


@pytest.mark.parametrize("name", ["ids", "manifest.json"])
def test_a_damaged_entry_of_an_earlier_llmkit_is_built_again(
    own_cache: Path, watch: Watch, name: str
) -> None:
    earlier_entry(own_cache / "name")
    path = own_cache / "name" / name
    path.write_bytes(path.read_bytes().replace(b"3", b"4") + b" " * (name == "ids"))
    said: list[str] = []
    assert not cache.open_or_build("name", build, watch, said.append).reused
    assert "damaged" in said[0]


def test_a_build_that_fails_leaves_nothing(own_cache: Path, watch: Watch) -> None:
    def fails(directory: Path) -> dict[str, Any]:
        build(directory)
        raise LlmkitError("stopped")

    with pytest.raises(LlmkitError, match="stopped"):
        cache.open_or_build("name", fails, watch, print)
    assert contents(own_cache) == ["name.lock"]


def test_a_full_disk_is_reported_and_leaves_nothing(own_cache: Path, watch: Watch) -> None:
    def full(directory: Path) -> dict[str, Any]:
        build(directory)
        with Path("/dev/full").open("wb", buffering=0) as file:
            file.write(b"x")
        return {}

    with pytest.raises(WriteError, match="No space left") as fault:
        cache.open_or_build("name", full, watch, print)
    assert fault.value.exit_code == 73
    assert contents(own_cache) == ["name.lock"]


def killed(directory: Path) -> dict[str, Any]:
    build(directory)
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def open_in_process(build: Any, results: Any) -> None:
    @contextmanager
    def watch(label: str, total: int) -> Any:
        yield lambda n_bytes: None

    results.put(cache.open_or_build("name", build, watch, print).reused)


def test_what_a_killed_build_left_is_removed_by_the_next(own_cache: Path, watch: Watch) -> None:
    fork = multiprocessing.get_context("fork")
    process = fork.Process(target=open_in_process, args=(killed, fork.Queue()))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert any(name.startswith(".tmp-") for name in contents(own_cache))
    assert not cache.open_or_build("name", build, watch, print).reused
    assert contents(own_cache) == ["name", "name.lock"]


def test_processes_that_want_the_same_entry_build_it_once(own_cache: Path) -> None:
    fork = multiprocessing.get_context("fork")
    together, results = fork.Barrier(4), fork.Queue()

    def wait_and_open() -> None:
        together.wait()
        open_in_process(build, results)

    processes = [fork.Process(target=wait_and_open) for _ in range(4)]
    for process in processes:
        process.start()
    assert sorted(results.get(timeout=30) for _ in processes) == [False, True, True, True]
    for process in processes:
        process.join()


def test_a_process_that_waits_for_another_can_be_stopped(own_cache: Path, watch: Watch) -> None:
    building, done = threading.Event(), threading.Event()

    def slow(directory: Path) -> dict[str, Any]:
        building.set()
        done.wait(30)
        return build(directory)

    @contextmanager
    def stopped(label: str, total: int) -> Any:
        def advance(n_bytes: int) -> None:
            raise LlmkitError(f"stopped while {label}")

        yield advance

    thread = threading.Thread(target=cache.open_or_build, args=("name", slow, watch, print))
    thread.start()
    building.wait(30)
    with pytest.raises(LlmkitError, match="waiting for another"):
        cache.open_or_build("name", never, stopped, print)
    done.set()
    thread.join()
    assert cache.open_or_build("name", never, watch, print).reused


def test_a_cache_that_can_only_be_read_is_still_used(
    own_cache: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.open_or_build("name", build, watch, print)
    (own_cache / "name.lock").unlink()
    own_cache.chmod(0o555)
    assert cache.open_or_build("name", never, watch, print).reused
    assert contents(own_cache) == ["name"]
    own_cache.chmod(0o755)


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ({"LLMKIT_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/llmkit"),
        ({"HOME": "/c"}, "/c/.cache/llmkit"),
    ],
)
def test_the_cache_stands_where_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], place: str
) -> None:
    for name in ("LLMKIT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert paths.cache_directory() == Path(place)
