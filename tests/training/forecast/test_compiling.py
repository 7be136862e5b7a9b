"""Compilation is weighed by what it took and gave before, in runs of the same kind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from llmkit.distributed.processes import Processes, join_processes
from llmkit.training.forecast import compiling
from llmkit.training.forecast.compiling import Compilation
from tests.training.conftest import tiny_model


@pytest.fixture
def code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache, and the directory of compiled code in it."""
    monkeypatch.setenv("LLMKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "set so that it is restored")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    return tmp_path / "cache" / "kernels" / "torch"


@pytest.fixture(scope="module")
def processes() -> Processes:
    return join_processes("fp32")


@pytest.mark.parametrize(
    ("seconds", "share", "taken", "pays"),
    [(100, 0.6, 30, True), (100, 0.6, 50, False), (20, 0.6, 5, True), (10**6, 1.1, 5, False)],
)
def test_compiling_pays_if_it_saves_more_time_than_it_takes(
    seconds: float, share: float, taken: float, pays: bool
) -> None:
    if torch.cuda.is_available() or shutil.which("g++"):
        expected = Compilation(taken, share)
        assert compiling.compiling_pays(seconds, False, expected)[0] is pays
        assert not compiling.compiling_pays(seconds, True, expected)[0]


def test_a_run_too_short_to_compile_first_compiles_what_is_cached(code: Path) -> None:
    kind, seconds = "0" * 32, 30.0
    assert compiling.expected_compilation(kind) == compiling.UNRECORDED
    assert not compiling.compiling_pays(seconds, False, compiling.UNRECORDED)[0]
    compiling.record_compilation(kind, Compilation(24.0, 0.6))
    again = compiling.expected_compilation(kind)
    assert again.seconds < 10
    assert again.share == 0.6
    assert seconds * (1 - again.share) > again.seconds
    compiling.record_compilation(kind, Compilation(4.0, 0.7))
    assert compiling.expected_compilation(kind) == Compilation(4.0, 0.65)
    for record in code.glob("llmkit-*.json"):
        record.unlink()
    assert compiling.expected_compilation(kind) == compiling.UNRECORDED


def test_only_runs_that_compile_the_same_code_share_a_record(processes: Processes) -> None:
    model = tiny_model("llama")
    kind = compiling.kind_of_run(model, 16, 4, processes)
    assert kind == compiling.kind_of_run(tiny_model("llama"), 16, 4, processes)
    others = [
        compiling.kind_of_run(model, 32, 4, processes),
        compiling.kind_of_run(model, 16, 8, processes),
        compiling.kind_of_run(tiny_model("gpt2"), 16, 4, processes),
    ]
    next(model.parameters()).requires_grad_(False)
    others.append(compiling.kind_of_run(model, 16, 4, processes))
    assert len({kind, *others}) == 5


def test_compiled_code_is_kept_in_the_cache_of_this_user(code: Path) -> None:
    assert compiling.code_directory() == code
    assert code.stat().st_mode & 0o077 == 0


def test_torchs_own_variable_decides_where_compiled_code_is(
    code: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "own"))
    assert compiling.code_directory() == tmp_path / "own"
    assert not code.exists()


def test_code_that_others_could_write_is_not_run(code: Path) -> None:
    code.mkdir(parents=True)
    code.chmod(0o777)
    assert compiling.code_directory() != code


@pytest.mark.parametrize("content", ["", "[]", json.dumps({"seconds": 1})])
def test_a_damaged_record_counts_as_none(code: Path, content: str) -> None:
    kind = "1" * 32
    compiling.record_compilation(kind, Compilation(1.0, 0.5))
    next(compiling.code_directory().glob("llmkit-*.json")).write_text(content)
    assert compiling.expected_compilation(kind) == compiling.UNRECORDED
