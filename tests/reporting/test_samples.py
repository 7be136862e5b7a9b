"""Samples during training show the prompt and the model's text apart, within the screen."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from llmkit.reporting.samples import text_sample

SAMPLE = {
    "prompt": "First Citizen:\nBefore we proceed any further, hear me",
    "continuation": " speak.\n\n\nAll:\nSpeak, you are all resolved rather to die than to famish.",
}


def shown(sample: dict[str, str], width: int, terminal: bool = True) -> list[str]:
    page = io.StringIO()
    console = Console(file=page, width=width, force_terminal=terminal, no_color=True, _environ={})
    console.print(text_sample(sample, console), style="not dim")
    return page.getvalue().replace("\x1b[2m", "").replace("\x1b[0m", "").splitlines()


@pytest.mark.parametrize("width", [40, 80])
def test_no_line_of_a_sample_is_wider_than_the_terminal(width: int) -> None:
    lines = shown(SAMPLE, width)
    assert all(len(line) <= width for line in lines)
    assert [line.split()[0] for line in lines if line[2] != " "] == ["prompt", "model"]
    assert all(line[:10].isspace() for line in lines if line[2] == " ")


def test_a_sample_is_text_without_quotes_escapes_or_blank_lines() -> None:
    lines = shown(SAMPLE, 80, terminal=False)
    assert lines == [
        "  prompt  First Citizen:",
        "          Before we proceed any further, hear me",
        "  model    speak.",
        "          All:",
        "          Speak, you are all resolved rather to die than to famish.",
    ]


def test_long_texts_are_shortened_and_control_characters_harmless() -> None:
    lines = shown({"prompt": "x", "response": "\x1b[31m" + "line\n" * 99}, 80)
    assert len(lines) == 6
    assert lines[-1].strip() == "…"
    assert "\x1b" not in "".join(lines)
