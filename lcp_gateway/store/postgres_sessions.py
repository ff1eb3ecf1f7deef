"""Sessions of PostgreSQL, also behind a pooler such as PgBouncer: their settings, and the proof that each is one's own.

The store needs sessions that last: their advisory locks show which process lives and which leads. A pooler that hands each
transaction to another session looks the same until a lock is missed, so this is found out at the start.
"""

import secrets
from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import event
from sqlalchemy.engine import URL
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.ext.asyncio import AsyncEngine

from lcp_gateway.store.engine import BadDatabaseUrl

_SHARED: Final = (
    "the journal's address leads to a pooler that shares sessions between clients (pool_mode transaction or statement): "
    "set pool_mode = session for this database in pgbouncer.ini, or name PostgreSQL itself"
)
_MARK: Final = "lcp_gateway.session"
_IS_SHARED: Final = "LCP01"
_PROTOCOL_VIOLATION: Final = "08P01"
_NO_BLOCKS: Final = "transaction blocks not allowed"
_UNSUPPORTED: Final = "unsupported startup parameter"
_OTHERS: Final = 2


def set_after_connecting(engine: AsyncEngine, settings: Mapping[str, str]) -> None:
    """Have each connection of an engine begin with these settings of its session.

    They are not sent with the start of the connection, where a pooler refuses all that it does not know.
    """
    values = ", ".join(
        f"set_config('{name}', '{value}', false)" for name, value in settings.items()
    )

    def apply(connection: DBAPIConnection, _record: object) -> None:
        cursor = connection.cursor()
        try:
            cursor.execute(f"SELECT {values}")
        finally:
            cursor.close()
        connection.commit()

    event.listen(engine.sync_engine, "connect", apply)


async def check_sessions_are_own(engine: AsyncEngine, url: URL, timeout_s: float) -> None:
    """Find out whether a pooler hands the same session to several clients.

    One client marks its session. It is shared if another client finds the mark, or if the first does not find it again while
    others are in the middle of a transaction. Only plain statements are sent: prepared ones would fail on the way.

    Raises:
        BadDatabaseUrl: sessions are shared, or the pooler refuses what every client sends.
    """
    import asyncpg  # type: ignore[import-untyped]  # noqa: PLC0415 - loaded for PostgreSQL only, an optional extra

    positional, named = engine.dialect.create_connect_args(url)
    # What SQLAlchemy's own layer over the driver takes out again.
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
            # Not closed in good order, which a pooler in trouble would not answer.
            client.terminate()


def _raise_where(comparison: str, mark: str) -> str:
    return (
        f"DO $$ BEGIN IF current_setting('{_MARK}', true) {comparison} '{mark}' "
        f"THEN RAISE EXCEPTION 'shared' USING ERRCODE = '{_IS_SHARED}'; END IF; END $$"
    )
