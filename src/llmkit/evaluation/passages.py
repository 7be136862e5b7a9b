"""What a finished model makes of each held-out passage: its likelihood, in units that the held-out
text of another run has too."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from llmkit.data.examples.blocks import UNSCORED, Blocks, MaskedBlocks
from llmkit.data.examples.mixture import Mixture
from llmkit.data.examples.packs import Packs
from llmkit.data.examples.paired import PairedExamples
from llmkit.data.examples.spans import CorruptedBlocks
from llmkit.data.examples.subset import Subset
from llmkit.evaluation.likelihood import batch_tokens_for
from llmkit.evaluation.segments import byte_lengths, segments_of
from llmkit.models.logits import ChosenLogits
from llmkit.progress import Watch
from llmkit.reporting.held_out import (
    MOST_PASSAGES,
    OF_MASKED_TEXT,
    OF_RESPONSES,
    OF_TEXT,
    HeldOut,
)
from llmkit.storage import cache

_Array = NDArray[Any]

Predict = Callable[[dict[str, Tensor]], Tensor]
"""The logits [rows, predictions, vocabulary] of the `targets` of a batch, on the model's device."""


class _Units(NamedTuple):
    """The passages of one domain: sums over them, and a hash of what they are."""

    columns: dict[str, _Array]
    content: tuple[Any, ...]


def text_passages(
    model: PreTrainedModel,
    examples: Blocks | Subset | Mixture,
    tokenizer: PreTrainedTokenizerFast,
    watch: Watch,
) -> HeldOut:
    """The likelihood of held-out text, by domain, in segments with the same bytes for every
    tokenizer and block size; of a subset of the blocks, in these blocks."""
    lengths = byte_lengths(tokenizer)
    return _joined(OF_TEXT, examples, lambda part, n: _text_units(model, part, lengths, n, watch))


def masked_passages(
    predict: Predict,
    device: torch.device,
    examples: MaskedBlocks | CorruptedBlocks | Subset | Mixture,
    batch_tokens: int,
    watch: Watch,
) -> HeldOut:
    """The likelihood of the hidden tokens of each held-out block, by domain, and how many of them
    are predicted."""

    def measure(part: MaskedBlocks | CorruptedBlocks | Subset, most: int) -> _Units:
        return _masked_units(predict, device, part, batch_tokens, most, watch)

    return _joined(OF_MASKED_TEXT, examples, measure)


def response_passages(
    model: PreTrainedModel, packs: Packs, fingerprint: str, watch: Watch
) -> HeldOut:
    """The likelihood of the responses of each held-out conversation; `fingerprint` is that of the
    tokenized conversations."""
    nll, counts = response_likelihoods(model, packs, "measuring responses", watch)
    every = group_size(len(nll), MOST_PASSAGES)
    merged = merged_units(np.arange(len(nll)), {"nll": nll, "predictions": counts}, every)
    return HeldOut(OF_RESPONSES, cache.key(fingerprint, every), merged)


def response_likelihoods(
    model: PreTrainedModel, packs: Packs, label: str, watch: Watch
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """[conversations] each: the negative log-likelihood of the responses in nats, in fp32 and
    without dropout, and their number of tokens."""
    nll, counts = np.zeros(len(packs.numbers)), np.zeros(len(packs.numbers), np.int64)
    width = int(packs.lengths.max(initial=1))
    for rows, scored, losses in _scored(model, packs, width, label, watch):
        row, column = np.nonzero(scored)
        places = packs.bounds[rows[row]] + column + 1  # of the predicted tokens
        units = packs.numbers[np.searchsorted(packs.starts, places, side="right") - 1]
        np.add.at(nll, units, losses)
        np.add.at(counts, units, 1)
    return nll, counts


def target_passages(model: PreTrainedModel, examples: PairedExamples, watch: Watch) -> HeldOut:
    """The likelihood of each held-out target text, given its source."""
    nll, width = np.zeros(len(examples)), int(examples.lengths.max())
    for rows, scored, losses in _scored(model, examples, width, "measuring targets", watch):
        np.add.at(nll, rows[np.nonzero(scored)[0]], losses)
    every = group_size(len(nll), MOST_PASSAGES)
    values = {"nll": nll, "predictions": examples.targets.lengths}
    merged = merged_units(np.arange(len(nll)), values, every)
    return HeldOut(OF_RESPONSES, cache.key(examples.fingerprint, every), merged)


def _joined(kind: str, examples: Any, measure: Callable[[Any, int], _Units]) -> HeldOut:
    """The units of all domains of a mixture, or of a text without domains."""
    if not isinstance(examples, Mixture):
        units = measure(examples, MOST_PASSAGES)
        return HeldOut(kind, cache.key(*units.content), units.columns)
    most = max(1, MOST_PASSAGES // len(examples.domains))
    parts = {name: measure(part, most) for name, part in examples.domains.items()}
    columns: dict[str, _Array] = {}
    for key in next(iter(parts.values())).columns:
        columns[key] = np.concatenate([part.columns[key] for part in parts.values()])
    sizes = [len(part.columns["unit"]) for part in parts.values()]
    columns["domain"] = np.repeat(np.arange(len(parts)), sizes)
    hashes = {name: cache.key(*part.content) for name, part in parts.items()}
    overall = tuple(examples.representative.domains)
    content = cache.key(*((name, hashes[name]) for name in sorted(overall)))
    return HeldOut(kind, content, columns, domains=hashes, overall=overall)


def _text_units(
    model: PreTrainedModel, part: Blocks | Subset, lengths: _Array, most: int, watch: Watch
) -> _Units:
    """Segments of a whole text, or the blocks of a subset, whose bytes are known on average."""
    chosen = part.rows if isinstance(part, Subset) else None
    blocks: Blocks = part.examples if isinstance(part, Subset) else part
    tokens, size = blocks.tokens, blocks.block_size
    segments = segments_of(tokens, lengths)
    n_units = len(blocks) if chosen is not None else len(segments.begins)
    every = group_size(n_units, most)
    nll, counts = np.zeros(n_units), np.zeros(n_units, np.int64)
    for rows, scored, losses in _scored(model, part, size, "measuring held-out text", watch):
        row, column = np.nonzero(scored)
        block = rows[row] if chosen is None else chosen[rows[row]]
        units = segments.of(block * size + column) if chosen is None else block
        np.add.at(nll, units, losses)
        np.add.at(counts, units, 1)
    if chosen is None:
        n_bytes: _Array = segments.n_bytes
        sizes = hashlib.sha256(tokens.document_bytes.tobytes()).hexdigest()
        content: tuple[Any, ...] = (tokens.text_hash or tokens.fingerprint, sizes, every)
    else:
        n_bytes = counts * (tokens.n_bytes / max(1, blocks.count(range(len(blocks)))))
        content = (tokens.fingerprint, size, blocks.isolate_documents, every)
    kept = np.flatnonzero(counts)
    values = {"nll": nll[kept], "predictions": counts[kept], "bytes": n_bytes[kept]}
    return _Units(merged_units(kept, values, every), content)


@torch.no_grad()
def _masked_units(
    predict: Predict,
    device: torch.device,
    part: MaskedBlocks | CorruptedBlocks | Subset,
    batch_tokens: int,
    most: int,
    watch: Watch,
) -> _Units:
    chosen = part.rows if isinstance(part, Subset) else np.arange(len(part))
    blocks: MaskedBlocks | CorruptedBlocks = part.examples if isinstance(part, Subset) else part
    nll, hits = np.zeros(len(part)), np.zeros(len(part), np.int64)
    counts = np.zeros(len(part), np.int64)
    with watch("measuring held-out text", len(part)) as advance:
        for rows in _batches(np.arange(len(part)), blocks.block_size, batch_tokens):
            batch = part.batch(rows)
            inputs = {name: value.to(device) for name, value in batch.items()}
            targets, found = inputs["targets"], predict(inputs).float()
            losses = functional.cross_entropy(
                found.transpose(1, 2), targets, ignore_index=UNSCORED, reduction="none"
            )
            right = found.argmax(-1) == targets
            nll[rows] = losses.double().sum(1).cpu().numpy()
            hits[rows] = right.sum(1).cpu().numpy()
            counts[rows] = (batch["targets"] != UNSCORED).sum(1).numpy()
            advance(len(rows))
    values = {"nll": nll, "predictions": counts, "hits": hits}
    every = group_size(len(blocks), most)
    content = (blocks.tokens.fingerprint, *blocks.identity, every)
    return _Units(merged_units(chosen, values, every), content)


def group_size(n_units: int, most: int) -> int:
    """The number of neighbouring units that are merged, so that at most `most` are kept."""
    return -(-n_units // most)


def merged_units(units: _Array, values: Mapping[str, _Array], every: int) -> dict[str, _Array]:
    """Sums over groups of neighbouring units, given the number of each."""
    groups, places = np.unique(units // every, return_inverse=True)
    found: dict[str, _Array] = {"unit": groups.astype(np.int64)}
    for name, value in values.items():
        found[name] = np.zeros(len(groups), value.dtype)
        np.add.at(found[name], places, value)
    return found


@torch.no_grad()
def _scored(
    model: PreTrainedModel, examples: Any, width: int, label: str, watch: Watch
) -> Iterator[tuple[_Array, _Array, _Array]]:
    """Batches of rows, with bool [rows, columns] of what is predicted there, and the negative
    log-likelihood of each prediction in nats, in reading order."""
    logits, device = ChosenLogits(model.eval()), model.device
    order = np.asarray(examples.longest_first())
    with watch(label, len(order)) as advance:
        for rows in _batches(order, width, batch_tokens_for(logits)):
            batch = {name: value.to(device) for name, value in examples.batch(rows).items()}
            targets, _ = batch.pop("targets"), batch.pop("places", None)
            scored = targets != UNSCORED
            wanted = torch.split(targets[scored], logits.chunk)
            losses = [torch.zeros(0, device=device)]
            losses += [
                functional.cross_entropy(some.float(), ids, reduction="none")
                for some, ids in zip(logits.chunks(batch, scored), wanted, strict=True)
            ]
            yield rows, scored.cpu().numpy(), torch.cat(losses).double().cpu().numpy()
            advance(len(rows))


def _batches(rows: _Array, width: int, batch_tokens: int) -> Sequence[_Array]:
    size = max(1, batch_tokens // width)
    return [rows[first : first + size] for first in range(0, len(rows), size)]
