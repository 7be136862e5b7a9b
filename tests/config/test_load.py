"""Precedence, sources and faults of a config, as a user meets them."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.config import keys
from llmkit.config.given import GivenOption
from llmkit.config.load import LoadedConfig, load_config
from llmkit.config.schema import Config
from llmkit.errors import ConfigError, UsageError


def resolved(
    tmp_path: Path, text: str, *overrides: str, options: tuple[GivenOption, ...] = ()
) -> LoadedConfig:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return load_config("pretrain", path, overrides, options)


def faults(
    tmp_path: Path, text: str, *overrides: str, options: tuple[GivenOption, ...] = ()
) -> list[str]:
    """The lines of the message, with the file's path shortened to its name."""
    with pytest.raises(ConfigError) as caught:
        resolved(tmp_path, text or "{}", *overrides, options=options)
    return [line.strip().replace(f"{tmp_path}/", "") for line in caught.value.where.split("\n")]


def test_the_file_goes_before_defaults_and_the_command_line_before_the_file(tmp_path: Path) -> None:
    text = "seed: 1\ntrain:\n  max_steps: 10\n  learning_rate: 1e-4\n"
    options = (GivenOption("--model", "model.name_or_path", "gpt2"),)
    found = resolved(tmp_path, text, "train.learning_rate=3e-4", options=options)
    assert (found.config.seed, found.config.train.max_steps) == (1, 10)
    assert found.config.train.learning_rate == 3e-4
    assert found.config.model.name_or_path == "gpt2"
    assert found.config.train.adam_beta1 == 0.9
    sources = {name: source.replace(f"{tmp_path}/", "") for name, source in found.sources.items()}
    assert sources["seed"] == "run.yaml:1"
    assert sources["train.max_steps"] == "run.yaml:3"
    assert sources["train.learning_rate"] == "command line"
    assert sources["model.name_or_path"] == "command line"
    assert sources["train.adam_beta1"] == "default"


def test_every_key_has_a_source() -> None:
    fixed = {key.name for key in keys.all_keys().values() if keys.KEY_NAME not in key.path}
    assert set(load_config("pretrain", None, []).sources) == fixed


def test_an_option_is_the_same_as_its_key() -> None:
    options = [GivenOption("--text", "data.train_files", ("a b.txt", "no", "*.md"))]
    by_option = load_config("pretrain", None, [], options).config
    by_key = load_config("pretrain", None, ["data.train_files=['a b.txt', 'no', '*.md']"]).config
    assert by_option == by_key


def test_dotted_keys_in_the_file_mean_what_they_mean_on_the_command_line(tmp_path: Path) -> None:
    dotted = resolved(
        tmp_path,
        "train.max_steps: 5\ntrain: {compile: false}\nmodel.config.a: 1",
    )
    assert dotted.config.train.max_steps == 5
    assert dotted.config.train.compile is False
    assert dotted.config.model.config == {"a": 1}


def test_settings_of_the_model_are_free_and_merge(tmp_path: Path) -> None:
    text = "model:\n  config:\n    hidden_size: 64\n    rope_scaling: {factor: 2.0, type: linear}\n"
    found = resolved(tmp_path, text, "model.config.rope_scaling.factor=4", "model.config.x=[1]")
    assert found.config.model.config == {
        "hidden_size": 64,
        "rope_scaling": {"factor": 4, "type": "linear"},
        "x": [1],
    }
    assert found.sources["model.config.rope_scaling.factor"] == "command line"


def test_an_empty_section_is_not_a_fault(tmp_path: Path) -> None:
    assert resolved(tmp_path, "train:\nmodel: {}\nseed: 3").config == Config(seed=3)


def test_one_file_may_stand_for_a_list_of_files(tmp_path: Path) -> None:
    found = resolved(tmp_path, "data: {train_files: a.txt, validation_files: [b.txt]}").config
    assert found.data.train_files == ("a.txt",)
    assert found.data.validation_files == ("b.txt",)


def test_all_faults_are_reported_at_once_in_the_order_of_the_input(tmp_path: Path) -> None:
    text = "sed: 1\ntrain:\n  max_steps: x\n  lr: 3e-4\nseed: -1\n"
    assert faults(tmp_path, text, "train.compile=maybe", "zork=1") == [
        "run.yaml:1: sed: no such key; did you mean `seed: 1`?",
        "run.yaml:3: train.max_steps: should be int >= 0 or `null`; got x",
        "run.yaml:4: train.lr: no such key; write `train.learning_rate: 3e-4`",
        "run.yaml:5: seed: should be int >= 0; got -1",
        "argument train.compile=maybe: train.compile: should be `auto` or bool; got maybe",
        f"argument zork=1: zork: no such key; the keys are {', '.join(Config.model_fields)}",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train: {learning_rate: '3e-4'}", "write `train.learning_rate: 0.0003`"),
        ("train: {max_steps: 1e3}", "write `train.max_steps: 1000`"),
        ("train: {max_steps: 1_000}", "write `train.max_steps: 1000`"),
        ("train: {max_steps: true}", "got true"),
        ("train: {max_steps: [5]}", "write `train.max_steps: 5`"),
        ("data: {validation_fraction: 5%}", "write `data.validation_fraction: 0.05`"),
        ("train: {compile: yes}", "write `train.compile: true`"),
        ("train: {compile: off}", "write `train.compile: false`"),
        ("train: {adam_epsilon: true}", "should be float >= 0; got true"),
        ("train: {learning_rate: .nan}", "should be `auto` or float > 0; got .nan"),
        ("train: {max_minutes: .inf}", "should be float > 0 or `null`; got .inf"),
        ("train: {warmup_steps: 1.5}", "should be `auto`, int >= 0 or float in [0, 1)"),
        ("train: {lr_scheduler_type: cosin}", "write `train.lr_scheduler_type: cosine`"),
        ("train: {lr_scheduler_type: wsd}", "write `train.lr_scheduler_type: warmup_stable_decay`"),
        ("train: {precision: fp16}", "write `train.precision: bf16`"),
        ("train: {optimizer: adamw_torch}", "write `train.optimizer: adamw`"),
        ("output_dir: 2024", 'write `output_dir: "2024"`'),
        ("data: {train_files: [1, a]}", 'write `data.train_files: ["1", a]`'),
        ("resume: true", "write `resume: auto`"),
        ("seed: {a: 1}", "should be int >= 0; got {a: 1}"),
        ("seed: {}", "should be int >= 0; got {}"),
        ("train: 5", "is a section; set one of its keys, such as `train.objective`"),
        ("train: []", "is a section; set one of its keys, such as `train.objective`"),
        ("seed: 1\nseed: 2", "run.yaml:2: seed: also appears in line 1; keep one"),
        ("train.compile: true\ntrain: {compile: true}", "is given twice (run.yaml:1); keep one"),
        ("model: {nam_or_path: x}", "did you mean `model.name_or_path: x`?"),
        ("data: {zork: x}", "the keys of `data` are train_files, validation_files"),
        ("<<: {seed: 1}", "no such key"),
        ("trainer: {max_steps: 5}", "write `train.max_steps: 5`"),
    ],
)
def test_a_fault_says_what_to_write(tmp_path: Path, text: str, said: str) -> None:
    (line,) = faults(tmp_path, text)
    assert line.startswith("run.yaml:")
    assert said in line


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("learning_rate=3e-4", "write `train.learning_rate=3e-4`"),
        ("max_steps=5", "write `train.max_steps=5`"),
        ("block-size=64", "write `data.block_size=64`"),
        ("name_or_path=x", "write `model.name_or_path=x` or `tokenizer.name_or_path=x`"),
        ("train.max_step=5", "did you mean `train.max_steps=5`?"),
        ("seed=", "has no value; to unset it, write `seed=null`"),
        ("train.max_steps={a: 1}", "got {a: 1}"),
        ("seed=!!python/object:os.system x", "tags are not read"),
        ("train..max_steps=1", "write `train.max_steps=1`"),
    ],
)
def test_a_fault_of_an_argument_names_the_argument(
    tmp_path: Path, argument: str, said: str
) -> None:
    (line,) = faults(tmp_path, "", argument)
    assert line.startswith(f"argument {argument}: ")
    assert said in line


@pytest.mark.parametrize(
    ("argument", "command", "offered"),
    [
        ("train.learning_rate=1e-3,3e-3", "pretrain", True),
        ("train.objective=causal,masked", "pretrain", True),
        ("train.save_steps=1,000", "pretrain", False),
        ("seed=1,x", "pretrain", False),
        ("generation.top_k=1,2", "generate", False),
    ],
)
def test_several_valid_values_are_answered_with_the_option_that_takes_them(
    argument: str, command: str, offered: bool
) -> None:
    with pytest.raises(ConfigError) as fault:
        load_config(command, None, [argument])
    assert ("add `--sweep`" in fault.value.where) == offered


def test_a_later_value_on_the_command_line_wins() -> None:
    assert load_config("pretrain", None, ["seed=1", "seed=2"]).config.seed == 2
    assert load_config("pretrain", None, ["seed=x", "seed=2"]).config.seed == 2
    overrides = ["model.name_or_path=b", "seed=3"]
    for after, name in ((0, "b"), (1, "a"), (2, "a")):
        option = GivenOption("--model", "model.name_or_path", "a", after)
        found = load_config("pretrain", None, overrides, [option])
        assert found.config.model.name_or_path == name
        assert found.sources["model.name_or_path"] == "command line"


def test_a_later_value_replaces_what_it_holds_and_nothing_beside_it() -> None:
    merged = load_config("pretrain", None, ["model.config={a: 1, b: 2}", "model.config.a=3"])
    assert merged.config.model.config == {"a": 3, "b": 2}
    nested = load_config("pretrain", None, ["model.config.r.x=1", "model.config.r=null"])
    assert nested.config.model.config == {"r": None}


def test_two_options_for_the_same_files_are_refused(tmp_path: Path) -> None:
    key = "data.train_files"
    options = (GivenOption("--text", key, ("a",)), GivenOption("--csv", key, ("b",)))
    (line,) = faults(tmp_path, "", options=options)
    assert line == "option --csv: data.train_files: is also set by --text; keep one"


def test_an_option_without_a_value_is_refused(tmp_path: Path) -> None:
    (line,) = faults(tmp_path, "", options=(GivenOption("--model", "model.name_or_path", ""),))
    assert line == "option --model: model.name_or_path: is empty"


@pytest.mark.parametrize("argument", ["seed", "=1", ""])
def test_an_argument_without_key_and_value_is_wrong_usage(argument: str) -> None:
    with pytest.raises(UsageError):
        load_config("pretrain", None, [argument])


def test_a_file_of_data_is_refused_in_less_than_a_second(tmp_path: Path) -> None:
    text = "\n".join(f"word{i}: {i}" for i in range(4_990))
    start = time.process_time()
    lines = faults(tmp_path, text)
    assert time.process_time() - start < 2
    assert len(lines) == 21
    assert lines[-1] == "and 4970 more"


@given(st.text(st.characters(codec="utf-8"), max_size=40))
def test_no_argument_is_a_bug(text: str) -> None:
    for argument in (f"seed={text}", f"{text}=1", f"train.{text}=x", f"model.config={text}"):
        with contextlib.suppress(ConfigError, UsageError):
            load_config("pretrain", None, [argument])


def test_a_value_that_is_not_yaml_is_text_where_text_is_taken() -> None:
    for value in (",", "|", ">", "[", "'", "*", "a #1"):
        found = load_config("finetune", None, [f"data.label_separator={value}"])
        assert found.config.data.label_separator == value
    with pytest.raises(ConfigError):
        load_config("finetune", None, ["train.max_steps=["])


@pytest.mark.parametrize("text", ["translate English to German: ", "a: b", "{x}"])
def test_text_that_is_a_mapping_in_yaml_is_kept_where_text_is_taken(text: str) -> None:
    assert load_config("pretrain", None, [f"output_dir={text}"]).config.output_dir == text
    with pytest.raises(ConfigError):
        load_config("pretrain", None, [f"train.max_steps={text}"])
