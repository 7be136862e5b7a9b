"""The runs that the fault tests break off."""

from __future__ import annotations

import pytest

from . import runs


@pytest.fixture(scope="session")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, runs.Job]:
    """Small runs, by their commands."""
    return runs.make_jobs(tmp_path_factory.mktemp("data"))
