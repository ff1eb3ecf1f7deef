"""Opens a database by its address, and brings its tables up to date."""

from pathlib import Path

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from lcp_gateway.store.database import GONE_AFTER_S, Database


class BadDatabaseUrl(ValueError):
    """The address names no database that the store can use. The message holds no password."""


async def open_database(
    where: str | Path,
    *,
    busy_timeout_s: float = 2.0,
    write_timeout_s: float = 5.0,
    gone_after_s: float = GONE_AFTER_S,
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
        # Imported where chosen: each kind brings a driver along that the other does not need.
        from lcp_gateway.store.sqlite import SqliteDatabase  # noqa: PLC0415 - see above

        return await SqliteDatabase.open(address, busy_timeout_s=busy_timeout_s)
    from lcp_gateway.store.postgres import PostgresDatabase  # noqa: PLC0415 - see above

    try:
        return await PostgresDatabase.open(
            address,
            busy_timeout_s=busy_timeout_s,
            write_timeout_s=write_timeout_s,
            gone_after_s=gone_after_s,
        )
    except ModuleNotFoundError as error:
        raise BadDatabaseUrl(
            "a journal on PostgreSQL needs its driver: install lcp-gateway[postgres]"
        ) from error


def _parsed(where: str) -> Path | URL:
    if "://" not in where:
        return Path(where)
    try:
        url = make_url(where)
    except ArgumentError:
        raise BadDatabaseUrl("the journal's address is no database URL") from None
    match url.get_backend_name():
        case "sqlite" if url.database and url.database != ":memory:":
            return Path(url.database)
        case "sqlite":
            raise BadDatabaseUrl("a journal in memory forgets what it is for: give a file")
        case "postgresql" | "postgres":
            return _for_asyncpg(url)
        case other:
            raise BadDatabaseUrl(f"the journal can be sqlite or postgresql, not {other}")


def _for_asyncpg(url: URL) -> URL:
    url = url.set(drivername="postgresql+asyncpg")
    # The name that every other PostgreSQL client knows; this driver has another for the same values.
    mode = url.query.get("sslmode")
    if mode is None:
        return url
    return url.difference_update_query(["sslmode"]).update_query_dict({"ssl": mode})
