"""Whether a model's logits are a matrix times its last hidden states and nothing else: checked on
the model itself, since some scale, cap or route on the way."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

FACTOR = 1000.0
"""Small logits pass a soft cap unchanged: the check makes them large."""


@torch.no_grad()
def is_linear(model: PreTrainedModel) -> bool:
    """Whether the output layer alone gives the model's logits from its last hidden states."""
    head = model.get_output_embeddings()
    body = model.base_model
    routed = getattr(model.config, "router_aux_loss_coef", None) is not None
    if body is model or routed or not isinstance(head, nn.Linear) or head.bias is not None:
        return False
    training, weight = model.training, head.weight.detach().clone()
    model.eval()
    head.weight.mul_(FACTOR)
    ids = torch.arange(6, device=model.device)[None] % model.config.vocab_size  # [1, 6]
    try:
        logits = model(input_ids=ids, use_cache=False).logits
        alone = head(body(input_ids=ids, use_cache=False).last_hidden_state)
    finally:
        head.weight.copy_(weight)
        model.train(training)
    return bool(torch.allclose(logits, alone, rtol=1e-4, atol=1e-5))
