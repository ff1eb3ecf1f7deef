"""A database as the rest of the store sees it: one writer, some readers, and a sign of life of each process."""

from collections.abc import Callable
from typing import Final, Protocol, TypeVar

from sqlalchemy import Connection

T = TypeVar("T")

GONE_AFTER_S: Final = 10.0
"""Longer than a live gateway takes to take its lock again: a beat (1 s), a write's time-out (5 s), and a new session."""

Work = Callable[[Connection], T]
"""What is done in one transaction: plain synchronous SQLAlchemy, which both kinds of database run."""


class DatabaseUnavailable(Exception):
    """Nothing can be read or written at present; another try may find it well again.

    ``reason`` is fit for a client: no path, address, name or value. ``unsure`` says that the transaction may be
    durable all the same, because contact was lost while it was being committed.
    """

    def __init__(self, reason: str, *, unsure: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.unsure = unsure


class Database(Protocol):
    """An open database, its tables up to date."""

    @property
    def owner(self) -> str:
        """The name of this process in the journal: 16 hexadecimal digits, never used twice."""
        ...

    @property
    def secret(self) -> bytes:
        """What repeat keys are hashed with, the same for all processes on this database."""
        ...

    @property
    def trouble(self) -> str | None:
        """Why this is not the database that was opened, as last seen; None where it is."""
        ...

    @property
    def replaced(self) -> str | None:
        """Why this is not the journal that was kept here before, and what an operator can do; None where it is."""
        ...

    async def write(self, work: Work[T]) -> T:
        """Do it in one transaction that is durable when this returns. One at a time, in the order of the calls.

        Raises:
            DatabaseUnavailable: it cannot be made durable. Every other error is that of the work itself; in both
                cases nothing of it remains, but for what ``unsure`` says.
        """
        ...

    async def read(self, work: Work[T]) -> T:
        """Do it on one consistent view, beside what is being written.

        Raises:
            DatabaseUnavailable: nothing can be read.
        """
        ...

    async def read_reserved(self, work: Work[T]) -> T:
        """As ``read``, beside everything else: on a connection that no other read can hold, and within seconds.

        For the few reads that the gateway's safety hangs on, such as that of keys which were revoked.

        Raises:
            DatabaseUnavailable: nothing can be read, or not in time.
        """
        ...

    def is_gone(self, connection: Connection, owner: str) -> bool:
        """Return, within a ``write``, whether the process of that name has ended.

        Goes by its lock: free, where the lock dies with the process alone; free for long enough, where a live process
        can lose it for a moment.
        """
        ...

    def may_be_gone(self, owner: str) -> bool:
        """Return whether ``is_gone`` found the lock free and more looks may find that the process has ended."""
        ...

    async def keep_alive(self) -> bool:
        """Show other processes that this one lives; to be called each second.

        Returns whether the lock had been lost since the last call, and was taken again.

        Raises:
            DatabaseUnavailable: it cannot be shown at present.
        """
        ...

    def forget_gone(self) -> None:
        """Clear away what dead processes left beside the database."""
        ...

    async def close(self) -> None:
        """End the work under way and let go of the database."""
        ...
