"""An architecture of a user's own, registered by a file of Python that the config names.

The file runs only where the command line says `--allow-code`, and is never taken from a checkpoint
or the hub.
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
"""What Python calls the file, so that it hides no other module."""


def take_in(model: ModelConfig) -> None:
    """Runs the file of `model.code`, which is allowed, and sees that it has the model to build.

    Raises InputNotFound where there is no such file, and ConfigError when it fails, registers no
    architecture, or another than `model.architecture`.
    """
    assert model.code is not None
    names = register(Path(model.code).expanduser().resolve())
    if model.name_or_path is None and model.architecture not in names:
        raise ConfigError(
            f"{model.code} registers {' and '.join(names)}, the model to build is another",
            where=f"model.architecture: {model.architecture}",
            next=f"write model.architecture={names[0]}, or leave model.code out",
        )


@functools.cache
def register(file: Path) -> tuple[str, ...]:
    """The architectures that a file registers with transformers' Auto classes, as
    the package `transformer` does, when it is run for the first time."""
    if not file.is_file():
        raise InputNotFound(
            f"there is no file {file}",
            where="model.code",
            next="give a file of Python on this machine",
        )
    before = build.registered_architectures()
    spec = importlib.util.spec_from_file_location(MODULE, file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{file.name} is no file of Python (.py)", where=f"{file} (model.code)")
    sys.modules[MODULE] = module = importlib.util.module_from_spec(spec)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise _fault(error, file) from error
    names = tuple(sorted(build.registered_architectures() - before))
    if not names:
        raise ConfigError(
            f"{file.name} registers no new architecture",
            where=f"{file} (model.code)",
            next='end it with AutoConfig.register("my_model", MyConfig) and '
            "AutoModelForCausalLM.register(MyConfig, MyModel)",
        )
    return names


def _fault(error: BaseException, file: Path) -> ConfigError:
    """What went wrong in a user's file, with the line there."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(file)]
    if isinstance(error, SyntaxError) and error.filename == str(file):
        lines.append(error.lineno)
    where = f"{file}:{lines[-1]}" if lines else str(file)
    return ConfigError(
        f"{file.name} cannot be run: {type(error).__name__}: {error}", where=f"{where} (model.code)"
    )
