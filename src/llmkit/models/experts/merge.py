"""Merge domain experts into one model: weights as a pure function of the experts, in any order."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from llmkit.config.inference import MergeConfig
from llmkit.errors import ConfigError
from llmkit.models import rope
from llmkit.models.experts import router, twins
from llmkit.models.experts.sources import ExpertSource
from llmkit.models.experts.twins import DenseState

FREQUENCY, AVERAGE = "frequency", "average"
"""Ways to merge the shared weights; any other value names the expert to take them from."""


def check_mergeable(
    dense: PretrainedConfig, names: Sequence[str], settings: MergeConfig, where: str
) -> None:
    """Raises ConfigError if experts with these names and this config cannot be merged as the
    settings say."""
    if settings.into == "ensemble" and rope.has_longrope(dense):
        raise ConfigError(
            "an ensemble cannot read models whose positions depend on the length of a text",
            where=f"{where} (merge.into)",
            next="use merge.into=average, or a seed with fixed rotary frequencies",
        )
    if settings.into != "moe":
        return
    twins.twin_of(dense, where)
    if settings.top_k > len(names):
        raise ConfigError(
            f"a token cannot be routed to {settings.top_k} of {len(names)} experts",
            where="merge.top_k",
            next=f"write at most {len(names)}",
        )
    ways = (FREQUENCY, AVERAGE, *names)
    if settings.shared not in ways:
        raise ConfigError(
            f"there is no expert of {settings.shared}",
            where="merge.shared",
            next=f"write one of {', '.join(ways)}",
        )


def average(sources: Sequence[ExpertSource]) -> PreTrainedModel:
    """One dense model whose weights are the mean of the experts' (Li et al. 2022, arXiv
    2208.03306)."""
    state = merged_weights(sources, AVERAGE, lambda name: True)
    return twins.dense_model(sources[0].config, state)


def mixture(
    sources: Sequence[ExpertSource], shared: str, routers: str, top_k: int, seed: int
) -> PreTrainedModel:
    """One mixture-of-experts model: the feed-forward networks of the experts unchanged, the rest
    merged as `shared` says (Sukhbaatar et al. 2024, arXiv 2403.07816).

    Routers are fitted to the statistics of the experts (`fit`), or drawn from `seed` (`random`).
    Raises ConfigError for an architecture without such a model, and where statistics are missing.
    """
    config = sources[0].config
    twins.twin_of(config, sources[0].location)
    weights = merged_weights(sources, shared, lambda name: not twins.is_feed_forward(name))
    made = twins.routed_config(config, len(sources), top_k)
    return twins.routed_model(
        made, weights, [each.state for each in sources], _routers(sources, routers, seed)
    )


def _routers(sources: Sequence[ExpertSource], how: str, seed: int) -> Tensor:
    config = sources[0].config
    if how == "random":
        return router.random_routers(
            int(config.num_hidden_layers),
            len(sources),
            int(config.hidden_size),
            float(config.initializer_range),
            seed,
        )
    known = [each.expert.statistics for each in sources]
    if missing := [each.name for each in sources if each.expert.statistics is None]:
        raise ConfigError(
            f"there are no statistics of {', '.join(missing)} to fit a router to",
            where="merge.router",
            next="use merge.router=random, and train the merged model on the mixture",
        )
    return router.fit_routers([each for each in known if each is not None])


def merged_weights(
    sources: Sequence[ExpertSource], shared: str, wanted: Callable[[str], bool]
) -> DenseState:
    """The merged weights with wanted names.

    A weight that is equal in all experts stays as it is. Others are averaged in fp64; with
    `frequency`, the rows of a token's embedding are weighted by how often each domain uses the
    token; with the name of an expert, they are taken from it.
    """
    chosen = [each for each in sources if each.name == shared] or list(sources)
    rows = _frequencies(chosen) if shared == FREQUENCY else None
    merged: dict[str, Tensor] = {}
    for name in filter(wanted, sources[0].state):
        weights = [each.state[name] for each in chosen]
        if all(torch.equal(weights[0], other) for other in weights[1:]):
            merged[name] = weights[0]
        else:
            merged[name] = _mean(weights, rows if name in sources[0].embeddings else None)
    return merged


def _mean(weights: Sequence[Tensor], rows: Tensor | None) -> Tensor:
    """The mean of several experts' weights, whose rows may be weighted: [experts, rows]."""
    total = torch.zeros(weights[0].shape, dtype=torch.float64)
    for number, weight in enumerate(weights):
        total += weight.double() if rows is None else rows[number][:, None] * weight.double()
    return (total / len(weights) if rows is None else total).to(weights[0].dtype)


def _frequencies(sources: Sequence[ExpertSource]) -> Tensor:
    """fp64 [experts, vocabulary], the share of each expert in each token's embedding: its domain's
    share of the occurrences of the token, had all domains the same size; equal shares for a token
    that no domain has."""
    counts = []
    for source in sources:
        if source.expert.statistics is None:
            raise ConfigError(
                f"there are no token frequencies of {source.name}",
                where="merge.shared",
                next="use merge.shared=average",
            )
        counts.append(source.expert.statistics.frequency.double())
    shares = torch.stack([each / each.sum() for each in counts])
    seen = shares.sum(dim=0)
    even = torch.full_like(shares, 1 / len(shares))
    return torch.where(seen > 0, shares / seen.clamp(min=torch.finfo(seen.dtype).tiny), even)
