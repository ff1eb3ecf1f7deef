"""Lightning peers and virtual nodes as one: one catalog, and one upstream."""

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from typing import TYPE_CHECKING, Any, Final

from lcp_gateway.constants import NODE_PREFIX
from lcp_gateway.purchase.errors import UpstreamError
from lcp_gateway.purchase.order import Task
from lcp_gateway.purchase.ports import Result, StreamEvent, Upstream
from lcp_gateway.purchase.quote import ProviderSource, Quote
from lcp_gateway.routing.catalog import Catalog, Provider
from lcp_gateway.upstreams.lcpd.peer_watch import PeerWatch

if TYPE_CHECKING:
    # Not imported where there are no nodes.
    from lcp_gateway.upstreams.dialin.adapter import DialinUpstream
    from lcp_gateway.upstreams.dialin.hub import NodeHub
    from lcp_gateway.upstreams.openai.node_watch import NodeWatch

_LCP: Final = ProviderSource.LCP


class MergedCatalog:
    """One catalog of peers, virtual nodes and nodes that dialled in. With peers alone it is the peers' own."""

    def __init__(self, peers: PeerWatch, virtual: "NodeWatch", dialled_in: "NodeHub") -> None:
        self._peers = peers
        self._virtual = virtual
        self._dialled_in = dialled_in
        self._merged: tuple[Catalog, Catalog, tuple[Provider, ...], tuple[Provider, ...]] | None = None

    @property
    def catalog(self) -> Catalog:
        """The last snapshot of all; it has the same ``providers`` object while nothing has changed."""
        of_peers, virtual, dialled_in = self._peers.catalog, self._virtual.providers, self._dialled_in.providers
        if not virtual and not dialled_in:
            return of_peers
        held = self._merged
        merged = None
        if held is not None and held[2] is virtual and held[3] is dialled_in:
            if held[1] is of_peers:
                return held[0]
            if held[1].providers is of_peers.providers:
                merged = held[0].seen_again(of_peers.taken_at)
        if merged is None:
            merged = Catalog((*of_peers.providers, *virtual, *dialled_in), of_peers.taken_at)
        self._merged = (merged, of_peers, virtual, dialled_in)
        return merged

    @property
    def problem(self) -> UpstreamError | None:
        """Why peers sell nothing now, or None; None also while a node is up, which sells instead."""
        return None if self._virtual.providers or self._dialled_in.providers else self._peers.problem

    @property
    def age_s(self) -> float:
        """The age of the peers' snapshot; 0 while a node is up, which needs none."""
        return 0.0 if self._virtual.providers or self._dialled_in.providers else self._peers.age_s

    async def refresh_if_stale(self) -> Catalog:
        """Return a fresh snapshot, or the last one if the daemon does not answer; what has dialled in is known."""
        await asyncio.gather(self._peers.refresh_if_stale(), self._virtual.refresh_if_stale())
        return self.catalog


class UpstreamBySource:
    """Sends each call to the upstream of the Lightning peers, of the virtual nodes, or of the nodes that dialled in."""

    def __init__(self, peers: Upstream, nodes: Upstream, dialled_in: "DialinUpstream | None" = None) -> None:
        self._peers = peers
        self._nodes = nodes
        self._dialled_in = dialled_in

    def request_quote(self, task: Task, peer_id: str, timeout_s: float) -> Coroutine[Any, Any, Quote]:
        """Ask a provider for its price."""
        upstream = self._peers
        if peer_id.startswith(NODE_PREFIX):
            dialled_in = self._dialled_in
            upstream = self._nodes if dialled_in is None or not dialled_in.owns(peer_id) else dialled_in
        return upstream.request_quote(task, peer_id, timeout_s)

    def execute(self, quote: Quote, task: Task, timeout_s: float) -> Coroutine[Any, Any, Result]:
        """Pay and wait for the whole result. Goes out once."""
        return self._of(quote).execute(quote, task, timeout_s)

    def execute_stream(self, quote: Quote, task: Task, timeout_s: float) -> AsyncGenerator[StreamEvent, None]:
        """Pay and yield the result as it comes. Goes out once."""
        return self._of(quote).execute_stream(quote, task, timeout_s)

    async def cancel(self, quote: Quote, reason: str, timeout_s: float) -> None:
        """Tell the provider that the job's result is no longer wanted."""
        await self._of(quote).cancel(quote, reason, timeout_s)

    def _of(self, quote: Quote) -> Upstream:
        if quote.source is _LCP:
            return self._peers
        return self._nodes if self._dialled_in is None or not quote.on_delivery else self._dialled_in
