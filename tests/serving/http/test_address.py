"""The address: free, in use, or not of this machine."""

from __future__ import annotations

import socket

import pytest

from llmkit.config.schema import ServeConfig
from llmkit.errors import ConfigError, WriteError
from llmkit.serving.http import address


def test_a_free_port_is_found_and_shown_as_a_url() -> None:
    with address.open_listener(ServeConfig(port=0)) as bound:
        port = bound.getsockname()[1]
        assert address.url_of(bound) == f"http://127.0.0.1:{port}"
        assert address.is_local(bound)
        socket.create_connection(("127.0.0.1", port)).close()


def test_all_networks_are_shown_as_this_machine() -> None:
    with address.open_listener(ServeConfig(port=0, host="0.0.0.0")) as bound:
        assert address.url_of(bound) == f"http://127.0.0.1:{bound.getsockname()[1]}"
        assert not address.is_local(bound)


def test_ipv6_is_written_in_brackets() -> None:
    try:
        bound = address.open_listener(ServeConfig(port=0, host="::1"))
    except ConfigError:
        pytest.skip("there is no IPv6 here")
    with bound:
        assert address.url_of(bound) == f"http://[::1]:{bound.getsockname()[1]}"
        assert address.is_local(bound)


def test_a_port_in_use_is_refused_with_another() -> None:
    with address.open_listener(ServeConfig(port=0)) as bound:
        port = bound.getsockname()[1]
        with pytest.raises(WriteError) as fault:
            address.check_address(ServeConfig(port=port))
    assert f"port {port} of 127.0.0.1 is in use" in str(fault.value)
    assert "--port 0 finds a free one" in fault.value.next
    address.check_address(ServeConfig(port=port))


@pytest.mark.parametrize("host", ["203.0.113.7", "no.such.host.invalid", "", "a" * 300])
def test_a_host_that_is_not_of_this_machine_is_refused(host: str) -> None:
    with pytest.raises(ConfigError) as fault:
        address.check_address(ServeConfig(host=host, port=0))
    assert fault.value.where == "serve.host"
