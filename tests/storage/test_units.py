import hashlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmkit.errors import DataError, WriteError
from llmkit.progress import Advance, Watch
from llmkit.storage.units import MakeUnit, Unit, Units, Workers

TEXTS = [f"text {number}".encode() for number in range(10)]
UNITS = [Unit(hashlib.sha256(text).hexdigest()[:32], len(text)) for text in TEXTS]
ALONE = Workers()
FACTS = [{"first": text[0], "bytes": len(text)} for text in TEXTS]


def write(number: int, directory: Path, advance: Advance) -> dict[str, Any]:
    (directory / "text").write_bytes(TEXTS[number])
    advance(len(TEXTS[number]))
    return FACTS[number]


def never(number: int, directory: Path, advance: Advance) -> dict[str, Any]:
    raise AssertionError(f"unit {number} made again")


def made(
    directory: Path, watch: Watch, make: MakeUnit = write, workers: Workers = ALONE
) -> list[dict[str, Any]]:
    with Units(directory) as store:
        return store.make(UNITS, make, workers, watch, "writing")


def contents(directory: Path) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file())
    named = {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}
    return {name: content for name, content in named.items() if not name.startswith(".")}


@pytest.fixture
def alone(tmp_path: Path, watch: Watch) -> dict[str, bytes]:
    """The bytes that one process makes."""
    assert made(tmp_path / "alone", watch) == FACTS
    return contents(tmp_path / "alone")


@pytest.mark.parametrize("processes", [2, 4, 100])
def test_the_bytes_are_those_of_one_process(
    tmp_path: Path, watch: Watch, alone: dict[str, bytes], processes: int
) -> None:
    workers = Workers(processes=processes)
    assert made(tmp_path / "many", watch, workers=workers) == FACTS
    assert contents(tmp_path / "many") == alone
    assert {f"{unit.name}/text" for unit in UNITS} < alone.keys()


def test_the_order_of_the_units_changes_no_byte(
    tmp_path: Path, watch: Watch, alone: dict[str, bytes]
) -> None:
    with Units(tmp_path / "other") as store:
        facts = store.make(
            UNITS[::-1], lambda number, *how: write(9 - number, *how), ALONE, watch, "writing"
        )
    assert facts == FACTS[::-1]
    assert contents(tmp_path / "other") == alone


def test_what_is_complete_is_not_made_again(tmp_path: Path, watch: Watch) -> None:
    made(tmp_path / "units", watch)
    assert made(tmp_path / "units", watch, never) == FACTS


def test_each_worker_begins_with_its_share_and_continues_with_those_of_others() -> None:
    orders = [Workers(number, 3).order(range(7)) for number in range(3)]
    assert orders == [[0, 3, 6, 1, 4, 2, 5], [1, 4, 2, 5, 0, 3, 6], [2, 5, 0, 3, 6, 1, 4]]
    processes = [Workers(1, 2, processes=2).process(number) for number in range(2)]
    assert processes == [Workers(2, 4), Workers(3, 4)]


def on_signal(make: Callable[[int, Path, Advance], Any], marker: Path, number: int) -> MakeUnit:
    """Makes units, but the first process that comes to a certain one does not end with it."""

    def stopping(unit: int, directory: Path, advance: Advance) -> dict[str, Any]:
        facts: dict[str, Any] = make(unit, directory, advance)
        if unit == number:
            try:
                marker.mkdir()
            except FileExistsError:
                return facts
            os.kill(os.getpid(), signal.SIGKILL)
        return facts

    return stopping


@pytest.mark.parametrize("number", [0, 5, 9])
def test_the_units_of_a_killed_process_are_made_by_others(
    tmp_path: Path, watch: Watch, alone: dict[str, bytes], number: int
) -> None:
    stopping = on_signal(write, tmp_path / "killed", number)
    assert made(tmp_path / "units", watch, stopping, Workers(processes=2)) == FACTS
    assert (tmp_path / "killed").is_dir()
    assert contents(tmp_path / "units") == alone


def test_workers_on_one_directory_make_each_unit_once(tmp_path: Path, watch: Watch) -> None:
    def counted(number: int, directory: Path, advance: Advance) -> dict[str, Any]:
        (tmp_path / f"made-{number}-{os.getpid()}").touch()
        time.sleep(0.02)
        return write(number, directory, advance)

    if not (other := os.fork()):
        made(tmp_path / "units", watch, counted, Workers(1, 2))
        os._exit(0)
    try:
        assert made(tmp_path / "units", watch, counted, Workers(0, 2)) == FACTS
    finally:
        assert os.waitpid(other, 0)[1] == 0
    marks = [path.name.split("-")[1:] for path in tmp_path.glob("made-*")]
    assert sorted(int(number) for number, _ in marks) == list(range(len(UNITS)))
    assert {process for _, process in marks} == {str(os.getpid()), str(other)}


@pytest.mark.parametrize("processes", [1, 2])
def test_the_error_of_a_unit_is_raised_and_the_others_are_kept(
    tmp_path: Path, watch: Watch, processes: int
) -> None:
    def broken(number: int, directory: Path, advance: Advance) -> dict[str, Any]:
        if number == 3:
            raise DataError("broken", where="file:3")
        return write(number, directory, advance)

    with pytest.raises(DataError, match="broken"):
        made(tmp_path / "units", watch, broken, Workers(processes=processes))
    with Units(tmp_path / "units") as store:
        there = [store.facts(unit) for unit in UNITS]
    assert there[3] is None
    assert [facts for facts in there if facts] == [
        f for f, t in zip(FACTS, there, strict=True) if t
    ]
    assert made(tmp_path / "units", watch) == FACTS


def test_a_unit_with_a_damaged_manifest_is_made_again(
    tmp_path: Path, watch: Watch, alone: dict[str, bytes]
) -> None:
    made(tmp_path / "units", watch)
    manifest = tmp_path / "units" / UNITS[4].name / "manifest.json"
    manifest.write_text(manifest.read_text().replace("text", "test"))
    assert made(tmp_path / "units", watch) == FACTS
    assert contents(tmp_path / "units") == alone


def test_units_are_discarded_by_the_last_process_that_uses_them(
    tmp_path: Path, watch: Watch
) -> None:
    made(tmp_path / "units", watch)
    with Units(tmp_path / "units") as one, Units(tmp_path / "units") as other:
        one.discard()
        assert (tmp_path / "units" / UNITS[0].name).is_dir()
        one.__exit__()
        other.discard()
    assert not (tmp_path / "units").exists()


def test_a_directory_that_cannot_be_written_is_reported(tmp_path: Path, watch: Watch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WriteError):
        made(tmp_path / "file" / "units", watch)
