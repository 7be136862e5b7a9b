"""What is refused before the libraries are loaded, and how scripts read it."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest

from llmkit.cli import app, faults
from llmkit.cli.help import ELSEWHERE
from llmkit.distributed import launcher
from llmkit.errors import ConfigError, DataError, LlmkitError

from .test_app import without_libraries
from .test_faults import exit_code


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory with a run, and data with telling and untelling names."""
    final = tmp_path / "runs" / "shake" / "final"
    final.mkdir(parents=True)
    (final / "config.json").write_text('{"model_type": "llama"}')
    (final / "tokenizer_config.json").write_text("{}")
    (final / "model.safetensors").touch()
    (tmp_path / "runs" / "shake" / "run.json").write_text('{"command": "pretrain"}')
    (tmp_path / "reviews.csv").write_text("text,label\nfine: really,good\nbad,bad\n")
    (tmp_path / "corpus").write_text("Once upon a time: a story.\nThe end\n")
    (tmp_path / "chats").write_text('{"text": "a"}\n{"text": "b"}\n')
    (tmp_path / "keys").write_text("# mine\nseed: 7\ntrain:\n  max_steps: 3\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def error(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """The one JSON object on stdout of a command line that fails."""
    code = app.run_command(arguments)
    out, err = capsys.readouterr()
    shown: dict[str, Any] = json.loads(out)
    assert shown["error"]["code"] == code != 0
    assert err.startswith(f"error[{shown['error']['kind']}]: {shown['error']['what']}")
    return shown


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--json"], 2),
        (["--json", "pretrain"], 2),
        (["serve", "--json"], 2),
        (["pretrain", "--json"], 2),
        (["pretrain", "--json", "--text"], 2),
        (["pretrain", "--lr", "1", "--json"], 2),
        (["generate", "--explain", "x", "--json"], 2),
        (["pretrain", "none.yaml", "--json"], 66),
        (["pretrain", "--text", "none.txt", "--json"], 66),
        (["pretrain", "lr=1", "--json"], 78),
        (["generate", "--model", "runs/x", "--prompt", "a", "--json"], 66),
    ],
)
def test_a_fault_is_one_json_object_for_programs(
    capsys: pytest.CaptureFixture[str], arguments: list[str], code: int
) -> None:
    shown = error(capsys, *arguments)
    assert set(shown) == {"error", "warnings"}
    assert set(shown["error"]) == {"code", "kind", "what", "where", "kept", "next"}
    assert shown["error"]["code"] == code


@pytest.mark.parametrize("kind", LlmkitError.__subclasses__())
def test_every_kind_of_fault_is_an_object_with_its_code_and_the_warnings(
    capsys: pytest.CaptureFixture[str], kind: type[LlmkitError]
) -> None:
    def work() -> int:
        raise kind("what", where="é\udcff", kept="all", next="this")

    assert exit_code(work, json=True, warnings=["one"]) == kind.exit_code
    shown = json.loads(capsys.readouterr().out)
    parts = {"what": "what", "where": "é\udcff", "kept": "all", "next": "this"}
    assert shown == {
        "error": {"code": kind.exit_code, "kind": kind.name, **parts},
        "warnings": ["one"],
    }


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (KeyboardInterrupt(), 130),
        (faults.Ended("SIGTERM"), 75),
        (MemoryError(), 71),
        (RuntimeError("can't start new thread"), 71),
        (OSError(24, "Too many open files"), 71),
        (FileNotFoundError(2, "No such file or directory", "gone"), 66),
        (PermissionError(13, "Permission denied", "/etc/x"), 73),
        (OSError(28, "No space left on device"), 73),
        (Exception("File too large (os error 27)"), 73),
        (ZeroDivisionError(), 1),
    ],
)
def test_what_libraries_and_the_system_raise_is_an_object_too(
    capsys: pytest.CaptureFixture[str], raised: BaseException, code: int
) -> None:
    def work() -> int:
        raise raised

    assert exit_code(work, json=True) == code
    assert json.loads(capsys.readouterr().out)["error"]["code"] == code


def test_of_several_processes_only_the_first_prints_the_object(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def work() -> int:
        raise ConfigError("wrong")

    for rank, printed in (("0", True), ("1", False)):
        monkeypatch.setenv("RANK", rank)
        assert exit_code(work, json=True) == 78
        assert bool(capsys.readouterr().out) is printed


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["generate", "--model", "runs/shak", "--prompt", "a"], 66, "did you mean runs/shake?"),
        (["predict", "--model", "runs/shak", "--csv", "reviews.csv"], 66, "runs/shake?"),
        (["pretrain", "--model", "./shak", "--text", "corpus"], 66, "no model directory"),
        (["finetune", "--model", "runs/x", "--csv", "reviews.csv"], 66, "no model directory"),
        (["chat", "--model", "runs/x"], 66, "no model directory"),
        (
            ["evaluate", "--text", "corpus", "--model", "runs/shake", "--model", "a/b/c"],
            66,
            "a/b/c",
        ),
        (["generate", "--prompt", "a"], 2, "needs a model"),
        (["chat", "seed=1"], 2, "needs a model"),
        (["predict", "--csv", "reviews.csv"], 2, "needs a model"),
        (["evaluate", "--text", "corpus"], 2, "needs a model"),
        (["evaluate", "--model", "runs/shake"], 66, "data.test_files is not given"),
        (["finetune", "seed=1"], 66, "llmkit finetune --csv reviews.csv"),
        (["generate", "--model", "runs/shake"], 2, "no prompt given"),
        (["generate", "--model", "runs/shake", "--prompts-file", "none.txt"], 66, "none.txt"),
        (["pretrain", "--text", "corpus", "report_to=wandb"], 78, "install 'wandb>="),
        (["evaluate", "--model", "runs/shake", "--tasks", "any"], 78, "install 'lm-eval>="),
        (["pretrain", "--text", "corpus", "-o", "corpus/run"], 73, "not a directory"),
        (["generate", "--model", "runs/shake", "--prompt", "a", "-o", "corpus"], 73, "corpus"),
        (
            ["predict", "--model", "runs/shake", "--csv", "reviews.csv", "-o", "corpus"],
            73,
            "corpus",
        ),
        (["evaluate", "--model", "runs/shake", "--text", "corpus", "-o", "corpus"], 73, "corpus"),
        (["evaluate", "--model", "runs/shake", "--text", "corpus", "-o", "corpus/x"], 73, "corpus"),
    ],
)
def test_what_is_missing_is_refused_without_the_libraries(
    here: Path, arguments: list[str], code: int, said: str
) -> None:
    done = without_libraries(*arguments, given="", where=here)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
    assert said in done.stderr


def test_the_checkpoint_of_an_unfinished_run_is_named(here: Path) -> None:
    step = here / "runs" / "half" / "checkpoints" / "step-0000000007"
    step.mkdir(parents=True)
    (here / "runs" / "half" / "run.json").write_text("{}")
    (step / "model.safetensors").touch()
    (step / "config.json").write_text("{}")
    (step / "state.json").write_text('{"state": {"best_step": null}}')
    for name, said in (("runs/half", True), ("runs/half/checkpoints/step-0000000007", False)):
        done = without_libraries("generate", "--model", name, given="", where=here)
        assert ("no final model yet: using its checkpoint step-0000000007" in done.stderr) is said
        assert "no prompt given" in done.stderr


def test_a_refusal_takes_less_than_a_second_of_this_process(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    began = time.process_time()
    assert app.run_command(["generate", "--model", "runs/shak", "--prompt", "a"]) == 66
    assert time.process_time() - began < 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["finetune", "reviews.csv"], "train_files: [reviews.csv]"),
        (["finetune", "keys", "reviews.csv"], "train_files: [reviews.csv]"),
        (["finetune", "reviews.csv", "--csv", "b.csv"], "train_files: [b.csv, reviews.csv]"),
        (["finetune", "chats"], "train_files: [chats]"),
        (["finetune", "hub:owner/data"], "train_files: [hub:owner/data]"),
        (["pretrain", "corpus"], "train_files: [corpus]"),
        (["pretrain", "keys", "corpus"], "max_steps: 3"),
        (["pretrain", "a.txt", "b.txt.gz"], "train_files: [a.txt, b.txt.gz]"),
        (["predict", "reviews.csv"], "test_files: [reviews.csv]"),
        (["evaluate", "reviews.csv"], "test_files: [reviews.csv]"),
        (["generate", "prompts.txt"], "prompts_file: prompts.txt"),
    ],
)
def test_a_table_or_text_in_place_of_config_is_the_data(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert app.run_command([*arguments, "--print-config"]) == 0
    assert said in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["finetune"], "llmkit finetune --csv reviews.csv"),
        (["predict"], "llmkit predict --model runs/mine --csv new.csv"),
        (["evaluate"], "llmkit evaluate --model runs/mine --text"),
        (["chat"], "llmkit chat --model runs/mine"),
        (["generate"], 'llmkit generate --model runs/mine --prompt "'),
        (["chat", "runs/shake"], "--model runs/shake"),
        (["generate", "runs/shake"], "--model runs/shake"),
        (["pretrain", "runs"], "--text runs"),
        (["generate", "Once upon a time"], "--prompt"),
        (["pretrain", "key"], "did you mean keys?"),
        (["finetune", "--text", "a.csv"], "write `--csv a.csv`"),
        (["predict", "--text", "a.csv"], "write `--csv a.csv`"),
        (["pretrain", "--csv", "a.txt"], "write `--text a.txt`"),
        (["pretrain", "--size", "10M"], "write `model.size=10M`"),
        (["pretrain", "--zork", "1"], "next:  the options are --text, "),
        (["deploy"], "llmkit serve --model runs/mine"),
        (["sample"], "llmkit generate"),
        (["train"], "llmkit pretrain"),
        (["evalute"], "llmkit evaluate"),
        (["nonsense"], "llmkit --help"),
        (["reviews.csv"], "llmkit finetune reviews.csv"),
        (["seed=1"], "llmkit pretrain seed=1"),
        (["--text", "corpus"], "a command comes before its options"),
        (["pretrain", "-o"], "llmkit pretrain --help"),
    ],
)
def test_the_command_to_type_is_named(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert app.run_command(arguments) in (2, 66)
    err = capsys.readouterr().err
    assert said in err
    assert "kept:" not in err


PEERS = """
serve export deploy api card push compare runs plot resume sample list info train eval test
inference tokenize quantize merge clean prepare launch download fetch preprocess convert webui
webchat benchmark sft dpo vllm-serve merge-lora chat-web run status logs version help
""".split()
"""Commands of transformers, TRL, Axolotl, LitGPT, LLaMA-Factory, nanochat and Ludwig."""


@pytest.mark.parametrize("word", PEERS)
def test_each_command_of_other_tools_is_answered_with_what_to_type(
    capsys: pytest.CaptureFixture[str], word: str
) -> None:
    assert app.run_command([word]) == 2
    assert "`llmkit --help` lists the commands" not in capsys.readouterr().err


def test_answers_name_commands_that_exist() -> None:
    commands = {each.name or each.callback.__name__ for each in app.app.registered_commands}
    for word, answer in ELSEWHERE.items():
        named = set(re.findall(r"`llmkit ([a-z]+)", answer))
        assert named <= commands, answer
        assert word not in commands


@pytest.mark.parametrize("flag", ["-o", "--output-dir"])
def test_the_run_directory_has_a_short_option(
    capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    assert app.run_command(["pretrain", "--data", "a.txt", flag, "out", "--print-config"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "output_dir: out" in shown
    assert "train_files: [a.txt]" in shown


@pytest.mark.parametrize(
    "environment",
    [
        {"WORLD_SIZE": "2", "RANK": "0"},
        {"WORLD_SIZE": "2", "RANK": "1"},
        {"WORLD_SIZE": "2"},
        {"WORLD_SIZE": "two"},
        {"WORLD_SIZE": ""},
        {"WORLD_SIZE": "0"},
        {"WORLD_SIZE": "2", "RANK": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"},
        {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "x"},
        {"RANK": "1"},
        {"LOCAL_RANK": "1"},
        {"OMPI_COMM_WORLD_SIZE": "2"},
        {"PMI_SIZE": "many"},
    ],
)
def test_half_of_what_a_launcher_sets_is_refused_by_every_process(
    here: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for command in (["evaluate", "--model", "runs/shake", "--text", "corpus"], ["chat"]):
        shown = error(capsys, *command, "--json")["error"]
        assert shown["code"] == 2
        assert "torchrun" in shown["next"]
        assert "unset WORLD_SIZE" in shown["next"]


def test_what_a_launcher_sets_as_a_whole_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    for name, value in whole.items():
        monkeypatch.setenv(name, value)
    launcher.check_environment()


def test_a_process_that_is_alone_has_no_use_for_a_launcher(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Some machines set this for every program, and nobody answers there."""
    monkeypatch.setenv("MASTER_ADDR", "nowhere.invalid")
    for name, value in {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    launcher.check_environment()
    assert not {"WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR"} & set(os.environ)


@pytest.mark.parametrize("option", ["--prompt", "--system"])
def test_text_that_is_not_utf_8_is_refused(
    here: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    text = os.fsdecode(b"caf\xe9")
    arguments = ["generate", "--model", "runs/shake", "--chat", "--prompt", "a", option, text]
    shown = error(capsys, *arguments, "--json")["error"]
    assert shown["code"] == DataError.exit_code
    assert "not UTF-8" in shown["what"]


def test_help_has_groups_and_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run_command(["--help"]) == 0
    out = capsys.readouterr().out
    places = [out.index(word) for word in ("Train:", "pretrain", "Use:", "generate", "Measure:")]
    assert places == sorted(places)
    assert "  llmkit pretrain --text corpus.txt" in out
    for command in app.app.registered_commands:
        assert app.run_command([str(command.name or command.callback.__name__), "--help"]) == 0
        out += capsys.readouterr().out
    for mark in ("<bool>", "<str>", "<list"):
        assert mark not in out


@pytest.mark.parametrize("command", [(), ("evaluate",), ("init",), ("keys",)])
def test_help_fits_a_narrow_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert app.run_command([*command, "--help"]) == 0
    lines = capsys.readouterr().out.split("Examples:")[0].splitlines()
    assert [line for line in lines if len(line) > 40] == []
