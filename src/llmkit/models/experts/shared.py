"""The weights that experts share in a merged model, made of theirs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from llmkit.errors import ConfigError
from llmkit.models.experts import twins
from llmkit.models.experts.sources import ExpertSource

FREQUENCY, AVERAGE = "frequency", "average"
"""Ways to merge the shared weights; any other value names the expert to take them from."""


_ROWS = 1 << 12
"""Number of rows of an embedding that are computed on at once."""


class SharedWeights:
    """The weights of several experts, merged into those of one dense model.

    A weight that is equal in all experts stays as it is. Others are averaged in fp64; with
    `frequency`, the rows of a token's embedding are weighted by how often each domain uses the
    token; with the name of an expert, they are taken from it.
    """

    def __init__(self, sources: Sequence[ExpertSource], how: str) -> None:
        """Raises ConfigError if the frequencies of tokens are needed and not known."""
        self.outline = twins.outline_of(sources[0].config)
        """The dense model without weights."""
        self._chosen = [each for each in sources if each.name == how] or list(sources)
        self._shares = _frequencies(self._chosen) if how == FREQUENCY else None
        self._embeddings = twins.embedding_names(self.outline)

    def parts(self) -> list[list[str]]:
        """The names of the weights in a file: those of a layer together, others by themselves."""
        found: dict[str, list[str]] = {}
        for name in twins.untied(self.outline, self.outline.state_dict()):
            found.setdefault(twins.layer_name(name), []).append(name)
        return list(found.values())

    def merged(self, names: Sequence[str]) -> dict[str, Tensor]:
        """The merged weights with these names. One expert is read after another."""
        first = self._chosen[0].weights(names)
        sums = {name: torch.zeros(w.shape, dtype=torch.float64) for name, w in first.items()}
        differing = set[str]()
        for number, source in enumerate(self._chosen):
            for name, weight in source.weights(names).items():
                rows = self._rows(name)
                _add(sums[name], weight, None if rows is None else rows[number])
                if not torch.equal(weight, first[name]):
                    differing.add(name)
        count = len(self._chosen)
        for name in differing:
            mean = sums.pop(name)
            if self._rows(name) is None:
                mean /= count
            first[name] = mean.to(first[name].dtype)
        return first

    def _rows(self, name: str) -> Tensor | None:
        """[experts, rows, 1], the share of each expert in each row of a weight; None if all count
        the same."""
        return self._shares if name in self._embeddings else None


def _add(total: Tensor, weight: Tensor, share: Tensor | None) -> None:
    """Adds a weight, times its share [rows, 1], to an fp64 total: some rows at a time, since a
    product of all would need twice the memory of the weight."""
    if share is None:
        total += weight
        return
    for start in range(0, len(total), _ROWS):
        rows = slice(start, start + _ROWS)
        total[rows] += share[rows] * weight[rows]


def _frequencies(sources: Sequence[ExpertSource]) -> Tensor:
    """fp64 [experts, vocabulary, 1], the share of each expert in each token's embedding: its
    domain's share of the occurrences of the token, had all domains the same size; equal shares for
    a token that no domain has."""
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
    found = torch.where(seen > 0, shares / seen.clamp(min=torch.finfo(seen.dtype).tiny), even)
    return found[..., None]
