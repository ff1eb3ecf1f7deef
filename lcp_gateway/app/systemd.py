"""What the service manager hears of us: systemd's notify protocol, one datagram a message.

Nothing of it may hurt: without a manager, or with one that went away, every call does nothing.
"""

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Final, Self

VARIABLES: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
"""What a manager tells its service in the environment; it is meant for that process, and not for its children."""

# A manager that is busy for a moment must hear that we are ready; one that hangs must not keep us.
_SEND_TIMEOUT_S = 0.5
_LONGEST_STATUS = 200
_USEC_PER_S = 1_000_000
# A path, or "@" and a name in Linux' abstract namespace.
_ADDRESS_STARTS = ("/", "@")


@dataclass(frozen=True, slots=True)
class Notifier:
    """Tells the service manager how we are.

    ``address`` is the manager's socket, empty where there is none. ``watchdog_s`` is how long it waits for a sign of
    life before it takes us for dead; 0 where it does not.
    """

    address: str = ""
    watchdog_s: float = 0.0

    @classmethod
    def from_environ(cls, environ: MutableMapping[str, str]) -> Self:
        """Read the manager's variables, and take them out, so that no child answers in our place."""
        address, interval, pid = (environ.pop(name, "") for name in VARIABLES)
        if not address.startswith(_ADDRESS_STARTS):
            return cls()
        meant_for_us = not pid or pid == str(os.getpid())
        return cls(address, _seconds(interval) if meant_for_us else 0.0)

    def ready(self, status: str = "") -> None:
        """Say that we serve, after the start or after a reload."""
        self._send("READY=1", *_status(status))

    def reloading(self) -> None:
        """Say that the configuration is read anew; ``ready`` ends it."""
        # The manager compares the time with its own, by the clock that both have.
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1_000}")

    def stopping(self) -> None:
        """Say that we are about to end."""
        self._send("STOPPING=1")

    def status(self, text: str) -> None:
        """Say in a line how things are; it is what ``systemctl status`` shows."""
        self._send(*_status(text))

    @property
    def has_watchdog(self) -> bool:
        """Whether the manager waits for signs of life."""
        return bool(self.address and self.watchdog_s)

    async def watch(self, is_well: Callable[[], bool]) -> None:
        """Give signs of life twice as often as they are asked for, as long as the event loop turns and ``is_well``.

        Returns at once where the manager waits for none.
        """
        if not self.has_watchdog:
            return
        while True:
            if is_well():
                self._send("WATCHDOG=1")
            await asyncio.sleep(self.watchdog_s / 2)

    def _send(self, *lines: str) -> None:
        if not self.address or not lines:
            return
        name = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        # A manager that is gone, or a sandbox without its socket, is no reason to fail.
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel,
        ):
            channel.settimeout(_SEND_TIMEOUT_S)
            channel.sendto("\n".join(lines).encode(), name)


def _status(text: str) -> tuple[str, ...]:
    """A message is made of lines, so a status is one."""
    line = " ".join(text.split())
    return (f"STATUS={line[:_LONGEST_STATUS]}",) if line else ()


def _seconds(interval: str) -> float:
    return int(interval) / _USEC_PER_S if interval.isascii() and interval.isdigit() else 0.0
