"""Which commands and tasks a key applies to, and what is said where it does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmkit.cli import app
from llmkit.config import checks, jobs, keys, other_tools, reference
from llmkit.config.jobs import TASKS, For
from llmkit.config.load import load_config
from llmkit.errors import ConfigError


def refusal(command: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(command, None, overrides)
    assert caught.value.exit_code == 78
    return caught.value.where


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("generate data.max_length=50", "write `generation.max_new_tokens=50`"),
        ("chat data.block_size=50", "write `generation.max_new_tokens=50`"),
        ("evaluate train.precision=fp32", "write `evaluation.precision=fp32`"),
        ("predict train.precision=fp32", "write `predict.precision=fp32`"),
        ("pretrain generation.precision=fp32", "write `train.precision=fp32`"),
        ("finetune data.block_size=64", "write `data.max_length=64`"),
        ("pretrain data.max_length=64", "write `data.block_size=64`"),
        ("evaluate data.max_length=64", "write `evaluation.window=64`"),
        ("evaluate data.train_files=a evaluation.tasks=x", "write `data.test_files=a`"),
        ("generate data.test_files=a", "write `generation.prompts_file=a`"),
        ("predict output_dir=x", "write `predict.output=x`"),
        ("generate output_dir=x", "write `generation.output_file=x`"),
        ("finetune evaluation.output=x", "write `output_dir=x`"),
        ("generate train.micro_batch_size=4", "write `generation.micro_batch_size=4`"),
        ("evaluate train.micro_batch_size=4", "write `evaluation.batch_tokens`"),
        ("finetune generation.temperature=3", "remove it"),
        ("predict seed=1", "remove it"),
        ("generate train.max_steps=1", "remove it"),
        ("generate model.config.hidden_size=1", "remove it"),
        ("evaluate tokenizer.vocab_size=300", "remove it"),
        ("finetune data.prompt_column=q", "it needs `train.objective=completion`"),
        (
            "finetune train.objective=completion train.class_weights=balanced",
            "it needs `train.objective=classification`",
        ),
        (
            "pretrain train.objective=causal train.mask_probability=0.2",
            "it needs `train.objective=masked`",
        ),
        (
            "finetune train.objective=completion data.label_column=a",
            "write `data.response_column=a`",
        ),
        (
            "evaluate evaluation.prompt_column=a",
            "it needs `evaluation.reference_column=COLUMN`",
        ),
        ("evaluate evaluation.reference_column=a evaluation.stride=3", "remove it"),
    ],
)
def test_a_key_that_does_not_apply_is_refused_with_the_one_that_is_meant(
    line: str, said: str
) -> None:
    command, *overrides = line.split()
    assert said in refusal(command, *overrides)


def test_every_key_is_refused_by_every_command_that_it_does_not_apply_to() -> None:
    for key in keys.all_keys().values():
        for command in TASKS:
            mine = key.jobs & set(jobs.jobs_of(command))
            name = key.name.replace("NAME", "a")
            if not mine and command != "evaluate":
                assert f"is a key of {key.scope}" in refusal(command, f"{name}=1"), name


def test_a_file_may_be_shared_by_commands(tmp_path: Path) -> None:
    shared = tmp_path / "shared.yaml"
    shared.write_text(
        "output_dir: x\ntrain: {mask_probability: 0.2, precision: fp32}\n"
        "data: {max_length: 5, block_size: 6, prompt_column: q}\ngeneration: {temperature: 2}\n"
        "predict: {format: csv}\nevaluation: {window: 9, tasks: [a]}\n"
    )
    for command in TASKS:
        assert load_config(command, shared, []).config.data.max_length == 5


def test_what_the_model_decides_is_refused_when_it_is_known() -> None:
    config = load_config("pretrain", None, ["train.mask_probability=0.2", "seed=1"]).config
    checks.refuse_inapplicable(config, "pretrain/masked")
    with pytest.raises(ConfigError) as caught:
        checks.refuse_inapplicable(config.model_copy(), "pretrain/causal")
    assert "train.mask_probability: is a key of pretrain (masked)" in caught.value.where
    from_file = config.model_validate(config.model_dump())
    checks.refuse_inapplicable(from_file, "pretrain/causal")


def test_a_counterpart_applies_where_its_key_does_not() -> None:
    known = {key.name: key for key in keys.all_keys().values()}
    for name, others in other_tools.COUNTERPARTS.items():
        assert any(known[other].jobs - known[name].jobs for other in others if other != name), name
    for job in other_tools.CHOOSES:
        assert job in jobs.EVERY_JOB


def test_a_scope_in_words_is_short() -> None:
    assert jobs.in_words(For(*TASKS).jobs) == "every command"
    assert jobs.in_words(For("pretrain", "finetune/completion").jobs) == (
        "pretrain, finetune (completion)"
    )
    assert jobs.shortest_names(For("evaluate/text", "chat").jobs) == ["chat", "evaluate/text"]
    with pytest.raises(ValueError, match="pretrain/sums"):
        For("pretrain/sums")


def test_the_documentation_says_what_each_key_applies_to() -> None:
    assert "| `train.whole_word_masking` | bool | `false` | pretrain (masked) |" in (
        reference.key_table()
    )
    train = reference.json_schema()["$defs"]["TrainConfig"]["properties"]
    assert train["max_steps"]["description"].endswith(" For pretrain, finetune.")


def listed(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    assert app.run_command(["keys", *arguments, "--json"]) == 0
    return [each["key"] for each in json.loads(capsys.readouterr().out)["keys"]]


def test_keys_are_found_by_name_meaning_scope_and_the_names_of_other_tools(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert len(listed(capsys)) == len(keys.all_keys())
    assert listed(capsys, "early-stopping") == ["train.early_stopping_patience"]
    assert "train.learning_rate" in listed(capsys, "lr")
    assert "generation.top_p" in listed(capsys, "nucleus")
    assert listed(capsys, "length", "--for", "completion") == ["data.max_length"]
    assert listed(capsys, "zork") == []
    assert all(
        keys.all_keys()[tuple(name.split("."))].jobs & {"predict"}
        for name in listed(capsys, "--for", "predict")
    )


def test_the_list_of_keys_fits_a_narrow_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert app.run_command(["keys"]) == 0
    assert max(len(line) for line in capsys.readouterr().out.splitlines()) <= 80


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["temprature"], "did you mean `llmkit keys temperature`?"),
        (["zork"], "`llmkit keys` lists all keys"),
        (["--for", "sums"], "finetune/completion"),
    ],
)
def test_a_search_without_result_says_what_to_do_next(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert app.run_command(["keys", *arguments]) == 2
    assert said in capsys.readouterr().err
