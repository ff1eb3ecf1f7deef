"""The interface of a database (one writer, readers, a lock that shows a live process), and its opening by address."""

from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol, TypeVar

from sqlalchemy import Connection
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

T = TypeVar("T")

GONE_AFTER_S: Final = 10.0
"""Longer than a live gateway takes to take its lock again: a beat (1 s), a write's time-out (5 s), and a new session."""

Work = Callable[[Connection], T]
"""The work of one transaction: plain synchronous SQLAlchemy, which both kinds of database run."""


class DatabaseUnavailable(Exception):
    """The database can be neither read nor written at present; another try may succeed.

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
        """The secret that repeat keys are hashed with, the same for all processes on this database."""
        ...

    @property
    def trouble(self) -> str | None:
        """Why the last check found another database than the one that was opened; None where it is the same."""
        ...

    @property
    def replaced(self) -> str | None:
        """Why this is not the journal that was here before, and how an operator resolves it; None where it is the same."""
        ...

    async def write(self, work: Work[T]) -> T:
        """Run the work in one transaction that is durable when this returns. One at a time, in the order of the calls.

        Raises:
            DatabaseUnavailable: it cannot be made durable. Every other error is that of the work itself; in both
                cases it is rolled back, unless the error is ``unsure``.
        """
        ...

    async def read(self, work: Work[T]) -> T:
        """Run the work on one consistent view, beside the writer.

        Raises:
            DatabaseUnavailable: the database cannot be read.
        """
        ...

    async def read_reserved(self, work: Work[T]) -> T:
        """Run the work as ``read`` does, on a connection that no other read can hold, and within seconds.

        For the few reads that the gateway's safety depends on, such as that of revoked keys.

        Raises:
            DatabaseUnavailable: the database cannot be read, or not in time.
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
        """Hold the lock that shows other processes that this one lives; to be called each second.

        Return whether the lock had been lost since the last call, and was taken again.

        Raises:
            DatabaseUnavailable: the lock cannot be checked at present.
        """
        ...

    def forget_gone(self) -> None:
        """Remove the lock files of dead processes."""
        ...

    async def close(self) -> None:
        """Finish the work under way and close the database."""
        ...


class BadDatabaseUrl(ValueError):
    """The address is of no database that the store can use. The message holds no password."""


async def open_database(
    where: str | Path, *, busy_timeout_s: float = 2.0, write_timeout_s: float = 5.0, gone_after_s: float = GONE_AFTER_S
) -> Database:
    """Open a SQLite file (by path or ``sqlite:///…``) or a ``postgresql://…`` URL, and bring its tables up to date.

    ``busy_timeout_s`` bounds the wait for another process's write lock, ``write_timeout_s`` a whole transaction on
    PostgreSQL, where ``gone_after_s`` is also how long a lock has to be free before its owner counts as gone.

    Raises:
        BadDatabaseUrl: the address cannot be used.
        DatabaseUnavailable: it cannot be opened.
        TooNew: its tables are of a newer gateway.
    """
    address = where if isinstance(where, Path) else _parsed(where)
    if isinstance(address, Path):
        # Imported where chosen: each kind has a driver that the other does not need.
        from lcp_gateway.store.database.sqlite import SqliteDatabase  # noqa: PLC0415 - see above

        return await SqliteDatabase.open(address, busy_timeout_s=busy_timeout_s)
    from lcp_gateway.store.database.postgres import PostgresDatabase  # noqa: PLC0415 - see above

    try:
        return await PostgresDatabase.open(
            address, busy_timeout_s=busy_timeout_s, write_timeout_s=write_timeout_s, gone_after_s=gone_after_s
        )
    except ModuleNotFoundError as error:
        raise BadDatabaseUrl("a journal on PostgreSQL needs its driver: install lcp-gateway[postgres]") from error


def _parsed(where: str) -> Path | URL:
    if "://" not in where:
        return Path(where)
    try:
        url = make_url(where)
    except ArgumentError:
        raise BadDatabaseUrl("the journal's address is not a database URL") from None
    match url.get_backend_name():
        case "sqlite" if url.database and url.database != ":memory:":
            return Path(url.database)
        case "sqlite":
            raise BadDatabaseUrl("a journal in memory is lost with the process: name a file")
        case "postgresql" | "postgres":
            return _for_asyncpg(url)
        case other:
            raise BadDatabaseUrl(f"the journal can be sqlite or postgresql, not {other}")


def _for_asyncpg(url: URL) -> URL:
    url = url.set(drivername="postgresql+asyncpg")
    # The name that other PostgreSQL clients use; asyncpg has another one for the same values.
    mode = url.query.get("sslmode")
    if mode is None:
        return url
    return url.difference_update_query(["sslmode"]).update_query_dict({"ssl": mode})
