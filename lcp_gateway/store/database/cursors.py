"""Named positions that only grow: how far a node's settlements were followed, the number of the last change of a key."""

from sqlalchemy import Connection, bindparam, select, update

from lcp_gateway.store.database.schema import watch_state
from lcp_gateway.store.database.statements import insert_for

KEYS = "keys"
"""The number of the last change of a key."""
WITHDRAWALS = "withdrawals"
"""The number of transactions that began to pay a withdrawal; taking the next one makes them wait for each other."""
REPEAT_KEYS = "repeat_keys"
"""The time of the last purchase whose repeat key was looked at and removed if it was too old."""

_NEXT = (
    update(watch_state)
    .where(watch_state.c.name == bindparam("of_name"))
    .values(position=watch_state.c.position + 1)
    .returning(watch_state.c.position)
)
_ADVANCE = (
    update(watch_state)
    .where(watch_state.c.name == bindparam("of_name"), watch_state.c.position < bindparam("to_number"))
    .values(position=bindparam("to_number"))
)
_RESTART = update(watch_state).where(watch_state.c.name == bindparam("of_name")).values(position=0)
_GET = select(watch_state.c.position).where(watch_state.c.name == bindparam("of_name"))


def settlements_of(node_id: str) -> str:
    """Return the name of the position up to which the settlements of a node were followed."""
    return f"settled:{node_id}"


def payments_of(node_id: str) -> str:
    """Return the name of the position up to which the payments of a node were read."""
    return f"payments:{node_id}"


def get(connection: Connection, name: str) -> int:
    """Return a position; 0 at the beginning."""
    return connection.execute(_GET, {"of_name": name}).scalar() or 0


def take_next(connection: Connection, name: str) -> int:
    """Return the next number. Another transaction that takes one waits for this one: numbers become visible in order."""
    _make(connection, name)
    number: int = connection.execute(_NEXT, {"of_name": name}).scalar_one()
    return number


def advance(connection: Connection, name: str, number: int) -> None:
    """Move a position on; it never goes back."""
    _make(connection, name)
    connection.execute(_ADVANCE, {"of_name": name, "to_number": number})


def restart(connection: Connection, name: str) -> None:
    """Set a position back to the beginning."""
    connection.execute(_RESTART, {"of_name": name})


def _make(connection: Connection, name: str) -> None:
    statement = insert_for(connection, watch_state).on_conflict_do_nothing()
    connection.execute(statement, {"name": name, "position": 0})
