"""Whether the hub can be asked for a model or a data set; where not, an earlier copy may do."""

from __future__ import annotations

from functools import cache

from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

SECONDS = 10.0
"""How long the hub may take to answer."""


@cache
def answers(name: str, revision: str | None) -> bool:
    """Whether the hub knows of this model, or says that it does not; it is asked once."""
    fault = hub_fault(name, "model", revision)
    # A model that is not there is reported by what follows.
    return fault is None or isinstance(fault, RepositoryNotFoundError | RevisionNotFoundError)


def is_silent(data_set: str) -> bool:
    """Whether the hub gives no answer at all on a data set."""
    return "Timeout" in type(hub_fault(data_set, "dataset")).__name__


def hub_fault(name: str, kind: str, revision: str | None = None) -> Exception | None:
    """What goes wrong when the hub is asked for a repository; None if nothing does.

    One question with a short patience: the libraries ask many times, and wait for ever.
    """
    try:
        HfApi().repo_info(name, repo_type=kind, revision=revision, timeout=SECONDS)
    except Exception as fault:  # the HTTP client has errors of its own, which are no OSError
        return fault
    return None
