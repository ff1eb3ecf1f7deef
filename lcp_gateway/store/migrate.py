"""Brings the tables to the version that this program knows, and costs one look where they are there already."""

import re

from sqlalchemy import Connection, Text, column, inspect, select, table

from lcp_gateway.store.tables import HEAD

_VERSIONS = select(column("version_num", Text)).select_from(table("alembic_version"))
_A_STEP = re.compile(r"\d{4}")


class TooNew(RuntimeError):
    """The database was written by a newer gateway, whose tables this one does not understand."""

    def __init__(self, found: str) -> None:
        super().__init__(
            f"the journal's tables are of version {found}, this gateway knows {HEAD}: "
            "run the newer gateway, or point this one at another journal"
        )


def is_current(connection: Connection) -> bool:
    """Tell whether there is nothing to do. Imports no Alembic, which takes longer than the rest of the start.

    Raises:
        TooNew: the tables are of a version that this program does not know.
    """
    if not inspect(connection).has_table("alembic_version"):
        return False
    found = connection.execute(_VERSIONS).scalar()
    if found is None or found == HEAD:
        return found == HEAD
    if not _A_STEP.fullmatch(found) or found > HEAD:
        raise TooNew(found)
    return False


def migrate(connection: Connection) -> None:
    """Apply the missing steps in the transaction that is open; the caller keeps other processes out meanwhile.

    Raises:
        TooNew: the tables are of a version that this program does not know.
    """
    if is_current(connection):
        return
    from alembic import command  # noqa: PLC0415 - costs half a second, and is hardly ever needed
    from alembic.config import Config  # noqa: PLC0415 - the same

    config = Config()
    config.set_main_option("script_location", "lcp_gateway.store:migrations")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
