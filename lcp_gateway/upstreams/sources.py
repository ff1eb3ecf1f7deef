"""The two sources of providers behind the one ``Upstream`` of purchases."""

from collections.abc import AsyncGenerator

from lcp_gateway.purchase.order import Task
from lcp_gateway.purchase.ports import Result, StreamEvent, Upstream
from lcp_gateway.purchase.quote import ProviderSource, Quote


class UpstreamBySource:
    """Sends each call to the Lightning peers' upstream or to the virtual nodes'."""

    def __init__(self, peers: Upstream, nodes: Upstream) -> None:
        self._by_source = {ProviderSource.LCP: peers, ProviderSource.NODE: nodes}

    async def request_quote(self, task: Task, peer_id: str, timeout_s: float) -> Quote:
        """Ask a provider for its price."""
        upstream = self._by_source[ProviderSource.of(peer_id)]
        return await upstream.request_quote(task, peer_id, timeout_s)

    async def execute(self, quote: Quote, task: Task, timeout_s: float) -> Result:
        """Pay and wait for the whole result. Goes out once."""
        return await self._by_source[quote.source].execute(quote, task, timeout_s)

    def execute_stream(
        self, quote: Quote, task: Task, timeout_s: float
    ) -> AsyncGenerator[StreamEvent, None]:
        """Pay and yield the result as it comes. Goes out once."""
        return self._by_source[quote.source].execute_stream(quote, task, timeout_s)

    async def cancel(self, quote: Quote, reason: str, timeout_s: float) -> None:
        """Tell the provider that the job's result is no longer wanted."""
        await self._by_source[quote.source].cancel(quote, reason, timeout_s)
