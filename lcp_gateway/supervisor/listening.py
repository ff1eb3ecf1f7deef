"""The sockets that the supervisor opens for its workers.

On Linux each worker has a socket of its own for an address (SO_REUSEPORT), among which the system spreads connections: with
one socket for all, the worker that wakes first takes most of a burst, and keeps its connections. The supervisor holds all of
them open, so that connections to a worker that died wait for the worker that accepts them in its place.
"""

import errno
import os
import socket
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

_BACKLOG: Final = 1024
_IS_SPREAD: Final = sys.platform == "linux"
"""Whether the system spreads connections among the sockets of one port; elsewhere all workers share one socket."""


class CannotListen(Exception):
    """An address cannot be listened on; the message says why."""


@dataclass(frozen=True, slots=True)
class ListeningSockets:
    """The sockets of one address by worker: ``by_worker[0]`` are those of the first, one for each IP address."""

    port: int
    by_worker: Sequence[Sequence[socket.socket]]

    def close(self) -> None:
        """Close them here; the workers have their own handles."""
        for sockets in self.by_worker:
            for one in sockets:
                one.close()


def open_sockets(host: str, port: int, workers: int) -> ListeningSockets:
    """Listen on an address for so many workers. An empty ``host`` is all addresses; for port 0 the system chooses one.

    Raises:
        CannotListen: the address is taken, or not one of this machine.
    """
    shown = f"[{host}]" if ":" in host else host
    with ExitStack() as stack:
        try:
            found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            by_worker: list[list[socket.socket]] = [[] for _ in range(workers)]
            for family, address in dict.fromkeys((family, address) for family, _, _, _, address in found):
                if port == 0 and by_worker[0]:
                    address = (address[0], by_worker[0][0].getsockname()[1], *address[2:])  # noqa: PLW2901 - one port for all
                try:
                    opened = _open(family, address, workers)
                except OSError as error:
                    # Without IPv6 an address of it cannot be used, and the others can.
                    if error.errno in {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL} and len(found) > 1:
                        continue
                    raise
                for sockets, one in zip(by_worker, opened, strict=True):
                    sockets.append(stack.enter_context(one))
        except OSError as error:
            raise CannotListen(f"cannot listen on {shown}:{port}: {error.strerror or error}") from error
        stack.pop_all()
    if not by_worker[0]:
        raise CannotListen(f"cannot listen on {shown}:{port}: {os.strerror(errno.EADDRNOTAVAIL)}")
    return ListeningSockets(by_worker[0][0].getsockname()[1], by_worker)


def _open(family: int, address: tuple[object, ...], workers: int) -> list[socket.socket]:
    """Return a listening socket for each worker."""
    # Without SO_REUSEPORT first: with it a second gateway could listen on the same port, and take half of the requests.
    with _bound(family, address, shared=False) as probe:
        address = probe.getsockname()
    if not _IS_SPREAD:
        one = _bound(family, address, shared=False)
        one.listen(_BACKLOG)
        return [one, *(one.dup() for _ in range(workers - 1))]
    with ExitStack() as stack:
        opened = [stack.enter_context(_bound(family, address, shared=True)) for _ in range(workers)]
        for one in opened:
            one.listen(_BACKLOG)
        stack.pop_all()
    return opened


def _bound(family: int, address: tuple[object, ...], *, shared: bool) -> socket.socket:
    one = socket.socket(family, socket.SOCK_STREAM)
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.setblocking(False)
        one.bind(address)
    except BaseException:
        one.close()
        raise
    return one
