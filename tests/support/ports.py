"""Ports for programs that cannot choose one themselves, or must have the same one after a restart."""

import secrets
import socket
from pathlib import Path

_FIRST = 10_000
_LAST = 32_000
_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_port() -> int:
    """Return a port where no server listens.

    Between this choice and its use the kernel must not lend it to a connection or to a server that lets the kernel choose: it
    lies below the range that the kernel lends from.
    """
    last = min(_LAST, int(_RANGE.read_text().split()[0])) if _RANGE.exists() else _LAST
    while True:
        port = _FIRST + secrets.randbelow(max(last - _FIRST, 1_000))
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def free_address() -> str:
    """Return an address on loopback where no server listens."""
    return f"127.0.0.1:{free_port()}"
