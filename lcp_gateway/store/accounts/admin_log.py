"""What administrators did: written with the act itself, and changed by nobody."""

import json
from datetime import datetime

from sqlalchemy import Connection, insert, select

from lcp_gateway.accounts.models import AdminAction, Listing
from lcp_gateway.store.database.engines import Database
from lcp_gateway.store.database.schema import admin_log
from lcp_gateway.store.database.times import from_micros, to_micros

_MOST = 1_000


def write_act(
    connection: Connection,
    at: datetime,
    actor: str,
    action: str,
    target: str,
    **detail: str | int | list[str] | None,
) -> None:
    """Write an act down, in the transaction that does it. No name and no secret may stand in the detail."""
    row = {"at": to_micros(at), "actor": actor, "action": action, "target": target}
    connection.execute(
        insert(admin_log).inline().values(**row, detail=json.dumps(detail, sort_keys=True))
    )


class AdminLog:
    """The list of what administrators did. Every method raises ``DatabaseUnavailable``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(
        self,
        action: str,
        target: str,
        *,
        actor: str,
        at: datetime,
        **detail: str | int | list[str] | None,
    ) -> None:
        """Write down what was done outside of the store, ``target`` being what it was done to."""
        await self._database.write(
            lambda connection: write_act(connection, at, actor, action, target, **detail)
        )

    async def page(self, *, limit: int = 100, after: str | None = None) -> Listing[AdminAction]:
        """Give what was done, the newest first, at most 1,000 at a time.

        Raises:
            ValueError: ``after`` is not what a listing gave.
        """
        limit = max(1, min(limit, _MOST))
        query = select(admin_log).order_by(admin_log.c.id.desc()).limit(limit + 1)
        if after is not None:
            query = query.where(admin_log.c.id < int(after))

        def work(connection: Connection) -> list[AdminAction]:
            return [
                AdminAction(
                    row["id"],
                    from_micros(row["at"]),
                    row["actor"],
                    row["action"],
                    row["target"],
                    json.loads(row["detail"]),
                )
                for row in connection.execute(query).mappings()
            ]

        found = await self._database.read(work)
        more = len(found) > limit
        return Listing(found[:limit], str(found[limit - 1].id) if more else None)
