"""One server for all fault tests, and the rule that a test leaves nothing behind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from . import runs
from .harness import Server


@pytest.fixture(scope="session")
def trials(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Where trials are started."""
    server = Server(tmp_path_factory.mktemp("trials"))
    yield server
    server.close()


@pytest.fixture(scope="session")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, runs.Job]:
    """Small runs, by their commands."""
    return runs.make_jobs(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test that has not ended all that it started, or that left a temporary file."""
    yield
    if "trials" in request.fixturenames:
        assert request.getfixturevalue("trials").leftovers() == []
