"""Optional packages: whether one is installed, and the command that installs it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from llmkit.errors import ConfigError


def require(package: str, extra: str, purpose: str, where: str) -> None:
    """Raises ConfigError if a package is not installed; imports nothing.

    `purpose` is the subject of the message, such as "report_to=wandb"; `where` is the config key.
    """
    if importlib.util.find_spec(package) is None:
        raise ConfigError(
            f"{purpose} needs the package {package}, which is not installed",
            where=where,
            next=f"{command(extra)}, or remove {where.split(',')[0]}",
        )


def command(extra: str) -> str:
    """The command that installs an extra into this environment."""
    clone = Path(__file__).parents[2]
    source = (
        f"-e '{clone}[{extra}]'" if (clone / "pyproject.toml").exists() else f"'llmkit[{extra}]'"
    )
    return f"{sys.executable} -m pip install {source}"
