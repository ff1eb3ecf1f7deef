"""Nodes that belong to accounts: recorded when they connect, with the operator's terms and what they earned."""

from datetime import datetime
from typing import Final

from sqlalchemy import Connection, RowMapping, bindparam, func, insert, select, update

from lcp_gateway.accounts.models import Listing, check_text
from lcp_gateway.accounts.nodes import Earned, EarningLine, NodeNotFound, NodeRecord, NodeTaken, TooManyNodes
from lcp_gateway.purchase.money import Msat
from lcp_gateway.purchase.states import State
from lcp_gateway.store.accounts.accounts import check_lives
from lcp_gateway.store.accounts.admin_log import write_admin_action
from lcp_gateway.store.database.engines import Database
from lcp_gateway.store.database.schema import nodes, purchases
from lcp_gateway.store.database.statements import fetch, fetch_one, fetch_page, newest_first
from lcp_gateway.store.database.times import from_micros, from_micros_or_none, to_micros

_EARNED = (
    select(
        purchases.c.payee_id,
        purchases.c.peer_id,
        func.count().label("delivered"),
        func.sum(purchases.c.earned_msat).label("earned_msat"),
        func.sum(purchases.c.price_msat).label("price_msat"),
    )
    .where(purchases.c.payee_id.is_not(None), purchases.c.state == State.DELIVERED.value)
    .group_by(purchases.c.payee_id, purchases.c.peer_id)
)

MOST_NODES: Final = 1_000
"""The nodes of one account: each name that a node connects under is a row that every gateway keeps in memory."""

_OF_ACCOUNT = select(func.count()).select_from(nodes).where(nodes.c.account_id == bindparam("of_account"))
_LINE = (purchases.c.job_id, purchases.c.model, purchases.c.price_msat, purchases.c.earned_msat, purchases.c.ended_at)


class Nodes:
    """The repository of accounts' nodes. Every method raises ``DatabaseUnavailable``; ``actor`` is named in the admin log."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def connected(self, node_id: str, account_id: str, key_id: str, name: str, at: datetime) -> NodeRecord:
        """Record that a node connects, the first time or again, and return it.

        Raises:
            AccountNotFound: there is no such account.
            NodeTaken: another account has a node of this id.
            TooManyNodes: the account has as many as it may.
        """
        micros = to_micros(at)

        def work(connection: Connection) -> NodeRecord:
            check_lives(connection, account_id)
            known = _find(connection, node_id)
            if known is None:
                if connection.execute(_OF_ACCOUNT, {"of_account": account_id}).scalar_one() >= MOST_NODES:
                    raise TooManyNodes(MOST_NODES)
                values = {"account_id": account_id, "name": name, "created_at": micros}
                connection.execute(insert(nodes).values(id=node_id, key_id=key_id, connected_at=micros, **values))
            elif known.account_id != account_id:
                raise NodeTaken
            else:
                connection.execute(
                    update(nodes).where(nodes.c.id == node_id).values(key_id=key_id, connected_at=micros, name=name)
                )
            return _one(connection, node_id)

        return await self._database.write(work)

    async def set(
        self,
        node_id: str,
        *,
        reason: str,
        actor: str,
        at: datetime,
        commission_ppm: int | None = None,
        frozen: bool | None = None,
    ) -> NodeRecord:
        """Change a node's commission, freeze it or let it in again; None leaves a term as it is.

        Raises:
            NodeNotFound: there is none.
            InvalidText: the reason cannot be one.
        """
        reason = check_text(reason, "reason")

        def work(connection: Connection) -> NodeRecord:
            found = _one(connection, node_id)
            values: dict[str, object] = {}
            if commission_ppm is not None:
                values["commission_ppm"] = commission_ppm
            if frozen is not None and frozen is not found.is_frozen:
                values["frozen_at"] = to_micros(at) if frozen else None
            if values:
                connection.execute(update(nodes).where(nodes.c.id == node_id).values(values))
                write_admin_action(
                    connection,
                    at,
                    actor,
                    "node.change",
                    node_id,
                    account_id=found.account_id,
                    commission_ppm=commission_ppm,
                    frozen=None if frozen is None else str(frozen).lower(),
                    reason=reason,
                )
            return _one(connection, node_id)

        return await self._database.write(work)

    async def get(self, node_id: str) -> NodeRecord | None:
        """Return a node, or None."""
        return await fetch_one(self._database, select(nodes).where(nodes.c.id == node_id), _node)

    async def all(self) -> list[NodeRecord]:
        """Return every node, for the terms that are kept in memory."""
        return list(await fetch(self._database, select(nodes).order_by(nodes.c.id), _node))

    async def page(
        self, account_id: str | None = None, *, limit: int = 100, after: str | None = None
    ) -> Listing[NodeRecord]:
        """Return the nodes of an account or of all, the newest first. ``after`` is a node's id."""
        query = newest_first(select(nodes), nodes.c.created_at, nodes.c.id, after)
        if account_id is not None:
            query = query.where(nodes.c.account_id == account_id)
        return await fetch_page(self._database, query, _node, limit, lambda last: last.id)

    async def earned(self, account_id: str | None = None, *, since: datetime | None = None) -> dict[str, Earned]:
        """Return what each provider earned an account, or all of them, by the provider's id; from a time on, or ever."""
        query = _EARNED
        if account_id is not None:
            query = query.where(purchases.c.payee_id == account_id)
        if since is not None:
            query = query.where(purchases.c.paying_at >= to_micros(since))

        def work(connection: Connection) -> dict[str, Earned]:
            return {
                peer_id: Earned(delivered, Msat(int(earned_msat)), Msat(int(price_msat) - int(earned_msat)))
                for _, peer_id, delivered, earned_msat, price_msat in connection.execute(query)
            }

        return await self._database.read(work)

    async def earnings(
        self, account_id: str, provider_id: str, *, limit: int = 100, after: str | None = None
    ) -> Listing[EarningLine]:
        """Return what each delivered purchase at a node earned an account, the newest first. ``after`` is a job id in hex."""
        try:
            behind = None if after is None else bytes.fromhex(after)
        except ValueError:
            # No listing has this cursor, and no rows follow it.
            return Listing([], None)
        query = select(*_LINE).where(
            purchases.c.payee_id == account_id,
            purchases.c.peer_id == provider_id,
            purchases.c.state == State.DELIVERED.value,
        )
        query = newest_first(query, purchases.c.paying_at, purchases.c.job_id, behind)
        return await fetch_page(self._database, query, _line, limit, lambda last: last.job_id.hex())


def _find(connection: Connection, node_id: str) -> NodeRecord | None:
    row = connection.execute(select(nodes).where(nodes.c.id == node_id).with_for_update()).mappings().one_or_none()
    return None if row is None else _node(row)


def _one(connection: Connection, node_id: str) -> NodeRecord:
    found = _find(connection, node_id)
    if found is None:
        raise NodeNotFound
    return found


def _node(row: RowMapping) -> NodeRecord:
    return NodeRecord(
        id=row["id"],
        account_id=row["account_id"],
        name=row["name"],
        key_id=row["key_id"],
        commission_ppm=row["commission_ppm"],
        created_at=from_micros(row["created_at"]),
        connected_at=from_micros(row["connected_at"]),
        frozen_at=from_micros_or_none(row["frozen_at"]),
    )


def _line(row: RowMapping) -> EarningLine:
    return EarningLine(
        job_id=row["job_id"],
        model=row["model"],
        price_msat=Msat(row["price_msat"]),
        earned_msat=Msat(row["earned_msat"] or 0),
        delivered_at=from_micros(row["ended_at"]),
    )
