"""Whether the hub can be asked for a model; where not, a copy of an earlier run may do."""

from __future__ import annotations

from functools import cache

from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

SECONDS = 10.0
"""How long the hub may take to answer."""


@cache
def answers(name: str, revision: str | None) -> bool:
    """Whether the hub knows of this name, or says that it does not; it is asked once.

    One question with a short patience: the libraries ask many times, and wait for ever.
    """
    try:
        HfApi().model_info(name, revision=revision, timeout=SECONDS)
    except (RepositoryNotFoundError, RevisionNotFoundError):
        return True  # and what follows says so
    except Exception:  # the HTTP client has errors of its own, which are no OSError
        return False
    return True
