"""Which objectives each training command has, and which recipe goes with them."""

from __future__ import annotations

from llmkit.config.schema import Config
from llmkit.errors import ConfigError

OF_COMMAND = {"pretrain": ("causal", "masked"), "finetune": ("classification", "completion")}

RECIPES = {"completion": "complete"}
"""Objectives whose recipe is not the module that is called as their command is."""


def recipe(command: str, config: Config) -> str:
    """The module of `llmkit.commands` that does what a command is asked for.

    Raises ConfigError for an objective of another command.
    """
    known, wish = OF_COMMAND.get(command), config.train.objective
    if known is None or wish == "auto":
        return command
    if wish not in known:
        other = next(name for name, theirs in OF_COMMAND.items() if wish in theirs)
        raise ConfigError(
            f"`{command}` has no objective {wish!r}",
            where="train.objective",
            next=f"write one of {', '.join(known)}, or use `llmkit {other}`",
        )
    return RECIPES.get(wish, command)
