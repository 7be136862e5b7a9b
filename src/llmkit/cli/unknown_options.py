"""The answer to options that a command does not have."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from llmkit.cli.options import SWEEP_SWITCHES
from llmkit.errors import UsageError, listed

if TYPE_CHECKING:
    from llmkit.config.suggestions import Setting


def refuse_unknown(
    command: str, arguments: Sequence[str], known: Sequence[str], options: Mapping[str, str]
) -> None:
    """Raises UsageError for unknown options, with what to write instead.

    `known` holds the flags of the command; `options` maps config keys to their flags.
    """
    unknown: dict[str, str] = {}
    for argument, following in pairwise([*arguments, "-"]):
        if argument.startswith("-") and argument != "-":
            flag, equals, value = argument.partition("=")
            follows = "true" if following.startswith("-") or "=" in following else following
            unknown[flag] = value if equals else follows
    if not unknown:
        return
    from llmkit.config import checks
    from llmkit.config.schema import Config
    from llmkit.config.suggestions import Setting, Writing
    from llmkit.config.types import Form

    given = {flag.lstrip("-").replace("-", "_"): value for flag, value in unknown.items()}
    writing, jobs = Writing(Form.ARGUMENT, options), checks.jobs(command, Config())
    settings = {
        flag: Setting(tuple(flag.lstrip("-").split(".")), value, jobs, writing, given)
        for flag, value in unknown.items()
    }
    answers = {flag: _instead(flag, setting, known) for flag, setting in settings.items()}
    flags = ", ".join(each for each in known if each.startswith("--"))
    every = f"the options are {flags}; KEY=VALUE sets any config key, `llmkit keys` lists them"
    raise UsageError(
        "no such option",
        where=listed([f"{flag}: {text}" if text else flag for flag, text in answers.items()]),
        next="" if all(answers.values()) else every,
    )


def _instead(flag: str, setting: Setting, known: Sequence[str]) -> str:
    """What to write for an option; empty where nothing is like it."""
    from llmkit.config import suggestions

    if flag in [each.flag for each in SWEEP_SWITCHES]:
        return "is an option of pretrain and finetune"
    if near := difflib.get_close_matches(flag, known, n=1, cutoff=0.8):
        return f"did you mean `{near[0]}`?"
    return suggestions.known(setting)
