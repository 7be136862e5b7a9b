"""The compiled library is built once, and loaded only where nobody else may have written it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from llmkit.models.kernels import native

HAS_COMPILER = native.decoder_library() is not None


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An empty cache directory."""
    monkeypatch.setenv("LLMKIT_CACHE", str(tmp_path))
    native.decoder_library.cache_clear()
    yield tmp_path
    native.decoder_library.cache_clear()


def test_without_a_compiler_there_is_no_library(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    assert native.decoder_library() is None
    native.decoder_library.cache_clear()
    monkeypatch.setenv("CC", "false")  # a compiler that fails
    assert native.decoder_library() is None
    assert not list(cache.rglob("*.so"))


@pytest.mark.skipif(not HAS_COMPILER, reason="there is no C compiler")
def test_the_library_is_built_once_and_not_loaded_if_others_may_write_it(cache: Path) -> None:
    assert native.decoder_library() is not None
    (built,) = cache.rglob("*.so")
    when = built.stat().st_mtime_ns
    native.decoder_library.cache_clear()
    assert native.decoder_library() is not None
    assert built.stat().st_mtime_ns == when
    for path in (built, built.parent):
        mode = path.stat().st_mode
        path.chmod(mode | 0o022)
        native.decoder_library.cache_clear()
        assert native.decoder_library() is None
        path.chmod(mode)
