"""Notifications for the service manager: systemd's notify protocol, one datagram a message.

None of them can fail: without a manager, or with one that has ended, every call does nothing.
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
"""The variables that a manager sets for its service, and not for the service's children."""

# A manager that is busy for a moment must get the message; one that hangs must not block the gateway.
_SEND_TIMEOUT_S = 0.5
_LONGEST_STATUS = 200
_USEC_PER_S = 1_000_000
# A path, or "@" and a name in Linux' abstract namespace.
_ADDRESS_STARTS = ("/", "@")


@dataclass(frozen=True, slots=True)
class Notifier:
    """Reports the gateway's state to the service manager.

    ``address`` is the manager's socket, empty where there is none. ``watchdog_s`` is the time-out of the manager's
    watchdog; 0 where it has none.
    """

    address: str = ""
    watchdog_s: float = 0.0

    @classmethod
    def from_environ(cls, environ: MutableMapping[str, str]) -> Self:
        """Read the manager's variables, and remove them, so that no child uses them."""
        address, interval, pid = (environ.pop(name, "") for name in VARIABLES)
        if not address.startswith(_ADDRESS_STARTS):
            return cls()
        meant_for_us = not pid or pid == str(os.getpid())
        return cls(address, _seconds(interval) if meant_for_us else 0.0)

    def ready(self, status: str = "") -> None:
        """Report that the gateway serves, after the start or after a reload."""
        self._send("READY=1", *_status(status))

    def reloading(self) -> None:
        """Report that a reload begins; ``ready`` ends it."""
        # The manager compares the time with its own, by the clock that both have.
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1_000}")

    def stopping(self) -> None:
        """Report that the gateway is about to end."""
        self._send("STOPPING=1")

    def status(self, text: str) -> None:
        """Report the line that ``systemctl status`` shows."""
        self._send(*_status(text))

    @property
    def has_watchdog(self) -> bool:
        """Whether the manager has a watchdog."""
        return bool(self.address and self.watchdog_s)

    async def watch(self, is_well: Callable[[], bool]) -> None:
        """Notify the watchdog at half its time-out, as long as the event loop runs and ``is_well`` returns True.

        Returns at once where the manager has none.
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
        # The manager may have ended, or its socket be missing in a sandbox.
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.settimeout(_SEND_TIMEOUT_S)
            channel.sendto("\n".join(lines).encode(), name)


def _status(text: str) -> tuple[str, ...]:
    """Return a status as one line of a message."""
    line = " ".join(text.split())
    return (f"STATUS={line[:_LONGEST_STATUS]}",) if line else ()


def _seconds(interval: str) -> float:
    return int(interval) / _USEC_PER_S if interval.isascii() and interval.isdigit() else 0.0
