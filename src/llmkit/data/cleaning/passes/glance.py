"""A quick check of a text for what `llmkit clean` would remove or repair."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from importlib.util import find_spec

import numpy as np

from llmkit.config.schema import CleanConfig, Config
from llmkit.data.cleaning.mojibake import repaired
from llmkit.data.cleaning.passes.duplicates import find_copies
from llmkit.data.cleaning.passes.signatures import signatures_of
from llmkit.data.cleaning.passes.sourced import beginnings
from llmkit.data.readers.files import Sources
from llmkit.data.text.domains import learned_keys
from llmkit.errors import DataError

_GLANCE = 1_000_000
_FEWEST = 20
_NOTABLE_COPIES, _NOTABLE_WRONG = 0.05, 0.01
"""The sample: its size in characters, and its minimum number of documents. The shares of copies and
of wrong encodings that cause a warning."""


def notable_faults(config: Config, sources: Sources) -> Iterator[str]:
    """Warnings about copies and wrong encodings in a small sample of the training text.

    Near copies and wrong encodings are found where the extra `clean` is installed.
    """
    learned = [source for key in sorted(learned_keys(config)) for source in sources.of(key)]
    files = [each for each in learned if each.format != "hub"]
    begun = beginnings(files, config.data, [0], _GLANCE)
    try:
        texts = [each.text for each in begun if each.text.strip()]
    except DataError:  # training reads text that cleaning does not, and reports its own faults
        return
    if len(texts) < _FEWEST:
        return
    near = CleanConfig().near_duplicate if find_spec("rensa") else None
    links = find_copies(signatures_of(texts, near is not None), True, near, 0, lambda n: None)
    copies = int(np.count_nonzero(links.kinds))
    wrong = sum(bool(repaired(text)[1]) for text in texts) if find_spec("ftfy") else 0
    command = f"`llmkit clean --text {shlex.quote(str(files[0].path))} --output cleaned`"
    if copies >= _NOTABLE_COPIES * len(texts):
        yield (
            f"{copies:,} of {len(texts):,} sampled documents are copies of earlier ones or nearly "
            f"so; to train on each once: {command}"
        )
    if wrong >= _NOTABLE_WRONG * len(texts):
        yield (
            f"{wrong:,} of {len(texts):,} sampled documents were decoded with a wrong encoding "
            f"somewhere, as in `Ã¤` for `ä`; to repair them: {command}"
        )
