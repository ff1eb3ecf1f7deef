"""How far something has come: numbers that grow, one row for each."""

from sqlalchemy import Connection, bindparam, select, update
from sqlalchemy.dialects import postgresql, sqlite

from lcp_gateway.store.database.schema import watch_state

KEYS = "keys"
"""The last change of a key."""
REPEAT_KEYS = "repeat_keys"
"""The time of the last purchase whose repeat key was looked at and removed if it was too old."""

_MAKE = {
    "sqlite": sqlite.insert(watch_state).on_conflict_do_nothing(),
    "postgresql": postgresql.insert(watch_state).on_conflict_do_nothing(),
}
_NEXT = (
    update(watch_state)
    .where(watch_state.c.name == bindparam("of_name"))
    .values(position=watch_state.c.position + 1)
    .returning(watch_state.c.position)
)
_ADVANCE = (
    update(watch_state)
    .where(
        watch_state.c.name == bindparam("of_name"), watch_state.c.position < bindparam("to_number")
    )
    .values(position=bindparam("to_number"))
)
_RESTART = update(watch_state).where(watch_state.c.name == bindparam("of_name")).values(position=0)
_GET = select(watch_state.c.position).where(watch_state.c.name == bindparam("of_name"))


def settlements_of(node_id: str) -> str:
    """Give the name under which it is kept how far the settlements of a node were followed."""
    return f"settled:{node_id}"


def payments_of(node_id: str) -> str:
    """Return the name under which it is kept how far the payments of a node were read."""
    return f"payments:{node_id}"


def get(connection: Connection, name: str) -> int:
    """Give how far it has come; 0 at the beginning."""
    return connection.execute(_GET, {"of_name": name}).scalar() or 0


def take_next(connection: Connection, name: str) -> int:
    """Give the next number. Whoever else wants one waits for this transaction: numbers become visible in order."""
    _make(connection, name)
    number: int = connection.execute(_NEXT, {"of_name": name}).scalar_one()
    return number


def advance(connection: Connection, name: str, number: int) -> None:
    """Say that it has come so far; never goes back."""
    _make(connection, name)
    connection.execute(_ADVANCE, {"of_name": name, "to_number": number})


def restart(connection: Connection, name: str) -> None:
    """Begin anew: what is counted there counts from the beginning again."""
    connection.execute(_RESTART, {"of_name": name})


def _make(connection: Connection, name: str) -> None:
    connection.execute(_MAKE[connection.dialect.name], {"name": name, "position": 0})
