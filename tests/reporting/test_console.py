"""What machines and people are shown of a command's warnings and result."""

from __future__ import annotations

import io
import json
import time

import pytest
from rich.console import Console as RichConsole

from llmkit.reporting.console import Console


def test_the_json_result_lists_each_warning_once(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(json=True)
    console.warn("the held-out text is small")
    console.warn("the run is short")
    console.warn("the run is short")
    console.result({"step": 3})
    shown = capsys.readouterr()
    warnings = ["the held-out text is small", "the run is short"]
    assert json.loads(shown.out) == {"step": 3, "warnings": warnings}
    assert shown.err.count("warning: the run is short") == 2


def test_a_result_without_warnings_has_an_empty_list(capsys: pytest.CaptureFixture[str]) -> None:
    Console(json=True).result({})
    assert json.loads(capsys.readouterr().out) == {"warnings": []}


@pytest.mark.parametrize("terminal", [True, False])
def test_a_person_sees_a_message_while_the_libraries_load_and_a_pipe_is_not(
    monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    monkeypatch.setattr("llmkit.reporting.console.LOADING_SECONDS", 0.01)
    console = Console()
    shown = io.StringIO()
    console.stderr = RichConsole(file=shown, force_terminal=terminal)
    with console.loading():
        time.sleep(0.2)
    assert ("loading torch and transformers" in shown.getvalue()) is terminal


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_the_json_result_is_json_for_every_reader(
    capsys: pytest.CaptureFixture[str], value: float
) -> None:
    Console(json=True).result({"loss": value, "rows": [{"loss": value}]})

    def refuse(name: str) -> None:
        raise AssertionError(name)

    found = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert found == {"loss": None, "rows": [{"loss": None}], "warnings": []}
