"""`llmkit export --format peft`: peft reads the updates of a run, and gets the run's model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
)

from llmkit.models import tokenizer as tokenizers
from tests.jobs import tiny, write_table

from .conftest import Run

STEPS = ("train.max_steps=4", "train.learning_rate=0.05", "train.compile=false", "model.lora.r=2")
IDS = torch.tensor([[5, 9, 200, 31, 77, 12]])


@pytest.fixture(scope="module")
def base(llmkit: Run, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal model to begin with."""
    made = tmp_path_factory.mktemp("adapter") / "base"
    done = llmkit("pretrain", "--text", corpus, "-o", made,
                  *tiny("train.max_steps=2", "model.architecture=llama"))  # fmt: skip
    assert done.returncode == 0, done.stderr
    return made


@pytest.fixture(scope="module")
def classifier(llmkit: Run, base: Path) -> Path:
    """A classifier of LoRA updates and a head."""
    words = ("the", "dog", "run")
    rows = [(f"{word} cat {number}", word) for number in range(12) for word in words]
    table = write_table(base.parent / "rows.csv", rows)
    done = llmkit("finetune", "--csv", table, "--model", base, "-o", base.parent / "labels", *STEPS)
    assert done.returncode == 0, done.stderr
    return base.parent / "labels"


@pytest.fixture(scope="module")
def answers(llmkit: Run, base: Path) -> Path:
    """A model that responds."""
    rows = [(f"{word} cat", f"{word} dog") for word in ("the", "sat", "run")] * 12
    table = write_table(base.parent / "chats.csv", rows, ("prompt", "response"))
    done = llmkit("finetune", "--csv", table, "--model", base, "-o", base.parent / "answers",
                  "train.objective=completion", "model.lora.target_modules=[q_proj,v_proj]",
                  "tokenizer.chat_template=plain", *STEPS)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return base.parent / "answers"


def told(llmkit: Run, run: Path, output: Path) -> dict[str, Any]:
    done = llmkit("export", "--model", run, "--format", "peft", "--output", output, "--json")
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=IDS).logits
    return found


def test_peft_makes_the_classifier_of_the_run_from_its_base(
    llmkit: Run, classifier: Path, tmp_path: Path
) -> None:
    found = told(llmkit, classifier, tmp_path / "made")
    made = loaded_by(found["loading"])
    own = AutoModelForSequenceClassification.from_pretrained(classifier / "final")
    torch.testing.assert_close(logits(made), logits(own), rtol=1e-4, atol=1e-5)
    settings = json.loads((tmp_path / "made" / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"], settings["task_type"]) == (2, 4, "SEQ_CLS")
    assert settings["modules_to_save"] == ["score"]
    assert found["verified"]["outputs"]["largest_difference"] < 1e-3
    assert "base_model_name_or_path" in found["warnings"][0]
    read = AutoTokenizer.from_pretrained(tmp_path / "made")("the cat")
    assert read == AutoTokenizer.from_pretrained(classifier / "final")("the cat")


def loaded_by(line: str) -> Any:
    """Does what the line says, which names a class of peft, a directory and a number of labels."""
    name, _, rest = line.removeprefix("peft.").partition(".from_pretrained(")
    directory, _, labels = rest.rstrip(")").partition(", num_labels=")
    settings = {"num_labels": int(labels)} if labels else {}
    return getattr(peft, name).from_pretrained(directory.strip("'"), **settings)


def test_peft_makes_the_model_that_responds(llmkit: Run, answers: Path, tmp_path: Path) -> None:
    found = told(llmkit, answers, tmp_path / "made")
    own = AutoModelForCausalLM.from_pretrained(answers / "final")
    torch.testing.assert_close(
        logits(loaded_by(found["loading"])), logits(own), rtol=1e-4, atol=1e-5
    )
    settings = json.loads((tmp_path / "made" / "adapter_config.json").read_text())
    assert sorted(settings["target_modules"]) == ["q_proj", "v_proj"]
    assert settings["task_type"] == "CAUSAL_LM"
    assert (tmp_path / "made" / "generation_config.json").exists()


def test_layers_that_are_stored_transposed_are_read_too(
    llmkit: Run, corpus: Path, tmp_path: Path
) -> None:
    sizes = {"vocab_size": 300, "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 64}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))
    model.save_pretrained(tmp_path / "gpt2")
    tokenizers.train_bpe([corpus.read_text()], 300).save_pretrained(tmp_path / "gpt2")
    table = write_table(tmp_path / "a.csv", [("the cat", "a dog")] * 20, ("prompt", "response"))
    where = ("--model", tmp_path / "gpt2", "-o", tmp_path / "run")
    done = llmkit("finetune", "--csv", table, *where, "train.objective=completion",
                  "tokenizer.chat_template=plain", *STEPS)  # fmt: skip
    assert done.returncode == 0, done.stderr
    made = loaded_by(told(llmkit, tmp_path / "run", tmp_path / "made")["loading"])
    own = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "final")
    torch.testing.assert_close(logits(made), logits(own), rtol=1e-4, atol=1e-5)


def refused(llmkit: Run, run: Path, output: Path) -> Any:
    return llmkit("export", "--model", run, "--format", "peft", "--output", output)


def test_a_run_without_updates_and_a_model_of_no_run_are_refused(
    llmkit: Run, base: Path, tmp_path: Path
) -> None:
    done = refused(llmkit, base, tmp_path / "made")
    assert done.returncode == 78
    assert "trained without LoRA" in done.stderr
    shutil.copytree(base / "final", tmp_path / "alone" / "model")
    done = refused(llmkit, tmp_path / "alone" / "model", tmp_path / "made")
    assert done.returncode == 78
    assert "is the model of no run" in done.stderr


def test_updates_that_are_gone_are_named_with_what_brings_them_back(
    llmkit: Run, answers: Path, tmp_path: Path
) -> None:
    shutil.copytree(answers, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    done = refused(llmkit, tmp_path / "run", tmp_path / "made")
    assert done.returncode == 66
    assert "llmkit finetune" in done.stderr
    assert "--format safetensors" in done.stderr


def test_another_base_model_is_found_out(
    llmkit: Run, base: Path, answers: Path, tmp_path: Path
) -> None:
    shutil.copytree(base / "final", tmp_path / "other")
    weights = load_file(tmp_path / "other" / "model.safetensors")
    weights["model.norm.weight"] *= 1.5
    save_file(weights, tmp_path / "other" / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "other" / "manifest.json").unlink()
    shutil.copytree(answers, tmp_path / "run")
    config = (tmp_path / "run" / "config.yaml").read_text()
    (tmp_path / "run" / "config.yaml").write_text(
        config.replace(str(base), str(tmp_path / "other"))
    )
    done = refused(llmkit, tmp_path / "run", tmp_path / "made")
    assert done.returncode == 78
    assert "not the one that the run began with" in done.stderr
    assert not (tmp_path / "made").exists()
