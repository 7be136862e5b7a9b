"""Merge domain experts into one model: weights as a pure function of the experts, in any order.

They are made in parts, so that neither the experts nor the merged model have to fit into memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from llmkit.config.inference import MergeConfig
from llmkit.errors import ConfigError
from llmkit.models import rope
from llmkit.models.experts import router, twins
from llmkit.models.experts.shared import AVERAGE, FREQUENCY, SharedWeights
from llmkit.models.experts.sources import ExpertSource
from llmkit.models.experts.twins import DenseState


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
    if settings.router == "random" and settings.top_k == 1:
        raise ConfigError(
            "random routers that choose one expert for each token cannot be trained: its weight is "
            "always 1, so they get no gradient",
            where="merge.top_k",
            next="write merge.top_k=2, or use merge.router=fit",
        )
    ways = (FREQUENCY, AVERAGE, *names)
    if settings.shared not in ways:
        raise ConfigError(
            f"there is no expert of {settings.shared}",
            where="merge.shared",
            next=f"write one of {', '.join(ways)}",
        )


@dataclass(frozen=True)
class MergedModel:
    """A merged model whose weights are made in parts."""

    outline: PreTrainedModel
    """The model without weights."""
    parts: Iterator[DenseState]
    """Its weights: merged ones a layer at a time, and each weight outside the layers by itself."""


def dense_expert(source: ExpertSource) -> MergedModel:
    """One expert as a dense model."""
    outline = twins.outline_of(source.config)
    names = twins.untied(outline, outline.state_dict())
    return MergedModel(outline, (source.weights(names) for _ in range(1)))


def average(sources: Sequence[ExpertSource]) -> MergedModel:
    """One dense model whose weights are the mean of the experts' (Li et al. 2022, arXiv
    2208.03306)."""
    weights = SharedWeights(sources, AVERAGE)
    return MergedModel(weights.outline, map(weights.merged, weights.parts()))


def mixture(
    sources: Sequence[ExpertSource], shared: str, routers: str, top_k: int, seed: int
) -> MergedModel:
    """One mixture-of-experts model: the feed-forward networks of the experts unchanged, the rest
    merged as `shared` says (Sukhbaatar et al. 2024, arXiv 2403.07816).

    Routers are fitted to the statistics of the experts (`fit`), or drawn from `seed` (`random`).
    Raises ConfigError for an architecture without such a model, and where statistics are missing.
    """
    config = sources[0].config
    twins.twin_of(config, sources[0].location)
    outline = twins.outline_of(twins.routed_config(config, len(sources), top_k))
    trunk, rows = SharedWeights(sources, shared), _routers(sources, routers, seed)
    return MergedModel(outline, _mixture_parts(sources, trunk, rows, outline))


def _mixture_parts(
    sources: Sequence[ExpertSource], trunk: SharedWeights, routers: Tensor, outline: PreTrainedModel
) -> Iterator[DenseState]:
    blocks = list(twins.expert_blocks(outline).items())
    numbers = {twins.layer_name(prefix): number for number, (prefix, _) in enumerate(blocks)}
    for names in trunk.parts():
        own = [name for name in names if twins.is_feed_forward(name)]
        yield trunk.merged([name for name in names if name not in own])
        if own:
            number = numbers[twins.layer_name(own[0])]
            experts = [source.weights(own) for source in sources]
            yield from twins.routed_block(*blocks[number], experts, routers[number])
            del experts


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
