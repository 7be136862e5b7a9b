"""What the tests of the data and storage rooms share: a cache of their own, and a silent watch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llmkit.progress import Watch

SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that holds nothing yet."""
    monkeypatch.setenv("LLMKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def watch() -> Watch:
    @contextmanager
    def silent(label: str, total: int) -> Iterator[Callable[[int], None]]:
        yield lambda n_bytes: None

    return silent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The collection of real data."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the test data collection at {SHARED}")
    return SHARED
