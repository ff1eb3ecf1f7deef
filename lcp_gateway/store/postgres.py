"""PostgreSQL through asyncpg: one session that writes and shows that this process lives, a few that read."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

from sqlalchemy import BigInteger, Connection, bindparam, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from lcp_gateway.store.database import DatabaseUnavailable, Work
from lcp_gateway.store.migrate import is_current, migrate

T = TypeVar("T")

# Shared, so that a new session of a live process is let in while the server still believes in its broken one.
_HOLD = text("SELECT pg_advisory_lock_shared(:key)").bindparams(bindparam("key", type_=BigInteger))
_IS_GONE = text("SELECT pg_try_advisory_xact_lock(:key)").bindparams(
    bindparam("key", type_=BigInteger)
)
_START = text("SELECT pg_advisory_xact_lock(:key)").bindparams(bindparam("key", type_=BigInteger))
_START_KEY = 0x6C63705F67617465  # "lcp_gate"
_PATIENCE = text("SET LOCAL lock_timeout = '60s'")
_DURABLE = text(
    "SELECT set_config('synchronous_commit', 'on', false)"
    " WHERE current_setting('synchronous_commit') = 'off'"
)

_OF_THE_WORK = ("22", "23", "42")
"""Classes of SQLSTATE that speak of the work itself: data, constraints, statements."""

_READERS = 3


class PostgresDatabase:
    """One PostgreSQL database, which any number of gateways may share.

    Needs sessions of its own: a pooler that hands each transaction to another session would lose the sign of life.
    """

    def __init__(self, url: URL, *, busy_timeout_s: float, write_timeout_s: float) -> None:
        self._owner = secrets.token_hex(8)
        self._write_timeout_s = write_timeout_s
        settings = {
            "application_name": "lcp-gateway",
            # A machine that vanished lets go of its signs of life after a minute.
            "tcp_keepalives_idle": "30",
            "tcp_keepalives_interval": "10",
            "tcp_keepalives_count": "3",
            "lock_timeout": f"{int(busy_timeout_s * 1000)}ms",
            "idle_in_transaction_session_timeout": f"{int(write_timeout_s * 4000)}ms",
        }
        arguments = {"timeout": write_timeout_s, "server_settings": settings}
        self._write_engine = create_async_engine(
            url, poolclass=NullPool, connect_args=arguments, hide_parameters=True
        )
        self._read_engine = create_async_engine(
            url,
            pool_size=_READERS,
            max_overflow=0,
            pool_timeout=write_timeout_s,
            pool_pre_ping=True,
            connect_args={**arguments, "command_timeout": 60.0},
            hide_parameters=True,
        )
        self._writer: AsyncConnection | None = None
        self._one_at_a_time = asyncio.Lock()

    @classmethod
    async def open(
        cls, url: URL, *, busy_timeout_s: float, write_timeout_s: float
    ) -> "PostgresDatabase":
        """Connect, and bring the tables up to date.

        Raises:
            DatabaseUnavailable: it cannot be reached.
            TooNew: its tables are of a newer gateway.
        """
        database = cls(url, busy_timeout_s=busy_timeout_s, write_timeout_s=write_timeout_s)
        try:
            if not await database.read(is_current):
                await database._migrate()
            # Takes the sign of life before anything is written under this process's name.
            await database.write(lambda _connection: None)
        except BaseException:
            await database.close()
            raise
        return database

    @property
    def owner(self) -> str:
        """The name of this process in the journal."""
        return self._owner

    async def write(self, work: Work[T]) -> T:
        """Do it in one durable transaction."""
        async with self._one_at_a_time:
            committing = False
            try:
                async with asyncio.timeout(self._write_timeout_s):
                    connection = await self._connected()
                    transaction = await connection.begin()
                    result = await connection.run_sync(work)
                    committing = True
                    await transaction.commit()
                    return result
            except BaseException as error:
                await self._clean_up(error)
                unavailable = _unavailable(error, unsure=committing)
                if unavailable is None:
                    raise
                raise unavailable from error

    async def read(self, work: Work[T]) -> T:
        """Do it on one consistent view."""
        async with (
            _words_of_ours(),
            self._read_engine.connect() as connection,
            connection.begin(),
        ):
            await connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
            return await connection.run_sync(work)

    def is_gone(self, connection: Connection, owner: str) -> bool:
        """Tell whether the process of that name has ended: nobody holds its lock. Lets go of it at the commit."""
        if owner == self._owner:
            return False
        return bool(connection.execute(_IS_GONE, {"key": _lock_key(owner)}).scalar_one())

    def forget_gone(self) -> None:
        """Nothing is left over: the server drops the locks itself."""

    async def close(self) -> None:
        """Let go of every session."""
        async with self._one_at_a_time:
            await self._drop_writer()
        for engine in (self._write_engine, self._read_engine):
            await _dispose(engine)

    async def _connected(self) -> AsyncConnection:
        if self._writer is None:
            self._writer = await self._write_engine.connect()
            await self._writer.execute(_HOLD, {"key": _lock_key(self._owner)})
            await self._writer.execute(_DURABLE)
            await self._writer.commit()
        return self._writer

    async def _migrate(self) -> None:
        def one_after_the_other(connection: Connection) -> None:
            # Another process may be at it, which takes longer than any other lock is waited for.
            connection.execute(_PATIENCE)
            connection.execute(_START, {"key": _START_KEY})
            migrate(connection)

        async with _words_of_ours(), self._read_engine.begin() as connection:
            await connection.run_sync(one_after_the_other)

    async def _clean_up(self, error: BaseException) -> None:
        """Roll back where the session is whole; after anything else than an error of the work, take a new one."""
        if self._writer is None:
            return
        if _unavailable(error, unsure=False) is None and isinstance(error, Exception):
            try:
                async with asyncio.timeout(self._write_timeout_s):
                    await self._writer.rollback()
            except (SQLAlchemyError, OSError):
                await self._drop_writer()
        else:
            await self._drop_writer()

    async def _drop_writer(self) -> None:
        connection, self._writer = self._writer, None
        if connection is not None:
            with suppress(SQLAlchemyError, OSError):
                # Ends the session at once, whatever state it is in, and its locks with it.
                await connection.invalidate()
            with suppress(SQLAlchemyError, OSError):
                await connection.close()


def _lock_key(owner: str) -> int:
    """Give the owner's 16 hexadecimal digits as the signed 64 bits that an advisory lock takes."""
    return int.from_bytes(bytes.fromhex(owner), signed=True)


def _unavailable(error: BaseException, *, unsure: bool) -> DatabaseUnavailable | None:
    """Give what an error means for the store; None where it is one of the work itself."""
    if isinstance(error, DBAPIError):
        state: str | None = getattr(error.orig, "sqlstate", None)
        if not error.connection_invalidated and (state is None or state[:2] in _OF_THE_WORK):
            return None
        reason = f"SQLSTATE {state}" if state else "the connection was lost"
        return DatabaseUnavailable(reason, unsure=unsure)
    if isinstance(error, TimeoutError):
        return DatabaseUnavailable("the database does not answer in time", unsure=unsure)
    if isinstance(error, OSError):
        return DatabaseUnavailable("the database cannot be reached", unsure=unsure)
    return None


@asynccontextmanager
async def _words_of_ours() -> AsyncIterator[None]:
    try:
        yield
    except (SQLAlchemyError, OSError) as error:
        unavailable = _unavailable(error, unsure=False)
        if unavailable is None:
            raise
        raise unavailable from error


async def _dispose(engine: AsyncEngine) -> None:
    with suppress(SQLAlchemyError, OSError):
        await engine.dispose()
