"""How well a model predicts responses that it has not learned."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from transformers import PreTrainedModel

from llmkit.data.blocks import UNSCORED
from llmkit.data.packs import Packs
from llmkit.models.logits import ChosenLogits
from llmkit.progress import Watch

TOKENS_AT_ONCE = {"cpu": 4096, "cuda": 65536}
"""Tokens that the model reads at once, whatever the rows."""


@torch.no_grad()
def measure(model: PreTrainedModel, packs: Packs, watch: Watch) -> dict[str, Any]:
    """Mean loss of the tokens of responses in nats, perplexity, and how many were scored."""
    chosen, device = ChosenLogits(model.eval()), model.device
    order = np.asarray(packs.longest_first())
    size = max(1, TOKENS_AT_ONCE.get(device.type, 4096) // int(packs.lengths.max()))
    total = torch.zeros((), dtype=torch.float64, device=device)
    with watch("measuring responses", len(packs)) as advance:
        for first in range(0, len(order), size):
            rows = order[first : first + size]
            batch = {name: value.to(device) for name, value in packs.batch(rows).items()}
            targets, _ = batch.pop("targets"), batch.pop("places")
            scored = targets != UNSCORED
            parts = torch.split(targets[scored], chosen.chunk)
            for logits, wanted in zip(chosen.chunks(batch, scored), parts, strict=True):
                total += functional.cross_entropy(logits.float(), wanted, reduction="sum").double()
            advance(len(rows))
    loss = total.item() / packs.n_predictions
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "tokens": packs.n_predictions,
        "conversations": len(packs.starts) - 1,
    }
