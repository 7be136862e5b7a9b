"""The routers of merged experts, in closed form."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from llmkit.models.experts.statistics import DomainStatistics

SCALE = 5.0
"""Factor on the regression: its predictions lie between 0 and 1, too close for a softmax."""
RIDGE = 0.1
"""The penalty, relative to the mean square of the inputs."""


def fit_routers(domains: Sequence[DomainStatistics]) -> Tensor:
    """Routers fp32 [layers, domains, hidden size] by ridge regression of a token's domain on the
    input of each feed-forward network (Hoerl & Kennard 1970; for routers Fani & Ersoy 2026, arXiv
    2603.29765).

    Every domain counts the same, however long its text. The regression needs only sums of products:
    with X of all tokens and Y the one-hot domains, W = (X'X + penalty)^-1 X'Y.
    """
    products = sum((each.products / each.tokens for each in domains), torch.zeros(()))
    means = torch.stack([each.sums / each.tokens for each in domains], dim=2)  # [layers, width, n]
    width = products.shape[-1]
    scale = products.diagonal(dim1=1, dim2=2).mean(dim=1)[:, None, None]
    penalty = RIDGE * scale.clamp(min=torch.finfo(torch.float64).tiny) * torch.eye(width)
    weights: Tensor = torch.linalg.solve(products + penalty, means)  # [layers, width, n]
    return (SCALE * weights.transpose(1, 2)).float()


def random_routers(layers: int, experts: int, width: int, deviation: float, seed: int) -> Tensor:
    """Routers [layers, experts, width] with normally distributed weights."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(layers, experts, width, generator=generator) * deviation
