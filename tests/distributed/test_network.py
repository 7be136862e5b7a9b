"""The network interface is the one that leads to rank 0."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llmkit.distributed import network

NAMES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables that a test has set are gone after it."""
    for name in (*NAMES, "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("WORLD_SIZE", "4")


def test_processes_of_one_machine_need_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    network.choose_interface()
    assert [os.environ[name] for name in NAMES] == ["lo", "lo"]


def test_an_interface_that_the_user_has_set_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    network.choose_interface()
    assert [os.environ[name] for name in NAMES] == ["eth7", "lo"]


def test_a_name_without_an_address_is_left_to_the_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MASTER_ADDR", "nowhere.invalid")
    network.choose_interface()
    assert not any(name in os.environ for name in NAMES)


def test_a_host_whose_name_means_itself_uses_its_way_to_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As Debian writes 127.0.1.1 into /etc/hosts; the kernel's table names the way."""
    routes = [line.split() for line in Path("/proc/net/route").read_text().splitlines()[1:]]
    default = [each[0] for each in routes if each[1] == "00000000"]
    if not default:
        pytest.skip("this host has no default route")
    monkeypatch.setenv("MASTER_ADDR", "127.0.1.1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    network.choose_interface()
    assert os.environ["GLOO_SOCKET_IFNAME"] in default
