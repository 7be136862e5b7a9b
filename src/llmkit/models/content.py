"""Identify the content of a model or tokenizer, to notice when it has changed."""

from __future__ import annotations

import hashlib
from pathlib import Path

from llmkit.storage import atomic

_SUFFIXES = (".safetensors", ".json", ".jinja")


def content_identity(location: str, revision: str | None) -> str:
    """The sha256 of a directory's weights, configs and tokenizer; for a hub model, its name and
    revision."""
    whole, directory = hashlib.sha256(), Path(location)
    if not directory.is_dir():
        return f"{location} {revision or ''}".strip()
    files = [path for suffix in _SUFFIXES for path in directory.glob(f"*{suffix}")]
    for path in sorted(files):
        if path.name != atomic.MANIFEST:
            with path.open("rb") as file:
                whole.update(f"{path.name} ".encode())
                whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()
