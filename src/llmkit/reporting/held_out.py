"""What became of each held-out passage or row of a run, so that runs can be compared in pairs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from llmkit import bootstrap
from llmkit.errors import DataError
from llmkit.storage import atomic

HELD_OUT = "held_out.safetensors"
"""The file in a run directory."""

OF_TEXT, OF_MASKED_TEXT, OF_RESPONSES = "text", "masked text", "responses"
OF_LABELS, OF_LABEL_SETS, OF_NUMBERS = "labels", "label sets", "numbers"
OF_TAGS = "tags"
OF_PREFERENCES = "preferences"

PAIR_FIGURES = (
    "accuracy", "margin", "chosen_gain", "rejected_gain", "chosen_log_probability",
    "rejected_log_probability",
)  # fmt: skip
"""The figures of a model on pairs of responses, beside a reference model, besides the loss."""
OF_ANSWERS = "answers"

ANSWER_COLUMNS = ("exact_match", "f1", "loss", "windows")
"""What is kept of each question: its scores, and the sum of the losses of its windows."""

MOST_PASSAGES = bootstrap.MAX_UNITS
"""Maximum number of passages that are kept; more are merged with their neighbours."""

MOST_ROWS = 100_000
"""Maximum number of rows that are kept; of more, every second or third or further one."""

FEWEST_UNITS = 5
"""Minimum number of passages or rows for an interval."""

_MOST_SUMS = 4_000_000  # with many classes, more rows are merged before they are resampled

_Array = NDArray[Any]
_Sums = NDArray[np.float64]
"""[..., sums over units], from which the figures are computed."""


class Difference(NamedTuple):
    """A figure of one run minus that of another on the same held-out data, with 95% interval."""

    value: float
    low: float
    high: float
    n_units: int

    @property
    def is_clear(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class HeldOut:
    """The held-out passages, conversations or rows of a run, and what its final model made of each.

    Runs of one kind and content have been measured on the same data, so their figures can be
    compared in pairs.
    """

    kind: str
    """`text`, `masked text` or `responses` of language models; `labels` of classifiers with one
    label per row, `label sets` with several, `numbers` of regressions; `tags` of taggers;
    `preferences` of pairs of responses; `answers` to questions."""
    content: str
    """A hash of the held-out data, and of what else makes units comparable; of a mixture, of the
    domains that the overall figures are of."""
    columns: Mapping[str, _Array]
    """[units] each. `unit`, the number of each; for language models `nll` in nats, `predictions`
    and, where they are known, `bytes`, `hits` and `domain`; for the others `label` and `predicted`
    (a number, or a bool [units, labels]), and the `loss` of a classifier; for taggers the sums of
    each row: `words`, `right`, `loss` over `predictions`, and with entities those in `hits`,
    `predicted` and `actual`; for preferences the `loss` and PAIR_FIGURES, summed over `pairs`."""
    names: tuple[str, ...] = ()
    """The labels of a classifier."""
    domains: Mapping[str, str] = field(default_factory=dict)
    """The domains of a mixture, each with the hash of its data."""
    overall: tuple[str, ...] = ()
    """The domains that the overall figures are of."""

    def __len__(self) -> int:
        return len(self.columns["unit"])

    @property
    def unit(self) -> str:
        """What a unit is."""
        units = {
            OF_TEXT: "passage",
            OF_MASKED_TEXT: "block",
            OF_RESPONSES: "conversation",
            OF_PREFERENCES: "pair",
        }
        return units.get(self.kind, "row")

    def figures(self) -> dict[str, float]:
        """The overall figures."""
        whole = self._whole
        return {name: float(value) for name, value in whole._figures(whole._sums.sum(0)).items()}

    def intervals(self, seed: int = 0) -> dict[str, list[float]]:
        """The 95% interval of each overall figure; empty for few units."""
        whole = self._whole
        if len(whole) < FEWEST_UNITS:
            return {}
        found = whole._figures(bootstrap.resample(whole._sums, seed))
        return {name: list(bootstrap.interval(values)) for name, values in found.items()}

    def of_domain(self, name: str) -> HeldOut:
        """The units of one domain."""
        here = self.columns["domain"] == list(self.domains).index(name)
        columns = {key: values[here] for key, values in self.columns.items() if key != "domain"}
        return HeldOut(self.kind, self.domains[name], columns)

    def differences(self, other: HeldOut, seed: int = 0) -> dict[str, Difference]:
        """The overall figures minus those of another run of the same kind and content, on the units
        that both have; empty for few."""
        units = self._whole._keys, other._whole._keys
        common, mine, theirs = np.intersect1d(*units, return_indices=True)
        if len(common) < FEWEST_UNITS:
            return {}
        sums = [self._whole._part(mine)._sums, other._whole._part(theirs)._sums]
        both, width = np.hstack(sums), sums[0].shape[1]
        drawn = self._figures_minus(bootstrap.resample(both, seed), width)
        return {
            name: Difference(float(value), *bootstrap.interval(drawn[name]), len(common))
            for name, value in self._figures_minus(both.sum(0), width).items()
        }

    def _figures_minus(self, sums: _Sums, width: int) -> dict[str, _Array]:
        mine, theirs = self._figures(sums[..., :width]), self._figures(sums[..., width:])
        return {name: value - theirs[name] for name, value in mine.items()}

    def _part(self, units: _Array) -> HeldOut:
        columns = {name: values[units] for name, values in self.columns.items()}
        return replace(self, columns=columns)

    @cached_property
    def _whole(self) -> HeldOut:
        """The units that the overall figures are of."""
        if "domain" not in self.columns:
            return self
        chosen = [name in self.overall for name in self.domains]
        return self._part(np.array(chosen)[self.columns["domain"]])

    @property
    def _keys(self) -> _Array:
        """[units], the number of each, different in each domain; equal for equal units of runs
        whose overall figures are of the same domains."""
        units: _Array = self.columns["unit"]
        if "domain" not in self.columns:
            return units
        ranks = {name: rank for rank, name in enumerate(sorted(self.overall))}
        numbers = np.array([ranks.get(name, len(ranks)) for name in self.domains], np.int64)
        keys: _Array = units + (numbers[self.columns["domain"]] << 32)
        return keys

    @cached_property
    def _sums(self) -> _Sums:
        """[units or groups of neighbours, sums]"""
        columns = self.columns
        if self.kind in (OF_LABELS, OF_LABEL_SETS):
            return _label_sums(columns, len(self.names))
        if self.kind == OF_NUMBERS:
            return _number_sums(columns["predicted"], columns["label"])
        if self.kind == OF_ANSWERS:
            kept = [columns[name] for name in ANSWER_COLUMNS]
            return np.column_stack([*kept, np.ones(len(self))]).astype(np.float64)
        if self.kind == OF_TAGS:
            found = [columns[name] for name in _TAGGED if name in columns]
            return np.column_stack(found).astype(np.float64)
        wanted: tuple[str, ...] = ("nll", "predictions", "bytes", "hits")
        if self.kind == OF_PREFERENCES:
            wanted = ("pairs", "loss", *PAIR_FIGURES)
        names = [name for name in wanted if name in columns]
        return np.column_stack([columns[name].astype(np.float64) for name in names])

    def _figures(self, sums: _Sums) -> dict[str, _Array]:
        if self.kind in (OF_LABELS, OF_LABEL_SETS):
            return _label_figures(sums)
        if self.kind == OF_NUMBERS:
            return _number_figures(sums)
        if self.kind == OF_TAGS:
            return _tag_figures(sums)
        if self.kind == OF_PREFERENCES:
            means = np.moveaxis(sums[..., 1:] / np.maximum(1, sums[..., :1]), -1, 0)
            names = [name for name in ("loss", *PAIR_FIGURES) if name in self.columns]
            return dict(zip(names, means, strict=True))
        if self.kind == OF_ANSWERS:
            exact, f1, loss, windows, rows = (sums[..., n] for n in range(5))
            found = {"loss": loss / np.maximum(1, windows)}
            return {**found, "exact_match": exact / rows, "f1": f1 / rows}
        loss = sums[..., 0] / np.maximum(1, sums[..., 1])
        if self.kind == OF_MASKED_TEXT:
            return {"loss": loss, "accuracy": sums[..., 2] / np.maximum(1, sums[..., 1])}
        found = {"loss": loss, "perplexity": np.exp(np.minimum(loss, 700.0))}
        if self.kind == OF_TEXT:
            found["bits_per_byte"] = sums[..., 0] / math.log(2) / np.maximum(1, sums[..., 2])
        return found


def write_held_out(directory: Path, found: HeldOut) -> None:
    """Writes the units of a run atomically: the same bytes for the same run. Raises WriteError."""
    names = ("kind", "content", "names", "domains", "overall")
    notes = {name: getattr(found, name) for name in names}
    tensors = {name: np.ascontiguousarray(values) for name, values in found.columns.items()}
    # One entry: several would be written in any order.
    metadata = {"held_out": json.dumps(notes, ensure_ascii=False)}
    atomic.replace_bytes(directory / HELD_OUT, save(tensors, metadata))


def read_held_out(directory: Path) -> HeldOut | None:
    """The units of a run; None if it has none. Raises DataError for a damaged file."""
    path = directory / HELD_OUT
    if not path.is_file():
        return None
    try:
        with safe_open(path, "numpy") as file:
            notes = json.loads(file.metadata()["held_out"])
            columns = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        kind, content = notes["kind"], notes["content"]
        names, overall = tuple(notes["names"]), tuple(notes["overall"])
        return HeldOut(kind, content, columns, names, notes["domains"], overall)
    except (SafetensorError, OSError, LookupError, TypeError, ValueError) as error:
        raise DataError(
            f"cannot read a file of the run: {error}",
            where=str(path),
            kept="the run, untouched",
            next="restore the file, or remove it: the run is then compared without pairs",
        ) from error


def _label_sums(columns: Mapping[str, _Array], n_labels: int) -> _Sums:
    """Rows, their loss, those that are exactly right, and for each label the hits, the predictions
    and the rows that have it."""
    label, predicted = columns["label"], columns["predicted"]
    rows, most = len(label), max(1, _MOST_SUMS // (3 + 3 * n_labels))
    n_groups = min(rows, bootstrap.MAX_UNITS, most)
    starts = np.arange(n_groups) * rows // n_groups
    if label.ndim == 1:
        exact = label == predicted
        group = np.repeat(np.arange(n_groups), np.diff([*starts, rows]))

        def counted(chosen: _Array, which: _Array) -> _Array:
            cells = group[which] * n_labels + chosen[which]
            return np.bincount(cells, minlength=n_groups * n_labels).reshape(n_groups, n_labels)

        every = np.ones(rows, dtype=bool)
        parts = [counted(label, exact), counted(predicted, every), counted(label, every)]
    else:
        exact = (label == predicted).all(1)
        parts = [np.add.reduceat(each, starts, dtype=np.int64)
                 for each in (label & predicted, predicted, label)]  # fmt: skip
    each_row = np.column_stack([np.ones(rows), columns["loss"], exact])
    return np.hstack([np.add.reduceat(each_row, starts), *parts]).astype(np.float64)


def _label_figures(sums: _Sums) -> dict[str, _Array]:
    """Loss, accuracy, and macro F1 over the labels that occur (`label_metrics.single_label`)."""
    rows, loss, exact = (sums[..., n] for n in range(3))
    hits, predicted, actual = np.split(sums[..., 3:], 3, axis=-1)
    occurs = predicted + actual > 0
    f1 = 2 * hits / np.maximum(1, predicted + actual)
    return {
        "loss": loss / np.maximum(1, rows),
        "accuracy": exact / np.maximum(1, rows),
        "f1_macro": f1.sum(-1) / np.maximum(1, occurs.sum(-1)),
    }


_TAGGED = ("words", "right", "loss", "predictions", "hits", "predicted", "actual")


def _tag_figures(sums: _Sums) -> dict[str, _Array]:
    """Loss and accuracy of words; with entities, precision, recall and F1."""
    words, right, loss, predictions = (sums[..., n] for n in range(4))
    found = {
        "loss": loss / np.maximum(1, predictions),
        "accuracy": right / np.maximum(1, words),
    }
    if sums.shape[-1] > 4:
        hits, predicted, actual = (sums[..., n] for n in range(4, 7))
        found["precision"] = hits / np.maximum(1, predicted)
        found["recall"] = hits / np.maximum(1, actual)
        found["f1"] = 2 * hits / np.maximum(1, predicted + actual)
    return found


def _number_sums(x: _Array, y: _Array) -> _Sums:
    """Rows, squared and absolute errors, and the moments for Pearson's correlation."""
    shift = float(y.mean())  # the correlation does not depend on it, rounding does
    x, y = x.astype(np.float64) - shift, y.astype(np.float64) - shift
    return np.column_stack([np.ones(len(x)), (x - y) ** 2, abs(x - y), x, y, x * x, y * y, x * y])


def _number_figures(sums: _Sums) -> dict[str, _Array]:
    rows, squared, absolute, x, y, xx, yy, xy = (sums[..., n] for n in range(8))
    spread = np.maximum(0, rows * xx - x * x) * np.maximum(0, rows * yy - y * y)
    return {
        "loss": squared / rows,
        "mse": squared / rows,
        "mae": absolute / rows,
        "pearson": (rows * xy - x * y) / np.sqrt(np.maximum(spread, np.finfo(float).tiny)),
    }
