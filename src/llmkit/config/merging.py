"""The section of a config on merging domain experts."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from llmkit.config.types import Count, NameOrPath, Names, Section


class MergeConfig(Section):
    """How domain experts become one model."""

    experts: dict[str, NameOrPath] = Field(default_factory=dict)
    """Runs or model directories of experts by domain, each trained with `data.expert`."""
    into: Literal["ensemble", "moe", "average"] = "ensemble"
    """`ensemble` reads text with all experts and weights them by how well they predict it; `moe` is
    one mixture-of-experts model that plain transformers loads; `average` is one dense model with
    the mean of all weights."""
    shared: str = "frequency"
    """Weights of a mixture of experts outside the feed-forward networks: `average`, or `frequency`,
    which weights the embedding of a token by how often each domain uses it, or the name of the
    expert to take them from. Weights that all experts share stay as they are."""
    router: Literal["fit", "random"] = "fit"
    """`fit` computes the routers of a mixture of experts from the statistics of the experts;
    `random` needs training on the mixture."""
    top_k: Count = 2
    """Number of experts of a mixture that a token is routed to."""
    without: Names = ()
    """Experts to take out of the model that `model.name_or_path` names."""
    only: str | None = None
    """Expert to take out of the model that `model.name_or_path` names, as a dense model."""
