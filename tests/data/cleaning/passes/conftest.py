"""A dirty folder, and the passes over it."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tests.dirty import SENTENCES, mojibake, programs, prose, verse, with_other_words


@pytest.fixture
def dirty(tmp_path: Path) -> Path:
    """A folder with every fault that the default stages find, and clean text."""
    folder, chance = tmp_path / "dirty", random.Random(5)
    folder.mkdir()
    wrong = [SENTENCES[code] for code in ("de", "fr", "vi", "ru")]
    texts = [*prose(30), *verse(10), *programs(10)]
    texts += [each for each in SENTENCES.values() if each not in wrong]
    texts += [with_other_words(text, 0.04, chance) for text in texts[:12]]
    texts += [texts[3], texts[40], "", "  \n", "buy it now\n" * 8]
    texts += map(mojibake, wrong[:3])
    chance.shuffle(texts)
    third = len(texts) // 3
    for name, part in (("a.jsonl", texts[:third]), ("b.jsonl", texts[third : 2 * third])):
        rows = [{"id": number, "text": text} for number, text in enumerate(part)]
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    for number, text in enumerate(texts[2 * third :]):
        (folder / f"c{number:02}.txt").write_bytes(text.encode())
    (folder / "d.txt").write_bytes(wrong[3].encode("cp1251"))
    (folder / "e.txt").write_bytes(bytes(range(128, 256)) * 40)
    return folder
