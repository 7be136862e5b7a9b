"""`llmkit generate` with a masked model, as a shell sees it."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

import llmkit
from llmkit.cli import app
from llmkit.models import tokenizer as tokenizers
from tests.jobs import WORDS

Generate = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny masked model with random weights."""
    path = tmp_path_factory.mktemp("masked")
    tokenizer = tokenizers.train_bpe_with_frame([" ".join(WORDS)] * 3, 290)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
             "intermediate_size": 48, "max_position_embeddings": 64}  # fmt: skip
    torch.manual_seed(0)
    BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def generate(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Generate:
    """Runs the command in this process; `stdin` is a pipe."""

    def run(*arguments: object, stdin: str = "", command: str = "generate") -> tuple[int, str, str]:
        pipe = io.TextIOWrapper(io.BytesIO(stdin.encode()), encoding="utf-8")
        monkeypatch.setattr(sys, "stdin", pipe)
        code = app.run_command([command, "--model", str(model), *map(str, arguments)])
        return code, *capsys.readouterr()

    return run


def rows(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


PROMPTS = ["the cat [MASK] on a mat", "[MASK] [MASK] ran home", "how far [MASK]?"]


def test_prompts_come_from_options_a_file_a_pipe_or_python_alike(
    generate: Generate, model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in PROMPTS))
    given = [
        generate("--json", *(part for text in PROMPTS for part in ("--prompt", text))),
        generate("--json", "--prompts-file", path),
        generate("--json", stdin="\n".join(PROMPTS)),
    ]
    assert [code for code, _, _ in given] == [0, 0, 0]
    assert len({out for _, out, _ in given}) == 1
    found = rows(given[0][1])
    assert [row["prompt"] for row in found] == PROMPTS
    assert [len(row["masks"]) for row in found] == [1, 2, 1]
    called = llmkit.generate(model=model, prompt=PROMPTS, quiet=True)
    assert called["generated"] == found
    assert called["warnings"] == []


def test_a_reader_gets_the_text_and_a_table_of_fillings(generate: Generate) -> None:
    arguments = ("--prompt", PROMPTS[1], "--explain", 3)
    (row,) = rows(generate(*arguments, "--json")[1])
    code, out, said = generate(*arguments)
    assert (code, said) == (0, "")
    text, head, *table = out.splitlines()
    assert text == row["text"]
    assert head.split() == ["mask", "filling", "p"]
    assert [line.split()[0] for line in table] == ["1"] * 3 + ["2"] * 3
    chances = [f"{each['probability']:.3f}" for m in row["masks"] for each in m["likeliest"]]
    assert [line.split()[-1] for line in table] == chances


def test_results_in_a_file_are_resumed_to_the_same_bytes(
    generate: Generate, tmp_path: Path
) -> None:
    path, out = tmp_path / "p.csv", tmp_path / "out.jsonl"
    lines = [f"{n},the {WORDS[n % len(WORDS)]} [MASK] home" for n in range(70)]
    path.write_text("\n".join(["id,text", *lines]) + "\n")
    arguments = ("--prompts-file", path, "--output", out, "--json")
    code, said, _ = generate(*arguments)
    assert (code, json.loads(said)["samples"]) == (0, 70)
    whole = out.read_bytes()
    assert [row["columns"]["id"] for row in rows(whole.decode())] == [str(n) for n in range(70)]
    out.write_bytes(b"".join(whole.splitlines(keepends=True)[:41]))
    code, said, _ = generate(*arguments)
    assert (code, json.loads(said)["samples_before"]) == (0, 41)
    assert out.read_bytes() == whole


def test_two_processes_fill_what_one_does(
    generate: Generate, llmkit: Callable[..., Any], model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "p.txt"
    path.write_text("".join(f"{text}\n" for text in PROMPTS * 4))
    arguments = ("generate", "--model", model, "--prompts-file", path)
    done = [
        llmkit(*arguments, "--output", tmp_path / f"{count}.jsonl", processes=count)
        for count in (1, 2)
    ]
    assert [each.returncode for each in done] == [0, 0], done
    assert (tmp_path / "1.jsonl").read_bytes() == (tmp_path / "2.jsonl").read_bytes()


def test_a_prompt_without_a_mask_is_refused_with_what_to_type(generate: Generate) -> None:
    for dry in ((), ("--dry-run",)):
        code, _, said = generate("--prompt", "the cat", *dry)
        assert code == 65
        assert "no mask" in said
        assert "The cat sat on the [MASK]." in said
    code, out, _ = generate("--prompt", PROMPTS[0], "--dry-run", "--json")
    assert code == 0
    assert json.loads(out)["context"] == 64


@pytest.mark.parametrize("setting", ["temperature=0.5", "num_return_sequences=3", "weights=int8"])
def test_settings_of_continuations_are_refused_on_the_command_line_only(
    generate: Generate, tmp_path: Path, setting: str
) -> None:
    code, _, said = generate("--prompt", PROMPTS[0], f"generation.{setting}")
    assert code == 78
    assert f"generation.{setting.partition('=')[0]}" in said
    name, _, value = setting.partition("=")
    (tmp_path / "shared.yaml").write_text(f"generation:\n  {name}: {value}\n")
    shared = generate(tmp_path / "shared.yaml", "--prompt", PROMPTS[0], "--json")
    assert shared[0] == 0, shared[2]
    assert shared[1] == generate("--prompt", PROMPTS[0], "--json")[1]


def test_only_names_of_other_control_tokens_are_warned_of(generate: Generate) -> None:
    assert "control token" not in generate("--prompt", PROMPTS[0])[2]
    assert "control token ([SEP])" in generate("--prompt", "the [SEP] [MASK]")[2]


def test_commands_that_write_text_point_to_generate(generate: Generate) -> None:
    code, _, said = generate(command="chat")
    assert code == 65
    assert "fills the masks" in said
