"""What all served models have in common: a name, an identity, a precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class NamedModel:
    """A loaded model with the name that requests call it by."""

    name: str
    identity: str
    """Identifies its weights, config and tokenizer."""
    precision: str
    """The precision of its arithmetic."""

    @property
    def fingerprint(self) -> str:
        """Identifies the model and its precision: in fp32, equal ones give equal results."""
        return f"{self.identity}-{self.precision}"

    def listing(self, data: Sequence[dict[str, Any]], n_tokens: int) -> dict[str, Any]:
        """The response with one object for each text of a request."""
        return {
            "object": "list",
            "model": self.name,
            "system_fingerprint": self.fingerprint,
            "data": list(data),
            "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
        }
