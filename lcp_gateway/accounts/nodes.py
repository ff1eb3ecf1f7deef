"""Nodes that belong to accounts: their terms, kept in memory, and what they earned."""

# ruff: noqa: D102 - methods of the protocol are documented where they are implemented

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from lcp_gateway.accounts.models import AccountError, Listing
from lcp_gateway.clock import utc_now
from lcp_gateway.purchase.money import Msat

_READ_EVERY_S = 1.0
_RETRY_S = 2.0


class NodeNotFound(AccountError):
    """No node has this id."""

    usual = "there is no such node"


class NodeTaken(AccountError):
    """A node of this id belongs to another account."""

    usual = "a node of this name belongs to another account"


class TooManyNodes(AccountError):
    """The account has as many nodes as it may, connected or not."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"an account has {limit} nodes at most: connect under one of their names")


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """A node of an account. ``commission_ppm`` is None where that of the settings holds. Times are aware UTC."""

    id: str
    account_id: str
    name: str
    key_id: str
    commission_ppm: int | None
    created_at: datetime
    connected_at: datetime
    frozen_at: datetime | None

    @property
    def is_frozen(self) -> bool:
        """Whether the operator keeps it out."""
        return self.frozen_at is not None


@dataclass(frozen=True, slots=True)
class Earned:
    """Delivered requests, what their node's owner earned by them, and the operator's commission."""

    delivered: int
    earned_msat: Msat
    commission_msat: Msat


@dataclass(frozen=True, slots=True)
class EarningLine:
    """One delivered purchase and what it earned; the customer is not named."""

    job_id: bytes
    model: str
    price_msat: Msat
    earned_msat: Msat
    delivered_at: datetime


class NodeRepository(Protocol):
    """The nodes of accounts."""

    async def connected(self, node_id: str, account_id: str, key_id: str, name: str, at: datetime) -> NodeRecord: ...

    async def set(
        self,
        node_id: str,
        *,
        reason: str,
        actor: str,
        at: datetime,
        commission_ppm: int | None = ...,
        frozen: bool | None = ...,
    ) -> NodeRecord: ...

    async def get(self, node_id: str) -> NodeRecord | None: ...

    async def all(self) -> Sequence[NodeRecord]: ...

    async def page(
        self, account_id: str | None = ..., *, limit: int = ..., after: str | None = ...
    ) -> Listing[NodeRecord]: ...

    async def earned(self, account_id: str | None = ..., *, since: datetime | None = ...) -> dict[str, Earned]: ...

    async def earnings(
        self, account_id: str, provider_id: str, *, limit: int = ..., after: str | None = ...
    ) -> Listing[EarningLine]: ...


class NodeTermsCache:
    """The terms of every node, read each second, so that a node which is frozen or priced anew is seen at once."""

    def __init__(
        self,
        nodes: NodeRepository,
        usual_commission_ppm: int = 0,
        *,
        unavailable: tuple[type[Exception], ...] = (),
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        """``unavailable`` are the errors of a database that cannot be reached."""
        self._nodes = nodes
        self.usual_commission_ppm = usual_commission_ppm
        """The commission of nodes that have none of their own."""
        self._unavailable = unavailable
        self._now = now
        self._known: dict[str, NodeRecord] = {}

    async def connect(self, node_id: str, account_id: str, key_id: str, name: str) -> NodeRecord:
        """Record that a node connects, and return it.

        Raises:
            AccountNotFound, NodeTaken: it may not.
        """
        record = await self._nodes.connected(node_id, account_id, key_id, name, self._now())
        self._known[node_id] = record
        return record

    def find(self, node_id: str) -> NodeRecord | None:
        """Return a node as it was last read."""
        return self._known.get(node_id)

    def commission_ppm(self, record: NodeRecord) -> int:
        """Return the commission that holds for a node."""
        return self.usual_commission_ppm if record.commission_ppm is None else record.commission_ppm

    async def refresh(self) -> None:
        """Read the terms of all nodes."""
        self._known = {record.id: record for record in await self._nodes.all()}

    async def run(self) -> None:
        """Read them every second, until cancelled; while the database is away the last ones hold."""
        while True:
            try:
                await self.refresh()
                await asyncio.sleep(_READ_EVERY_S)
            except self._unavailable:
                await asyncio.sleep(_RETRY_S)
