"""A compiler that does not work."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.jobs import tiny


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU another compiler is used")
def test_a_compiler_that_fails_is_named_with_the_key_that_asked_for_it(
    environment: dict[str, str], corpus: Path, tmp_path: Path
) -> None:
    own = {"CXX": "/bin/false", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "empty")}
    done = subprocess.run(
        [sys.executable, "-m", "llmkit", "pretrain", "--text", str(corpus), "--output-dir",
         str(tmp_path / "run"), "train.max_steps=2", *tiny("train.compile=true")],
        env={**environment, **own}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 78
    assert "cannot compile the model" in done.stderr
    assert "where: train.compile" in done.stderr
    assert "train.compile=false" in done.stderr
    assert "Traceback" not in done.stderr
