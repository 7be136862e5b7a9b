"""Two machines as network namespaces with a cable between them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from tests.harness import Server, Trial


def ip(*words: str) -> None:
    """Runs a command of iproute2."""
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@dataclass(frozen=True)
class Machines:
    """Two network namespaces that reach each other by a pair of virtual interfaces."""

    names: tuple[str, str]
    addresses = ("10.213.0.1", "10.213.0.2")

    def variables(self, node: int) -> dict[str, str]:
        """The environment of the process on one machine, of two."""
        return {
            "WORLD_SIZE": "2", "RANK": str(node), "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1",
            "MASTER_ADDR": self.addresses[0], "MASTER_PORT": "29500",
        }  # fmt: skip

    def place(self, node: int) -> str:
        """The file of a namespace."""
        return f"/run/netns/{self.names[node]}"

    def start(self, trials: Server, *arguments: str, own: str = "") -> tuple[Trial, Trial]:
        """Starts one process of a run on each machine; the directory `own` is an empty disk on
        machine 1, and everything else is on a disk that both share."""
        zero, one = (
            trials.start(
                *arguments,
                environment=self.variables(node),
                network=self.place(node),
                covered=own if node == 1 else "",
            )
            for node in (0, 1)
        )
        return zero, one

    def cut(self) -> None:
        """Takes the cable away: nothing arrives any more, and nobody learns why."""
        ip("-n", self.names[0], "link", "set", "eth0", "down")


@contextmanager
def two_machines() -> Iterator[Machines]:
    """Two machines, gone at the end; skips where namespaces cannot be made."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and `ip`")
    machines = Machines((f"llmkit{os.getpid()}a", f"llmkit{os.getpid()}b"))
    try:
        try:
            for name in machines.names:
                ip("netns", "add", name)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces cannot be made here: {error.stderr.strip()}")
        first, second = machines.names
        ip("-n", first, "link", "add", "eth0", "type", "veth", "peer", "eth0", "netns", second)
        for name, address in zip(machines.names, machines.addresses, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                ip("-n", name, "link", "set", device, "up")
        yield machines
    finally:
        for name in machines.names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
