"""The three passes give the same bytes and the same report, whoever makes the units."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from llmkit.config.schema import CleanConfig, DataConfig
from llmkit.data.cleaning.passes import output, pipeline
from llmkit.data.cleaning.passes.pipeline import CleaningPlan, Passes, plan_cleaning
from llmkit.data.cleaning.passes.rows_file import reading_rows
from llmkit.data.readers.files import find
from llmkit.errors import ConfigError
from llmkit.progress import Watch
from llmkit.storage.outputs import CLEANED, TRACE, UNITS
from llmkit.storage.units import Unit, Units, Workers
from tests.dirty import prose

Clean = Callable[..., Path]


@pytest.fixture(autouse=True)
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "UNIT_BYTES", 8000)


def planned(
    watch: Watch, *texts: Path, held_out: Sequence[Path] = (), **settings: Any
) -> CleaningPlan:
    known = find([str(each) for each in held_out], "data.test_files") if held_out else []
    found = find([str(each) for each in texts], "data.train_files")
    return plan_cleaning(known, found, DataConfig(), CleanConfig(**settings), watch)


def cleaned(plan: CleaningPlan, directory: Path, watch: Watch, workers: Workers) -> dict[str, Any]:
    with Units(directory / UNITS) as units:
        account = output.publish(plan, Passes(plan, units, workers, watch).carry_out(), directory)
        units.discard()
    return account


def contents(directory: Path) -> dict[str, bytes]:
    """All files but the times."""
    files = [directory / CLEANED, directory / TRACE, *sorted((directory / "text").iterdir())]
    return {path.name: path.read_bytes() for path in files}


def rows(directory: Path) -> list[dict[str, Any]]:
    return [row for path in sorted((directory / "text").iterdir()) for row in reading_rows(path)]


@pytest.fixture
def alone(dirty: Path, tmp_path: Path, watch: Watch) -> Path:
    """What one process makes of the dirty folder."""
    cleaned(planned(watch, dirty), tmp_path / "alone", watch, Workers())
    return tmp_path / "alone"


@pytest.mark.parametrize("workers", [Workers(1, 4), Workers(0, 1, 2), Workers(1, 2, 2)])
def test_bytes_and_report_do_not_depend_on_workers(
    workers: Workers, dirty: Path, alone: Path, tmp_path: Path, watch: Watch
) -> None:
    cleaned(planned(watch, dirty), tmp_path / "several", watch, workers)
    assert len(list((alone / "text").iterdir())) > 2
    assert contents(tmp_path / "several") == contents(alone)
    assert not (alone / UNITS).exists()


@pytest.mark.parametrize("phase", ["scan", "link", "write"])
def test_a_killed_process_loses_no_unit_and_changes_no_byte(
    phase: str, dirty: Path, alone: Path, tmp_path: Path, watch: Watch
) -> None:
    plan, directory = planned(watch, dirty), tmp_path / "killed"

    class Killed(Passes):
        def _make(self, units: list[Unit], make: Any, label: str) -> list[dict[str, Any]]:
            def killed(number: int, at: Path, advance: Any) -> dict[str, Any]:
                if number == len(units) - 1 and units[0].name.startswith(phase):
                    os.kill(os.getpid(), signal.SIGKILL)
                return dict(make(number, at, advance))

            return super()._make(units, killed, label)

    if not (child := os.fork()):
        with Units(directory / UNITS) as units:
            Killed(plan, units, Workers(), watch).carry_out()
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert not (directory / CLEANED).exists()
    cleaned(plan, directory, watch, Workers())
    assert contents(directory) == contents(alone)


def test_units_in_reverse_order_give_the_same_bytes(
    dirty: Path, alone: Path, tmp_path: Path, watch: Watch
) -> None:
    made = list[str]()

    class Reversed(Passes):
        def _make(self, units: list[Unit], make: Any, label: str) -> list[dict[str, Any]]:
            def other(number: int, at: Path, advance: Any) -> dict[str, Any]:
                made.append(units[len(units) - 1 - number].name)
                return dict(make(len(units) - 1 - number, at, advance))

            return super()._make(units[::-1], other, label)[::-1]

    plan, directory = planned(watch, dirty), tmp_path / "reversed"
    with Units(directory / UNITS) as units:
        passes = Reversed(plan, units, Workers(), watch)
        output.publish(plan, passes.carry_out(), directory)
    scans = [name for name in made if name.startswith("scan")]
    assert len(scans) > 2
    assert scans == [unit.name for unit in passes._units("scan")][::-1]
    assert contents(directory) == contents(alone)


def test_every_document_is_kept_or_traced_and_the_sums_close(
    dirty: Path, alone: Path, tmp_path: Path, watch: Watch
) -> None:
    account = cleaned(planned(watch, dirty), tmp_path / "again", watch, Workers())
    before, after = account["before"], account["after"]
    assert before["documents"] == after["documents"] + sum(
        each["documents"] for each in account["removed"].values()
    )
    kept = rows(alone)
    assert after["documents"] == len(kept)
    assert after["bytes"] == sum(len(row["text"].encode()) for row in kept)
    assert account["removed"].keys() == {"decode", "empty", "repeated", "exact", "near_duplicate"}
    counts = {reason: each["documents"] for reason, each in account["removed"].items()}
    assert counts == {"decode": 1, "empty": 2, "repeated": 1, "exact": 2, "near_duplicate": 12}
    assert account["edits"]["mojibake"]["documents"] == 3
    assert account["encodings"]["cp1251"] == account["encodings"]["unknown"] == 1
    assert [text for text in account["warnings"] if "e.txt is in no known encoding" in text]


def test_the_trace_names_place_reason_value_limit_and_what_is_kept(
    dirty: Path, tmp_path: Path, watch: Watch
) -> None:
    plan = planned(watch, dirty, keep_removed=True)
    cleaned(plan, tmp_path / "kept", watch, Workers())
    origins = {row["cleaned_from"] for row in rows(tmp_path / "kept")}
    for name in plan.names:
        for row in range(1, 99):
            found = output.trace_of(tmp_path / "kept", name, row)
            if found is None or "edits" in found:
                continue
            assert {"reason", "value", "limit", "hash", "bytes", "text"} <= found.keys()
            assert f"{name}#{row}" not in origins
            if found["reason"] in ("exact", "near_duplicate"):
                assert found["value"] >= found["limit"]
                assert found["kept"] in origins


def test_the_rows_of_a_table_keep_their_columns(alone: Path) -> None:
    of_tables = [row for row in rows(alone) if ".jsonl#" in row["cleaned_from"]]
    assert of_tables
    assert all([*row] == ["text", "cleaned_from", "id"] for row in of_tables)


def test_cleaning_what_was_cleaned_removes_nothing(
    alone: Path, tmp_path: Path, watch: Watch
) -> None:
    account = cleaned(planned(watch, alone), tmp_path / "twice", watch, Workers())
    assert account["before"] == account["after"]
    assert (account["removed"], account["edits"]) == ({}, {})
    assert rows(tmp_path / "twice") == rows(alone)


def test_training_text_like_held_out_text_is_removed(
    dirty: Path, tmp_path: Path, watch: Watch
) -> None:
    (tmp_path / "test.txt").write_text(prose(1)[0] + "\n")
    plan = planned(watch, dirty, held_out=[tmp_path / "test.txt"])
    account = cleaned(plan, tmp_path / "out", watch, Workers())
    [held_out] = [each for each in account["sources"] if each["held_out"]]
    assert held_out["copies_in_training"] == 2
    assert prose(1)[0] not in {row["text"] for row in rows(tmp_path / "out")}


def test_ranges_of_a_large_file_give_what_the_whole_gives(
    tmp_path: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [*prose(60), *prose(4), "", *prose(6, seed=3)]
    rows_of = [json.dumps({"n": n, "text": text}) for n, text in enumerate(texts)]
    (tmp_path / "a.jsonl").write_text("\n".join(rows_of[:40]) + "\n\n" + "\n".join(rows_of[40:]))
    plan = planned(watch, tmp_path / "a.jsonl")
    assert len(plan.groups()) > 4
    account = cleaned(plan, tmp_path / "ranges", watch, Workers(0, 1, 2))
    monkeypatch.setattr(pipeline, "UNIT_BYTES", 1 << 30)
    whole = planned(watch, tmp_path / "a.jsonl")
    assert len(whole.groups()) == 1
    assert cleaned(whole, tmp_path / "whole", watch, Workers()) == account
    assert rows(tmp_path / "ranges") == rows(tmp_path / "whole")
    traces = [(tmp_path / name / TRACE).read_bytes() for name in ("ranges", "whole")]
    assert traces[0] == traces[1]
    assert account["removed"]["exact"]["examples"][0]["kept"] == f"{tmp_path / 'a.jsonl'}#1"


def test_boilerplate_is_counted_over_all_units(tmp_path: Path, watch: Watch) -> None:
    (folder := tmp_path / "pages").mkdir()
    for number, text in enumerate(prose(18)):
        (folder / f"{number}.txt").write_text(f"{text}\nall rights reserved here\n{number}")
    plan = planned(watch, folder, boilerplate=18)
    account = cleaned(plan, tmp_path / "out", watch, Workers())
    assert account["edits"]["boilerplate"]["documents"] == 18
    assert "all rights" not in "".join(row["text"] for row in rows(tmp_path / "out"))
    plain = cleaned(planned(watch, folder), tmp_path / "plain", watch, Workers())
    [candidate] = plain["boilerplate_candidates"]
    assert candidate["line"] == "all rights reserved here"
    # A line that is once in a unit is not counted there.
    assert 16 <= candidate["documents"] <= 18


def test_other_settings_are_not_mixed_into_a_directory(
    dirty: Path, alone: Path, watch: Watch
) -> None:
    assert output.recorded_account(alone, planned(watch, dirty))
    with pytest.raises(ConfigError, match="other settings"):
        output.recorded_account(alone, planned(watch, dirty, near_duplicate=0.8))
