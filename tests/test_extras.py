"""What is missing is named with the command that installs it here, whatever installed llmkit."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest

import llmkit
from llmkit import extras
from llmkit.errors import ConfigError

ROOT = Path(__file__).parent.parent
DECLARED = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
METADATA = """Metadata-Version: 2.4
Name: llmkit
Version: 0.1.0
Requires-Dist: typer>=0.20
Requires-Dist: peft>=0.17; extra == 'lora'
Requires-Dist: wandb>=0.20; extra == 'wandb'
"""


def test_a_missing_package_is_named_with_the_command_for_its_extra() -> None:
    with pytest.raises(ConfigError) as fault:
        extras.require("no_such_package", "wandb", "this", "report_to")
    assert f"`{extras.install_command('wandb')}`, or remove report_to" in fault.value.next


def test_naming_the_command_leaves_the_modules_of_setuptools_as_they_are() -> None:
    code = (
        "from llmkit import extras; extras.install_command('wandb'); import setuptools, distutils;"
        "print(distutils.__file__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "setuptools" in done.stdout


@pytest.mark.parametrize("extra", DECLARED)
def test_the_command_names_what_the_clone_declares_quoted_for_the_shell(extra: str) -> None:
    command = extras.install_command(extra)
    assert shlex.split(command)[-len(DECLARED[extra]) :] == DECLARED[extra]
    assert ">" not in re.sub("'[^']*'", "", command)


def install_wheel(python: Path, path: Path, query: str, **variables: str) -> str:
    """The command for wandb after the files of a wheel are where this Python looks for them."""
    environment = {"PYTHONUSERBASE": str(path / "user"), "PATH": str(path / "bin"), **variables}

    def ask(code: str) -> str:
        command = [python, "-c", code]
        return subprocess.run(
            command, env=environment, cwd=path, capture_output=True, text=True, check=True
        ).stdout.strip()

    place = Path(ask(query))
    (place / "llmkit").mkdir(parents=True)
    for name in ("__init__.py", "extras.py", "errors.py"):
        shutil.copy(Path(llmkit.__file__).parent / name, place / "llmkit" / name)
    (place / "llmkit-0.1.0.dist-info").mkdir()
    (place / "llmkit-0.1.0.dist-info" / "METADATA").write_text(METADATA)
    return ask("from llmkit import extras; print(extras.install_command('wandb'))")


SITE = "import sysconfig; print(sysconfig.get_path('purelib'))"
USER_SITE = "import site; print(site.getusersitepackages())"


def test_in_an_environment_a_wheel_names_the_package_and_not_itself(tmp_path: Path) -> None:
    venv.create(tmp_path / "env", symlinks=True)
    python = tmp_path / "env" / "bin" / "python"
    command = install_wheel(python, tmp_path, SITE)
    assert command == f"{python} -m pip install 'wandb>=0.20'"


def test_an_environment_without_pip_is_served_by_uv(tmp_path: Path) -> None:
    venv.create(tmp_path / "env", symlinks=True)
    python = tmp_path / "env" / "bin" / "python"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "uv").write_text("")
    (tmp_path / "bin" / "uv").chmod(0o755)
    command = install_wheel(python, tmp_path, SITE)
    assert command == f"uv pip install --python {python} 'wandb>=0.20'"


@pytest.mark.parametrize("text", ['[project]\nname = "theirs"\n', "[tool.black]\n", "[[["])
def test_the_project_that_holds_the_installation_is_not_asked(tmp_path: Path, text: str) -> None:
    place = tmp_path / "src"
    python = Path(sys.base_prefix) / "bin" / Path(sys.executable).name
    (tmp_path / "pyproject.toml").write_text(text)
    place.mkdir()
    command = install_wheel(python, tmp_path, f"print({str(place)!r})", PYTHONPATH=str(place))
    assert command.endswith(" 'wandb>=0.20'")


def test_packages_of_a_user_are_installed_for_that_user(tmp_path: Path) -> None:
    python = Path(sys.base_prefix) / "bin" / Path(sys.executable).name
    command = install_wheel(python, tmp_path, USER_SITE)
    assert f"{python} -m pip install --user " in command
    assert command.endswith(" 'wandb>=0.20'")
