"""Causal language modelling: each token from those before it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from llmkit.models import rope
from llmkit.models.kernels.cross_entropy import LinearCrossEntropy
from llmkit.models.moe import Balance
from llmkit.training.tasks.task import IGNORED, Batch, Loss, Sums, summed_cross_entropy


class CausalLoss(Loss):
    """Each token from those before it, in its own document."""

    def __init__(
        self, n_bytes: int, linear_head: bool = False, balance: Balance | None = None
    ) -> None:
        """`n_bytes` of text stand behind a validation set; `linear_head` says that the logits are
        a matrix times the last hidden states, as `llmkit.models.heads` finds out; `balance` is the
        load-balancing loss of a mixture of experts."""
        self.n_bytes, self.linear_head, self.balance = n_bytes, linear_head, balance
        self.cross_entropy = LinearCrossEntropy(IGNORED)
        self.compilable = (self.cross_entropy.chunk,)

    def sums(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Cross entropy in nats, and for a mixture of experts what its load-balancing loss needs,
        see `Balance.sums`."""
        whole = model.base_model if self.linear_head else model
        outputs: Any = self._outputs(model, whole, batch)
        if self.linear_head:
            loss = self._chunked(model, outputs.last_hidden_state.flatten(0, 1), batch)
        else:
            logits = outputs.logits.flatten(0, 1)  # [batch * block, vocabulary]
            loss = summed_cross_entropy(logits.float(), batch["targets"].flatten())
        sums = {"objective": loss, "loss": loss}
        if self.balance is not None:
            sums |= self.balance.sums(outputs.router_logits, batch.get("real"))
        return sums

    def routed(self, model: nn.Module, batch: Batch) -> Tensor:
        """The tokens routed to each expert, see `Balance.sums`, without the cost of logits."""
        assert self.balance is not None
        outputs: Any = self._outputs(model, model.base_model, batch)
        return self.balance.sums(outputs.router_logits, batch.get("real"))["routed"]

    def _outputs(self, model: Any, part: Any, batch: Batch) -> Any:
        inputs = {key: value for key, value in batch.items() if key not in ("targets", "places")}
        inputs = rope.placed(model, inputs)
        options = {} if self.balance is None else {"output_router_logits": True}
        # Without use_cache=False, transformers silently ignores position_ids that start again.
        return part(**inputs, use_cache=False, **options)

    def _chunked(self, model: Any, hidden: Tensor, batch: Batch) -> Tensor:
        targets = batch["targets"].flatten()  # [batch * block]
        if "places" in batch:  # other places are not predicted, and cost no product
            hidden, targets = hidden.index_select(0, batch["places"]), targets[batch["places"]]
        loss: Tensor = self.cross_entropy(hidden, model.get_output_embeddings().weight, targets)
        return loss

    def figures(self, sums: Sums, predictions: int) -> dict[str, float]:
        """Loss in nats per token, perplexity, bits per byte of the text, and of experts
        the load-balancing loss, which is part of none of the others."""
        loss = float(sums["loss"]) / max(1, predictions)
        found = {
            "loss": loss,
            "perplexity": math.exp(min(loss, 700.0)),
            "bits_per_byte": float(sums["loss"]) / math.log(2) / max(1, self.n_bytes),
        }
        if self.balance is not None and "routed" in sums:
            routed, probability = (torch.from_numpy(sums[name]) for name in Balance.SUMS)
            found["router_aux_loss"] = float(self.balance.loss(routed, probability))
        return found
