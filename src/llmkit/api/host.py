"""Runs commands in a process of another program, such as a notebook, and leaves it as it was.

A command sets environment variables, flags and the seed of torch, the logs of transformers and the
shared state of accelerate. The caller gets all of these back.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from llmkit.distributed import signals

_calls = threading.RLock()


@contextmanager
def hosted_call() -> Iterator[None]:
    """The time of one call: other threads wait, and a second Ctrl-C ends the call, not the process.

    The call may make another one, such as a generator of rows that asks a model.
    """
    with _calls:
        before, state = dict(os.environ), signals.state
        outer = state.hosted, state.hosted_since
        state.hosted, state.hosted_since = True, time.monotonic()
        try:
            yield
        finally:
            state.hosted, state.hosted_since = outer
            for name in os.environ.keys() - before.keys():
                del os.environ[name]
            os.environ.update(before)


@contextmanager
def borrowed_libraries() -> Iterator[None]:
    """Restores what a command changes in the loaded libraries; their logs are silent meanwhile."""
    with ExitStack() as stack:
        for borrowed in (_torch, _transformers, _accelerate):
            stack.enter_context(borrowed())
        yield


@contextmanager
def _torch() -> Iterator[None]:
    """Restores the deterministic mode and the states of the random generators."""
    import torch
    from torch.utils import deterministic

    mode = torch.are_deterministic_algorithms_enabled()
    only_warns = torch.is_deterministic_algorithms_warn_only_enabled()
    fills = deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    on_gpus = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    generators = torch.get_rng_state(), torch.cuda.get_rng_state_all() if on_gpus else []
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(mode, warn_only=only_warns)
        deterministic.fill_uninitialized_memory = fills  # type: ignore[attr-defined]
        torch.set_rng_state(generators[0])
        if on_gpus:
            torch.cuda.set_rng_state_all(generators[1])


@contextmanager
def _transformers() -> Iterator[None]:
    """Only shows errors of transformers, and no progress bars, neither its own nor the hub's."""
    from huggingface_hub.utils.tqdm import progress_bar_states
    from transformers.utils import logging

    from llmkit.models import hub

    hub.hub_answers.cache_clear()  # it may be reachable again
    level, shows_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    bars_of_hub = dict(progress_bar_states)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shows_bars:
            logging.enable_progress_bar()
        progress_bar_states.clear()  # transformers changes them together with its own
        progress_bar_states.update(bars_of_hub)


@contextmanager
def _accelerate() -> Iterator[None]:
    """Starts without the state that an Accelerator of the caller shares, and restores it."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    shared = [kind._shared_state for kind in (PartialState, AcceleratorState, GradientState)]
    before = [dict(state) for state in shared]
    for state in shared:
        state.clear()
    try:
        yield
    finally:
        for state, values in zip(shared, before, strict=True):
            state.clear()
            state.update(values)
