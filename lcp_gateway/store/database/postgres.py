"""PostgreSQL through asyncpg: one session that writes and holds the lock of a live process, three that read, one for urgent reads."""

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, TypeVar

from sqlalchemy import BigInteger, Connection, bindparam, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import NoResultFound, ProgrammingError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from lcp_gateway.store.database.engines import GONE_AFTER_S, DatabaseUnavailable, Work
from lcp_gateway.store.database.postgres_sessions import (
    Session,
    as_unavailable,
    check_sessions_are_own,
    end_session,
    one_error,
    set_after_connecting,
)
from lcp_gateway.store.database.schema import is_current, journal_id, migrate, repeat_secret

_MOST_BETWEEN_LOOKS_S: Final = 5.0
_WATCHED_S: Final = 120.0
_MOST_WATCHED: Final = 256


@dataclass(slots=True)
class _Absence:
    free_since: float
    looked_at: float
    asked_at: float


class Absences:
    """The owners whose locks were found free, and since when.

    An owner is gone once every look at its lock found it free for ``gone_after_s``. The looks have to be close to each
    other, and on one session: while the server cannot be asked, the owner cannot take its lock again either.
    """

    def __init__(self, gone_after_s: float = GONE_AFTER_S, clock: Callable[[], float] = time.monotonic) -> None:
        """``clock`` is a monotonic clock in seconds."""
        self._gone_after_s = gone_after_s
        self._clock = clock
        self._absent: dict[str, _Absence] = {}

    def found_free(self, owner: str, *, asked: bool = True) -> bool:
        """Record a look that found the lock free; return whether the owner counts as gone.

        ``asked`` keeps the owner watched for a while.
        """
        now = self._clock()
        found = self._absent.get(owner)
        if found is None:
            self._make_room()
            found = self._absent[owner] = _Absence(now, now, now)
        elif now - found.looked_at > _MOST_BETWEEN_LOOKS_S:
            found.free_since = now
        found.looked_at = now
        if asked:
            found.asked_at = now
        return now - found.free_since >= self._gone_after_s

    def found_held(self, owner: str) -> None:
        """Record a look that found the lock held: the owner lives."""
        self._absent.pop(owner, None)

    def is_watched(self, owner: str) -> bool:
        """Return whether the owner's lock was free at the last look."""
        return owner in self._absent

    def to_look_at(self) -> Sequence[str]:
        """Return the owners to be looked at again, so that no look is too long after the last."""
        now = self._clock()
        for owner in [owner for owner, found in self._absent.items() if now - found.asked_at > _WATCHED_S]:
            del self._absent[owner]
        return tuple(self._absent)

    def begin_again(self) -> None:
        """Restart the times: the session that looked was lost, and those of the owners may have been, too."""
        now = self._clock()
        for found in self._absent.values():
            found.free_since = found.looked_at = now

    def _make_room(self) -> None:
        # The owner that was asked about the longest time ago.
        while len(self._absent) >= _MOST_WATCHED:
            del self._absent[min(self._absent, key=lambda owner: self._absent[owner].asked_at)]


T = TypeVar("T")

# Shared, so that a new session of a live process gets it while the server has not ended the broken one.
_HOLD = text("SELECT pg_advisory_lock_shared(:key)").bindparams(bindparam("key", type_=BigInteger))
_IS_FREE = text("SELECT pg_try_advisory_xact_lock(:key)").bindparams(bindparam("key", type_=BigInteger))
# Held by its owner, or waited for: another gateway that looks takes the lock in another mode.
_IS_SHOWN = text(
    "SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ShareLock' AND objsubid = 1"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    " AND (classid::bigint << 32) | objid::bigint = :key"
).bindparams(bindparam("key", type_=BigInteger))
_NOTHING = text("SELECT 1")
_START = text("SELECT pg_advisory_xact_lock(:key)").bindparams(bindparam("key", type_=BigInteger))
_START_KEY = 0x6C63705F67617465  # "lcp_gate"
_LONG_LOCK_TIMEOUT = text("SET LOCAL lock_timeout = '60s'")
_NO_IDLE_TIMEOUT = text("SET LOCAL idle_in_transaction_session_timeout = 0")
_DURABLE = text(
    "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
)

_READERS = 3
_QUICK_S = 1.0
_RESERVED_READ_S = 3.0
_SNAPSHOT = text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
_IS_OURS = "lcp_gateway.is_ours"
"""The mark on a session that was found to lead to the journal that was opened."""
_ANOTHER = "another database answers at its address"


class PostgresDatabase:
    """One PostgreSQL database, which any number of gateways may share.

    Needs sessions of its own: a pooler that hands each transaction to another session would lose the lock that shows a
    live process, and is refused at the start.
    """

    def __init__(self, url: URL, *, busy_timeout_s: float, write_timeout_s: float, gone_after_s: float) -> None:
        self.owner = secrets.token_hex(8)
        self._write_timeout_s = write_timeout_s
        self._absences = Absences(gone_after_s)
        self._shown = 0
        self._seen_shown = 1
        settings = {
            # The locks of a machine that vanished are free after a minute.
            "tcp_keepalives_idle": "30",
            "tcp_keepalives_interval": "10",
            "tcp_keepalives_count": "3",
            "lock_timeout": f"{int(busy_timeout_s * 1000)}ms",
            "idle_in_transaction_session_timeout": f"{int(write_timeout_s * 4000)}ms",
        }
        arguments = {"timeout": write_timeout_s, "server_settings": {"application_name": "lcp-gateway"}}
        self._write_engine = create_async_engine(url, poolclass=NullPool, connect_args=arguments, hide_parameters=True)
        self._read_engine = create_async_engine(
            url,
            pool_size=_READERS,
            max_overflow=0,
            pool_timeout=write_timeout_s,
            pool_pre_ping=True,
            connect_args={**arguments, "command_timeout": 60.0},
            hide_parameters=True,
        )
        for engine in (self._write_engine, self._read_engine):
            set_after_connecting(engine, settings)
        self._writer = Session(self._write_engine, self._sign_of_life)
        self._reserved = Session(self._write_engine, self._check_session)
        self._journal_id: bytes | None = None
        # Kept in the database: all gateways on it need the same.
        self.secret = b""
        self.trouble: str | None = None
        # Nothing outside of the database records which one it was.
        self.replaced: str | None = None
        self._one_at_a_time = asyncio.Lock()
        self._one_reserved = asyncio.Lock()

    @classmethod
    async def open(
        cls, url: URL, *, busy_timeout_s: float, write_timeout_s: float, gone_after_s: float = GONE_AFTER_S
    ) -> "PostgresDatabase":
        """Connect, and bring the tables up to date.

        ``gone_after_s`` is how long the lock of another owner has to be free before it counts as gone.

        Raises:
            BadDatabaseUrl: it leads to a pooler that shares sessions between its clients.
            DatabaseUnavailable: it cannot be reached.
            TooNew: its tables are of a newer gateway.
        """
        database = cls(url, busy_timeout_s=busy_timeout_s, write_timeout_s=write_timeout_s, gone_after_s=gone_after_s)
        try:
            with one_error():
                await check_sessions_are_own(database._write_engine, url, write_timeout_s)
            if not await database.read(is_current):
                await database._migrate()
            # Takes the owner's lock before anything is written under this process's name.
            await database.write(lambda _connection: None)
            database.secret = await database.read(repeat_secret)
            database._journal_id = await database.read(journal_id)
        except BaseException:
            await database.close()
            raise
        return database

    async def write(self, work: Work[T]) -> T:
        """Run the work in one durable transaction."""
        async with self._one_at_a_time:
            committing = False
            try:
                async with asyncio.timeout(self._write_timeout_s):
                    connection = await self._writer.connected()
                    transaction = await connection.begin()
                    result = await connection.run_sync(work)
                    committing = True
                    await transaction.commit()
                    return result
            except BaseException as error:
                await self._writer.clean_up(error, self._write_timeout_s)
                unavailable = as_unavailable(error, unsure=committing)
                if unavailable is None:
                    raise
                raise unavailable from error

    async def read(self, work: Work[T]) -> T:
        """Run the work on one consistent view."""
        with one_error():
            connection = await self._read_engine.connect()
            try:
                await connection.execute(_SNAPSHOT)
                if _IS_OURS not in connection.info:
                    await self._check_identity(connection)
                    connection.info[_IS_OURS] = True
                return await connection.run_sync(work)
            except BaseException as error:
                if not isinstance(error, Exception) or as_unavailable(error) is not None:
                    # Cancelled in the middle, or broken: a rollback could take as long as the read itself.
                    await end_session(connection)
                raise
            finally:
                await connection.close()

    async def read_reserved(self, work: Work[T]) -> T:
        """Run the work on one consistent view, in a session of its own."""
        with one_error():
            async with asyncio.timeout(_RESERVED_READ_S), self._one_reserved:
                try:
                    connection = await self._reserved.connected()
                    async with connection.begin():
                        await connection.execute(_SNAPSHOT)
                        return await connection.run_sync(work)
                except BaseException as error:
                    await self._reserved.clean_up(error, _RESERVED_READ_S)
                    raise

    def is_gone(self, connection: Connection, owner: str) -> bool:
        """Return whether the process of that name has ended: its lock was free for long enough, and is.

        The lock is taken until the commit, so that the process cannot come back in between.
        """
        return owner != self.owner and self._look(connection, owner, asked=True)

    def may_be_gone(self, owner: str) -> bool:
        """Return whether its lock was free at the last look."""
        return self._absences.is_watched(owner)

    def _look(self, connection: Connection, owner: str, *, asked: bool) -> bool:
        key = {"key": _lock_key(owner)}
        if connection.execute(_IS_FREE, key).scalar_one():
            return self._absences.found_free(owner, asked=asked)
        if self.may_be_gone(owner) and connection.execute(_IS_SHOWN, key).scalar_one():
            self._absences.found_held(owner)
        return False

    async def keep_alive(self) -> bool:
        """Take a lost session's lock again, and look at the owners whose locks were free."""

        def beat(connection: Connection) -> None:
            connection.execute(_NOTHING)
            for owner in self._absences.to_look_at():
                self._look(connection, owner, asked=False)

        begun = time.monotonic()
        try:
            await self.write(beat)
        except DatabaseUnavailable:
            if time.monotonic() - begun > _QUICK_S:
                raise
            # The loss of the session was noticed, and a new one may connect at once.
            await self.write(beat)
        was_lost = self._shown > self._seen_shown
        self._seen_shown = self._shown
        return was_lost

    def forget_gone(self) -> None:
        """Do nothing: the server drops the locks itself."""

    async def close(self) -> None:
        """Close every session."""
        async with self._one_at_a_time:
            await self._writer.drop()
        async with self._one_reserved:
            await self._reserved.drop()
        for engine in (self._write_engine, self._read_engine):
            await _dispose(engine)

    async def _sign_of_life(self, connection: AsyncConnection) -> None:
        await self._check_identity(connection)
        await connection.execute(_HOLD, {"key": _lock_key(self.owner)})
        await connection.execute(_DURABLE)
        await connection.commit()
        self._shown += 1
        self._absences.begin_again()

    async def _check_session(self, connection: AsyncConnection) -> None:
        await self._check_identity(connection)
        await connection.commit()

    async def _check_identity(self, connection: AsyncConnection) -> None:
        """Compare the journal that a new session finds with the one that was opened.

        Raises:
            DatabaseUnavailable: it is another one.
        """
        if self._journal_id is None:
            return
        try:
            found = await connection.run_sync(journal_id)
        except (ProgrammingError, NoResultFound):
            found = b""
        self.trouble = None if found == self._journal_id else _ANOTHER
        if self.trouble is not None:
            raise DatabaseUnavailable(self.trouble)

    async def _migrate(self) -> None:
        def one_after_the_other(connection: Connection) -> None:
            # Another process may be at it, which takes longer than any other lock is waited for.
            connection.execute(_LONG_LOCK_TIMEOUT)
            # Between two steps the program may work for as long as the machine lets it.
            connection.execute(_NO_IDLE_TIMEOUT)
            connection.execute(_START, {"key": _START_KEY})
            migrate(connection)

        with one_error():
            async with self._read_engine.begin() as connection:
                await connection.run_sync(one_after_the_other)


def _lock_key(owner: str) -> int:
    """Return an owner's 16 hexadecimal digits as the signed 64 bits of an advisory lock."""
    return int.from_bytes(bytes.fromhex(owner), signed=True)


async def _dispose(engine: AsyncEngine) -> None:
    with suppress(SQLAlchemyError, OSError):
        await engine.dispose()
