"""One SQLite file and the thread that reads and writes it: what waits is committed together, with one sync of the disk."""

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeVar
from urllib.parse import quote

from lcp_gateway.node.storage.files import DatabaseFile, RecordDamaged, StoreUnavailable
from lcp_gateway.node.storage.schema import check_file, migrate

T = TypeVar("T")

Work = Callable[[sqlite3.Connection], T]

_MOST_TOGETHER: Final = 256
_BUSY_TIMEOUT_S: Final = 5.0
_CLOSE_TIMEOUT_S: Final = 10.0
_JOURNAL_BYTES: Final = 64 * 1024 * 1024
"""What a write-ahead log that grew in a burst is cut back to."""


@dataclass(slots=True)
class _Job:
    work: Work[Any]
    durable: bool
    loop: asyncio.AbstractEventLoop
    done: "asyncio.Future[Any]"
    result: Any = None
    error: BaseException | None = None


class Database:
    """A database that one node has open. Every work is committed when it returns.

    A work that is ``durable`` outlives a loss of power; any other the end of the process, at a tenth of the cost. A work does all
    that can fail (encoding, encryption) before its first statement.
    """

    def __init__(self, path: Path) -> None:
        self._file = DatabaseFile(path)
        self._connection: sqlite3.Connection | None = None
        self._synchronous = ""
        self._closed = False
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        # A daemon, so that a disk which hangs cannot keep the process from ending.
        self._thread = threading.Thread(target=self._serve, name="node-store", daemon=True)

    @property
    def path(self) -> Path:
        """The database's file."""
        return self._file.path

    async def open(self) -> None:
        """Lock the file, make it where it is missing, and bring its tables to this version.

        Raises:
            StoreUnavailable: it cannot be opened, another node uses it, it is damaged or of a newer program.
        """
        self._thread.start()
        try:
            await asyncio.to_thread(self._prepare)
        except BaseException:
            await self.close()
            raise

    async def run(self, work: Work[T], *, durable: bool = False) -> T:
        """Run a work, and return its result once it is committed. Cancelling the caller does not stop it.

        Raises:
            StoreUnavailable: it was not committed.
        """
        if self._closed:
            raise StoreUnavailable(f"{self.path}: the database is closed")
        loop = asyncio.get_running_loop()
        job = _Job(work, durable, loop, loop.create_future())
        self._jobs.put(job)
        result: T = await job.done
        return result

    async def close(self) -> None:
        """Finish what waits, and close the file."""
        self._closed = True
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join, _CLOSE_TIMEOUT_S)
        self._file.unlock()

    def _prepare(self) -> None:
        self._file.lock()
        path = self._file.path
        try:
            if not path.exists():
                made = self._file.new_file()
                with closing(connect(made)) as connection:
                    connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
                    connection.execute("PRAGMA synchronous=FULL")
                    migrate(connection)
                self._file.install(made)
            with closing(connect(path)) as connection:
                check_file(connection)
                connection.execute("PRAGMA journal_mode=WAL")
                migrate(connection)
                # What a burst of long requests took is given back here: while the node runs it is used again.
                connection.executescript("PRAGMA incremental_vacuum")
                self._file.opened()
        except StoreUnavailable as error:
            raise error if str(path) in str(error) else StoreUnavailable(f"{path}: {error}") from error
        except RecordDamaged as error:
            raise damaged(path, str(error)) from error
        except sqlite3.Error as error:
            raise unavailable(path, error) from error
        except OSError as error:
            raise StoreUnavailable(f"{path}: {error.strerror}") from error

    def _serve(self) -> None:
        while (job := self._jobs.get()) is not None:
            together, last = [job], False
            with suppress(queue.Empty):
                while len(together) < _MOST_TOGETHER:
                    if (another := self._jobs.get_nowait()) is None:
                        last = True
                        break
                    together.append(another)
            self._commit(together)
            for one in together:
                with suppress(RuntimeError):
                    # Raised by a loop that is closed: no caller waits any more.
                    one.loop.call_soon_threadsafe(_report, one)
            del job, together
            if last:
                break
        self._drop()

    def _commit(self, together: list[_Job]) -> None:
        """Run some works in one transaction. Where the database fails, none of them is committed."""
        try:
            self._file.check()
            connection = self._connected(durable=any(job.durable for job in together))
            connection.execute("BEGIN IMMEDIATE")
            for job in together:
                try:
                    job.result = job.work(connection)
                except sqlite3.Error:
                    raise
                except Exception as error:  # noqa: BLE001 - every error is the caller's
                    job.error = error
            connection.execute("COMMIT")
        except (sqlite3.Error, OSError) as error:
            # After a full disk or an I/O error only a new connection is sure to work.
            self._drop()
            failed = unavailable(self.path, error) if isinstance(error, sqlite3.Error) else error
            for job in together:
                job.error = job.error or failed

    def _connected(self, *, durable: bool) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = connect(self.path)
            self._connection.execute("PRAGMA foreign_keys=ON")
            self._connection.execute(f"PRAGMA journal_size_limit={_JOURNAL_BYTES}")
            self._synchronous = ""
        synchronous = "FULL" if durable else "NORMAL"
        if synchronous != self._synchronous:
            self._connection.execute(f"PRAGMA synchronous={synchronous}")
            self._synchronous = synchronous
        return self._connection

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()


def _report(job: _Job) -> None:
    if job.done.done():
        return
    if job.error is not None:
        job.done.set_exception(job.error)
    else:
        job.done.set_result(job.result)


def connect(path: Path, mode: Literal["ro", "rw"] = "rw") -> sqlite3.Connection:
    """Open a file that is there. One thread at a time uses the connection."""
    return sqlite3.connect(
        f"file:{quote(str(path))}?mode={mode}",
        uri=True,
        timeout=_BUSY_TIMEOUT_S,
        isolation_level=None,
        check_same_thread=False,
    )


_DAMAGED: Final = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def unavailable(path: Path, error: sqlite3.Error) -> StoreUnavailable:
    """Return the error of a database that failed."""
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:
        # The driver's own: its text would quote the value.
        return damaged(path, "a value has another type")
    if code & 0xFF in _DAMAGED:
        return damaged(path, str(error))
    return StoreUnavailable(f"{path}: {error}")


def damaged(path: Path, problem: str) -> StoreUnavailable:
    """Return the error of a database that does not hold what was written."""
    return StoreUnavailable(
        f"{path}: damaged ({problem}): restore a backup, or move the file away to begin with an empty one; the Lightning node "
        "still knows the payments"
    )
