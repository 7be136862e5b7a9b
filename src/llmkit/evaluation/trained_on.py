"""Whether a model was trained on what it is measured on, from the fingerprints of its run."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerFast

from llmkit.data import fingerprints
from llmkit.data.fingerprints import Fingerprints
from llmkit.data.tokens import TokenFile


def of_text(model: str, tokens: TokenFile) -> list[str]:
    """A sentence where a notable part of a text was trained on."""
    known = fingerprints.read(model)
    if known is None or known.kind != "text":
        return []
    return _sentences(model, fingerprints.of_tokens([tokens]), known, "document")


def of_rows(
    model: str, rows: Sequence[tuple[str, ...]], tokenizer: PreTrainedTokenizerFast
) -> list[str]:
    """A sentence where a notable part of the rows was trained on."""
    known = fingerprints.read(model)
    if known is None or known.kind != "rows":
        return []
    return _sentences(model, fingerprints.of_rows(rows, tokenizer), known, "row")


def _sentences(model: str, part: Fingerprints, known: Fingerprints, what: str) -> list[str]:
    found = fingerprints.overlap(part, known)
    if not found.is_notable:
        return []
    return [f"{model} was trained on {found.sentence(what)}: these are not held-out figures"]
