"""Upload a finished model with its card to the Hugging Face Hub; nothing else in llmkit uploads."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    HfApi,
    ModelInfo,
    constants,
    get_session,
    get_token,
)
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from huggingface_hub.utils.sha import git_hash

from llmkit import __version__
from llmkit.errors import DataError, HubUnreachable, LlmkitError, UsageError, WriteError
from llmkit.export.finished_model import NOT_UPLOADED, FinishedModel, ModelFile
from llmkit.storage.outputs import CARD

CONNECT_SECONDS = 10.0
SILENT_SECONDS = 120.0
"""How long the hub may take to connect, and to answer while nothing is sent."""

Warn = Callable[[str], None]


@dataclass(frozen=True)
class Upload:
    """A finished model on its way to a repository of the hub."""

    model: FinishedModel
    repo: str
    """OWNER/NAME, or NAME until the hub was asked."""
    card: bytes
    user: str = ""
    private: bool = True
    found: ModelInfo | None = None
    """The repository as it is; None if there is none yet."""

    @property
    def url(self) -> str | None:
        """The address of the repository, if its owner is known."""
        return f"{constants.ENDPOINT}/{self.repo}" if "/" in self.repo else None

    @property
    def files(self) -> tuple[ModelFile, ...]:
        """The files to be in the repository: those of the manifest, and the card."""
        sha256 = hashlib.sha256(self.card).hexdigest()
        return (*self.model.files, ModelFile(CARD, len(self.card), sha256))

    def changed(self, found: ModelInfo | None) -> list[str]:
        """The names of the files that a repository does not hold with this content."""
        held = {each.rfilename: each for each in (found and found.siblings) or ()}
        return [
            file.name
            for file in self.files
            if file.name not in held or not self._equals(file, held[file.name])
        ]

    def _equals(self, file: ModelFile, held: Any) -> bool:
        if held.lfs is not None:
            return bool(held.lfs.sha256 == file.sha256)
        if held.size != file.size:
            return False
        return bool(held.blob_id == git_hash(self._content(file.name)))

    def _content(self, name: str) -> bytes:
        return self.card if name == CARD else (self.model.directory / name).read_bytes()

    def other_files(self) -> list[str]:
        """The files of the repository that are not files of the model; they stay there."""
        known = {".gitattributes", *(file.name for file in self.files)}
        held = (each.rfilename for each in (self.found and self.found.siblings) or ())
        return sorted(name for name in held if name not in known)


def check_repo_name(repo: str) -> None:
    """Raises UsageError for a name that no repository of the hub can have."""
    try:
        validate_repo_id(repo)
    except HFValidationError as fault:
        raise UsageError(
            f"{repo!r} cannot be a repository: {fault}",
            where="--repo",
            next="pass NAME or OWNER/NAME: letters, digits, `-`, `_` and `.`",
        ) from fault


def require_access() -> None:
    """Raises HubUnreachable if requests are forbidden, and WriteError without a token; makes no
    request."""
    if constants.HF_HUB_OFFLINE:
        raise HubUnreachable(
            "HF_HUB_OFFLINE forbids requests to the hub",
            where="environment: HF_HUB_OFFLINE",
            kept=NOT_UPLOADED,
            next="unset it, or add --dry-run to see what would be uploaded",
        )
    if get_token() is None:
        raise _no_access("you are not logged in to the hub", constants.ENDPOINT)


def find_repo(model: FinishedModel, repo: str, private: bool) -> Upload:
    """The upload of a model to a repository of the user, or of an organization of theirs.

    Raises WriteError for a token that the hub rejects or that may only read, and for a public
    repository where a private one was asked for; HubUnreachable.
    """
    get_session().timeout = (CONNECT_SECONDS, SILENT_SECONDS, SILENT_SECONDS, CONNECT_SECONDS)
    api = HfApi()
    with _hub_errors(repo, ""):
        who = api.whoami()
    user = str(who["name"])
    if who.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise _no_access(f"the token of {user} may only read", _token_place())
    repo = repo if "/" in repo else f"{user}/{repo}"
    with _hub_errors(repo, user):
        found = _repo_info(api, repo)
    if found is not None:
        repo = found.id  # its name now, if it was renamed
        if private and not found.private:
            raise WriteError(
                f"{repo} is public: everybody could read the model",
                where=f"{api.endpoint}/{repo}",
                kept=NOT_UPLOADED,
                next="add --public if you want that, or name another repository",
            )
        private = bool(found.private)
    return Upload(model, repo, model.card(repo).encode(), user, private, found)


def upload(plan: Upload, warn: Warn) -> CommitInfo:
    """Uploads the files in one commit, which the hub shows whole or not at all, and compares what
    the repository holds then.

    Raises WriteError where the hub refuses, DataError for a card that it cannot read, and
    HubUnreachable; the same command again uploads what is missing.
    """
    done = _commit(plan, warn)
    _check_uploaded(plan, done)
    return done


def _commit(plan: Upload, warn: Warn) -> CommitInfo:
    """Uploads the files in one commit, into a new repository if there is none."""
    api = HfApi()
    operations = [
        CommitOperationAdd(
            file.name, plan.card if file.name == CARD else str(plan.model.directory / file.name)
        )
        for file in plan.files
    ]
    kept = "the repository as it was: a commit is visible whole or not at all"
    with (
        _hub_errors(plan.repo, plan.user, kept),
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        if plan.found is None:
            api.create_repo(plan.repo, private=plan.private)
        done = api.create_commit(
            plan.repo,
            operations,
            commit_message=f"Upload model with llmkit {__version__}",
            parent_commit=plan.found.sha if plan.found else None,
        )
    for each in caught:
        if issubclass(each.category, UserWarning):  # on the metadata of the card
            warn(" ".join(str(each.message).split()))
    return done


def _check_uploaded(plan: Upload, done: CommitInfo) -> None:
    """Raises WriteError if the repository does not hold all files as they are here."""
    with _hub_errors(plan.repo, plan.user, f"the upload, not verified: commit {done.oid}"):
        held = _repo_info(HfApi(), plan.repo, done.oid)
    if missing := plan.changed(held):
        raise WriteError(
            f"the hub did not take {', '.join(missing)}",
            where=f"{plan.url}/tree/main",
            kept="the other files, uploaded",
            next="check whether a .gitignore of the repository excludes them",
        )


def _repo_info(api: HfApi, repo: str, revision: str | None = None) -> ModelInfo | None:
    """A repository with the hashes of its files; None if there is none that the token may see."""
    try:
        return api.model_info(repo, revision=revision, files_metadata=True, timeout=CONNECT_SECONDS)
    except RepositoryNotFoundError:
        return None


@contextmanager
def _hub_errors(repo: str, user: str, kept: str = NOT_UPLOADED) -> Iterator[None]:
    """Translates the errors of requests to the hub, with what they have kept."""
    try:
        yield
    except LlmkitError:
        raise
    except Exception as fault:  # the HTTP client's own errors are not OSErrors
        raise _translated(fault, repo, user, kept) from fault


def _translated(fault: BaseException, repo: str, user: str, kept: str) -> LlmkitError:
    if isinstance(fault, RuntimeError) and fault.__cause__ is not None:  # of an upload in a thread
        fault = fault.__cause__
    lines = str(getattr(fault, "server_message", None) or fault).strip().splitlines()
    reason = lines[0] if lines else type(fault).__name__
    where = f"{constants.ENDPOINT}/{repo}"
    status = fault.response.status_code if isinstance(fault, HfHubHTTPError) else None
    if status == 401 or isinstance(fault, UnicodeError):
        return _no_access("the hub rejects the token", _token_place())
    if status in (403, 404):
        return WriteError(
            f"{user or 'you'} may not write to {repo}: {reason}",
            where=where,
            kept=kept,
            next=f"name a repository of yours, such as --repo {user or 'YOU'}/"
            f"{repo.rpartition('/')[2]}, or use a token with write permission",
        )
    if status in (409, 412):
        return WriteError(
            f"{repo} has changed meanwhile: {reason}",
            where=where,
            kept=kept,
            next="run the same command again",
        )
    if isinstance(fault, ValueError) and "README" in str(fault):
        return DataError(f"the hub cannot read the card: {' '.join(lines)}", where=CARD, kept=kept)
    if isinstance(fault, OfflineModeIsEnabled) or status is None or status >= 500 or status == 429:
        return HubUnreachable(
            f"the hub does not answer: {reason}",
            where=where,
            kept=kept,
            next="check the network, then run the same command again; it uploads what is missing",
        )
    return WriteError(f"the hub refuses the upload: {reason}", where=where, kept=kept)


def _token_place() -> str:
    return "HF_TOKEN" if os.environ.get("HF_TOKEN") else str(constants.HF_TOKEN_PATH)


def _no_access(what: str, where: str) -> WriteError:
    return WriteError(
        what,
        where=where,
        kept=NOT_UPLOADED,
        next="run `hf auth login`, or set HF_TOKEN to a token with write permission from "
        f"{constants.ENDPOINT}/settings/tokens",
    )
