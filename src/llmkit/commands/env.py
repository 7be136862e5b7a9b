"""`llmkit env`: versions, devices and paths, as a bug report needs them."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import psutil

import llmkit
from llmkit.storage import paths

LIBRARIES = ("torch", "transformers", "accelerate", "datasets", "tokenizers", "safetensors")
EXTRAS = ("peft", "llguidance", "lm-eval", "tensorboard", "wandb", "mlflow", "trackio")


def describe_environment() -> dict[str, Any]:
    """The facts by their names; packages that are not installed are skipped."""
    import torch

    found = {name: _version(name) for name in (*LIBRARIES, *EXTRAS)}
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {
        "command": "env",
        "llmkit": llmkit.__version__,
        "python": f"{platform.python_version()} ({sys.executable})",
        "system": platform.platform(),
        "cpu_cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": ", ".join(gpus) or "none",
        "cuda": torch.version.cuda or "none",
        "mps": torch.backends.mps.is_available(),
        "threads": torch.get_num_threads(),
        "packages": {name: number for name, number in found.items() if number},
        "token_cache": str(paths.cache_directory()),
        "hub_cache": os.environ.get("HF_HOME", "~/.cache/huggingface"),
        "hub_offline": os.environ.get("HF_HUB_OFFLINE", "0"),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
