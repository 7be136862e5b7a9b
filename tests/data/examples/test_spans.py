"""Spans to predict are drawn as T5 draws them, a pure function of seed and occurrence."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor

from llmkit.data.examples.spans import CorruptedBlocks
from tests.jobs import token_file

END, PAD, SENTINELS = 1, 0, tuple(range(90, 100))


def shift(labels: Tensor) -> Tensor:
    ids = labels.roll(1, dims=1)
    ids[:, 0] = PAD
    return ids.masked_fill(ids == -100, PAD)


def blocks(n: int = 200, size: int = 40, seed: str = "a", **how: float) -> CorruptedBlocks:
    """One document of different ids, 100 upwards."""
    tokens = token_file([list(range(100, 100 + n - 2))], END, END)
    density, mean = how.get("density", 0.15), how.get("mean", 3.0)
    return CorruptedBlocks(tokens, size, density, mean, SENTINELS, END, PAD, shift, seed)


def restored(source: np.ndarray, target: np.ndarray) -> list[int]:
    """The tokens of a block from its two sides: each sentinel is replaced by its span."""
    assert source[-1] == target[-1] == END
    spans: dict[int, list[int]] = {}
    for token in target[:-1].tolist():
        if token in SENTINELS:
            latest = spans.setdefault(token, [])
        else:
            latest.append(token)
    assert list(spans) == list(SENTINELS[: len(spans)])
    whole: list[int] = []
    for token in source[:-1].tolist():
        whole += spans[token] if token in SENTINELS else [token]
    return whole


def test_source_and_target_together_are_the_text_and_every_occurrence_differs() -> None:
    some = blocks()
    seen = set()
    for row in range(5 * len(some)):
        source, target = some.corrupted(row)
        first = row % len(some) * 40
        assert restored(source, target) == some.tokens.ids[first : first + 40].tolist()
        seen.add((row % len(some), *target.tolist()))
    assert len(seen) == 5 * len(some)


def test_a_row_is_a_pure_function_of_seed_and_occurrence() -> None:
    one, same, other = blocks(), blocks(), blocks(seed="b")
    pairs = [(each.corrupted(7)) for each in (one, same, other)]
    assert all(np.array_equal(a, b) for a, b in zip(pairs[0], pairs[1], strict=True))
    assert not np.array_equal(pairs[0][1], pairs[2][1])
    batch, alone = one.batch([3, 7, 4]), one.batch([7])
    for name, value in alone.items():
        width = value.shape[1]
        assert torch.equal(batch[name][1, :width], value[0])


def reference(length: int, density: float, mean: float, generator: np.random.Generator) -> tuple:
    """The mask of T5's `random_spans_noise_mask` (text-to-text-transfer-transformer,
    t5/data/preprocessors.py), as span lengths: kept, noise, kept, noise, ..."""
    noise = min(max(round(length * density), 1), length - 1)
    spans = max(round(noise / mean), 1)

    def divided(items: int) -> list[int]:
        first = np.arange(items - 1) < spans - 1
        generator.shuffle(first)
        segment = np.cumsum(np.concatenate([[0], first]))
        return np.bincount(segment, minlength=spans).tolist()

    noises, keeps = divided(noise), divided(length - noise)
    return tuple(n for pair in zip(keeps, noises, strict=True) for n in pair)


@pytest.mark.parametrize(("length", "density", "mean"), [(8, 0.5, 2.0), (9, 0.34, 1.5)])
def test_spans_are_distributed_as_those_of_t5(length: int, density: float, mean: float) -> None:
    n, generator = 6000, np.random.default_rng(0)
    wanted = Counter(reference(length, density, mean, generator) for _ in range(n))
    one = blocks(n=length, size=length, density=density, mean=mean)
    found: Counter[tuple] = Counter()
    for row in range(n):
        source, target = one.corrupted(row)
        marks = [place for place, token in enumerate(target) if token in SENTINELS]
        noises = np.diff([*marks, len(target) - 1]) - 1
        places = [place for place, token in enumerate(source) if token in SENTINELS]
        keeps = np.diff([-1, *places]) - 1
        assert source[places[-1] + 1] == END
        found[tuple(np.stack([keeps, noises], 1).ravel().tolist())] += 1
    assert found.keys() == wanted.keys()
    chance = 1 / len(wanted)
    spread = (chance * (1 - chance) / n) ** 0.5
    assert max(abs(count / n - chance) for count in found.values()) < 4.5 * spread
    assert max(abs(count / n - chance) for count in wanted.values()) < 4.5 * spread


def test_predictions_are_counted_without_drawing_them() -> None:
    some = blocks(n=190)
    rows = [0, 3, len(some) - 1, len(some) + 1, -1]
    batch = some.batch(rows)
    assert some.count(rows) == int((batch["targets"] != -100).sum())
    assert (batch["targets"][-1] == -100).all()
    assert round(40 * 0.15) + round(6 / 3) + 1 == some.count([0])
    assert torch.equal(batch["decoder_input_ids"][:-1], shift(batch["targets"][:-1]))


@pytest.mark.parametrize("n", [3, 4, 5])
def test_a_short_block_keeps_and_hides_at_least_one_token(n: int) -> None:
    some = blocks(n=n)
    source, target = some.corrupted(0)
    assert restored(source, target) == some.tokens.ids.tolist()
    assert len(target) == some.count([0]) == 3
