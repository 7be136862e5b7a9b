"""A command in a process of its own ends as its exit code and its JSON say."""

from __future__ import annotations

import signal

import pytest

from llmkit.distributed.child import ChildResult, run_command_line
from llmkit.distributed.signals import StopSignal
from llmkit.errors import Diverged, Interrupted, LlmkitError, ResourceError, Stopped, error_of


def test_the_object_that_a_command_prints_is_its_result_or_its_error() -> None:
    good = run_command_line(["env", "--json"], StopSignal(), shown=False)
    assert good.code == 0
    assert good.fault is None
    assert "python" in good.printed
    bad = run_command_line(["pretrain", "seed=x", "--json"], StopSignal(), shown=False)
    assert bad.code == 78
    assert "should be int >= 0" in str(bad.fault)


@pytest.mark.parametrize("kind", LlmkitError.__subclasses__())
def test_an_error_survives_the_way_between_processes(kind: type[LlmkitError]) -> None:
    fault = kind("what", where="here", kept="all", next="do")
    again = error_of(fault.described())
    assert type(again) is kind
    assert str(again) == str(fault)


def test_how_a_process_ended_without_a_word_is_said() -> None:
    killed = ChildResult(-signal.SIGKILL, {}, signal=0)
    assert isinstance(killed.fault, ResourceError)
    assert "SIGKILL" in str(killed.fault)
    assert type(ChildResult(3, {}, signal=0).fault) is LlmkitError


def test_after_a_signal_any_end_but_success_is_that_of_the_signal() -> None:
    diverged = {"error": Diverged("not finite").described()}
    for code, printed in ((-signal.SIGTERM, {}), (79, diverged)):
        result = ChildResult(code, printed, signal=signal.SIGTERM)
        assert isinstance(result.fault, Stopped)
        assert result.was_stopped
    interrupted = {"error": Interrupted("stopped", kept="checkpoint 3").described()}
    result = ChildResult(130, interrupted, signal=signal.SIGINT)
    assert result.fault is not None
    assert result.fault.kept == "checkpoint 3"
    assert ChildResult(0, {}, signal=signal.SIGINT).fault is None
