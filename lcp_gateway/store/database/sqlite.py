"""SQLite: one file, a thread that writes, two that read, and locks of the operating system.

The driver is the standard library's, in threads of our own: for the short transactions of the journal that costs half
to two thirds of what an asynchronous wrapper does, which hops between threads for each statement.
"""

import asyncio
import fcntl
import os
import queue
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, cast

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.exc import DatabaseError, DBAPIError
from sqlalchemy.pool import ConnectionPoolEntry, NullPool

from lcp_gateway.store.database.engines import DatabaseUnavailable, Work
from lcp_gateway.store.database.schema import is_current, journal_id, migrate
from lcp_gateway.store.database.sqlite_files import JournalFile, OwnerLocks, read_secret, why_replaced

T = TypeVar("T")

_Job = tuple[Callable[[], Any], asyncio.AbstractEventLoop, asyncio.Future[Any], bool]


class DatabaseThread:
    """A thread that does blocking work in order. Cheaper than an executor: no lock and no second future for each call."""

    def __init__(self, name: str) -> None:
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        # A daemon, so that a disk which hangs cannot keep the process from ending.
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def run(self, work: Callable[[], T], *, unless_left: bool = False) -> "asyncio.Future[T]":
        """Run the work in the thread; its result or its error is the future's.

        Cancelling the caller does not stop the work; with ``unless_left``, work that has not begun is left out then.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        self._jobs.put((work, loop, done, unless_left))
        return done

    async def close(self, timeout_s: float) -> None:
        """Finish the work that waits, for at most ``timeout_s``, and end the thread."""
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join, timeout_s)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            work, loop, done, unless_left = job
            if unless_left and done.cancelled():
                continue
            try:
                result = work()
            except BaseException as error:  # noqa: BLE001 - every error is the caller's
                _report(loop, _fail, done, error)
            else:
                _report(loop, _succeed, done, result)
            # The references of a finished job are dropped before the next one is waited for.
            del job, work, loop, done


def _report(loop: asyncio.AbstractEventLoop, how: Callable[..., None], *arguments: object) -> None:
    try:
        loop.call_soon_threadsafe(how, *arguments)
    except RuntimeError:
        # The event loop is closed: no caller waits any more.
        return


def _succeed(done: asyncio.Future[T], result: T) -> None:
    if not done.done():
        done.set_result(result)


def _fail(done: asyncio.Future[Any], error: BaseException) -> None:
    if not done.done():
        done.set_exception(error)


_CLOSE_TIMEOUT_S = 10.0
# SQLite's own waiting pauses for 0.1 s between its tries: another process that writes all the time leaves it no gap.
_TRY_AGAIN_S = 0.001
_pause, _clock = time.sleep, time.monotonic
_RESERVED_READ_S = 3.0

# The driver looks for an adapter of every value that is neither a number nor text, and finds out slowly that it has none:
# for a row of purchases that took as long as a third of SQLite's own work.
sqlite3.register_adapter(bytes, bytes.__bytes__)
sqlite3.register_adapter(bool, int)
sqlite3.register_adapter(type(None), lambda nothing: nothing)

_OF_THE_WORK = (sqlite3.IntegrityError, sqlite3.DataError, sqlite3.ProgrammingError, sqlite3.InterfaceError)
"""Errors of a value or a statement, not of the database."""


def _is_of_the_work(error: BaseException) -> bool:
    return isinstance(error.orig if isinstance(error, DBAPIError) else error, _OF_THE_WORK)


class SqliteDatabase:
    """One SQLite file in WAL mode; every commit is on the disk when it returns (``synchronous=FULL``).

    Several processes may share the file on one machine. Not for network file systems, whose locks are not reliable.
    """

    def __init__(self, path: Path, locks: OwnerLocks, owner: str, busy_timeout_s: float) -> None:
        self._locks = locks
        self.owner = owner
        self._busy_timeout_s = busy_timeout_s
        self._write_engine = _engine(path, busy_timeout_s, begin="BEGIN IMMEDIATE")
        self._read_engine = _engine(path, busy_timeout_s, begin="BEGIN")
        self._file = JournalFile(path)
        # Both from files beside the journal.
        self.secret = b""
        self.replaced: str | None = None
        self._write_connection: Connection | None = None
        self._readers = (_Reader(self._read_engine, self._file), _Reader(self._read_engine, self._file))
        self._writer = DatabaseThread("journal-writer")
        self._reader = DatabaseThread("journal-reader")
        # Started by the first reserved read: commands do none.
        self._reserved_reader: DatabaseThread | None = None

    @classmethod
    async def open(cls, path: Path, *, busy_timeout_s: float) -> "SqliteDatabase":
        """Open the file, making it and its folder where they are missing.

        Raises:
            DatabaseUnavailable: it cannot be opened.
            TooNew: its tables are of a newer gateway.
        """
        owner = secrets.token_hex(8)
        locks = OwnerLocks(path.with_name(f"{path.name}.owners"), owner)
        database = cls(path, locks, owner, busy_timeout_s)
        try:
            await database._writer.run(lambda: database._prepare(path))
        except BaseException:
            await database.close()
            raise
        return database

    @property
    def trouble(self) -> str | None:
        """Why the last check found another file than the one that was opened."""
        return self._file.trouble

    async def write(self, work: Work[T]) -> T:
        """Run the work in one durable transaction."""
        return await self._writer.run(lambda: self._write(work))

    async def read(self, work: Work[T]) -> T:
        """Run the work on one consistent view."""
        return await self._reader.run(lambda: self._readers[0].read(work), unless_left=True)

    async def read_reserved(self, work: Work[T]) -> T:
        """Run the work on one consistent view, in a thread and on a connection of its own."""
        if self._reserved_reader is None:
            self._reserved_reader = DatabaseThread("journal-reserved-reader")
        read = self._reserved_reader.run(lambda: self._readers[1].read(work), unless_left=True)
        try:
            async with asyncio.timeout(_RESERVED_READ_S):
                return await read
        except TimeoutError as error:
            raise DatabaseUnavailable("the database does not answer in time") from error

    def is_gone(self, connection: Connection, owner: str) -> bool:  # noqa: ARG002 - PostgreSQL needs the connection
        """Return whether the process of that name has ended."""
        return self._locks.is_gone(owner)

    def may_be_gone(self, owner: str) -> bool:  # noqa: ARG002 - PostgreSQL needs it
        """Return False: the system drops a file's lock with its process alone, so one look is enough."""
        return False

    async def keep_alive(self) -> bool:
        """Return False: the lock is held for as long as the process lives."""
        return False

    def forget_gone(self) -> None:
        """Remove the lock files of processes that have ended."""
        self._locks.forget_gone()

    async def close(self) -> None:
        """Finish the work under way, and close the file."""
        for worker, reader in zip((self._reader, self._reserved_reader), self._readers, strict=True):
            if worker is not None:
                with suppress(DatabaseUnavailable):
                    await worker.run(reader.drop)
                await worker.close(_CLOSE_TIMEOUT_S)
        with suppress(DatabaseUnavailable):
            await self._writer.run(self._drop_writer)
        await self._writer.close(_CLOSE_TIMEOUT_S)
        self._locks.drop()

    def _prepare(self, path: Path) -> None:
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            with _alone(path.with_name(f"{path.name}.start")):
                identity = self._write(_migrated)
                self._file.opened()
                self.secret = read_secret(path)
                self.replaced = why_replaced(path, identity)
            self._locks.hold()
        except OSError as error:
            raise DatabaseUnavailable(os.strerror(error.errno or 0).lower()) from error

    def _write(self, work: Work[T]) -> T:
        self._file.check()
        try:
            is_new = self._write_connection is None
            if self._write_connection is None:
                self._write_connection = self._write_engine.connect()
                # The lock is waited for in ``_begin_write``.
                _driver_of(self._write_connection).execute("PRAGMA busy_timeout=0")
            try:
                with _Transaction(self._write_connection, self._begin_write):
                    if is_new:
                        self._file.connected(self)
                    return work(self._write_connection)
            except (DatabaseError, sqlite3.DatabaseError) as error:
                if not _is_of_the_work(error):
                    # After a full disk or an I/O error only a new connection is sure to work.
                    self._drop_writer()
                raise
        except (OSError, DBAPIError, sqlite3.Error) as error:
            if (unavailable := _as_unavailable(error)) is None:
                raise
            raise unavailable from error

    def _begin_write(self, driver: sqlite3.Connection) -> None:
        """Wait for the write lock for as long as it may take."""
        ends_at = _clock() + self._busy_timeout_s
        while True:
            try:
                driver.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or _clock() >= ends_at:
                    raise
                _pause(_TRY_AGAIN_S)
            else:
                return

    def _drop_writer(self) -> None:
        connection, self._write_connection = self._write_connection, None
        self._file.disconnected(self)
        _close(connection)


class _Reader:
    """A connection that one thread reads through."""

    def __init__(self, engine: Engine, file: JournalFile) -> None:
        self._engine = engine
        self._file = file
        self._connection: Connection | None = None
        self._has_read = False

    def read(self, work: Work[T]) -> T:
        self._file.check()
        try:
            if self._connection is None:
                self._connection = self._engine.connect()
            try:
                with _Transaction(self._connection, _begin_read):
                    result = work(self._connection)
                    if not self._has_read:
                        # The first statement opens the files beside the journal, not the connection.
                        self._has_read = True
                        self._file.connected(self)
                    return result
            except (DatabaseError, sqlite3.DatabaseError):
                self.drop()
                raise
        except (OSError, DBAPIError, sqlite3.Error) as error:
            if (unavailable := _as_unavailable(error)) is None:
                raise
            raise unavailable from error

    def drop(self) -> None:
        connection, self._connection = self._connection, None
        self._has_read = False
        self._file.disconnected(self)
        _close(connection)


def _migrated(connection: Connection) -> bytes:
    if not is_current(connection):
        migrate(connection)
    return journal_id(connection)


def _close(connection: Connection | None) -> None:
    if connection is not None:
        with suppress(DatabaseError, sqlite3.DatabaseError):
            connection.close()


def _engine(path: Path, busy_timeout_s: float, *, begin: str) -> Engine:
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        poolclass=NullPool,
        connect_args={
            "timeout": busy_timeout_s,
            # Transactions are begun explicitly: the driver's own begin too late to keep other processes out.
            "isolation_level": None,
            # One thread uses it; another may close it when the first hangs.
            "check_same_thread": False,
            "cached_statements": 256,
        },
        hide_parameters=True,
    )

    @event.listens_for(engine, "connect")
    def configure(connection: sqlite3.Connection, _entry: ConnectionPoolEntry) -> None:
        connection.execute("PRAGMA journal_mode=WAL").close()
        connection.execute("PRAGMA synchronous=FULL").close()
        connection.execute("PRAGMA foreign_keys=ON").close()

    @event.listens_for(engine, "begin")
    def begin_transaction(connection: Connection) -> None:
        # By the driver itself: begun a thousand times a second. A writer has begun already.
        driver = connection.connection
        if not driver.in_transaction:
            driver.cursor().execute(begin)

    return engine


def _driver_of(connection: Connection) -> sqlite3.Connection:
    return cast("sqlite3.Connection", connection.connection)


def _begin_read(driver: sqlite3.Connection) -> None:
    driver.execute("BEGIN")


class _Transaction:
    """A block in one transaction of the driver: SQLAlchemy's own takes as long as a short statement.

    SQLAlchemy begins its own inside it where a statement goes through it, and ends it with this one.
    """

    __slots__ = ("_begin", "_connection", "_driver")

    def __init__(self, connection: Connection, begin: Callable[[sqlite3.Connection], None]) -> None:
        self._connection = connection
        self._begin = begin
        self._driver = _driver_of(connection)

    def __enter__(self) -> None:
        self._begin(self._driver)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is None:
                if self._connection.in_transaction():
                    self._connection.commit()
                else:
                    self._driver.commit()
                return
        except BaseException:
            self._roll_back()
            raise
        self._roll_back()

    def _roll_back(self) -> None:
        self._connection.rollback()
        self._driver.rollback()


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keep other starting processes out: turning on WAL and creating tables do not wait for each other by themselves."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _as_unavailable(error: OSError | DBAPIError | sqlite3.Error) -> DatabaseUnavailable | None:
    """Return ``DatabaseUnavailable`` for an error of SQLite or the disk that means it; None for one of the work."""
    if isinstance(error, OSError):
        return DatabaseUnavailable(os.strerror(error.errno or 0).lower())
    if _is_of_the_work(error):
        return None
    return DatabaseUnavailable(str(error.orig if isinstance(error, DBAPIError) else error))
