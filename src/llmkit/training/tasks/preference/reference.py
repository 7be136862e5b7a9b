"""The log-probabilities of the reference model: computed once, and kept in the run directory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from llmkit.storage import atomic

REFERENCE = "reference.safetensors"
"""The file in a run directory."""


def write_reference(directory: Path, key: str, found: Mapping[str, NDArray[np.float32]]) -> None:
    """Writes the log-probabilities of each part, under a hash of what they depend on. Raises
    WriteError."""
    path = directory / REFERENCE
    if read_reference(directory, key) is None:
        atomic.replace_bytes(path, save(dict(found), {"key": key}))


def read_reference(directory: Path, key: str) -> dict[str, NDArray[np.float32]] | None:
    """The log-probabilities that were written with this key; None if there are none, or if the file
    is damaged: they can be computed again."""
    try:
        with safe_open(directory / REFERENCE, "numpy") as file:
            if (file.metadata() or {}).get("key") != key:
                return None
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return None
