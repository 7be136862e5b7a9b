"""The API keys of a server. Imports no heavy library."""

from __future__ import annotations

import hmac
from pathlib import Path

from llmkit.config.schema import ServeConfig
from llmkit.errors import ConfigError, InputNotFound

_KEY = "serve.api_key_file"


class ApiKeys:
    """Keys that requests may have; without any, every request is allowed."""

    def __init__(self, keys: tuple[bytes, ...] = ()) -> None:
        self._keys = keys

    def __len__(self) -> int:
        """Their number."""
        return len(self._keys)

    def allow(self, authorization: bytes) -> bool:
        """Whether the value of an Authorization header has a key.

        The time does not depend on how much of a key is right, nor on which one it is.
        """
        scheme, _, given = authorization.partition(b" ")
        equal = [hmac.compare_digest(given.strip(), key) for key in self._keys]
        return not self._keys or (scheme.lower() == b"bearer" and any(equal))


def read_api_keys(settings: ServeConfig) -> ApiKeys:
    """The keys of the file in the settings: one per line; `#` begins a comment line.

    Raises InputNotFound for a missing file, and ConfigError for one without keys or with a key that
    no header can carry.
    """
    if settings.api_key_file is None:
        return ApiKeys()
    path = Path(settings.api_key_file)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputNotFound(
            f"cannot read the API keys: {error.strerror}", where=f"{_KEY}: {path}"
        ) from None
    except UnicodeError:
        raise ConfigError("the API keys are not UTF-8", where=f"{_KEY}: {path}") from None
    keys = []
    for number, line in enumerate(text.splitlines(), 1):
        key = line.strip()
        if not key or key.startswith("#"):
            continue
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise ConfigError(
                "an API key has characters other than printable ASCII without spaces",
                where=f"{path}:{number}",
                next="write one key per line",
            )
        keys.append(key.encode())
    if not keys:
        raise ConfigError(
            "the file holds no API key",
            where=f"{_KEY}: {path}",
            next="write one key per line, such as the output of `openssl rand -hex 32`",
        )
    return ApiKeys(tuple(keys))
