"""The example of the README runs as it is written."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.jobs import ROOT


def test_the_example_of_the_readme_runs(
    corpus: Path,
    reviews: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    [example] = [block for block in blocks if "from llmkit import" in block]
    assert all(name in example for name in ("pretrain", "finetune", "evaluate", "predict"))
    shutil.copy(corpus, tmp_path / "corpus.txt")
    for name in ("reviews.csv", "test.csv"):
        shutil.copy(reviews, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert printed[-2].startswith(("wonderful good {", "wonderful bad {"))
    assert {path.name for path in Path("runs").iterdir()} == {"mine", "stars"}
