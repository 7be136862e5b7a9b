"""What is written appears whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmkit.storage import atomic


def test_a_signal_just_after_a_directory_was_made_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: Path, *given: Any, **options: Any) -> None:
        mkdir(self, *given, **options)
        if self.name.startswith(".tmp-"):
            raise KeyboardInterrupt

    mkdir = Path.mkdir
    monkeypatch.setattr(Path, "mkdir", interrupted)
    with pytest.raises(KeyboardInterrupt):
        atomic.commit(tmp_path / "made", lambda directory: None, {})
    assert list(tmp_path.iterdir()) == []
