"""Text that is about to be trained on is compared with itself, at little cost."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from llmkit.config.load import load_config
from llmkit.data.cleaning.passes.glance import notable_faults
from llmkit.data.readers.files import Sources
from tests.dirty import SENTENCES, mojibake, prose, second_corpora, with_other_words


def faults_of(*texts: str, folder: Path) -> list[str]:
    """What is said of a text of these documents."""
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    config = load_config("pretrain", None, [f"data.train_files={folder}"]).config
    return list(notable_faults(config, Sources(config)))


def test_copies_and_wrong_encodings_are_named_with_the_command(tmp_path: Path) -> None:
    chance, texts = random.Random(0), prose(30, words=40)
    assert faults_of(*texts, folder=tmp_path) == []
    copies = [with_other_words(text, 0.03, chance) for text in texts[:5]]
    [fault] = faults_of(*texts, *copies, folder=tmp_path)
    assert fault.startswith("5 of 35 sampled documents are copies")
    assert f"`llmkit clean --text {tmp_path / 'a.jsonl'} --output cleaned`" in fault
    [fault] = faults_of(*texts, mojibake(SENTENCES["de"]), folder=tmp_path)
    assert fault.startswith("1 of 31 sampled documents were decoded with a wrong encoding")


@pytest.mark.parametrize(("kind", "documents"), [*second_corpora(40)])
def test_nothing_is_said_of_clean_text(kind: str, documents: list[str], tmp_path: Path) -> None:
    assert faults_of(*documents, folder=tmp_path) == []
