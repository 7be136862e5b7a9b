"""What a model makes of pairs of responses, beside a reference model."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from llmkit.data.examples import packs
from llmkit.data.examples.preferences import EncodedPairs
from llmkit.distributed.processes import Processes
from llmkit.evaluation.passages import group_size, merged_units, response_likelihoods
from llmkit.progress import Watch
from llmkit.reporting.held_out import MOST_PASSAGES, OF_PREFERENCES, PAIR_FIGURES, HeldOut
from llmkit.storage import cache

PairScores = Callable[[Tensor, Tensor, Tensor], Mapping[str, Tensor]]
"""The figures of pairs [pairs] from the log-probabilities of the model and the reference, and the
numbers of tokens [pairs, 2] each."""


def log_probabilities(
    model: PreTrainedModel, pairs: EncodedPairs, processes: Processes, label: str, watch: Watch
) -> NDArray[np.float64]:
    """[pairs, 2], the log-probabilities of the chosen and the rejected responses in nats, in fp32
    and without dropout; each process computes a part of them. The model is left as it was."""
    mine = np.arange(processes.rank, len(pairs), processes.count)
    rows = (2 * mine[:, None] + np.arange(2)).flatten()
    found = np.zeros((len(pairs), 2))
    training, cached = model.training, model.config.use_cache
    try:
        part = packs.alone(pairs.responses.part(rows), pairs.pad_id)
        nll, _ = response_likelihoods(model, part, label, watch)
    finally:
        model.train(training)
        model.config.use_cache = cached
    found[mine] = -nll.reshape(-1, 2)
    return processes.sum(torch.from_numpy(found).to(model.device)).cpu().numpy()


def pair_figures(
    own: Tensor, reference: Tensor, lengths: Tensor | None = None
) -> dict[str, Tensor]:
    """PAIR_FIGURES of each pair [pairs], from the log-probabilities of the chosen and the rejected
    response under the model and the reference [pairs, 2], in nats.

    A gain is how much likelier the model makes a response than the reference does, per token if the
    `lengths` of the responses are given; the margin is the difference of both gains, and the
    accuracy says whether it is above 0.
    """
    gains = own - reference
    if lengths is not None:
        gains = gains / lengths.clamp(min=1)
    margin = gains[:, 0] - gains[:, 1]
    values = (margin > 0).to(own.dtype), margin, *gains.unbind(1), *own.unbind(1)
    return dict(zip(PAIR_FIGURES, values, strict=True))


def pair_passages(
    model: PreTrainedModel, pairs: EncodedPairs, score: PairScores, watch: Watch
) -> HeldOut:
    """What a model makes of each held-out pair of responses, beside the reference."""
    nll, _ = response_likelihoods(model, pairs.rows, "measuring pairs", watch)
    return held_out_pairs(pairs, -nll.reshape(-1, 2), score)


def held_out_pairs(pairs: EncodedPairs, own: NDArray[np.float64], score: PairScores) -> HeldOut:
    """The same from the log-probabilities [pairs, 2] under the model."""
    assert pairs.reference is not None
    both = own, pairs.reference.astype(np.float64), pairs.scored
    found = score(*(torch.from_numpy(each) for each in both))
    names = [name for name in ("loss", *PAIR_FIGURES) if name in found]
    values = {name: found[name].numpy() for name in names}
    every = group_size(len(pairs), MOST_PASSAGES)
    units = {"pairs": np.ones(len(pairs), np.int64), **values}
    merged = merged_units(np.arange(len(pairs)), units, every)
    return HeldOut(OF_PREFERENCES, cache.key(pairs.fingerprint, every), merged)
