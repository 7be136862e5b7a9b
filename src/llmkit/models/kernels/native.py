"""The compiled part of `decoding`: builds `decoder.c` once per machine, and mirrors its structs.

The library is kept in the cache directory, under a hash of its source, command and processor. It is
loaded only if it belongs to this user and nobody else may write it. Without a C compiler there is
none, and models generate through their own forward pass. To delete it: delete `decoding.py` too.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from ctypes import POINTER, c_double, c_int64, c_void_p
from pathlib import Path

from llmkit.errors import LlmkitError
from llmkit.storage.paths import cache_directory, is_private

_SOURCES = [Path(__file__).with_name(name) for name in ("decoder.c", "products.h", "vectors.h")]
# No -ffast-math: NaN must reach the logits, where it is reported.
_FLAGS = "-O2 -march=native -fopenmp -ffp-contract=fast -fPIC -shared".split()
_SECONDS = 120
"""Time limit of the compiler; it takes about 1.5 s."""


class MatrixStruct(ctypes.Structure):
    """`matrix` of decoder.c."""

    _fields_ = (
        ("weight", c_void_p), ("scale", c_void_p), ("bias", c_void_p),
        ("outputs", c_int64), ("type", c_int64),
    )  # fmt: skip


class NormStruct(ctypes.Structure):
    """`norm` of decoder.c."""

    _fields_ = (
        ("weight", c_void_p), ("bias", c_void_p), ("kind", c_int64), ("size", c_int64),
        ("epsilon", c_double),
    )  # fmt: skip


NORMS = ("before_attention", "query_norm", "key_norm", "after_attention", "before_mlp", "after_mlp")
MATRICES = ("query", "key", "value", "output", "gate", "up", "down")


class LayerStruct(ctypes.Structure):
    """`layer` of decoder.c."""

    _fields_ = (
        *((name, NormStruct) for name in NORMS),
        *((name, MatrixStruct) for name in MATRICES),
        ("rotation", c_void_p),
        ("heads", c_int64), ("key_heads", c_int64), ("head_size", c_int64),
        ("rotated", c_int64), ("window", c_int64), ("activation", c_int64),
        ("scale", c_double), ("softcap", c_double), ("residual_multiplier", c_double),
    )  # fmt: skip


class ModelStruct(ctypes.Structure):
    """`model` of decoder.c."""

    _fields_ = (
        ("layers", POINTER(LayerStruct)), ("last_norm", NormStruct), ("head", MatrixStruct),
        ("n_layers", c_int64), ("hidden_size", c_int64),
    )  # fmt: skip


class StepStruct(ctypes.Structure):
    """`step` of decoder.c."""

    _fields_ = (
        ("states", c_void_p), ("logits", c_void_p), ("workspace", c_void_p), ("begins", c_void_p),
        ("keys", POINTER(c_void_p)), ("values", POINTER(c_void_p)),
        ("texts", c_int64), ("tokens", c_int64), ("column", c_int64), ("room", c_int64),
        ("cache_type", c_int64), ("threads", c_int64),
    )  # fmt: skip


@functools.cache
def decoder_library() -> ctypes.CDLL | None:
    """The compiled decoder, or None where it cannot be compiled, kept or loaded."""
    compiler = shlex.split(os.environ.get("CC", "")) or ["cc"]
    if shutil.which(compiler[0]) is None:
        return None
    try:
        path = _built([*compiler, *_FLAGS])
        library = ctypes.CDLL(str(path)) if all(map(is_private, (path, path.parent))) else None
    except (OSError, subprocess.SubprocessError, LlmkitError):
        return None
    if library is not None:
        library.decode.argtypes = (POINTER(ModelStruct), POINTER(StepStruct))
        library.decode.restype = None
        library.workspace_size.argtypes = (POINTER(ModelStruct), c_int64, c_int64, c_int64)
        library.workspace_size.restype = c_int64
    return library


def _built(command: list[str]) -> Path:
    """The library, compiled unless the cache has it."""
    parts = [*command, _processor(), *(source.read_text("utf-8") for source in _SOURCES)]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
    path = cache_directory() / "kernels" / f"decoder-{key}.so"
    if path.exists():
        return path
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as directory:
        made = Path(directory, path.name)
        done = [*command, "-o", str(made), str(_SOURCES[0]), "-lm"]
        subprocess.run(done, check=True, capture_output=True, timeout=_SECONDS)
        made.chmod(0o700)
        made.replace(path)
    return path


def _processor() -> str:
    """What -march=native depends on: machines of several kinds may share a cache."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.platform()
    kept = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(kept)}))
