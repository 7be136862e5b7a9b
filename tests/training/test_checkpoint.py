"""Which checkpoints are kept, and which are trusted."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmkit.errors import InputNotFound, NoValidCheckpoint, Unsafe
from llmkit.training import checkpoint
from llmkit.training.checkpoint import State
from llmkit.training.schedule import Plan, Revision
from tests.jobs import sign

MOMENTS = {"weight.exp_avg": torch.arange(6.0).reshape(2, 3)}


def state(step: int) -> State:
    return State(step=step, plan=Plan((Revision(0, 10), Revision(4, 12))), seconds=1.5)


def save(root: Path, *steps: int) -> None:
    for step in steps:
        checkpoint.save_checkpoint(root, state(step), {"a": 1}, save_model, MOMENTS)


def save_model(directory: Path) -> None:
    (directory / "model.txt").write_text("w")


def steps(root: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in root.glob("step-*"))


def test_a_checkpoint_gives_back_what_was_saved(tmp_path: Path) -> None:
    save(tmp_path, 3)
    found = checkpoint.newest(tmp_path, print)
    assert found is not None
    assert found.state == state(3)
    assert found.identity == {"a": 1}
    assert torch.equal(found.optimizer_tensors()["weight.exp_avg"], MOMENTS["weight.exp_avg"])


@given(st.sets(st.integers(1, 60), min_size=1, max_size=12), st.integers(2, 4), st.integers(1, 60))
def test_the_newest_and_the_best_are_kept_and_nothing_else(all_steps, keep, best) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for step in all_steps:
            (root / f"step-{step:010}").mkdir()
        checkpoint.prune(root, keep, best, print)
        expected = set(sorted(all_steps)[-keep:]) | ({best} & all_steps)
        assert set(steps(root)) == expected
        assert not list(root.glob(".*"))


FILES = ["optimizer.safetensors", "state.json", "model.txt", "manifest.json"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "delete", "swap"])
def test_a_damaged_checkpoint_is_named_and_quarantined_and_the_older_one_used(
    tmp_path: Path, name: str, damage: str
) -> None:
    save(tmp_path, 1, 2)
    file = tmp_path / "step-0000000002" / name
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
    elif damage == "cut":
        content = content[:-1]
    elif damage == "empty":
        content = bytearray()
    elif damage == "swap":
        content = bytearray((tmp_path / "step-0000000001" / name).read_bytes())
    if damage == "delete":
        file.unlink()
    else:
        file.write_bytes(content)
    said: list[str] = []
    found = checkpoint.newest(tmp_path, said.append)
    assert found is not None
    if damage == "swap" and name in ("optimizer.safetensors", "model.txt"):
        assert found.state.step == 2  # the same bytes: nothing is damaged
        return
    assert found.state.step == 1
    assert "step-0000000002" in said[0]
    assert (tmp_path / ".corrupt-step-0000000002-1").is_dir()


def test_a_run_whose_checkpoints_are_all_damaged_never_starts_again_from_nothing(
    tmp_path: Path,
) -> None:
    save(tmp_path, 1)
    (tmp_path / "step-0000000001" / "state.json").write_text("{}")
    for _ in range(2):
        with pytest.raises(NoValidCheckpoint):
            checkpoint.newest(tmp_path, print)


def test_a_checkpoint_named_by_the_user_has_no_stand_in(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    (tmp_path / "step-0000000002" / "state.json").write_text("{}")
    with pytest.raises(NoValidCheckpoint):
        checkpoint.read_checkpoint(tmp_path / "step-0000000002")
    with pytest.raises(InputNotFound):
        checkpoint.read_checkpoint(tmp_path / "step-0000000009")


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../b", "a/.hidden", ".hidden"])
def test_a_manifest_that_leads_out_of_its_directory_is_unsafe(tmp_path: Path, name: str) -> None:
    save(tmp_path, 1)
    entry = {name: {"sha256": "0", "size": 1}}
    sign(tmp_path / "step-0000000001", lambda manifest: manifest["files"].update(entry))
    with pytest.raises(Unsafe):
        checkpoint.newest(tmp_path, print)


def test_what_a_killed_save_left_is_removed_and_never_read(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / ".tmp-step-0000000002-123").mkdir()
    (tmp_path / ".trash-step-0000000000-123").mkdir()
    found = checkpoint.newest(tmp_path, print)
    assert found is not None
    assert found.state.step == 1
    assert not list(tmp_path.glob(".t*"))


def test_old_checkpoints_that_cannot_be_listed_are_left_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(_: Path) -> Iterator[Path]:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "iterdir", failing)
    told: list[str] = []
    checkpoint.prune(tmp_path, keep=2, protect=None, warn=told.append)
    assert "Input/output error" in told[0]
