"""A save is whole or not there, whichever system call is its last and whichever fails."""

from __future__ import annotations

import pytest

from tests.harness import STRACE, Server

from .saving import CALLS, Saves, spread

pytestmark = pytest.mark.skipif(STRACE is None, reason="needs strace")

MOST = 3
"""Places of each system call that are tried on every commit; the sweep tries them all."""


@pytest.fixture(scope="module")
def saves(trials: Server, tmp_path_factory: pytest.TempPathFactory) -> Saves:
    """A checkpoint of step 1, and how to save those of steps 2 and 3."""
    return Saves.begin(trials, tmp_path_factory.mktemp("saves") / "begun")


@pytest.fixture(scope="module")
def counts(saves: Saves) -> dict[str, int]:
    """How often each system call is made while two checkpoints are saved."""
    return saves.copy("counted").calls()


@pytest.mark.parametrize("name", CALLS)
def test_a_kill_at_any_system_call_loses_no_checkpoint(
    saves: Saves, counts: dict[str, int], name: str
) -> None:
    for number in spread(counts[name], MOST):
        made = saves.copy(f"{name}-{number}-killed")
        ended = made.save([2, 3], "-e", f"inject={name}:signal=SIGKILL:when={number}")
        assert ended.code == -9, (name, number, ended)
        made.check()
        made.finish()


@pytest.mark.parametrize("error", ["ENOSPC", "EIO"])
@pytest.mark.parametrize("name", CALLS)
def test_an_error_of_any_system_call_loses_no_checkpoint(
    saves: Saves, counts: dict[str, int], name: str, error: str
) -> None:
    for number in spread(counts[name], MOST):
        made = saves.copy(f"{name}-{number}-{error}")
        ended = made.save([2, 3], "-e", f"inject={name}:error={error}:when={number}")
        assert ended.code in (0, 73), (name, number, ended)
        made.check()
        made.finish()
