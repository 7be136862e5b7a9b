"""Estimate from a sample what cleaning a corpus will cost and remove."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import numpy as np

from llmkit.data.cleaning.passes.duplicates import find_copies
from llmkit.data.cleaning.passes.pipeline import CleaningPlan
from llmkit.data.cleaning.passes.scan import NumberedSource, opened
from llmkit.data.cleaning.passes.signatures import BAND_ROWS, BANDS, signatures_of
from llmkit.data.cleaning.passes.sourced import beginnings, sampled
from llmkit.data.cleaning.stages import Stages

SAMPLED_CHARACTERS = 4_000_000
"""Maximum number of characters in the sample."""

_BYTES_OF_LINK = 60  # memory for each document while duplicates are linked
_LINKS = 17  # bytes on disk for each document, besides its signature


def sample_cleaning(plan: CleaningPlan) -> dict[str, Any]:
    """Passes the beginnings of some files through the stages, and forecasts the whole: seconds on
    one core, memory, disk, and the share of documents that each stage removes or changes.

    Duplicates are only those within the sample; the whole has more.
    """
    began = time.perf_counter()
    stages, removed, changed = Stages(plan.settings), Counter[str](), Counter[str]()
    texts, n_bytes, documents, read = list[str](), 0, 0, [0]
    readable = [opened(each, plan.data)[0].source for each in sampled(_learned(plan))]
    sources = [each for each in readable if each is not None]
    data = plan.data.changed(errors="replace")
    for document in beginnings(sources, data, read, SAMPLED_CHARACTERS):
        documents += 1
        n_bytes += len(document.text.encode())
        passed = stages.passed(document.text)
        changed.update(edit.stage for edit in passed.edits)
        if passed.removal:
            removed[passed.removal.stage] += 1
        else:
            texts.append(passed.text)
    near = plan.settings.near_duplicate
    links = find_copies(
        signatures_of(texts, near is not None), plan.settings.exact, near, 0, lambda n: None
    )
    for kind, name in ((1, "exact"), (2, "near_duplicate")):
        if number := int(np.count_nonzero(links.kinds == kind)):
            removed[name] = number
    seconds = time.perf_counter() - began
    whole = sum(each.source.n_bytes for each in _learned(plan)) / max(1, read[0])
    everything = round(documents * whole)
    return {
        "sample": {"documents": documents, "bytes": n_bytes},
        "removed": {name: round(n / max(1, documents), 4) for name, n in removed.items()},
        "changed": {name: round(n / max(1, documents), 4) for name, n in changed.items()},
        "whole": {
            "bytes": round(n_bytes * whole),
            "documents": everything,
            "seconds_on_one_core": round(seconds * whole, 1),
            "mb_per_second": round(n_bytes / 1e6 / seconds, 2),
            "memory_bytes": 300_000_000 + _BYTES_OF_LINK * everything,
            "disk_bytes": round(n_bytes * whole + everything * (4 * BANDS * BAND_ROWS + _LINKS)),
        },
    }


def _learned(plan: CleaningPlan) -> list[NumberedSource]:
    return [each for each in plan.sources if not each.is_held_out]
