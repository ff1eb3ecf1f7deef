"""The admin log: the actions of administrators, each written in the transaction of the action and never changed."""

import json
from datetime import datetime

from sqlalchemy import Connection, RowMapping, insert, select

from lcp_gateway.accounts.models import AdminAction, Listing
from lcp_gateway.store.database.engines import Database
from lcp_gateway.store.database.schema import admin_log
from lcp_gateway.store.database.statements import fetch_page
from lcp_gateway.store.database.times import from_micros, to_micros


def write_admin_action(
    connection: Connection, at: datetime, actor: str, action: str, target: str, **detail: str | int | list[str] | None
) -> None:
    """Insert an entry in the transaction of the action. ``detail`` may hold no name and no secret."""
    row = {"at": to_micros(at), "actor": actor, "action": action, "target": target}
    connection.execute(insert(admin_log).inline().values(**row, detail=json.dumps(detail, sort_keys=True)))


class AdminLog:
    """The repository of the log. Every method raises ``DatabaseUnavailable``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(
        self, action: str, target: str, *, actor: str, at: datetime, **detail: str | int | list[str] | None
    ) -> None:
        """Record an action outside of the store; ``target`` is the object it was done to."""
        await self._database.write(
            lambda connection: write_admin_action(connection, at, actor, action, target, **detail)
        )

    async def page(self, *, limit: int = 100, after: str | None = None) -> Listing[AdminAction]:
        """Return entries, the newest first.

        Raises:
            ValueError: ``after`` is not that of a listing.
        """
        query = select(admin_log).order_by(admin_log.c.id.desc())
        if after is not None:
            query = query.where(admin_log.c.id < int(after))
        return await fetch_page(self._database, query, _action, limit, lambda last: str(last.id))


def _action(row: RowMapping) -> AdminAction:
    return AdminAction(
        row["id"], from_micros(row["at"]), row["actor"], row["action"], row["target"], json.loads(row["detail"])
    )
