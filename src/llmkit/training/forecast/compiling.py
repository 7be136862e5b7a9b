"""Whether compiling a model pays off, and how long earlier runs of the same kind took to compile.

Records of earlier runs are kept beside the code that torch compiled for them, so that removing the
code removes its record too.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import NamedTuple

import torch
import transformers
from transformers import PreTrainedModel

import llmkit
from llmkit.distributed import device
from llmkit.distributed.processes import Processes
from llmkit.errors import LlmkitError
from llmkit.storage import atomic, cache, paths

_DIRECTORY = "TORCHINDUCTOR_CACHE_DIR"


class Compilation(NamedTuple):
    """The cost of compiling a model, and its gain."""

    seconds: float
    """Time of the first compiled micro-batch beyond that of a later one."""
    share: float
    """Time of a compiled micro-batch relative to an eager one."""


UNRECORDED = Compilation(25.0, 0.65)
"""Without a record: for a llama of 13.8 million weights on two CPU cores (decision 17)."""

AGAIN = 0.3
"""Expected time of compiling again what is cached, relative to the first time: 0.2 was measured."""


def compiling_pays(seconds: float, differ: bool, expected: Compilation) -> tuple[bool, str]:
    """Whether to compile a run that takes this long without compilation, and a short reason;
    `differ` says whether batches are padded to different lengths."""
    if differ:
        return False, "the lengths of batches differ"
    saved, taken = seconds * (1 - expected.share), expected.seconds
    measures = (
        f"of about {seconds:.0f} s it would save {max(0.0, saved):.0f} s and take {taken:.0f}"
    )
    if saved <= taken:
        return False, measures
    if not torch.cuda.is_available() and not (shutil.which("g++") or shutil.which("clang++")):
        return False, "no C++ compiler found"
    return True, measures


def kind_of_run(model: PreTrainedModel, length: int, size: int, processes: Processes) -> str:
    """A name for all runs that compile the same code on the same kind of device: micro-batches of
    `size` rows of this length."""
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    versions = (torch.__version__, transformers.__version__, llmkit.__version__)
    how = (processes.precision, device.name_of(processes.device), processes.count)
    return cache.key(model.config.to_json_string(), trained, length, size, how, versions)


def expected_compilation(kind: str) -> Compilation:
    """The expected cost and gain for a kind of run: as recorded, or UNRECORDED."""
    return _recorded(kind) or UNRECORDED


def record_compilation(kind: str, found: Compilation) -> None:
    """Record the cost and gain of compiling, for later runs of this kind.

    The second run finds its code cached. Other jobs disturb each measurement, so that later ones
    count half. Nothing is recorded where the directory cannot be written.
    """
    before = _recorded(kind)
    seconds, share = AGAIN * found.seconds, found.share
    if before is not None:
        seconds = min(found.seconds, (before.seconds + found.seconds) / 2)
        share = (before.share + found.share) / 2
    known = {"seconds": round(seconds, 3), "share": round(share, 4)}
    with contextlib.suppress(OSError, LlmkitError):
        atomic.replace_text(_record_of(kind), json.dumps(known))


def code_directory() -> Path:
    """Where torch keeps compiled code: in llmkit's cache rather than in /tmp, so that it outlasts a
    restart of the machine.

    TORCHINDUCTOR_CACHE_DIR, torch's own switch, takes precedence. Torch also keeps its default
    where others could write to the cache, since it runs what it finds there.
    """
    with contextlib.suppress(OSError, LlmkitError):
        if _DIRECTORY not in os.environ:
            own = paths.cache_directory() / "kernels" / "torch"
            own.mkdir(mode=0o700, parents=True, exist_ok=True)
            if paths.is_private(own) and paths.is_private(own.parent):
                os.environ[_DIRECTORY] = str(own)
    from torch._inductor.runtime.cache_dir_utils import cache_dir  # reads the variable

    return Path(cache_dir())


def _record_of(kind: str) -> Path:
    return code_directory() / f"llmkit-{kind}.json"


def _recorded(kind: str) -> Compilation | None:
    try:
        known = json.loads(_record_of(kind).read_text(encoding="utf-8"))
        return Compilation(float(known["seconds"]), float(known["share"]))
    except (OSError, ValueError, LookupError, TypeError):
        return None
