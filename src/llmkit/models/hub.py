"""What is read of the hub, or of an earlier copy where the hub cannot be asked."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

from llmkit.errors import DataError, HubUnreachable, Unsafe

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


def fetch(auto: Any, name: str, revision: str | None, **options: Any) -> Any:
    """What an Auto class of transformers gives of a directory, or of a name on the hub.

    Raises Unsafe for code, HubUnreachable, and DataError for what cannot be read.
    """
    local = Path(name).is_dir()
    try:
        return auto.from_pretrained(
            name,
            revision=revision or "main",
            trust_remote_code=False,
            local_files_only=local or not answers(name, revision),
            **options,
        )
    except Exception as error:
        raise _translate(error, name, local) from error


def _translate(error: Exception, name: str, local: bool) -> Exception:
    """The fault of ours that a loading error of transformers or safetensors stands for."""
    text = str(error).strip() or type(error).__name__
    reason = text.splitlines()[0]
    if "trust_remote_code" in text:
        return Unsafe(
            "the model brings code of its own",
            where=name,
            next="use a model that transformers knows by itself",
        )
    if not local and isinstance(error, OSError):
        return HubUnreachable(
            f"the hub did not give {name!r}: {reason}",
            where="model.name_or_path",
            next="check the name and the network, or give a local directory",
        )
    if isinstance(error, MemoryError):
        return error
    advice = "check that the directory is whole"
    if "does not recognize this architecture" in text:
        advice = "if it is one of your own, write model.code=FILE and add --allow-code"
    return DataError(f"the model cannot be read: {reason}", where=name, next=advice)
