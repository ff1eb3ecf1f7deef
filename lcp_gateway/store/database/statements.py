"""Statements that are compiled once and then handed to the driver as they are.

SQLAlchemy prepares each row of parameters, and each list of an ``IN``, anew at each call, which for the journal's short
rows takes several times as long as SQLite needs for them. The values here are plain integers, text and bytes, which
every driver takes and gives as they are.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Any

from sqlalchemy import BindParameter, Connection, Dialect, Select, bindparam
from sqlalchemy.sql.dml import UpdateBase

_CHEAP = "sqlite"
"""Where a statement takes less time than SQLAlchemy's care of it: such a driver is called, and fails, directly."""

Row = Mapping[str, Any]
"""The parameters of one row, by name."""

Query = Callable[[Sequence[Sequence[BindParameter[Any]]]], Select[*tuple[Any, ...]]]
"""Makes a query from the parameters of each of its lists."""


def execute_many(connection: Connection, statement: UpdateBase, rows: Sequence[Row]) -> None:
    """Execute a statement of the module's own constants for each row; all rows have the same names."""
    sql, values_of = _compiled(statement, connection.dialect, tuple(rows[0]))
    values = [values_of(row) for row in rows]
    if connection.dialect.name == _CHEAP:
        connection.connection.cursor().executemany(sql, values)
    else:
        connection.exec_driver_sql(sql, values)


def execute_in(
    connection: Connection, query: Query, *lists: Sequence[Any]
) -> Sequence[Sequence[Any]]:
    """Execute a query, a function of the module's own, whose lists have one value at least; gives all rows."""
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
        # Of one name an itemgetter gives no tuple.
        return compiled.string, lambda row: (row[places[0]],)
    return compiled.string, itemgetter(*places)


@lru_cache(maxsize=256)
def _compiled_in(
    query: Query, dialect: Dialect, lengths: tuple[int, ...]
) -> tuple[str, tuple[tuple[int, int], ...]]:
    places = {
        f"p{which}_{at}": (which, at)
        for which, length in enumerate(lengths)
        for at in range(length)
    }
    parameters: list[list[BindParameter[Any]]] = [[] for _ in lengths]
    for name, (which, _) in places.items():
        parameters[which].append(bindparam(name))
    compiled = query(parameters).compile(dialect=dialect)
    return compiled.string, tuple(places[name] for name in compiled.positiontup or ())
