"""The command line as a shell sees it: stdout, stderr and exit codes."""

from __future__ import annotations

import json
import os
import pty
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llmkit.cli import app


def llmkit(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "llmkit", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )


def without_libraries(
    *arguments: str, given: str | None = None, where: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """A command line that fails where it loads a library, with `given` in its pipe."""
    script = (
        "import sys; from llmkit.cli.app import run_command; code = run_command(sys.argv[1:]);"
        "heavy = {'torch', 'transformers', 'numpy', 'datasets', 'huggingface_hub'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules); sys.exit(code)"
    )
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, input=given, cwd=where
    )


class Told:
    """What a command line printed, and its exit code."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> None:
        self.code = app.run_command(arguments)
        self.out, self.err = capsys.readouterr()


@pytest.mark.parametrize("arguments", [("--help",), ("pretrain", "--help"), ("--version",)])
def test_help_and_version_come_without_the_libraries(arguments: tuple[str, ...]) -> None:
    script = (
        "import sys; from llmkit.cli.app import run_command; code = run_command(sys.argv[1:]);"
        "heavy = {'torch', 'transformers', 'numpy', 'datasets', 'accelerate'} & set(sys.modules);"
        "print(sorted(heavy), file=sys.stderr); sys.exit(code)"
    )
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"
    assert "llmkit" in done.stdout


def test_a_wrong_config_is_refused_without_the_libraries(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("train: {lr: 1}")
    script = (
        "import sys; from llmkit.cli.app import run_command; code = run_command(sys.argv[1:]);"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules; sys.exit(code)"
    )
    command = [sys.executable, "-c", script, "pretrain", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 78
    assert done.stdout == ""
    assert done.stderr.startswith("error[bad-config]: ")
    assert f"{path}:1: train.lr: no such key; write `train.learning_rate: 1`" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("pretrain", "--text", "nowhere.txt"),
        ("pretrain", "data.mixture.poems.files=nowhere.txt"),
        ("pretrain", "--text", __file__, "data.validation_files=nowhere.txt"),
        ("finetune", "--csv", "nowhere.txt"),
        ("finetune", "--csv", __file__, "data.test_files=nowhere.txt"),
        ("predict", "--model", "m", "--csv", "nowhere.txt"),
        ("evaluate", "--model", "m", "--text", "nowhere.txt"),
    ],
)
def test_a_missing_file_is_reported_without_the_libraries(arguments: tuple[str, ...]) -> None:
    done = without_libraries(*arguments)
    assert done.returncode == 66
    assert "nowhere.txt does not exist" in done.stderr


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (MemoryError(), 71),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), 71),
        (ImportError("/a/b.so: failed to map segment from shared object"), 71),
        (ImportError("/a/b.so: failed to map segment from shared object: not permitted"), 1),
    ],
)
def test_memory_that_runs_out_anywhere_is_reported_as_that(capsys, fault, code) -> None:
    with app.faults.reported() as outcome:
        raise fault
    assert outcome.code == code
    assert (": out of memory" in capsys.readouterr().err) == (code == 71)


@pytest.mark.parametrize("key", ["data.train_files", "data.mixture.poems.files"])
def test_a_command_that_writes_text_needs_no_file_that_its_config_trained_on(
    capsys, key, tmp_path
) -> None:
    shared = tmp_path / "shared.yaml"
    shared.write_text(f"{key}: gone.txt\n")
    told = Told(capsys, "generate", str(shared), "--model", "./no-model", "--prompt", "a")
    assert "gone.txt" not in told.err
    assert "no-model" in told.err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "`llmkit --help` lists the commands"),
        (["pretrian"], 2, "did you mean `llmkit pretrain`?"),
        (["pretrain"], 2, "llmkit pretrain --text corpus.txt"),
        (["pretrain", "--text"], 2, "requires an argument"),
        (["pretrain", "--lr", "3e-4"], 2, "--lr: write `train.learning_rate=3e-4`"),
        (["pretrain", "--block-size=64"], 2, "--block-size: write `data.block_size=64`"),
        (["pretrain", "--bf16", "--text", "a"], 2, "--bf16: write `train.precision=bf16`"),
        (["pretrain", "--dryrun"], 2, "did you mean `--dry-run`?"),
        (["pretrain", "a.yaml", "b.yaml"], 2, "`b.yaml` is neither CONFIG"),
        (["pretrain", "seed=1", "a.yaml"], 2, "CONFIG, which comes first"),
        (["pretrain", "none.yaml"], 66, "where: none.yaml"),
        (["pretrain", ""], 66, "CONFIG is a directory"),
        (["pretrain", "."], 66, "CONFIG is a directory"),
        (["pretrain", "runs/a=b.yaml"], 66, "where: runs/a=b.yaml"),
        (["pretrain", "max_steps=5"], 78, "write `train.max_steps=5`"),
        (["pretrain", "--model", "", "seed=1"], 78, "option --model: model.name_or_path: is empty"),
    ],
)
def test_a_fault_is_reported_on_stderr_with_its_code(
    arguments: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    told = Told(capsys, *arguments)
    assert told.code == code
    assert told.out == ""
    assert told.err.startswith("error[")
    assert said in told.err


def test_print_config_shows_each_value_with_its_source(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("seed: 7\n")
    arguments = ("pretrain", str(path), "train.max_steps=5", "--print-config")
    told = Told(capsys, *arguments, "--text", "a", "--text", "b", "--output-dir", "out")
    lines = [" ".join(line.split()) for line in told.out.splitlines()]
    assert told.code == 0
    assert f"seed: 7 # {path}:1" in lines
    assert "max_steps: 5 # command line" in lines
    assert "train_files: [a, b] # command line" in lines
    assert "output_dir: out # command line" in lines
    assert "adam_beta1: 0.9 # default" in lines


def test_print_config_with_json_prints_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    told = Told(capsys, "pretrain", "seed=7", "--print-config", "--json")
    shown = json.loads(told.out)
    assert shown["config"]["seed"] == 7
    assert shown["sources"]["seed"] == "command line"


def test_config_may_be_omitted(capsys: pytest.CaptureFixture[str]) -> None:
    assert "seed: 7 " in Told(capsys, "pretrain", "seed=7", "--print-config").out
    assert Told(capsys, "pretrain", "--print-config").code == 0


def test_control_characters_of_the_input_never_reach_the_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    told = Told(capsys, "pretrain", "a\x1b[31m=1")
    assert told.code == 78
    assert "\x1b" not in told.err


def test_a_reader_that_goes_away_is_not_a_fault() -> None:
    code = (
        "import sys; from llmkit.cli.app import run_command; from llmkit.config import load;"
        "load.as_yaml = lambda *_: 'x' * 10_000_000; sys.exit(run_command(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "pretrain", "seed=1", "--print-config"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 128 + signal.SIGPIPE


@pytest.mark.parametrize("arguments", [("keys",), ("keys", "lora"), ("--help",), ("--version",)])
def test_help_that_nobody_reads_is_not_a_fault(arguments: tuple[str, ...]) -> None:
    command = shlex.join([sys.executable, "-m", "llmkit", *arguments])
    # The reader is gone before anything is written.
    done = subprocess.run(
        ["bash", "-c", f"({command}; echo $? >&2) | exec 0<&-"], capture_output=True, check=True
    )
    assert done.stderr.decode().strip() == str(128 + signal.SIGPIPE)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_disk_behind_stdout_is_a_fault_of_writing() -> None:
    command = [sys.executable, "-m", "llmkit", "pretrain", "seed=1", "--print-config"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 73
    assert "cannot write to stdout" in done.stderr
    assert "Exception" not in done.stderr


def test_the_module_can_be_started_by_launchers() -> None:
    done = llmkit("--version")
    assert (done.returncode, done.stdout) == (0, "llmkit 0.1.0\n")


@pytest.mark.parametrize("flag", ["", pytest.param("--quiet", marks=pytest.mark.slow)])
def test_a_terminal_hears_of_a_command_before_its_libraries_have_loaded(
    tmp_path: Path, flag: str
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("a line of text\n" * 100)
    own, terminal = pty.openpty()
    command = ["-m", "llmkit", "pretrain", "--text", str(text), "--dry-run", "--json"]
    process = subprocess.Popen(
        [sys.executable, *command, *filter(None, [flag])],
        stdout=subprocess.PIPE,
        stderr=terminal,
        env={**os.environ, "TERM": "xterm", "CUDA_VISIBLE_DEVICES": ""},
    )
    os.close(terminal)
    heard = b""
    while new := heard_of(own):
        heard += new
    os.close(own)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0, heard
    assert json.loads(out)["command"] == "pretrain"
    assert (b"loading torch and transformers" in heard) is (flag == "")


def heard_of(terminal: int) -> bytes:
    """What a terminal has shown since; empty at its end."""
    try:
        return os.read(terminal, 65536)
    except OSError:
        return b""
