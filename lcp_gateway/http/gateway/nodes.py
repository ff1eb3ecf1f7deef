"""/api/nodes and /api/admin/nodes: nodes of accounts, whether they are connected, and what they earned."""

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from datetime import UTC, datetime
from typing import Protocol

from aiohttp import web

from lcp_gateway.accounts.nodes import Earned, NodeNotFound, NodeRecord, NodeRepository, NodeTermsCache
from lcp_gateway.constants import NODE_PREFIX
from lcp_gateway.http.errors import bad_request
from lcp_gateway.http.fields import (
    account_of,
    actor_of,
    json_response,
    list_response,
    read_fields,
    read_id,
    read_page,
    unix_time,
)
from lcp_gateway.http.gateway.health import NodeState
from lcp_gateway.purchase.money import PPM_PER_PERCENT, Msat

_NONE = Earned(0, Msat(0), Msat(0))
_MOST_PERCENT = 100


class NodeConnection(NodeState, Protocol):
    """A node's connection, now or at last; it is up where it is connected and takes part."""

    @property
    def running(self) -> int:
        """How many requests it works on."""
        ...


@dataclass(frozen=True, slots=True)
class NodeRoutes:
    """Serves the owners of nodes and the administrator.

    ``connections`` returns the nodes that dialled in by their ids; ``terms`` is read again after a change.
    """

    nodes: NodeRepository
    _: KW_ONLY
    terms: NodeTermsCache
    connections: Callable[[], Mapping[str, NodeConnection]]
    read_timeout_s: float

    async def of_owner(self, request: web.Request) -> web.Response:
        """Serve GET /api/nodes."""
        return await self._page(request, account_of(request), self._document)

    async def earnings(self, request: web.Request) -> web.Response:
        """Serve GET /api/nodes/{id}/earnings: what each delivered request earned."""
        account_id = account_of(request)
        limit, after = read_page(request)
        node = await self.nodes.get(read_id(request))
        if node is None or node.account_id != account_id:
            raise NodeNotFound
        page = await self.nodes.earnings(account_id, NODE_PREFIX + node.id, limit=limit, after=after or None)
        lines = (
            {
                "object": "lcp.earning",
                "job_id": line.job_id.hex(),
                "model": line.model,
                "price_msat": line.price_msat,
                "earned_msat": line.earned_msat,
                "commission_msat": line.price_msat - line.earned_msat,
                "delivered_at": line.delivered_at.isoformat(),
            }
            for line in page.items
        )
        return list_response(lines, page.after)

    async def list_all(self, request: web.Request) -> web.Response:
        """Serve GET /api/admin/nodes."""
        return await self._page(request, None, self._admin_document)

    async def change(self, request: web.Request) -> web.Response:
        """Serve POST /api/admin/nodes/{id}: its commission, and whether it is frozen."""
        node_id = read_id(request)
        fields = await read_fields(request, self.read_timeout_s)
        percent = fields.number("commission_percent")
        frozen = fields.flag("frozen", required=False)
        reason = fields.text("reason", required=True)
        fields.done()
        if percent is not None and not 0 <= percent <= _MOST_PERCENT:
            raise bad_request("commission_percent must be from 0 to 100", "commission_percent", "invalid_value")
        node = await self.nodes.set(
            node_id,
            commission_ppm=None if percent is None else round(percent * PPM_PER_PERCENT),
            frozen=frozen,
            reason=reason,
            actor=actor_of(request),
            at=datetime.now(UTC),
        )
        await self.terms.refresh()
        earned = await self.nodes.earned(node.account_id)
        return json_response(self._admin_document(node, earned.get(NODE_PREFIX + node.id, _NONE), _NONE))

    async def _page(
        self,
        request: web.Request,
        account_id: str | None,
        document: Callable[[NodeRecord, Earned, Earned], dict[str, object]],
    ) -> web.Response:
        limit, after = read_page(request)
        page = await self.nodes.page(account_id, limit=limit, after=after or None)
        begun = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        ever = await self.nodes.earned(account_id)
        today = await self.nodes.earned(account_id, since=begun)
        documents = (
            document(node, ever.get(NODE_PREFIX + node.id, _NONE), today.get(NODE_PREFIX + node.id, _NONE))
            for node in page.items
        )
        return list_response(documents, page.after)

    def _document(self, node: NodeRecord, ever: Earned, today: Earned) -> dict[str, object]:
        connection = self.connections().get(node.id)
        return {
            "object": "lcp.node",
            "id": node.id,
            "provider_id": NODE_PREFIX + node.id,
            "name": node.name,
            "key_id": node.key_id,
            "up": connection is not None and connection.up,
            "models": 0 if connection is None else connection.models,
            "running": 0 if connection is None else connection.running,
            "commission_percent": self.terms.commission_ppm(node) / PPM_PER_PERCENT,
            "frozen": node.is_frozen,
            "delivered": ever.delivered,
            "earned_msat": ever.earned_msat,
            "commission_msat": ever.commission_msat,
            "earned_today_msat": today.earned_msat,
            "created_at": unix_time(node.created_at),
            "connected_at": unix_time(node.connected_at),
        }

    def _admin_document(self, node: NodeRecord, ever: Earned, today: Earned) -> dict[str, object]:
        return {**self._document(node, ever, today), "account_id": node.account_id}
