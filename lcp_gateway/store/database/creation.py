"""The tables of a new database, made at once: the same as all migrations make, without loading Alembic.

Alembic takes 8 MiB and half a second, which each new gateway would keep for its whole life. A test holds the two ways equal.
"""

import secrets
from typing import Final

from sqlalchemy import Column, Connection, MetaData, PrimaryKeyConstraint, String, Table, insert, text

from lcp_gateway.store.database.schema import APPEND_ONLY, HEAD, journal_identity, metadata

_ID_BYTES: Final = 16
_SECRET_BYTES: Final = 32

# As Alembic makes it.
_VERSION = Table(
    "alembic_version",
    MetaData(),
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)


def create_tables(connection: Connection) -> None:
    """Create all tables, and the rows that they begin with, in the transaction that is open."""
    is_sqlite = connection.dialect.name == "sqlite"
    tables = metadata if is_sqlite else _with_conditions_of_indexes()
    tables.create_all(connection, checkfirst=False)
    for table in APPEND_ONLY:
        for statement in _guards(table, is_sqlite=is_sqlite):
            connection.execute(text(statement))
    rows = [{"name": "id", "value": secrets.token_bytes(_ID_BYTES)}]
    if not is_sqlite:
        # A SQLite journal keeps its secret in a file beside it.
        rows.append({"name": "secret", "value": secrets.token_bytes(_SECRET_BYTES)})
    connection.execute(insert(journal_identity), rows)
    _VERSION.create(connection)
    connection.execute(insert(_VERSION), {"version_num": HEAD})


def _with_conditions_of_indexes() -> MetaData:
    """Return a copy of the tables whose partial indexes have their conditions on PostgreSQL too."""
    copied = MetaData()
    for table in metadata.sorted_tables:
        for index in table.to_metadata(copied).indexes:
            if (condition := index.dialect_options["sqlite"]["where"]) is not None:
                index.dialect_options["postgresql"]["where"] = condition
    return copied


def _guards(table: str, *, is_sqlite: bool) -> list[str]:
    """Return the statements after which no row of a table can be changed or deleted; its name is one of the schema's."""
    if is_sqlite:
        return [
            f"CREATE TRIGGER {table}_no_{what} BEFORE {what.upper()} ON {table}"
            f" BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
            for what in ("update", "delete")
        ]
    return [
        (
            f"CREATE FUNCTION {table}_append_only() RETURNS trigger LANGUAGE plpgsql AS"
            f" $$ BEGIN RAISE EXCEPTION '{table} is append-only' USING ERRCODE = 'integrity_constraint_violation'; END $$"
        ),
        (
            f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table}"
            f" FOR EACH STATEMENT EXECUTE FUNCTION {table}_append_only()"
        ),
    ]
