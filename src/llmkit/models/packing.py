"""Whether a model keeps packed documents apart: checked on the model itself, not believed."""

from __future__ import annotations

import inspect

import torch
from transformers import PreTrainedModel

from llmkit.errors import ConfigError

TOLERANCE = 1e-3
"""Largest difference of logits that rounding may cause; a leak shows as 0.1 and more."""


def check_isolation(model: PreTrainedModel) -> None:
    """Passes when documents packed into one row do not see each other.

    Raises ConfigError for an architecture that has no position ids, or does not heed them.
    """
    if not isolates(model):
        raise ConfigError(
            f"{type(model).__name__} cannot keep packed documents apart",
            where="data.isolate_documents",
            next="write data.isolate_documents=false to train with documents that see each other",
        )


@torch.no_grad()
def isolates(model: PreTrainedModel) -> bool:
    """Whether two documents packed into one row give the logits that each gives alone.

    A packed row tells its documents apart by position ids that start again at 0.
    """
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return False
    training, device = model.training, model.device
    model.eval()
    ids = torch.arange(12, device=device)[None] % model.config.vocab_size  # [1, 12]
    first, second = torch.arange(5, device=device), torch.arange(7, device=device)
    try:
        packed = model(
            input_ids=ids, position_ids=torch.cat([first, second])[None], use_cache=False
        )
        alone = model(input_ids=ids[:, 5:], position_ids=second[None], use_cache=False)
    finally:
        model.train(training)
    return bool((packed.logits[:, 5:] - alone.logits).abs().max() < TOLERANCE)
