"""A Ray cluster that runs command lines of llmkit as jobs, over HTTP and JSON: no pickle."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmkit import extras
from llmkit.distributed import signals
from llmkit.distributed.child import ChildResult, llmkit_command
from llmkit.errors import ResourceError
from llmkit.reporting.console import Console
from llmkit.storage.paths import cache_directory

_PATIENCE = 600
"""Seconds that a job has to save after it was asked to stop; Ray's default is three."""

_ATTEMPTS = 4
"""Times that a job is submitted when its machine or its process is lost."""


class RayCluster:
    """The cluster behind an address. Its machines must see the files under the same paths."""

    def __init__(self, address: str, console: Console) -> None:
        """Connects; raises ConfigError without the extra, ResourceError if nobody answers."""
        extras.require("ray", "ray", "`--ray`", "")
        with console.waiting("connecting to Ray…"), signals.importing():
            from ray.job_submission import JobSubmissionClient
            from ray.util.state import list_nodes

            try:
                self.client = JobSubmissionClient(address)
                nodes = [node.resources_total for node in list_nodes(address=address)]
            except Exception as error:  # of several kinds, those of its HTTP library among them
                raise ResourceError(
                    f"Ray does not answer: {str(error).splitlines()[0][:300]}",
                    where=f"--ray {address}",
                    next="pass the address of its dashboard, such as http://head:8265",
                ) from error
        self.needs = _needs(nodes)
        self.attempts: dict[str, tuple[int, str]] = {}

    def submit(self, words: Sequence[str]) -> str:
        """Submits a command line, to run in this directory with this cache; returns the job."""
        place = shlex.quote(str(Path.cwd()))
        return self._submit(f"cd {place} && exec {shlex.join(llmkit_command(words))}", 1)

    def _submit(self, entrypoint: str, attempt: int) -> str:
        inherited = {name: os.environ[name] for name in ("HF_HUB_OFFLINE",) if name in os.environ}
        job = self.client.submit_job(
            entrypoint=entrypoint,
            runtime_env={
                "env_vars": {
                    **inherited,
                    "LLMKIT_CACHE": str(cache_directory()),
                    "RAY_JOB_STOP_WAIT_TIME_S": str(_PATIENCE),
                }
            },
            **self.needs,
        )
        self.attempts[job] = attempt, entrypoint
        return str(job)

    def result_of(self, job: str) -> ChildResult | str | None:
        """How a job has ended; None while it runs. One that was lost is submitted again, and its
        new name returned."""
        found = self.client.get_job_info(job)
        if not found.status.is_terminal():
            return None
        code, (attempt, entrypoint) = found.driver_exit_code, self.attempts[job]
        lost = found.status == "FAILED" and (code is None or code < 0)
        if lost and attempt < _ATTEMPTS:
            return self._submit(entrypoint, attempt + 1)
        if lost:
            return ChildResult(71, {"error": _lost(found.message).described()}, 0)
        return ChildResult(code or 0, _printed(self.client.get_job_logs(job)), 0)

    def stop(self, job: str) -> None:
        """Asks a job to save and stop."""
        self.client.stop_job(job)


def _needs(nodes: Sequence[dict[str, float]]) -> dict[str, float]:
    """What a run needs: a GPU where the cluster has any, else OMP_NUM_THREADS cores, or all of a
    machine."""
    if any(node.get("GPU") for node in nodes):
        return {"entrypoint_num_gpus": 1}
    threads = os.environ.get("OMP_NUM_THREADS", "")
    cores = min((node["CPU"] for node in nodes if node.get("CPU")), default=1)
    return {"entrypoint_num_cpus": min(int(threads), cores) if threads.isdecimal() else cores}


def _lost(message: str | None) -> ResourceError:
    return ResourceError(
        f"the job was lost {_ATTEMPTS} times: {(message or '').splitlines()[:1]}",
        kept="everything saved before",
        next="run the same command again to resume",
    )


def _printed(log: str) -> dict[str, Any]:
    """The JSON object that a command has printed last."""
    for line in reversed(log.splitlines()):
        if line.startswith("{"):
            try:
                return dict(json.loads(line))
            except ValueError:
                continue
    return {}
