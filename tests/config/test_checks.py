"""Everything that is wrong with a config before data is read comes at once, with its place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmkit.cli import app
from llmkit.config.load import load_config
from llmkit.errors import ConfigError

BAD = """\
train:
  metric_for_best_model: f1
data:
  train_files: gone.txt
  encoding: utf9
model:
  architecture: llama
  config:
    hidden_sice: 64
    rms_norm_eps: small
    num_attention_heads: 6
    num_key_value_heads: 4
"""


def test_all_faults_come_at_once_with_their_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(BAD)
    assert app.run_command(["pretrain", str(path), "--json"]) == 78
    where = json.loads(capsys.readouterr().out)["error"]["where"]
    for line, key in (
        (2, "train.metric_for_best_model"), (4, "data.train_files"), (5, "data.encoding"),
        (9, "model.config.hidden_sice"), (10, "model.config.rms_norm_eps"),
        (12, "model.config.num_key_value_heads"),
    ):  # fmt: skip
        assert f"{path}:{line}: {key}: " in where
    assert "did you mean `model.config.hidden_size`?" in where
    assert "write one of loss, perplexity, bits_per_byte" in where


@pytest.mark.parametrize(
    ("command", "keys", "said"),
    [
        ("pretrain", ["train.metric_for_best_model=f1"], "write one of loss, perplexity"),
        ("finetune", ["train.metric_for_best_model=f1"], "f1_macro"),
        ("finetune", ["data.problem_type=regression", "train.metric_for_best_model=f1_macro"],
         "mse"),
        ("pretrain", ["train.early_stopping_patience=2", "data.validation_fraction=0"],
         "needs validation data"),
        ("finetune", ["model.lora.alpha=8"], "write model.lora.r=8"),
        ("finetune", ["model.lora.r=8", "train.freeze=body"], "cannot be combined with model.lora"),
        ("generate", ["generation.min_new_tokens=9", "generation.max_new_tokens=3"], "is above"),
        ("generate", ["generation.regex=a", "generation.choices=[a]"], "cannot be combined with"),
        ("pretrain", ["data.encoding=utf9"], "is not a text encoding"),
        ("pretrain", ["data.encoding=hex"], "is not a text encoding"),
        ("pretrain", ["data.encoding=base64"], "is not a text encoding"),
        ("pretrain", ["data.encoding=undefined"], "is not a text encoding"),
        ("pretrain", ["data.encoding=utf9"], "did you mean utf-8?"),
        ("evaluate", ["evaluation.window=8", "evaluation.stride=9"], "write 8 or less"),
    ],
)  # fmt: skip
def test_values_that_cannot_be_combined_are_refused_with_what_to_write(
    command: str, keys: list[str], said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(command, None, keys)
    assert said in f"{caught.value.what} {caught.value.where} {caught.value.next}"


def test_paths_may_use_home_and_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("RUNS", str(tmp_path))
    monkeypatch.delenv("NOWHERE", raising=False)
    assert load_config("pretrain", None, ["output_dir=${HOME}/x"]).config.output_dir == "/home/me/x"
    assert load_config("pretrain", None, ["output_dir=~/x"]).config.output_dir == "/home/me/x"
    found = load_config("pretrain", None, ["data.train_files=[$RUNS/a.txt, b.txt]"]).config
    assert found.data.train_files == (f"{tmp_path}/a.txt", "b.txt")
    path = tmp_path / "run.yaml"
    path.write_text("output_dir: $NOWHERE/x\n")
    with pytest.raises(ConfigError, match="NOWHERE is not set"):
        load_config("pretrain", path, [])


def test_a_file_whose_name_holds_a_dollar_is_that_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "$prices.txt").write_text("x")
    found = load_config("pretrain", None, ["data.train_files=$prices.txt"]).config
    assert found.data.train_files == ("$prices.txt",)
