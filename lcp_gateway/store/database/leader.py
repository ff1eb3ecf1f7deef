"""Leader election among the gateways on a database, by a lock that the system drops when its process ends."""

import asyncio
import fcntl
import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from sqlalchemy import BigInteger, Connection, bindparam, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from lcp_gateway.store.database.engines import Database, DatabaseUnavailable
from lcp_gateway.store.database.postgres_sessions import as_unavailable, set_after_connecting

# Shorter than the server takes to end a session: a leader that no longer reaches it stops before another begins.
_ANSWER_S: Final = 3.0
_SESSION = {
    # The session of a machine that vanished ends after ten seconds, that of a process that ended at once.
    "tcp_keepalives_idle": "4",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
}
_TAKE = text("SELECT pg_try_advisory_lock(:key)").bindparams(bindparam("key", type_=BigInteger))
# Asked of the server's own table, so that a pooler which swapped the session is noticed.
_HAS = text(
    "SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory' AND granted"
    " AND pid = pg_backend_pid() AND objsubid = 1"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    " AND (classid::bigint << 32) | objid::bigint = :key"
).bindparams(bindparam("key", type_=BigInteger))


class Leadership:
    """The lead for one task, which at most one of the gateways on a database has.

    A process has it until it releases it or ends; then the next process that tries takes it. On SQLite it is a lock on
    a file beside the database, on PostgreSQL a lock of a session of its own, whose loss loses the lead.
    """

    def __init__(self, database: Database, name: str) -> None:
        """``name`` is that of the task: ASCII letters."""
        if not (name.isascii() and name.isalpha()):
            raise ValueError("the name must be ASCII letters")
        self._database = database
        self._name = name
        self._lock: _FileLock | _SessionLock | None = None
        self._one_at_a_time = asyncio.Lock()

    async def try_lead(self) -> bool:
        """Take the lead if it is free; return whether this process has it.

        The first call after the lead was lost returns False as well, so that the work of a leader ends.

        Raises:
            DatabaseUnavailable: the lock cannot be checked; this process does not lead.
        """
        async with self._one_at_a_time:
            if self._lock is None:
                self._lock = await self._lock_of_database()
            return await self._lock.has() if self._lock.is_held else await self._lock.take()

    async def still_leading(self) -> bool:
        """Return whether this process has the lead; never take it."""
        async with self._one_at_a_time:
            return self._lock is not None and self._lock.is_held and await self._lock.has()

    async def release(self) -> None:
        """Release the lead, so that another process can take it at once."""
        async with self._one_at_a_time:
            if self._lock is not None:
                await self._lock.drop()

    async def _lock_of_database(self) -> "_FileLock | _SessionLock":
        url = await self._database.read(_url_of)
        if url.get_backend_name() == "sqlite":
            path = Path(url.database or "")
            return _FileLock(path.with_name(f"{path.name}.leader-{self._name}"))
        return _SessionLock(url, _key_of(self._name))


class _FileLock:
    """A lock on a file of its own. The file stays: a file that is deleted and created again could be locked twice.

    ``take`` raises ``DatabaseUnavailable`` where it cannot be checked.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None

    @property
    def is_held(self) -> bool:
        return self._file is not None

    async def take(self) -> bool:
        try:
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise DatabaseUnavailable(os.strerror(error.errno or 0).lower()) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(file)
            if isinstance(error, BlockingIOError):
                return False
            raise DatabaseUnavailable(os.strerror(error.errno or 0).lower()) from error
        self._file = file
        # Another process may have deleted the file between the two steps.
        return await self.has()

    async def has(self) -> bool:
        """Return whether the lock is on the file that others would lock."""
        if self._file is None:
            return False
        with suppress(OSError):
            if os.path.samestat(os.fstat(self._file), self._path.stat()):
                return True
        await self.drop()
        return False

    async def drop(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            os.close(file)


class _SessionLock:
    """An advisory lock of a session that does nothing else. Without the lock the session waits for the next try.

    ``take`` raises ``DatabaseUnavailable`` where it cannot be checked; a check in ``has`` that fails loses the lock.
    """

    def __init__(self, url: URL, key: int) -> None:
        self._key = key
        self._engine: AsyncEngine = create_async_engine(
            url,
            poolclass=NullPool,
            # No transaction: between two checks the session is idle, and does not keep the server from cleaning up.
            isolation_level="AUTOCOMMIT",
            connect_args={"timeout": _ANSWER_S, "server_settings": {"application_name": "lcp-gateway leader"}},
            hide_parameters=True,
        )
        set_after_connecting(self._engine, _SESSION)
        self._session: AsyncConnection | None = None
        self.is_held = False

    async def take(self) -> bool:
        try:
            async with asyncio.timeout(_ANSWER_S):
                if self._session is None:
                    self._session = await self._engine.connect()
                self.is_held = bool((await self._session.execute(_TAKE, {"key": self._key})).scalar_one())
        except BaseException as error:
            # Also where it was cancelled in the middle: the server may have granted the lock.
            await self.drop()
            if as_unavailable(error) is None:
                raise
            raise DatabaseUnavailable("the database does not answer which gateway leads") from error
        return self.is_held

    async def has(self) -> bool:
        if self._session is None or not self.is_held:
            return False
        try:
            async with asyncio.timeout(_ANSWER_S):
                found = await self._session.execute(_HAS, {"key": self._key})
                self.is_held = bool(found.scalar_one())
        except BaseException as error:
            await self.drop()
            if as_unavailable(error) is None:
                raise
        if not self.is_held:
            await self.drop()
        return self.is_held

    async def drop(self) -> None:
        session, self._session = self._session, None
        self.is_held = False
        if session is not None:
            with suppress(SQLAlchemyError, OSError):
                # Ends the session at once, in any state, and releases its lock.
                await session.invalidate()
            with suppress(SQLAlchemyError, OSError):
                await session.close()


def _url_of(connection: Connection) -> URL:
    return connection.engine.url


def _key_of(name: str) -> int:
    """Return the signed 64 bits of an advisory lock: the hash of the task's name."""
    return int.from_bytes(hashlib.sha256(f"lcp-gateway leader {name}".encode()).digest()[:8], signed=True)
