"""The address that a server listens on. Imports no heavy library."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket

from llmkit.config.schema import ServeConfig
from llmkit.errors import ConfigError, WriteError

BACKLOG = 2048
"""Maximum number of connections that wait to be accepted."""


def check_address(settings: ServeConfig) -> None:
    """Raises what `open_listener` raises."""
    open_listener(settings).close()


def open_listener(settings: ServeConfig) -> socket.socket:
    """A socket that listens on the address of the settings; connections wait until it is served.

    Raises ConfigError for a host that is not an address of this machine, and WriteError for a port
    that is in use or needs other permissions.
    """
    try:
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise _no_host(settings, str(error)) from None
    family, kind, protocol, _, place = found[0]
    bound = socket.socket(family, kind, protocol)
    try:
        # Without it, a port is blocked for a minute after its server ended.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(place)
        bound.listen(BACKLOG)
        return bound
    except OSError as error:
        bound.close()
        raise _not_bound(settings, error) from None


def url_of(bound: socket.socket) -> str:
    """The URL of a bound socket, as a browser on this machine opens it."""
    host, port = bound.getsockname()[:2]
    if ipaddress.ip_address(host.partition("%")[0]).is_unspecified:
        host = "[::1]" if ":" in host else "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host.strip("[]") else f"http://{host}:{port}"


def is_local(bound: socket.socket) -> bool:
    """Whether only this machine reaches the address."""
    host = bound.getsockname()[0].partition("%")[0]
    return ipaddress.ip_address(host).is_loopback


def _no_host(settings: ServeConfig, reason: str) -> ConfigError:
    return ConfigError(
        f"cannot listen on {settings.host!r}: {reason}",
        where="serve.host",
        next="127.0.0.1 serves this machine, 0.0.0.0 every network that it is in",
    )


def _not_bound(settings: ServeConfig, error: OSError) -> ConfigError | WriteError:
    if error.errno == errno.EADDRINUSE:
        return WriteError(
            f"port {settings.port} of {settings.host} is in use",
            where="serve.port (--port)",
            next=f"choose another, such as --port {settings.port % 65535 + 1}; --port 0 finds a "
            "free one",
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return WriteError(
            f"port {settings.port} needs other permissions",
            where="serve.port (--port)",
            next="choose a port above 1023",
        )
    reason = os.strerror(error.errno) if error.errno else str(error)
    return _no_host(settings, reason)
