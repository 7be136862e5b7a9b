"""Code of a user's own: refused unless allowed, named when wrong, then a model like any other."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import pytest

from llmkit.cli import app, prechecks
from llmkit.config.schema import Config, ModelConfig
from llmkit.errors import ConfigError, InputNotFound, LlmkitError, Unsafe
from llmkit.models import build, custom
from tests.harness import Ended, Server

NUMBERS = itertools.count()
"""An architecture registered once stays so in this process: each test takes a name of its own."""

OWN = '''
"""A Transformer without positions."""

from transformers import AutoConfig, AutoModelForCausalLM

from llmkit.models.transformer.config import TransformerConfig
from llmkit.models.transformer.heads import TransformerForCausalLM


class OwnConfig(TransformerConfig):
    model_type = "NAME"
    loops: int = 1


class OwnModel(TransformerForCausalLM):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.model._placed = lambda x, position_ids: (x, None)


print("registering")
AutoConfig.register("NAME", OwnConfig)
AutoModelForCausalLM.register(OwnConfig, OwnModel)
'''


@pytest.fixture
def name() -> str:
    return f"own{next(NUMBERS)}"


@pytest.fixture
def file(tmp_path: Path, name: str) -> Path:
    path = tmp_path / "my_model.py"
    path.write_text(OWN.replace("NAME", name), encoding="utf-8")
    return path


def fault(text: str, path: Path) -> LlmkitError:
    """What taking in a file of this text raises."""
    path.write_text(text, encoding="utf-8")
    with pytest.raises(LlmkitError) as caught:
        custom.run_model_code(ModelConfig(code=str(path), architecture="own"))
    assert str(path) in str(caught.value)
    return caught.value


def test_code_is_not_even_read_unless_it_is_allowed(tmp_path: Path) -> None:
    with pytest.raises(Unsafe, match=r"my_model\.py") as caught:
        prechecks.check_code(Config(model=ModelConfig(code=str(tmp_path / "my_model.py"))), False)
    assert "--allow-code" in caught.value.next


def test_a_registered_architecture_is_built_like_any_other(
    file: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    custom.run_model_code(ModelConfig(code=str(file), architecture=name))
    assert capsys.readouterr().out == ""  # stdout is for results
    shape = build.model_config(name, {"hidden_size": 32, "loops": 2}, 40, 12, {"eos_token_id": 3})
    model = build.causal_model(shape, seed=0)
    assert (type(model).__name__, model.config.loops) == ("OwnModel", 2)
    assert (model.lm_head.in_features, model.lm_head.out_features) == (32, 40)
    custom.run_model_code(ModelConfig(code=str(file), architecture=name))
    with pytest.raises(ConfigError, match="loop"):
        build.model_config(name, {"loop": 2}, 40, 12, {})
    with pytest.raises(ConfigError, match=f"no sequence classifier of type '{name}'"):
        build.fill_settings(name, {}, build.CLASSIFIER_MODEL)


def test_a_file_that_has_changed_since_it_ran_is_not_ignored(file: Path, name: str) -> None:
    custom.run_model_code(ModelConfig(code=str(file), architecture=name))
    file.write_text(file.read_text(encoding="utf-8") + "# other\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="has changed since") as caught:
        custom.run_model_code(ModelConfig(code=str(file), architecture=name))
    assert "kernel of a notebook" in caught.value.next


def test_settings_may_stand_in_an_init_as_well(tmp_path: Path, name: str) -> None:
    path = tmp_path / "older.py"
    path.write_text(
        "from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig\n"
        "class Own(PretrainedConfig):\n"
        f"    model_type = '{name}'\n"
        "    def __init__(self, width=3, **rest):\n"
        "        super().__init__(**rest)\n"
        "        self.width = width\n"
        f"AutoConfig.register('{name}', Own)\n"
        "class Model:\n"
        "    config_class = Own\n"
        "AutoModelForCausalLM.register(Own, Model)\n"
    )
    custom.run_model_code(ModelConfig(code=str(path), architecture=name))
    assert build.model_config(name, {"width": 5}, 40, 12, {}).width == 5


def test_a_file_that_registers_nothing_is_named(tmp_path: Path) -> None:
    error = fault("x = 1\n", tmp_path / "nothing.py")
    assert isinstance(error, ConfigError)
    assert "nothing.py registers no new architecture" in error.what


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("import math\n\nmath.no\n", 3, "AttributeError"),
        ("def f(:\n    pass\n", 1, "SyntaxError"),
        ("\nraise SystemExit(0)\n", 2, "SystemExit"),
        ("import no_such_package\n", 1, "no_such_package"),
        ("def f():\n    return 1 / 0\n\n\nf()\n", 2, "ZeroDivisionError"),
    ],
)
def test_a_file_that_fails_is_named_with_its_line(
    tmp_path: Path, text: str, line: int, reason: str
) -> None:
    error = fault(text, tmp_path / "faulty.py")
    assert isinstance(error, ConfigError)
    assert f"faulty.py:{line} " in error.where
    assert reason in error.what


def test_a_file_that_is_not_there_or_no_python_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputNotFound, match="no_file"):
        custom.register(tmp_path / "no_file.py")
    assert "not a Python file" in fault("x = 1\n", tmp_path / "model.txt").what


def test_a_model_that_the_file_does_not_register_is_not_built(file: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=name) as caught:
        custom.run_model_code(ModelConfig(code=str(file), architecture="llama"))
    assert f"model.architecture={name}" in caught.value.next


def test_the_command_line_refuses_code_before_it_does_anything(
    file: Path, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = [f"model.code={file}", f"model.architecture={name}", f"output_dir={tmp_path / 'run'}"]
    assert app.run_command(["pretrain", "--text", "missing.txt", *keys]) == 77
    assert "--allow-code" in capsys.readouterr().err
    assert app.run_command(["pretrain", "--text", "missing.txt", *keys, "--allow-code"]) == 66
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_users_own_model_trains_and_needs_its_code_again(
    file: Path, name: str, trials: Server
) -> None:
    corpus = file.parent / "corpus.txt"
    corpus.write_text("the cat sat on the mat\n" * 200, encoding="utf-8")

    def run(*arguments: str) -> Ended:
        return trials.run(*arguments, directory=str(file.parent))

    keys = ("model.code=my_model.py", "--allow-code", "--json")
    trained = run(
        "pretrain", "--text", "corpus.txt", f"model.architecture={name}", "output_dir=run",
        "train.max_steps=3", "data.block_size=16", "tokenizer.vocab_size=280",
        "train.compile=false", "train.global_batch_size=4", "data.isolate_documents=false", *keys,
    )  # fmt: skip
    assert trained.code == 0, trained.err
    assert json.loads(trained.out)["step"] == 3
    without = run("evaluate", "--model", "run", "--text", "corpus.txt", "--json")
    assert without.code == 65
    assert re.search(f"{name}.*model\\.code", without.err, re.S)
    measured = run("evaluate", "--model", "run", "--text", "corpus.txt", *keys)
    assert measured.code == 0, measured.err
    assert json.loads(measured.out)["tokens"] > 0
