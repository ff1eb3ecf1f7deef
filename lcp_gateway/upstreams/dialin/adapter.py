"""The adapter to nodes that dialled in: quotes from their price lists, results over their connections, paid on delivery."""

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from datetime import datetime
from types import MappingProxyType
from typing import Final

from lcp_gateway.adapters.sse import is_uncompressed
from lcp_gateway.clock import utc_now
from lcp_gateway.node_protocol.messages import End
from lcp_gateway.purchase.errors import UpstreamError
from lcp_gateway.purchase.money import Msat
from lcp_gateway.purchase.order import Task, TaskKind
from lcp_gateway.purchase.ports import Result, StreamEvent
from lcp_gateway.purchase.quote import Payee, Quote
from lcp_gateway.purchase.states import Verdict
from lcp_gateway.upstream_status import UpstreamStatus
from lcp_gateway.upstreams.dialin.connection import NodeConnection, busy
from lcp_gateway.upstreams.dialin.hub import NodeHub
from lcp_gateway.upstreams.dialin.offers import KIND_NAMES, price_of
from lcp_gateway.upstreams.dialin.requests import lost_connection
from lcp_gateway.upstreams.dialin.result import RemoteResult, held_usage
from lcp_gateway.upstreams.openai.adapter import node_quote

_WORDS: Final[Mapping[TaskKind, str]] = MappingProxyType({kind: word for word, kind in KIND_NAMES.items()})


class DialinUpstream:
    """Buys from nodes that dialled in. Implements the ``Upstream`` of purchases.

    A node is paid on delivery. So everything that fails before a byte of a stream was handed on, or before a result in one
    piece is whole, costs nothing, and another provider may be asked.
    """

    def __init__(
        self,
        hub: NodeHub,
        *,
        max_result_bytes: int,
        on_refuted: Callable[[str], None] = lambda _provider_id: None,
        now: Callable[[], datetime] = utc_now,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``on_refuted`` gets the provider's id when the usage that a node states is not believed."""
        self._hub = hub
        self._max_result_bytes = max_result_bytes
        self._on_refuted = on_refuted
        self._now = now
        self._clock = clock

    def owns(self, provider_id: str) -> bool:
        """Whether a provider is a node that is here now."""
        return self._hub.connection(provider_id) is not None

    async def request_quote(self, task: Task, peer_id: str, timeout_s: float) -> Quote:  # noqa: ARG002 - computed here, which takes no time
        """Return the highest price of the task, from the node's price list.

        Raises:
            UpstreamError: the node is gone, is busy, or does not take such tasks.
        """
        node = self._usable(peer_id)
        model = node.models.get(task.model)
        if model is None or not self._hub.offers(peer_id, task.kind, task.model):
            raise UpstreamError(UpstreamStatus.UNIMPLEMENTED, "the node does not serve this", evidence=Verdict.NONE)
        if len(task.body) > node.hello.request_bytes:
            raise UpstreamError(
                UpstreamStatus.RESOURCE_EXHAUSTED, "the request is larger than the node takes", evidence=Verdict.NONE
            )
        if not node.has_room(task.model) and node.is_crowded:
            raise busy()
        terms = node.terms
        price_msat = price_of(model, terms).most_msat(task, terms.timeout_s)
        payee = None
        if terms.account_id is not None:
            payee = Payee(terms.node_id, terms.account_id, terms.commission_ppm)
        return node_quote(peer_id, terms.node_id, task, price_msat, self._now(), on_delivery=True, payee=payee)

    async def execute(self, quote: Quote, task: Task, timeout_s: float) -> Result:
        """Send the task and wait for the whole result. Goes out once."""
        async with self._result(quote, task, timeout_s) as result, aclosing(result.chunks()) as chunks:
            body = b"".join([chunk async for chunk in chunks])
            return result.result(body)

    async def execute_stream(self, quote: Quote, task: Task, timeout_s: float) -> AsyncGenerator[StreamEvent, None]:
        """Send the task and yield the result as it comes, once its first bytes are here. Goes out once."""
        async with self._result(quote, task, timeout_s) as result, aclosing(result.chunks()) as chunks:
            # Until the first bytes nothing is settled: a node that fails now costs nothing, and another is asked.
            first = await anext(chunks, b"")
            yield result.begin()
            if first:
                yield first
                async for chunk in chunks:
                    yield chunk
            yield result.result(b"")

    async def cancel(self, quote: Quote, reason: str, timeout_s: float) -> None:
        """Do nothing: a quote reserves nothing at the node, and the call's own end takes its work back."""

    def _usable(self, provider_id: str) -> NodeConnection:
        node = self._hub.connection(provider_id)
        if node is None or not node.is_usable:
            raise lost_connection("the node is not connected")
        return node

    @asynccontextmanager
    async def _result(self, quote: Quote, task: Task, timeout_s: float) -> AsyncIterator[RemoteResult]:
        node = self._usable(quote.peer_id)
        model = node.models.get(task.model)
        if model is None:
            raise lost_connection("the node has no such model any more")
        price = price_of(model, node.terms)
        limit_s = min(node.terms.timeout_s, timeout_s)
        async with node.request(
            _WORDS[task.kind], task.model, task.body, stream=task.stream, timeout_s=limit_s
        ) as request:
            started = self._clock()
            self._hub.bought(quote, node, request.request_id)

            def charge(end: End, usage_data: bytes, result_bytes: int) -> Msat:
                # Vectors are no tokens.
                text_bytes = 0 if task.kind is TaskKind.EMBEDDINGS else result_bytes
                held = held_usage(end, usage_data, body_bytes=len(task.body), result_bytes=text_bytes)
                if held.is_refuted:
                    self._on_refuted(quote.peer_id)
                return price.charge_msat(
                    held.usage,
                    body_bytes=len(task.body),
                    result_bytes=text_bytes,
                    elapsed_s=self._clock() - started,
                    ceiling_msat=quote.price_msat,
                )

            head = await request.wait_head()
            if not is_uncompressed(head.content_encoding):
                # Nothing in it could be told from a whole answer, and its usage would be the node's word alone.
                raise UpstreamError(
                    UpstreamStatus.UNAVAILABLE,
                    "the node's answer is compressed, so that it cannot be checked",
                    retryable=True,
                    evidence=Verdict.NONE,
                )
            yield RemoteResult(request, head, task, max_bytes=self._max_result_bytes, charge=charge)
