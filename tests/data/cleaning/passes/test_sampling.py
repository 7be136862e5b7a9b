"""What the whole will take, measured on a sample."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmkit.config.schema import CleanConfig, DataConfig
from llmkit.data.cleaning.passes import sampling
from llmkit.data.cleaning.passes.pipeline import plan_cleaning
from llmkit.data.cleaning.passes.sampling import sample_cleaning
from llmkit.data.readers.files import find
from llmkit.progress import Watch
from tests.dirty import prose


def test_a_sample_stands_for_the_whole(
    tmp_path: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [text for each in prose(400) for text in (each, "")]
    (tmp_path / "a.txt").write_text("\n".join(texts))
    found = find([str(tmp_path / "a.txt")], "data.train_files")
    data = DataConfig(document="line")
    monkeypatch.setattr(sampling, "SAMPLED_CHARACTERS", 60_000)
    plan = plan_cleaning([], found, data, CleanConfig(), watch)
    report = sample_cleaning(plan)
    assert 100 < report["sample"]["documents"] < 250
    assert report["removed"]["empty"] == pytest.approx(0.5, abs=0.02)
    n_bytes = (tmp_path / "a.txt").stat().st_size
    assert report["whole"]["bytes"] <= n_bytes
    assert report["whole"]["disk_bytes"] > report["whole"]["bytes"]


def test_files_of_different_sizes_and_broken_ones_are_sampled(dirty: Path, watch: Watch) -> None:
    plan = plan_cleaning(
        [], find([str(dirty)], "data.train_files"), DataConfig(), CleanConfig(), watch
    )
    report = sample_cleaning(plan)
    assert report["whole"]["documents"] >= report["sample"]["documents"]
    assert report["changed"].keys() <= {"mojibake"}
