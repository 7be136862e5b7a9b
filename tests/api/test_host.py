"""A call leaves its process as it was, and an interrupt loses nothing and ends nothing else."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.utils
import matplotlib
import pytest
import torch
import transformers
from accelerate.state import AcceleratorState, PartialState
from huggingface_hub.utils.tqdm import progress_bar_states

import llmkit
from llmkit import errors
from llmkit.distributed import signals
from tests.api.conftest import KEYS
from tests.harness import Server
from tests.jobs import assert_same


@contextlib.contextmanager
def unusual_process() -> Iterator[None]:
    """A process whose owner has changed whatever a command changes too."""
    before = transformers.utils.logging.get_verbosity()
    handler = signal.signal(signal.SIGTERM, lambda number, frame: None)
    transformers.utils.logging.set_verbosity_info()
    bars = dict(progress_bar_states)
    transformers.utils.logging.disable_progress_bar()
    huggingface_hub.utils.enable_progress_bars()
    huggingface_hub.utils.disable_progress_bars("of.the.caller")
    PartialState._shared_state["of the caller"] = AcceleratorState._shared_state["too"] = True
    torch.use_deterministic_algorithms(True, warn_only=False)
    torch.manual_seed(77)
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        torch.use_deterministic_algorithms(False)
        PartialState._shared_state.clear()
        AcceleratorState._shared_state.clear()
        transformers.utils.logging.enable_progress_bar()
        progress_bar_states.clear()
        progress_bar_states.update(bars)
        transformers.utils.logging.set_verbosity(before)
        signal.signal(signal.SIGTERM, handler)


def owned() -> dict[str, Any]:
    """What belongs to the owner of the process."""
    return {
        "environment": dict(os.environ),
        "directory": Path.cwd(),
        "handlers": [signal.getsignal(number) for number in signal.valid_signals()],
        "hooks": [sys.excepthook, threading.excepthook, sys.stdout, sys.stderr, sys.stdin],
        "collector": [gc.isenabled(), gc.get_freeze_count(), gc.get_threshold()],
        "warnings": list(warnings.filters),
        "logs": [logging.root.level, list(logging.root.handlers)],
        "transformers": [
            transformers.utils.logging.get_verbosity(),
            transformers.utils.logging.is_progress_bar_enabled(),
            dict(progress_bar_states),
        ],
        "accelerate": [dict(PartialState._shared_state), dict(AcceleratorState._shared_state)],
        "torch": [
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.utils.deterministic.fill_uninitialized_memory,
            torch.get_num_threads(),
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
            torch.get_rng_state().tolist(),
        ],
        "matplotlib": matplotlib.get_backend(auto_select=False),
    }


def test_a_call_leaves_its_process_as_it_was(
    called: dict[str, Any], corpus: Path, tmp_path: Path
) -> None:
    with unusual_process():
        before = owned()
        llmkit.pretrain(text=corpus, output_dir=tmp_path / "run", quiet=True, **KEYS)
        assert owned() == before
        llmkit.evaluate(text=corpus, model=called["run_dir"], quiet=True)
        assert owned() == before
        with pytest.raises(errors.LlmkitError):
            llmkit.generate(model=called["run_dir"], prompt="the " * 99, quiet=True)
        assert owned() == before
    assert_same(Path(called["run_dir"]), tmp_path / "run")


SET_BY_COMMANDS = ("TRANSFORMERS_VERBOSITY", "HF_HUB_DISABLE_PROGRESS_BARS")
"""Which other tests may have run in this process."""


def test_libraries_that_a_call_has_imported_are_as_if_the_caller_had(
    called: dict[str, Any],
) -> None:
    script = (
        "import os, sys; before = dict(os.environ)\n"
        "from llmkit import generate\n"
        "generate(model=sys.argv[1], prompt='the', quiet=True)\n"
        "assert os.environ == before\n"
        "import gc, torch, transformers, huggingface_hub.utils as hub\n"
        "assert transformers.utils.logging.get_verbosity() == transformers.utils.logging.WARNING\n"
        "assert transformers.utils.logging.is_progress_bar_enabled()\n"
        "assert not hub.are_progress_bars_disabled()\n"
        "assert not torch.are_deterministic_algorithms_enabled()\n"
        "assert gc.isenabled() and not gc.get_freeze_count()"
    )
    command = [sys.executable, "-c", script, called["run_dir"]]
    own = {key: text for key, text in os.environ.items() if key not in SET_BY_COMMANDS}
    done = subprocess.run(command, env=own, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_calls_from_several_threads_take_turns(
    called: dict[str, Any], corpus: Path, tmp_path: Path
) -> None:
    keys: dict[str, Any] = {"text": corpus, "quiet": True, **KEYS}
    places = [tmp_path / "one", tmp_path / "two"]
    threads = [
        threading.Thread(target=llmkit.pretrain, kwargs={**keys, "output_dir": place})
        for place in places
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for place in places:
        assert_same(Path(called["run_dir"]), place)


def test_a_call_within_a_call_leaves_the_outer_one_as_it_was(classifier: dict[str, Any]) -> None:
    def rows() -> Iterator[str]:
        yield "fine dog"
        llmkit.predict(rows=["awful mat"], model=classifier["run_dir"], quiet=True)
        assert signals.state.hosted
        yield "fine mat"

    found = llmkit.predict(rows=rows(), model=classifier["run_dir"], quiet=True)
    assert len(found["predictions"]) == 2
    assert not signals.state.hosted


def test_the_time_of_a_run_begins_with_its_call(corpus: Path, tmp_path: Path) -> None:
    """Not with the process, which may be a notebook that is open for hours."""
    began = time.monotonic()
    found = llmkit.pretrain(text=corpus, output_dir=tmp_path / "run", quiet=True, **KEYS)
    assert 0 < found["seconds"] <= time.monotonic() - began


STEPS = 40
LONG = {**KEYS, "train": {**KEYS["train"], "max_steps": STEPS, "logging_steps": 1}}


@pytest.fixture
def reference(trials: Server, corpus: Path, tmp_path: Path) -> Path:
    """A run that was not interrupted."""
    keywords = {"text": str(corpus), "output_dir": str(tmp_path / "whole"), **LONG}
    ended = trials.run(function="call", keywords={"function": "pretrain", **keywords})
    assert ended.out == "returned\n", ended.err
    return tmp_path / "whole"


def test_an_interrupted_call_is_saved_and_the_same_call_resumes_to_the_same_bytes(
    trials: Server, corpus: Path, reference: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    keywords = {"function": "pretrain", "text": str(corpus), "output_dir": str(run), **LONG}
    trial = trials.start(function="call", keywords=keywords)
    trial.until(f"step 3/{STEPS}")
    ended = trial.end(signal.SIGINT)
    assert ended.code == 0
    assert ended.out.startswith("interrupted: error[interrupted]: stopped by SIGINT")
    assert f"kept:  checkpoint {run / 'checkpoints'}" in ended.out
    assert "Traceback" not in ended.err
    ended = trials.run(function="call", keywords=keywords)
    assert ended.out == "returned\n"
    assert "resuming from step" in ended.err
    assert_same(run, reference)


def test_a_second_interrupt_ends_the_call_but_not_its_process(trials: Server) -> None:
    ended = trials.run(function="press", keywords={"number": signal.SIGINT, "hosted": True})
    assert ended.code == 130
    assert "error[interrupted]" in ended.err  # the process lived to report the KeyboardInterrupt
