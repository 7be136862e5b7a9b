"""Load models from the hub, or from the local cache if the hub cannot be reached."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

from llmkit.errors import DataError, HubUnreachable, Unsafe

SECONDS = 10.0
"""Timeout of a request to the hub."""


@cache
def hub_answers(name: str, revision: str | None) -> bool:
    """Whether the hub answers a request for this model, also with "not found"; requested once."""
    fault = hub_fault(name, "model", revision)
    # A missing model is reported when it is loaded.
    return fault is None or isinstance(fault, RepositoryNotFoundError | RevisionNotFoundError)


def is_silent(data_set: str) -> bool:
    """Whether a request to the hub for a data set times out."""
    return "Timeout" in type(hub_fault(data_set, "dataset")).__name__


def hub_fault(name: str, kind: str, revision: str | None = None) -> Exception | None:
    """The error of a request to the hub for a repository; None if it succeeds.

    It is one request with a short timeout: the libraries retry many times, without a timeout.
    """
    try:
        HfApi().repo_info(name, repo_type=kind, revision=revision, timeout=SECONDS)
    except Exception as fault:  # the HTTP client's own errors are not OSErrors
        return fault
    return None


def fetch(auto: Any, name: str, revision: str | None, **options: Any) -> Any:
    """Loads a directory or a hub name with an Auto class of transformers.

    Raises Unsafe for a model with its own code, HubUnreachable, and DataError for an unreadable
    model.
    """
    local = Path(name).is_dir()
    try:
        return auto.from_pretrained(
            name,
            revision=revision or "main",
            trust_remote_code=False,
            local_files_only=local or not hub_answers(name, revision),
            **options,
        )
    except Exception as error:
        raise _translate(error, name, local) from error


def _translate(error: Exception, name: str, local: bool) -> Exception:
    """Our error for a loading error of transformers or safetensors."""
    text = str(error).strip() or type(error).__name__
    reason = text.splitlines()[0]
    if "trust_remote_code" in text:
        return Unsafe(
            "the model needs its own code to run",
            where=name,
            next="use a model that transformers supports without extra code",
        )
    if not local and isinstance(error, OSError):
        return HubUnreachable(
            f"cannot load {name!r} from the hub: {reason}",
            where="model.name_or_path",
            next="check the name and the network, or use a local directory",
        )
    if isinstance(error, MemoryError):
        return error
    advice = "check that the directory is complete"
    if "does not recognize this architecture" in text:
        advice = "if it is your own architecture, write model.code=FILE and add --allow-code"
    return DataError(f"cannot read the model: {reason}", where=name, next=advice)
