"""The unigram baseline, against counts made by hand."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import torch
from numpy.typing import NDArray

from llmkit.evaluation.baselines import measure_unigram


class Targets:
    """Examples of given targets, -100 where nothing is predicted."""

    def __init__(self, rows: list[list[int]]) -> None:
        self.rows = torch.tensor(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, rows: NDArray[np.int64]) -> dict[str, torch.Tensor]:
        return {"targets": self.rows[torch.from_numpy(np.asarray(rows))]}


def test_the_unigram_model_is_fitted_to_the_training_targets_with_one_more_of_each() -> None:
    train = Targets([[1, 1, 1, 2], [1, 3, -100, -100]])
    measured = Targets([[1, 2, 4, -100]])
    found = measure_unigram(train, measured)
    counts = Counter(dict.fromkeys(range(5), 1))
    counts.update([1, 1, 1, 2, 1, 3])
    expected = -sum(math.log(counts[token] / counts.total()) for token in (1, 2, 4))
    assert math.isclose(found.nll, expected, rel_tol=1e-12)
    assert (found.hits, found.predictions) == (1, 3)
