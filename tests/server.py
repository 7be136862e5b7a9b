"""A process that has imported the libraries once and forks a copy of itself for every trial.

It reads one JSON request per line and answers with one line. A trial is a real process with a
number of its own, so it can be killed, stopped, starved and traced; it only starts at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import traceback
from typing import Any

import accelerate  # noqa: F401
import datasets  # noqa: F401
import matplotlib.pyplot  # noqa: F401
import pyarrow.parquet  # noqa: F401
import sklearn.linear_model  # noqa: F401
import torch
import transformers.models.bert.modeling_bert
import transformers.models.gpt2.modeling_gpt2
import transformers.models.llama.modeling_llama  # noqa: F401

import llmkit.commands.evaluate
import llmkit.commands.finetune
import llmkit.commands.generate
import llmkit.commands.predict
import llmkit.commands.pretrain
import llmkit.commands.serve  # noqa: F401
from llmkit.cli import app
from llmkit.config.load import load_config
from tests.fault import subjects

FORBIDDEN = {
    "pickle.find_class", "socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.system",
    "os.exec", "os.posix_spawn", "os.fork",
}  # fmt: skip

CLONE_NEWNS, CLONE_NEWNET = 0x00020000, 0x40000000
PR_SET_PTRACER, ANY = 0x59616D61, ctypes.c_ulong(-1)


def serve() -> None:
    """Answers requests until there are no more."""
    alive: dict[int, int] = {}
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            print(json.dumps(_status(alive, request["wait"], request["seconds"])), flush=True)
            continue
        process = os.fork()
        if process == 0:
            _become(request)
        alive[process] = os.pidfd_open(process)
        if request["halted"]:
            os.waitpid(process, os.WUNTRACED)
        print(process, flush=True)


def _status(alive: dict[int, int], process: int, seconds: float) -> int | None:
    """The exit code of a trial, negative for a signal; None when it has not ended in time."""
    if not select.select([alive[process]], [], [], seconds)[0]:
        return None
    os.close(alive.pop(process))
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def _become(request: dict[str, Any]) -> None:
    """Turns this copy into the trial and never comes back."""
    code = 1
    try:
        os.setsid()
        _surround(request)
        code = _work(request)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        os._exit(code)


def _surround(request: dict[str, Any]) -> None:
    """Streams, environment, limits and the tracer's permission, as the request has them."""
    os.open(request["lines"], os.O_WRONLY)  # open until the end of the trial
    names = (request["stdin"], request["stdout"], request["stderr"])
    for descriptor, path in enumerate(names):
        flags = os.O_RDONLY if descriptor == 0 else os.O_WRONLY | os.O_CREAT | os.O_APPEND
        handle = os.open(path, flags, 0o644)
        os.dup2(handle, descriptor)
        os.close(handle)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.default_int_handler if number == 2 else signal.SIG_DFL)
    _move_to(request["network"], request["covered"])
    os.environ.update(request["environment"])
    tempfile.tempdir = None  # found anew, where the environment says
    os.chdir(request["directory"])
    os.umask(request["umask"])
    ctypes.CDLL(None).prctl(PR_SET_PTRACER, ANY, 0, 0, 0)
    for name, limit in request["limits"].items():
        resource.setrlimit(getattr(resource, name), (limit, resource.RLIM_INFINITY))
    if request["guard"]:
        _guard(request["guard"])
    if request["halted"]:
        os.kill(os.getpid(), signal.SIGSTOP)


def _move_to(network: str, covered: str) -> None:
    """Moves this process to another network, with a disk of its own over a directory, as on another
    machine."""
    libc = ctypes.CDLL(None, use_errno=True)
    if network:
        with open(network) as file:  # noqa: PTH123
            assert libc.setns(file.fileno(), CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
    if covered:
        assert libc.unshare(CLONE_NEWNS) == 0, os.strerror(ctypes.get_errno())
        for words in (["--make-rprivate", "/"], ["-t", "tmpfs", "tmpfs", covered]):
            subprocess.run(["mount", *words], check=True)


def _guard(path: str) -> None:
    """Writes down whatever would run code from a file, start a program or reach for the network."""

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event in FORBIDDEN:
            os.write(log, f"{event} {arguments}\n".encode())

    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    sys.addaudithook(watch)


def _work(request: dict[str, Any]) -> int:
    """The exit code of a command line, or of a function of `subjects` with its keywords."""
    try:
        if "function" in request:
            function = getattr(subjects, request["function"])
            with app.faults.reported() as outcome:
                outcome.code = function(**request["keywords"]) or 0
            return outcome.code
        sys.argv = ["llmkit", *request["arguments"]]
        app.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def _warm_up() -> None:
    """Makes what a process makes once, so that no trial has to."""
    load_config("pretrain", None, ["seed=1"])
    with tempfile.TemporaryDirectory() as directory:
        subjects.tiny_model().save_pretrained(directory)


if __name__ == "__main__":
    torch.set_num_threads(1)
    _warm_up()
    serve()
