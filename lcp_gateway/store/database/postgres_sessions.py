"""Sessions of PostgreSQL, also behind a pooler such as PgBouncer: their settings, their errors, and the proof that each is one's own.

The store needs sessions that last: their advisory locks show which process lives and which leads. A pooler that hands each
transaction to another session looks the same until a lock is missed, so this is found out at the start.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Final

from sqlalchemy import event
from sqlalchemy.engine import URL
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError, PendingRollbackError, ResourceClosedError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from lcp_gateway.store.database.engines import BadDatabaseUrl, DatabaseUnavailable

_SHARED: Final = (
    "the journal's address leads to a pooler that shares sessions between clients (pool_mode transaction or statement): "
    "set pool_mode = session for this database in pgbouncer.ini, or name PostgreSQL itself"
)
_OF_THE_WORK = ("22", "23", "42")
"""Classes of SQLSTATE that are errors of the work itself: data, constraints, statements."""

_OF_THE_DRIVER = "asyncpg"
"""The package whose own errors SQLAlchemy does not always wrap, such as those of a server that is full."""

_MARK: Final = "lcp_gateway.session"
_IS_SHARED: Final = "LCP01"
_PROTOCOL_VIOLATION: Final = "08P01"
_NO_BLOCKS: Final = "transaction blocks not allowed"
_UNSUPPORTED: Final = "unsupported startup parameter"
_OTHERS: Final = 2


def set_after_connecting(engine: AsyncEngine, settings: Mapping[str, str]) -> None:
    """Apply settings to the session of each new connection of an engine.

    They are not sent with the start of the connection, where a pooler refuses all that it does not know.
    """
    values = ", ".join(f"set_config('{name}', '{value}', false)" for name, value in settings.items())

    def apply(connection: DBAPIConnection, _record: object) -> None:
        cursor = connection.cursor()
        try:
            cursor.execute(f"SELECT {values}")
        finally:
            cursor.close()
        connection.commit()

    event.listen(engine.sync_engine, "connect", apply)


async def check_sessions_are_own(engine: AsyncEngine, url: URL, timeout_s: float) -> None:
    """Check that no pooler hands the same session to several clients.

    One client marks its session. It is shared if another client finds the mark, or if the first does not find it again while
    others are in the middle of a transaction. Only plain statements are sent: prepared ones would fail on the way.

    Raises:
        BadDatabaseUrl: sessions are shared, or the pooler refuses what every client sends.
    """
    import asyncpg  # type: ignore[import-untyped]  # noqa: PLC0415 - loaded for PostgreSQL only, an optional extra

    positional, named = engine.dialect.create_connect_args(url)
    # Arguments of SQLAlchemy's layer over the driver, which the driver itself does not take.
    named = {name: value for name, value in named.items() if not name.startswith("prepared_")}
    mark = secrets.token_hex(16)
    clients: list[Any] = []
    try:
        for _ in range(_OTHERS + 1):
            clients.append(await asyncpg.connect(*positional, timeout=timeout_s, **named))  # noqa: PERF401 - those that were opened are closed
        marked, *others = clients
        await marked.execute(f"SELECT set_config('{_MARK}', '{mark}', false)", timeout=timeout_s)
        for other in others:
            await other.execute("BEGIN", timeout=timeout_s)
            await other.execute(_raise_where("=", mark), timeout=timeout_s)
            await marked.execute(_raise_where("IS DISTINCT FROM", mark), timeout=timeout_s)
    except asyncpg.PostgresError as error:
        if error.sqlstate == _IS_SHARED or _NO_BLOCKS in str(error):
            raise BadDatabaseUrl(_SHARED) from None
        if error.sqlstate == _PROTOCOL_VIOLATION and _UNSUPPORTED in str(error):
            parameter = str(error).rpartition(":")[2].strip()
            raise BadDatabaseUrl(
                f"the pooler refuses a parameter of the connection: add {parameter} to "
                "ignore_startup_parameters in pgbouncer.ini"
            ) from None
        raise
    finally:
        for client in clients:
            # Not closed in order, which a pooler in trouble would not answer.
            client.terminate()


def _raise_where(comparison: str, mark: str) -> str:
    return (
        f"DO $$ BEGIN IF current_setting('{_MARK}', true) {comparison} '{mark}' "
        f"THEN RAISE EXCEPTION 'shared' USING ERRCODE = '{_IS_SHARED}'; END IF; END $$"
    )


class Session:
    """A connection that is opened when it is needed, and replaced after an error that may have broken it."""

    def __init__(self, engine: AsyncEngine, prepare: Callable[[AsyncConnection], Awaitable[None]]) -> None:
        """``prepare`` is awaited with each new connection."""
        self._engine = engine
        self._prepare = prepare
        self._connection: AsyncConnection | None = None

    async def connected(self) -> AsyncConnection:
        """Return the connection."""
        if self._connection is None:
            self._connection = await self._engine.connect()
            try:
                await self._prepare(self._connection)
            except BaseException:
                # It leads to another database, or has not got its lock: it may not be used.
                await self.drop()
                raise
        return self._connection

    async def clean_up(self, error: BaseException, timeout_s: float) -> None:
        """Roll back after an error of the work; after any other, drop the session."""
        if self._connection is None:
            return
        if as_unavailable(error) is None and isinstance(error, Exception):
            try:
                async with asyncio.timeout(timeout_s):
                    await self._connection.rollback()
            except Exception as problem:
                await self.drop()
                if as_unavailable(problem) is None:
                    raise
        else:
            await self.drop()

    async def drop(self) -> None:
        """Close the connection in any state, which releases its locks."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await end_session(connection)
            with suppress(SQLAlchemyError, OSError):
                await connection.close()


def as_unavailable(error: BaseException, *, unsure: bool = False) -> DatabaseUnavailable | None:
    """Return the error of the store that an error means; None where it is one of the work itself.

    The one place that knows how PostgreSQL, its driver and SQLAlchemy's pool report that the database is unavailable.
    """
    reason = _reason(error)
    return None if reason is None else DatabaseUnavailable(reason, unsure=unsure)


def _reason(error: BaseException) -> str | None:
    if isinstance(error, PoolTimeoutError):
        return "every connection of the database is busy"
    if isinstance(error, PendingRollbackError | ResourceClosedError):
        # A connection was used after it was lost.
        return "the connection was lost"
    if isinstance(error, DBAPIError):
        if error.connection_invalidated:
            return "the connection was lost"
        return _reason_of_driver(error.orig)
    if isinstance(error, TimeoutError):
        return "the database does not answer in time"
    if isinstance(error, OSError | EOFError):
        return "the database cannot be reached"
    if type(error).__module__.partition(".")[0] == _OF_THE_DRIVER:
        return _reason_of_driver(error)
    return None


def _reason_of_driver(error: BaseException | None) -> str | None:
    state: str | None = getattr(error, "sqlstate", None)
    if state is None:
        # The driver's own: the connection is closed, or out of step with the server.
        return "the connection was lost"
    if state[:2] in _OF_THE_WORK:
        return None
    return f"SQLSTATE {state}"


@contextmanager
def one_error() -> Iterator[None]:
    """Raise ``DatabaseUnavailable`` for every error of the server, the driver and the pool that means it."""
    try:
        yield
    except Exception as error:
        unavailable = as_unavailable(error)
        if unavailable is None:
            raise
        raise unavailable from error


async def end_session(connection: AsyncConnection) -> None:
    """End a session at once; the server rolls its transaction back."""
    with suppress(SQLAlchemyError, OSError):
        await connection.invalidate()
