"""`llmkit env`: what a bug report needs, above all where something is broken."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import llmkit


def facts(**environment: str) -> dict[str, object]:
    """What a new process prints."""
    done = subprocess.run(
        [sys.executable, "-m", "llmkit", "env", "--json"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_the_environment_is_one_object() -> None:
    found = facts(LLMKIT_CACHE="/somewhere")
    assert {"llmkit", "location", "python", "system", "gpus", "packages"} <= found.keys()
    assert found["token_cache"] == "/somewhere"


def test_a_library_that_does_not_load_is_a_fact(tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise ImportError('libcudart.so.12')")
    own = Path(llmkit.__file__).parents[1]
    found = facts(PYTHONPATH=f"{tmp_path}{os.pathsep}{own}", LLMKIT_CACHE="~nobody-here/cache")
    assert "libcudart.so.12" in str(found["devices"])
    assert "home directory" in str(found["token_cache"])
    assert "python" in found
