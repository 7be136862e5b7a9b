"""`llmkit env`: versions, devices and paths, as a bug report needs them."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import llmkit
from llmkit.storage import paths

_LIBRARIES = ("torch", "transformers", "accelerate", "datasets", "tokenizers", "safetensors")
_EXTRAS = ("peft", "llguidance", "lm-eval", "tensorboard", "wandb", "mlflow", "trackio", "ray")


def describe_environment() -> dict[str, Any]:
    """The facts by their names; extras that are not installed are skipped.

    A fact that cannot be read is replaced by the error, since broken installations need reports
    most.
    """
    libraries = {name: _version(name) or "missing" for name in _LIBRARIES}
    extras = {name: number for name in _EXTRAS if (number := _version(name))}
    devices = _read(_devices)
    return {
        "command": "env",
        "llmkit": llmkit.__version__,
        "location": str(Path(llmkit.__file__).parent),
        "python": f"{platform.python_version()} ({sys.executable})",
        "system": platform.platform(),
        "cpu_cores": os.cpu_count(),
        "memory_gib": _read(_memory),
        **(devices if isinstance(devices, dict) else {"devices": devices}),
        "packages": {**libraries, **extras},
        "token_cache": _read(lambda: str(paths.cache_directory())),
        "hub_cache": _read(_hub_cache),
        "hub_offline": os.environ.get("HF_HUB_OFFLINE", "0"),
        "temporary_files": _read(tempfile.gettempdir),
    }


def _devices() -> dict[str, Any]:
    import torch

    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {
        "gpus": ", ".join(gpus) or "none",
        "cuda": torch.version.cuda or "none",
        "mps": torch.backends.mps.is_available(),
        "threads": torch.get_num_threads(),
    }


def _memory() -> float:
    import psutil

    return round(psutil.virtual_memory().total / 2**30, 1)


def _hub_cache() -> str:
    from huggingface_hub import constants

    return constants.HF_HUB_CACHE


def _read(fact: Callable[[], Any]) -> Any:
    try:
        return fact()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
