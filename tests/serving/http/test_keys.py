"""API keys: what a file may hold, and that all are compared."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmkit.config.schema import ServeConfig
from llmkit.errors import ConfigError, InputNotFound
from llmkit.serving.http.keys import ApiKeys, read_api_keys


def of_file(path: Path, text: str) -> ApiKeys:
    path.write_text(text)
    return read_api_keys(ServeConfig(api_key_file=str(path)))


def test_without_a_file_everybody_is_allowed() -> None:
    keys = read_api_keys(ServeConfig())
    assert len(keys) == 0
    assert keys.allow(b"")


def test_each_line_is_a_key(tmp_path: Path) -> None:
    keys = of_file(tmp_path / "keys", "# comment\n one \n\ntwo\r\n")
    assert len(keys) == 2
    assert keys.allow(b"Bearer one")
    assert keys.allow(b"bearer  two")
    assert not any(keys.allow(value) for value in (b"", b"one", b"Bearer ", b"Bearer onetwo"))


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "holds no API key"), ("# one\n", "holds no"), ("a\nb c\n", ":2"), ("\u00e9", ":1")],
)
def test_a_file_without_usable_keys_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as fault:
        of_file(tmp_path / "keys", text)
    assert said in str(fault.value)


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(InputNotFound, match="cannot read the API keys"):
        read_api_keys(ServeConfig(api_key_file=str(tmp_path)))
