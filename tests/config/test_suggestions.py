"""The names and values of other tools: every answer is a key and a value that the config takes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from llmkit.config import jobs, keys, suggestions
from llmkit.config import other_tools as other
from llmkit.config.load import load_config
from llmkit.config.suggestions import Setting, Writing
from llmkit.config.types import Form
from llmkit.config.yaml12 import resolve_scalar
from llmkit.errors import ConfigError

IN_FILE = Writing(Form.YAML)


def instead(name: str, text: str, command: str = "pretrain", **given: str) -> str:
    """The advice for a name of another tool; `command` may be a task, as `finetune/completion`."""
    possible = jobs.jobs_of(command)
    setting = Setting(tuple(name.split(".")), text, possible, IN_FILE, {name: text, **given})
    return suggestions.for_key(setting)


def command_of(name: str) -> str:
    """A command that a key applies to."""
    key = keys.owner(tuple(name.split(".")))
    assert key is not None
    return min(key.jobs).partition("/")[0]


def test_every_answer_of_the_table_is_a_key_of_ours() -> None:
    answers = set(other.RENAMED.values()) | set(other.VALUES)
    unknown = [name for name in answers if keys.owner(tuple(name.split("."))) is None]
    assert unknown == []


def test_every_value_of_the_table_is_one_that_its_key_takes() -> None:
    answers = [(name, text) for name, values in other.VALUES.items() for text in values.values()]
    answers += [tuple(pair.split(": ")) for s in other.SWITCHES.values() for pair in s.values()]
    for name, text in answers:
        key = keys.owner(tuple(name.split(".")))
        assert key is not None
        job = sorted(key.jobs)[0]
        chosen = (
            ["=".join(other.CHOOSES[job])] if len(key.jobs) == 1 and job in other.CHOOSES else []
        )
        assert load_config(command_of(name), None, [*chosen, f"{name}={text}"]), (name, text)


def test_no_name_of_the_table_is_repeated_or_one_of_ours() -> None:
    batch = other.ACCUMULATION + other.PER_DEVICE[:-1]
    tables = [
        *other.RENAMED,
        *other.SWITCHES,
        *other.ABSENT,
        *other.OTHER_DATA,
        *batch,
    ]
    assert sorted(tables) == sorted(set(tables))
    assert [name for name in tables if keys.key_named(name)] == []


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("lr", "3e-4", "write `train.learning_rate: 3e-4`"),
        ("optimizer.lr", "3e-4", "write `train.learning_rate: 3e-4`"),
        ("warmup_ratio", "0.1", "write `train.warmup_steps: 0.1`"),
        ("max_iters", "600", "write `train.max_steps: 600`"),
        ("n_layer", "6", "write `model.config.num_hidden_layers: 6`"),
        ("model.n_embd", "64", "write `model.config.hidden_size: 64`"),
        ("data.block-size", "64", "write `data.block_size: 64`"),
        ("output-dir", "x", "write `output_dir: x`"),
        ("bf16", "true", "write `train.precision: bf16`"),
        ("bf16", "false", "write `train.precision: fp32`"),
        ("bf16", "maybe", "remove it"),
        ("train.scheduler", "wsd", "write `train.lr_scheduler_type: warmup_stable_decay`"),
        ("optim", "adamw_torch", "write `train.optimizer: adamw`"),
        ("precision", "bf16-mixed", "write `train.precision: bf16`"),
        ("resume_from_checkpoint", "true", "write `resume: auto`"),
        ("evaluation_strategy", "steps", "such as `train.eval_steps: 100`"),
        ("overwrite_output_dir", "true", "`resume: never` starts a new run"),
        ("trust_remote_code", "true", "never runs code"),
        ("do_train", "true", "the command decides that"),
        ("no_cuda", "true", "CUDA_VISIBLE_DEVICES"),
        ("LR", "1", "write `train.learning_rate: 1`"),
    ],
)
def test_names_of_other_tools_are_answered_with_ours(name: str, text: str, said: str) -> None:
    assert said in instead(name, text)


@pytest.mark.parametrize(
    ("command", "name", "text", "said"),
    [
        ("generate", "max_length", "50", "write `generation.max_new_tokens: 50`"),
        ("generate", "max_tokens", "50", "write `generation.max_new_tokens: 50`"),
        ("generate", "bf16", "true", "write `generation.precision: bf16`"),
        ("generate", "precision", "bf16-mixed", "write `generation.precision: bf16`"),
        ("generate", "load_in_8bit", "true", "write `generation.weights: int8`"),
        ("generate", "batch_size", "4", "write `generation.micro_batch_size: 4`"),
        ("generate", "epochs", "3", "is a key of pretrain, finetune, not of generate"),
        ("generate", "eval_strategy", "steps", "remove it: generate has no use for it"),
        ("generate", "out", "a.jsonl", "write `generation.output_file: a.jsonl`"),
        ("generate", "file", "a.txt", "write `generation.prompts_file: a.txt`"),
        ("finetune/classification", "max_seq_length", "64", "write `data.max_length: 64`"),
        ("finetune/completion", "max_seq_length", "64", "write `data.max_length: 64`"),
        ("pretrain", "max_seq_length", "64", "write `data.block_size: 64`"),
        ("evaluate/text", "max_seq_length", "64", "write `evaluation.window: 64`"),
        ("evaluate/labels", "max_seq_length", "64", "remove it"),
        ("evaluate/labels", "dtype", "float32", "write `evaluation.precision: fp32`"),
        ("evaluate/text", "batch_size", "4", "write `evaluation.batch_tokens`"),
        ("evaluate/text", "dataset", "a", "write `data.test_files: a`"),
        ("predict", "dataset", "a", "write `data.test_files: a`"),
        ("predict", "batch_size", "4", "remove it"),
        ("predict", "output_dir", "a", "write `predict.output: a`"),
        ("finetune/completion", "dataset", "a", "write `data.train_files: a`"),
        ("finetune/classification", "temperture", "1", "`generation.temperature` is a key of"),
        ("finetune/classification", "label_smoothing", "0.1", "train.label_smoothing_factor: 0.1"),
    ],
)
def test_the_answer_depends_on_the_command_and_keeps_the_value(
    command: str, name: str, text: str, said: str
) -> None:
    assert said in instead(name, text, command)


def test_every_name_of_others_is_answered_for_every_command_with_keys_that_apply() -> None:
    names = [*other.RENAMED, *other.SWITCHES, *other.ABSENT, *other.OTHER_DATA]
    for job in jobs.EVERY_JOB:
        for name in names:
            said = instead(name, "true", job)
            assert said
            for written in re.findall(r"write `([a-z_.0]+): ", said):
                key = keys.owner(tuple(written.split(".")))
                assert key is not None
                assert job in key.jobs, (job, name, said)


def test_two_batch_sizes_keep_each_its_own_value() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("finetune", None, ["data.batch_size=32", "train.batch_size=16"])
    one, other = caught.value.where.split("\n")
    assert "write `train.global_batch_size=32`" in one
    assert "write `train.global_batch_size=16`" in other


def test_the_batch_of_others_is_a_product(monkeypatch: pytest.MonkeyPatch) -> None:
    both = "write `train.global_batch_size: 32` and `train.micro_batch_size: 8`"
    assert instead("per_device_train_batch_size", "8", gradient_accumulation_steps="4") == both
    assert instead("gradient_accumulation_steps", "4", per_device_train_batch_size="8") == both
    assert instead("batch_size", "12") == "write `train.global_batch_size: 12`"
    assert instead("batch_size", "x").startswith("write `train.global_batch_size`, the sequences")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert instead("batch_size", "12") == "write `train.global_batch_size: 24`"


def test_a_correction_can_be_pasted_into_a_shell() -> None:
    assert Writing(Form.ARGUMENT)("output_dir", '"a b"') == "`'output_dir=\"a b\"'`"


def test_what_is_proposed_is_always_valid(tmp_path: Path) -> None:
    values = ["yes", "1_000", "5%", "3e-4", 1000.0, 0.5, [7], "cosin", True, "x", -1, {"a": 1}]
    for key in keys.all_keys().values():
        for value in values:
            text = str(value)
            said = suggestions.for_value(key, key.path, value, text, IN_FILE)
            # These depend on other keys: the task, the domains of a mixture.
            if said and key.path[-1] not in ("metric_for_best_model", "expert"):
                path = tmp_path / "run.yaml"
                path.write_text(said.removeprefix("write `").removesuffix("`"))
                assert load_config("pretrain", path, []), said


def test_a_whole_config_of_another_tool_is_answered_key_by_key() -> None:
    theirs = {
        "model_name_or_path": "gpt2",
        "train_file": "a.txt",
        "per_device_train_batch_size": "8",
        "gradient_accumulation_steps": "4",
        "learning_rate": "5e-5",
        "num_train_epochs": "3",
        "warmup_ratio": "0.03",
        "bf16": "true",
        "evaluation_strategy": "steps",
        "overwrite_output_dir": "true",
    }
    with pytest.raises(ConfigError) as caught:
        load_config("pretrain", None, [f"{name}={text}" for name, text in theirs.items()])
    lines = caught.value.where.split("\n")
    assert len(lines) == len(theirs)
    assert all("write" in line or "remove it" in line for line in lines)


def test_resolve_is_what_the_table_is_read_with() -> None:
    assert resolve_scalar(other.VALUES["model.name_or_path"]["scratch"]) is None
