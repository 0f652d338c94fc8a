"""Block the network: only loopback sockets and loopback names.

`tests/conftest.py` installs this in the test process, and puts this folder on PYTHONPATH: Python imports a
module called `sitecustomize` when it starts, so the processes that a test starts are held to the same rule.
"""

from __future__ import annotations

import ipaddress
import sys

#: set by the `network` marker
allowed = False

_LOCAL_NAMES = {"", "localhost", "localhost.localdomain", "ip6-localhost", "0.0.0.0", "::"}


class NetworkBlockedError(RuntimeError):
    """A test reached for the network. Not an OSError: code that handles network failures must not hide it."""


def _is_local(host: object) -> bool:
    if host is None:
        return True
    if isinstance(host, bytes):
        host = host.decode("ascii", "replace")
    if not isinstance(host, str):
        return False
    if host.lower() in _LOCAL_NAMES:
        return True
    try:
        return ipaddress.ip_address(host.split("%")[0]).is_loopback
    except ValueError:
        return False


def _guard(event: str, args: tuple) -> None:
    if allowed or not event.startswith("socket."):
        return
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        address = args[1]
        if not isinstance(address, tuple):  # a Unix socket's path, or None for a connected socket
            return
        host = address[0]
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        host = args[0]
    else:
        return
    if not _is_local(host):
        raise NetworkBlockedError(
            f"a test tried to reach {host!r} ({event}): tests run offline, use a server on 127.0.0.1, "
            "or mark the test with pytest.mark.network"
        )


sys.addaudithook(_guard)
