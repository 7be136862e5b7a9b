"""What a step computes depends on its number alone, whatever was prepared before."""

from __future__ import annotations

import pytest
import torch

from llmkit.distributed.processes import join_processes
from llmkit.errors import DataError
from llmkit.training import prefetch
from llmkit.training.tasks.causal import CausalLoss
from tests.training.conftest import Rows

BAD = 39


class OneBadRow(Rows):
    def batch(self, rows):
        if BAD in rows:
            raise DataError("row 39 is bad")
        return super().batch(rows)


def inputs(examples: Rows, steps: list[int]) -> list[prefetch.Input]:
    processes = join_processes("fp32")
    rows_of_step = [range(8 * step, 8 * step + 8) for step in range(9)].__getitem__
    with prefetch.ahead(CausalLoss(1), examples, rows_of_step, 3, processes) as take:
        return [take(step) for step in steps]


def test_steps_in_any_order_are_what_each_is_alone() -> None:
    examples = Rows(72)
    for step, found in zip((0, 1, 5, 2, 2), inputs(examples, [0, 1, 5, 2, 2]), strict=True):
        [alone] = inputs(examples, [step])
        assert list(found.rows) == list(range(8 * step, 8 * step + 8))
        assert (found.predictions, found.weights) == (alone.predictions, alone.weights)
        for one, other in zip(found.micro_batches, alone.micro_batches, strict=True):
            assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_step_that_never_comes_raises_nothing() -> None:
    examples = OneBadRow(72)
    assert len(inputs(examples, [2, 3])) == 2  # step 4 was begun and has the bad row
    with pytest.raises(DataError, match="row 39"):
        inputs(examples, [2, 3, 4])
