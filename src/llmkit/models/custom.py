"""A user's own architecture, registered by a Python file that the config names.

The file runs only with `--allow-code` on the command line, and never comes from a checkpoint or the
hub.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import sys
import traceback
from pathlib import Path

from llmkit.config.schema import ModelConfig
from llmkit.errors import ConfigError, InputNotFound
from llmkit.models import build

MODULE = "llmkit_model_code"
"""The module name of the file, so that it shadows no other module."""


def run_model_code(model: ModelConfig) -> None:
    """Runs the file of `model.code`, and checks that it registers the model to build.

    The caller has checked that it is allowed. Raises InputNotFound for a missing file, and
    ConfigError if it fails, registers no architecture or another than `model.architecture`, or has
    changed since it ran.
    """
    assert model.code is not None
    file = Path(model.code).expanduser().resolve()
    names = register(file)
    if file.read_bytes() != _content[file]:
        raise ConfigError(
            f"{model.code} has changed since this process ran it",
            where=f"{file} (model.code)",
            next="start the process again, such as the kernel of a notebook",
        )
    if model.name_or_path is None and model.architecture not in names:
        raise ConfigError(
            f"{model.code} registers {' and '.join(names)}, not the model to build",
            where=f"model.architecture: {model.architecture}",
            next=f"write model.architecture={names[0]}, or remove model.code",
        )


_content: dict[Path, bytes] = {}
"""The files that were run. transformers registers an architecture once for each process."""


@functools.cache
def register(file: Path) -> tuple[str, ...]:
    """Runs a file once; returns the architectures that it registers with transformers' Auto
    classes, as the package `transformer` does."""
    if not file.is_file():
        raise InputNotFound(
            f"the file {file} does not exist",
            where="model.code",
            next="write the path of a local Python file",
        )
    before = build.registered_architectures()
    _content[file] = file.read_bytes()
    spec = importlib.util.spec_from_file_location(MODULE, file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{file.name} is not a Python file (.py)", where=f"{file} (model.code)")
    sys.modules[MODULE] = module = importlib.util.module_from_spec(spec)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise _code_error(error, file) from error
    names = tuple(sorted(build.registered_architectures() - before))
    if not names:
        raise ConfigError(
            f"{file.name} registers no new architecture",
            where=f"{file} (model.code)",
            next='end it with AutoConfig.register("my_model", MyConfig) and '
            "AutoModelForCausalLM.register(MyConfig, MyModel)",
        )
    return names


def _code_error(error: BaseException, file: Path) -> ConfigError:
    """The error for a user's file that failed, with its line."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(file)]
    if isinstance(error, SyntaxError) and error.filename == str(file):
        lines.append(error.lineno)
    where = f"{file}:{lines[-1]}" if lines else str(file)
    return ConfigError(
        f"{file.name} failed: {type(error).__name__}: {error}", where=f"{where} (model.code)"
    )
