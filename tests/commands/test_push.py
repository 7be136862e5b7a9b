"""`llmkit push` and back: a trained model is uploaded and read from the hub by its name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hub import running_hub
from tests.jobs import ROOT, tiny

from .conftest import Run


@pytest.fixture(scope="module")
def run(llmkit: Run, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runs") / "mine"
    done = llmkit("pretrain", "--text", corpus, "-o", directory, "train.max_steps=2", *tiny())
    assert done.returncode == 0, done.stderr
    return directory


def test_a_pushed_model_is_loaded_by_its_name_and_writes_the_same_text(
    llmkit: Run, run: Path, tmp_path: Path
) -> None:
    """Another process, since the address of the hub is read when its library is imported."""
    with running_hub() as hub:
        environment = {
            **os.environ,
            "HF_ENDPOINT": hub.url,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
            "HF_HOME": str(tmp_path),
            "HF_TOKEN": "hf_me",
            "PYTHONPATH": str(ROOT / "src"),
        }

        def command(*arguments: object) -> str:
            done = subprocess.run(
                [sys.executable, "-m", "llmkit", *map(str, arguments)],
                env=environment, capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            return done.stdout

        command("push", run, "--repo", "mine", "--yes")
        assert set(hub.repos["me/mine"].files) >= {"README.md", "config.json", "tokenizer.json"}
        own = ("--prompt", "the cat", "--json", "generation.max_new_tokens=8")
        there = command("generate", "--model", "me/mine", *own)
    here = llmkit("generate", "--model", run, *own).stdout
    assert there.replace("me/mine", "") == here.replace(str(run), "").replace("/final", "")
