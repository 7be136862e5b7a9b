"""Choose the held-out rows: a share of every class, without splitting repeated texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmkit.data.records.labels import MULTI, SINGLE, Labels
from llmkit.errors import ConfigError

AUTO_SHARE = 0.1
"""The held-out fraction for `data.validation_fraction: auto`."""

_QUANTILES = 10

Texts = tuple[str, ...]


def cut_rows(ranges: Mapping[str, str], n_rows: int, source: tuple[str, str]) -> dict[str, range]:
    """The row numbers of each part from its range `START:STOP`, counted from 0 or, if negative,
    from the end; `train` without one has the rows of no other part, which must be side by side.

    `source` names the key and the files of the rows. Raises ConfigError for a range that is empty,
    leaves the rows or overlaps another.
    """
    cut = {name: _cut(f"data.{name}_rows", rows, n_rows, source) for name, rows in ranges.items()}
    ordered = sorted(cut.items(), key=lambda item: item[1].start)
    for (name, rows), (other, following) in pairwise(ordered):
        if following.start < rows.stop:
            first, last = following.start, min(rows.stop, following.stop) - 1
            raise ConfigError(
                f"data.{name}_rows and data.{other}_rows share the rows {first} to {last}",
                where=f"data.{name}_rows, data.{other}_rows",
                next="let one begin where the other stops: STOP itself is not chosen",
            )
    if "train" not in cut:
        cut["train"] = _rest([rows for _, rows in ordered], n_rows, source)
    return {name: cut[name] for name in ("train", "validation", "test") if name in cut}


def _cut(key: str, rows: str, n_rows: int, source: tuple[str, str]) -> range:
    start, stop = (int(each) if each else None for each in rows.split(":"))
    for edge in (start, stop):
        if edge is not None and not -n_rows <= edge <= n_rows:
            raise ConfigError(
                f"{key}={rows} leaves the {n_rows:,} rows of {source[0]}",
                where=f"{key}; {source[1]}",
                next=f"rows are numbered from 0 to {n_rows - 1}, or from -{n_rows} to -1",
            )
    found = range(n_rows)[start:stop]
    if not found:
        raise ConfigError(
            f"{key}={rows} chooses none of the {n_rows:,} rows of {source[0]}",
            where=f"{key}; {source[1]}",
            next="give START:STOP with START before STOP; STOP itself is not chosen",
        )
    return found


def _rest(taken: Sequence[range], n_rows: int, source: tuple[str, str]) -> range:
    """The rows that no part takes; raises ConfigError unless they are side by side."""
    edges = [0, *(edge for rows in taken for edge in (rows.start, rows.stop)), n_rows]
    gaps = [range(*gap) for gap in zip(edges[::2], edges[1::2], strict=True) if gap[0] < gap[1]]
    if len(gaps) != 1:
        what = "in several pieces" if gaps else "in none"
        raise ConfigError(
            f"the rows of {source[0]} that no other part takes are {what}",
            where=f"data.train_rows; {source[1]}",
            next="give data.train_rows=START:STOP",
        )
    return gaps[0]


def text_identity(texts: Texts) -> Texts:
    """A key that is equal for texts that differ only in the white space around them."""
    return tuple(text.strip() for text in texts)


def strata(labels: Labels, targets: NDArray[Any]) -> NDArray[np.int64]:
    """[rows], the stratum of each row: its class, the rarest of its labels (-1 without any), or the
    decile of its value."""
    if labels.kind == SINGLE:
        return targets.astype(np.int64)
    if labels.kind == MULTI:
        return rarest_of(targets)
    edges = np.quantile(targets, np.arange(1, _QUANTILES) / _QUANTILES)
    return np.searchsorted(edges, targets, side="right").astype(np.int64)


def rarest_of(marks: NDArray[np.bool_]) -> NDArray[np.int64]:
    """[rows], the rarest of the classes that each row has [rows, classes]; -1 without any."""
    counts = np.where(marks, marks.sum(axis=0), np.iinfo(np.int64).max)
    return np.where(marks.any(axis=1), counts.argmin(axis=1), -1)


def hold_out(
    texts: Sequence[Texts],
    strata: NDArray[np.int64],
    fraction: float,
    seed: int,
    seen: Sequence[Texts] | None = None,
) -> NDArray[np.bool_]:
    """[rows], whether each row is held out: this fraction of each stratum, rounded to whole texts.

    Rows with the same text stay together, also if only the model reads it as the same (`seen`), and
    a stratum of several texts has at least one on each side. The choice depends only on the seed,
    the texts and the strata, not on the order of the rows.
    """
    rows_of: dict[Texts, list[int]] = {}
    first: dict[Texts, Texts] = {}
    for row, text in enumerate(texts):
        own = text_identity(text)
        known = own if seen is None else seen[row]
        first[known] = min(own, first.get(known, own))
        rows_of.setdefault(known, []).append(row)
    rows_of = {first[known]: rows for known, rows in rows_of.items()}
    size_of = dict(zip(*np.unique(strata, return_counts=True), strict=True))
    texts_of: dict[int, list[Texts]] = {}
    for text, rows in rows_of.items():
        # A text with several labels belongs to the rarest.
        stratum = min(strata[rows].tolist(), key=lambda each: (size_of[each], each))
        texts_of.setdefault(stratum, []).append(text)
    held = np.zeros(len(texts), dtype=np.bool_)
    for members in texts_of.values():
        for text in _drawn(members, {text: len(rows_of[text]) for text in members}, fraction, seed):
            held[rows_of[text]] = True
    return held


def _drawn(texts: list[Texts], sizes: dict[Texts, int], fraction: float, seed: int) -> list[Texts]:
    """The texts of one stratum that are held out."""
    if len(texts) < 2:
        return []
    order = sorted(texts, key=lambda text: _draw(text, seed))
    wanted, n_rows = int(fraction * sum(sizes.values()) + 0.5), 0
    drawn = []
    for text in order[:-1]:  # at least one text is trained on
        if n_rows + sizes[text] <= wanted:
            drawn.append(text)
            n_rows += sizes[text]
    return drawn or [min(order, key=lambda text: sizes[text])]


def _draw(text: Texts, seed: int) -> bytes:
    return blake2b(repr((seed, text)).encode("utf-8", "backslashreplace"), digest_size=16).digest()
