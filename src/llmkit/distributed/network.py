"""The network interface that gloo and NCCL use between machines.

Left alone, gloo takes the address that the host's name resolves to, which need not be that of the
link to the other machines: then it waits until its time is up.
"""

from __future__ import annotations

import os
import socket

import psutil

_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")

_ELSEWHERE = "192.0.2.1"
"""An address of no machine (RFC 5737): the way to it is that to any other machine."""


def choose_interface() -> None:
    """Sets the interface that leads to MASTER_ADDR, unless it is set, and if there is one.

    On the machine of rank 0 the name may resolve to the loopback interface, as Debian writes it
    into /etc/hosts: with processes on other machines it is the interface of the default route.
    """
    address = os.environ.get("MASTER_ADDR", "")
    found = _interface_to(address)
    local = os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE"))
    if found is not None and found.startswith("lo") and local != os.environ.get("WORLD_SIZE"):
        found = _interface_to(_ELSEWHERE)
    for name in _VARIABLES if found is not None else ():
        os.environ.setdefault(name, str(found))


def _interface_to(host: str) -> str | None:
    """The interface through which a host is reached; sends nothing."""
    try:
        known = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)
    except OSError:
        return None
    for family, kind, protocol, _, address in known:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.connect(address)
                own = probe.getsockname()[0]
        except OSError:
            continue
        for name, addresses in psutil.net_if_addrs().items():
            if any(each.address.partition("%")[0] == own for each in addresses):
                return name
    return None
