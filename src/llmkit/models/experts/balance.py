"""Mixtures of experts: the load-balancing loss, as sums that add up over parts of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from llmkit.errors import ConfigError
from llmkit.models import build

_TOLERANCE = 1e-4
"""Largest relative difference to the model's own load-balancing loss that rounding may cause."""


@dataclass(frozen=True)
class Balance:
    """The load-balancing loss of a model (Fedus et al. 2021, arXiv 2101.03961), as transformers
    computes it over all layers together.

    For E experts and T tokens without padding it is E sum_i (n_i / T) (p_i / T): n_i tokens are
    routed to expert i, and p_i is the sum of the tokens' probabilities of expert i. It is a product
    of two means: the mean of its values over parts of a batch is not its value over the batch.
    """

    SUMS: ClassVar = ("routed", "probability")
    """The keys that `sums` returns and the arguments of `loss`."""

    coefficient: float
    """Its weight in the objective."""
    top_k: int
    """Number of experts that a token is routed to."""

    def sums(
        self, router_logits: Sequence[Tensor], real: Tensor | None = None
    ) -> dict[str, Tensor]:
        """`routed` and `probability`, n and p above as fp64 [experts], summed over the layers.

        `router_logits` holds [tokens, experts] of each layer; `real`, a bool with one element per
        token, is False at padding. Only `probability` has a gradient.
        """
        routed, probability = torch.zeros((), dtype=torch.float64), torch.zeros(())
        for logits in router_logits:
            chances = torch.softmax(logits.float(), dim=-1)  # [tokens, experts]
            chosen = torch.zeros_like(chances).scatter_(
                1, chances.detach().topk(self.top_k, dim=-1).indices, 1.0
            )
            if real is not None:
                counted = real.flatten()[:, None].to(chances.dtype)
                chances, chosen = chances * counted, chosen * counted
            routed = routed.to(chosen.device) + chosen.sum(0, dtype=torch.float64)
            probability = probability.to(chosen.device) + chances.sum(0)
        return {"routed": routed, "probability": probability.double()}

    def loss(self, routed: Tensor, probability: Tensor) -> Tensor:
        """The load-balancing loss of a batch with these sums. It is linear in `probability`: given
        `routed` of the whole batch, the losses of its parts add up to that of the whole."""
        tokens = routed.sum().clamp(min=1.0) / self.top_k
        return len(routed) * (routed * probability).sum() / tokens**2


@torch.no_grad()
def balance_of(model: PreTrainedModel) -> Balance | None:
    """The load-balancing loss of a causal language model, determined by running it; None if it has
    none, or if its weight in the objective is zero.

    Raises ConfigError for a loss other than the one described at `Balance`.
    """
    coefficient = getattr(model, "router_aux_loss_coef", getattr(model, "aux_loss_coef", None))
    if not coefficient or not getattr(_probe(model.base_model, model), "router_logits", None):
        return None
    outputs = _probe(model, model)
    logits, own = outputs.router_logits, outputs.aux_loss.double()
    for top_k in range(1, logits[0].shape[-1] + 1):
        found = Balance(float(coefficient), top_k)
        if torch.allclose(found.loss(**found.sums(logits)), own, rtol=_TOLERANCE):
            return found
    raise ConfigError(
        f"{type(model).__name__} has a load-balancing loss that llmkit cannot sum over a step",
        where="model.config.router_aux_loss_coef",
        next="write model.config.router_aux_loss_coef=0 to train without it",
    )


def are_unbalanced(model: PreTrainedModel) -> bool:
    """Whether a model routes tokens to experts without a load-balancing loss in transformers: it is
    balanced by a bias that training does not change (DeepSeek-V3), or is a classifier."""
    weights = ("router_aux_loss_coef", "aux_loss_coef")
    records = getattr(model.base_model, "_can_record_outputs", None) or {}
    return "router_logits" in records and not any(hasattr(model, name) for name in weights)


def has_constant_routing(config: PretrainedConfig) -> bool:
    """Whether each token has one expert with weight 1, whatever the router says: it has no
    gradient."""
    text = config.get_text_config()
    normalised = getattr(text, "norm_topk_prob", text.model_type in ("mixtral", "granitemoe"))
    return bool(normalised and getattr(text, build.TOP_K, None) == 1)


def _probe(module: Any, model: PreTrainedModel) -> Any:
    """The outputs of a model or its body for a few tokens, with the logits of its routers."""
    training = model.training
    model.eval()
    ids = torch.arange(16, device=model.device)[None] % model.config.get_text_config().vocab_size
    try:
        return module(input_ids=ids, use_cache=False, output_router_logits=True)
    finally:
        model.train(training)
