"""Optional packages: whether one is installed, and the command that installs it."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import site
import sys
import sysconfig
import tomllib
from importlib import metadata
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from llmkit.errors import ConfigError


def require(package: str, extra: str, purpose: str, where: str) -> None:
    """Raises ConfigError if a package is not installed; imports nothing.

    `purpose` is the subject of the message, such as "report_to=wandb"; `where` is the config key,
    or empty for a whole command.
    """
    key = where.split(",")[0]
    if importlib.util.find_spec(package) is None:
        raise ConfigError(
            f"{purpose} needs the package {package}, which is not installed",
            where=where,
            next=f"`{install_command(extra)}`" + (f", or remove {key}" if key else ""),
        )


def install_command(extra: str) -> str:
    """The command that installs the packages of an extra beside this installation.

    It names the packages themselves: `llmkit[EXTRA]` would look for llmkit on an index.
    """
    return shlex.join([*_installer(), *_requirements(extra)])


def _installer() -> list[str]:
    """pip as it installs into this environment, or uv where the environment has no pip."""
    # Not `importlib.util.find_spec`: setuptools takes that for pip at work, and then gives this
    # process another distutils, with which torch.compile fails.
    if PathFinder.find_spec("pip") is None and shutil.which("uv"):
        return ["uv", "pip", "install", "--python", sys.executable]
    pip = [sys.executable, "-m", "pip", "install"]
    if sys.prefix != sys.base_prefix:
        return pip
    package = Path(__file__).resolve()
    if site.ENABLE_USER_SITE and package.is_relative_to(Path(site.getusersitepackages()).resolve()):
        pip.append("--user")
    if Path(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED").exists():
        pip.append("--break-system-packages")  # as llmkit itself was installed
    return pip


def _requirements(extra: str) -> list[str]:
    """The packages of an extra: from pyproject.toml in a clone, else from the installed package."""
    project = _own_project()
    if project is not None:
        return list(project["optional-dependencies"][extra])
    marker = re.compile(rf"""extra == ["']{re.escape(extra)}["']""")
    required = metadata.requires("llmkit") or []
    return [each.partition(";")[0].strip() for each in required if marker.search(each)]


def _own_project() -> dict[str, Any] | None:
    """The project table of llmkit's own pyproject.toml; None outside a clone.

    An installation may lie in the tree of another project, which has a pyproject.toml too.
    """
    path = Path(__file__).parents[2] / "pyproject.toml"
    try:
        project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
        return dict(project) if project["name"] == "llmkit" else None
    except (OSError, ValueError, LookupError, TypeError):  # missing, or not ours to judge
        return None
