"""Completion: the responses to prompts."""

from __future__ import annotations

from llmkit.models.moe import Balance
from llmkit.training.tasks.causal import CausalLoss
from llmkit.training.tasks.task import Sums


class CompletionLoss(CausalLoss):
    """The responses to prompts: each of their tokens from those before it in its conversation."""

    def __init__(self, linear_head: bool = False, balance: Balance | None = None) -> None:
        super().__init__(n_bytes=0, linear_head=linear_head, balance=balance)

    def figures(self, sums: Sums, predictions: int) -> dict[str, float]:
        """The same for the responses, without bits per byte."""
        found = super().figures(sums, predictions)
        return {name: value for name, value in found.items() if name != "bits_per_byte"}
