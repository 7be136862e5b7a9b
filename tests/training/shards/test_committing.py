"""Several processes commit one directory together or not at all."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from llmkit.storage import outputs
from llmkit.training import checkpoint
from tests.harness import Ended, Server


def save(trials: Server, root: Path, step: int, failing: int = -1, stage: str = "") -> list[Ended]:
    """Two processes save a checkpoint of a step; one fails at a stage."""
    keywords = {"root": str(root), "step": step, "failing": failing, "stage": stage}
    processes = trials.start_processes(2, function="save_together", keywords=keywords)
    return [process.end() for process in processes]


def check(root: Path, step: int) -> None:
    """The newest checkpoint is that of a step, and whole."""
    found = checkpoint.newest(root, pytest.fail)
    assert found is not None
    assert found.state.step == step
    moments = found.optimizer_tensors()
    tensors = [moments[name] for name in moments]
    for file in found.directory.glob("model-*.safetensors"):
        tensors += load_file(file).values()
    assert len(tensors) > 30
    assert all(bool((tensor == step).all()) for tensor in tensors)
    assert sorted(root.iterdir()) == outputs.checkpoints(root)


STAGES = [(0, "weights"), (1, "moments"), (0, "commit"), (1, "full"), (1, "bad")]
MORE = [(1, "weights"), (0, "moments"), (0, "full")]


@pytest.mark.parametrize(
    ("failing", "stage"),
    [*STAGES, *(pytest.param(*each, marks=pytest.mark.slow) for each in MORE)],
)
def test_a_save_that_fails_anywhere_leaves_the_checkpoint_before_it(
    trials: Server, first: Path, tmp_path: Path, failing: int, stage: str
) -> None:
    root = tmp_path / "checkpoints"
    shutil.copytree(first, root / first.name)
    ended = save(trials, root, 2, failing, stage)
    codes = [each.code for each in ended]
    if stage in ("full", "bad"):
        assert codes == [0, 0], [each.err for each in ended]
        kind = "WriteError" if stage == "full" else "Diverged"
        assert all(each.out.startswith(kind) for each in ended)
        assert f"(rank {failing})" in ended[1 - failing].out
    else:
        assert codes[failing] == -9
        assert codes[1 - failing] != 0
    check(root, 1)
    assert [each.code for each in save(trials, root, 2)] == [0, 0]
    check(root, 2)


@pytest.fixture(scope="module")
def first(trials: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of step 1."""
    root = tmp_path_factory.mktemp("first")
    assert [each.code for each in save(trials, root, 1)] == [0, 0]
    check(root, 1)
    return checkpoint.directory_of(root, 1)
