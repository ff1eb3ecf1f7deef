"""Statements of the repositories: compiled once for the journal, and the ways in which rows are read and listed.

SQLAlchemy prepares each row of parameters, and each list of an ``IN``, again at each call, which for the journal's
short rows takes several times as long as SQLite needs for them. So the journal's statements are compiled once and then
handed to the driver as they are: their values are plain integers, text and bytes, which every driver takes and returns
as they are.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import (
    BindParameter,
    Column,
    ColumnElement,
    Connection,
    Dialect,
    RowMapping,
    Select,
    Table,
    and_,
    bindparam,
    or_,
    select,
)
from sqlalchemy.sql.dml import UpdateBase

from lcp_gateway.accounts.models import Listing
from lcp_gateway.store.database.engines import Database

if TYPE_CHECKING:
    from sqlalchemy.dialects.postgresql import Insert as PostgresInsert
    from sqlalchemy.dialects.sqlite import Insert as SqliteInsert

T = TypeVar("T")

MAX_ROWS = 1_000
"""The most that one call returns of a list."""

_CHEAP = "sqlite"
"""A dialect whose statements take less time than SQLAlchemy's own work on them: its driver is called directly."""

Row = Mapping[str, Any]
"""The parameters of one row, by name."""

Parameters = Sequence[Sequence[BindParameter[Any]]]
"""The parameters of each list of a query."""
AnySelect = Select[*tuple[Any, ...]]
Query = Callable[[Parameters], AnySelect]


def insert_for(connection: Connection, into: Table) -> "SqliteInsert | PostgresInsert":
    """Return an insert of the connection's dialect, which knows ``on_conflict_…``; the other dialect is not loaded."""
    if connection.dialect.name == _CHEAP:
        from sqlalchemy.dialects.sqlite import insert  # noqa: PLC0415 - see above

        return insert(into)
    from sqlalchemy.dialects.postgresql import insert as insert_postgres  # noqa: PLC0415 - see above

    return insert_postgres(into)


def execute_many(connection: Connection, statement: UpdateBase, rows: Sequence[Row]) -> None:
    """Execute a statement of the module's own constants for each row; all rows have the same names."""
    sql, values_of = _compiled(statement, connection.dialect, tuple(rows[0]))
    values = [values_of(row) for row in rows]
    if connection.dialect.name == _CHEAP:
        connection.connection.cursor().executemany(sql, values)
    else:
        connection.exec_driver_sql(sql, values)


def execute_in(connection: Connection, query: Query, *lists: Sequence[Any]) -> Sequence[Sequence[Any]]:
    """Execute a query, a function of the module's own, whose lists have one value at least; return all rows."""
    # Few lengths, so that few texts are made; the last value again does not change what is found.
    padded = [[*values, *[values[-1]] * (_length(len(values)) - len(values))] for values in lists]
    sql, places = _compiled_in(query, connection.dialect, tuple(len(values) for values in padded))
    values = tuple([padded[which][at] for which, at in places])
    if connection.dialect.name == _CHEAP:
        cursor = connection.connection.cursor()
        cursor.execute(sql, values)
        return cursor.fetchall()
    return connection.exec_driver_sql(sql, values).all()


def _length(needed: int) -> int:
    return 1 << (needed - 1).bit_length()


@lru_cache(maxsize=64)
def _compiled(
    statement: UpdateBase, dialect: Dialect, names: tuple[str, ...]
) -> tuple[str, Callable[[Row], tuple[Any, ...]]]:
    compiled = statement.compile(dialect=dialect, column_keys=list(names))
    places = tuple(compiled.positiontup or ())
    if len(places) == 1:
        # An itemgetter of one name returns no tuple.
        return compiled.string, lambda row: (row[places[0]],)
    return compiled.string, itemgetter(*places)


@lru_cache(maxsize=256)
def _compiled_in(query: Query, dialect: Dialect, lengths: tuple[int, ...]) -> tuple[str, tuple[tuple[int, int], ...]]:
    places = {f"p{which}_{at}": (which, at) for which, length in enumerate(lengths) for at in range(length)}
    parameters: list[list[BindParameter[Any]]] = [[] for _ in lengths]
    for name, (which, _) in places.items():
        parameters[which].append(bindparam(name))
    compiled = query(parameters).compile(dialect=dialect)
    return compiled.string, tuple(places[name] for name in compiled.positiontup or ())


def read_records(connection: Connection, query: AnySelect, record: Callable[[RowMapping], T]) -> list[T]:
    """Return the rows of a query as records."""
    return [record(row) for row in connection.execute(query).mappings()]


async def fetch(database: Database, query: AnySelect, record: Callable[[RowMapping], T]) -> list[T]:
    """Return the rows of a query as records, in a transaction of its own."""
    return await database.read(lambda connection: read_records(connection, query, record))


async def fetch_one(database: Database, query: AnySelect, record: Callable[[RowMapping], T]) -> T | None:
    """Return the one row that a query can find, or None."""
    found = await fetch(database, query, record)
    return found[0] if found else None


async def fetch_page(
    database: Database, query: AnySelect, record: Callable[[RowMapping], T], limit: int, place: Callable[[T], str]
) -> Listing[T]:
    """Return at most ``limit`` records, no more than ``MAX_ROWS``, and the place of the last where more follow."""
    limit = max(1, min(limit, MAX_ROWS))
    found = await fetch(database, query.limit(limit + 1), record)
    return Listing(found[:limit], place(found[limit - 1]) if len(found) > limit else None)


def newest_first(query: AnySelect, time: Column[int], key: Column[Any], after: object = None) -> AnySelect:
    """Order a query by time and key, the newest first, from behind the row with the key ``after`` on."""
    if after is not None:
        at = select(time).where(key == after).scalar_subquery()
        query = query.where(follows(time, key, at, after))
    return query.order_by(time.desc(), key.desc())


def follows(time: Column[int], key: Column[Any], at: Any, after: object) -> ColumnElement[bool]:
    """Return the condition of the rows behind the one with this time and key, the newest first."""
    return or_(time < at, and_(time == at, key < after))
