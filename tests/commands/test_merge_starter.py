"""The story of `configs/experts.yaml`: its commands, as they are written, on small text."""

from __future__ import annotations

import json
import random
import shlex
import shutil
from pathlib import Path

import pytest

from tests.harness import Server
from tests.jobs import CONFIGS, tiny

STEPS = ("train.max_steps=2", "train.compile=false")


@pytest.fixture(scope="module")
def place(trials: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the files that the config names, in which its commands were run in order.
    Models are tiny and train for two steps."""
    place, draw = tmp_path_factory.mktemp("experts"), random.Random(0)
    (place / "code").mkdir()
    shutil.copytree(CONFIGS, place / "configs")
    texts = {"code/a.txt": "def return import class self", "poems.txt": "stars moon night wind"}
    for name, words in texts.items():
        lines = (" ".join(draw.choices(words.split(), k=12)) for _ in range(80))
        (place / name).write_text("\n".join(lines), encoding="utf-8")
    text = (CONFIGS / "experts.yaml").read_text(encoding="utf-8")
    commands = [shlex.split(line[1:])[1:] for line in text.splitlines() if "#   llmkit " in line]
    assert [command[0] for command in commands] == [
        *["pretrain"] * 3, "merge", "evaluate", "generate"
    ]  # fmt: skip
    for command in commands:
        changes: list[str] = []
        if command[0] == "pretrain":
            changes = [*STEPS] if "--model" in command else tiny(*STEPS, "data.block_size=256")
        ended = trials.run(*command, *changes, "--json", directory=str(place))
        assert ended.code == 0, (command, ended.err)
        (place / f"{command[0]}.json").write_text(ended.out, encoding="utf-8")
    return place


def test_the_story_ends_with_a_model_of_both_experts(place: Path) -> None:
    runs = {path.parent.name for path in place.glob("runs/*/final")}
    assert runs == {"seed", "code", "poems", "merged"}
    merged = json.loads((place / "merge.json").read_text())
    assert merged["experts"] == ["code", "poems"]
    assert json.loads((place / "generate.json").read_text())["tokens"]


def test_each_domain_and_each_expert_on_it_is_measured(place: Path) -> None:
    result = json.loads((place / "evaluate.json").read_text())
    assert [row["domain"] for row in result["by_domain"]] == ["code", "poems"]
    pairs = [(row["domain"], row["expert"]) for row in result["experts"]]
    assert pairs == [(d, e) for d in ("code", "poems") for e in ("code", "poems")]
