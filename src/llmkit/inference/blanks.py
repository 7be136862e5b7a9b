"""Samples of a masked model: excerpts whose hidden words are blanks, and what it fills in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from llmkit.data.examples.blocks import UNSCORED

BLANK = "____"
"""The place of hidden tokens in a sample."""

_SHOWN = 2  # excerpts of a row
_BEFORE, _LENGTH = 10, 24  # tokens before the first blank of an excerpt, and of all of it

_Batch = dict[str, Tensor]
_Ids = Mapping[int, int]
"""Token ids by their place in a row."""


@torch.no_grad()
def fill_blanks(
    logits: Callable[[_Batch], Tensor], tokenizer: PreTrainedTokenizerBase, batch: _Batch
) -> list[dict[str, str]]:
    """The first excerpts of one row with hidden words: its text with blanks (`prompt`), what the
    model fills in (`prediction`) and what was `hidden`, both in the order of the blanks.

    The model reads a mask at each blank, also where training keeps or replaces the token. `logits`
    gives those at the predicted places [1, most, vocabulary].
    """
    places, targets = batch["places"][0].tolist(), batch["targets"][0].tolist()
    pairs = zip(places, targets, strict=True)
    hidden = {place: target for place, target in pairs if target != UNSCORED}
    ids = batch["input_ids"].clone()
    ids[0, list(hidden)] = int(tokenizer.mask_token_id or 0)
    guesses = logits({**batch, "input_ids": ids})[0].argmax(-1).tolist()
    filled = {place: guesses[number] for number, place in enumerate(hidden)}
    found: list[dict[str, str]] = []
    for span in _spans(ids[0].tolist(), hidden, {*tokenizer.all_special_ids}):
        excerpt = _excerpt(tokenizer, ids[0].tolist(), span, hidden, filled)
        if len(found) < _SHOWN and excerpt is not None:
            found.append(excerpt)
    return found


def _spans(row: Sequence[int], hidden: _Ids, special: set[int]) -> Iterator[range]:
    """Parts of documents that do not overlap and in which a blank is whole."""
    is_text = [place in hidden or id not in special for place, id in enumerate(row)]
    end = 0
    for place in hidden:
        if place < end:
            continue
        begin = place
        while begin > max(end, place - _BEFORE) and is_text[begin - 1]:
            begin -= 1
        end = place + 1
        while end < len(row) and is_text[end] and (end < begin + _LENGTH or end in hidden):
            end += 1
        yield range(begin, end)


def _excerpt(
    tokenizer: PreTrainedTokenizerBase, row: Sequence[int], span: range, hidden: _Ids, filled: _Ids
) -> dict[str, str] | None:
    """The sample of a part of a row; None without a letter or digit in its text or its blanks."""
    blanks: list[list[int]] = []
    kept: list[int] = []
    for place in span:
        if place not in hidden:
            kept.append(row[place])
        elif blanks and blanks[-1][-1] == place - 1:
            blanks[-1].append(place)
        else:
            blanks.append([place])
            kept.append(row[place])
    first, *rest = str(tokenizer.decode(kept)).split(str(tokenizer.mask_token))
    if len(rest) != len(blanks):  # the text has the name of the mask
        return None
    words, guesses = (
        [str(tokenizer.decode([ids[place] for place in blank])) for blank in blanks]
        for ids in (hidden, filled)
    )
    text = _readable(first)
    for word, part in zip(words, rest, strict=True):
        text += " " * word.startswith(" ") + BLANK + _readable(part)
    if not (any(map(str.isalnum, text)) and any(map(str.isalnum, "".join(words)))):
        return None
    return {"prompt": text.strip(), "prediction": _listed(guesses), "hidden": _listed(words)}


def _readable(text: str) -> str:
    """Text without the halves of characters at its ends."""
    return text.strip("\N{REPLACEMENT CHARACTER}")


def _listed(words: Sequence[str]) -> str:
    return " / ".join(word.strip() or repr(word) for word in words)
