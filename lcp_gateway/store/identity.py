"""Which journal a database holds: 16 random bytes that it got with its tables, and on a server the secret for repeat keys."""

from sqlalchemy import Connection, bindparam, select

from lcp_gateway.store.tables import journal_identity

_VALUE = select(journal_identity.c.value).where(journal_identity.c.name == bindparam("of_name"))


def journal_id(connection: Connection) -> bytes:
    """Return the id of the journal."""
    return _value(connection, "id")


def repeat_secret(connection: Connection) -> bytes:
    """Return the secret that the gateways on one server hash repeat keys with."""
    return _value(connection, "secret")


def _value(connection: Connection, name: str) -> bytes:
    value: bytes = connection.execute(_VALUE, {"of_name": name}).scalar_one()
    return value
