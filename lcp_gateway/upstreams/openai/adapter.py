"""The adapter to virtual nodes: OpenAI-compatible HTTP servers, bought from like a peer, bytes in and bytes out."""

import asyncio
import hashlib
import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from http import HTTPStatus

import aiohttp

from lcp_gateway.adapters.model_list import BadModelList, ListedModel, read_model_list
from lcp_gateway.adapters.usage import usage_of
from lcp_gateway.clock import utc_now
from lcp_gateway.constants import NODE_PREFIX
from lcp_gateway.purchase.errors import UpstreamError
from lcp_gateway.purchase.money import Msat
from lcp_gateway.purchase.order import Task, TaskKind
from lcp_gateway.purchase.ports import Result, StreamEvent
from lcp_gateway.purchase.quote import Payee, ProviderSource, Quote
from lcp_gateway.purchase.states import Verdict
from lcp_gateway.purchase.tracing import NO_TRACING, Tracing
from lcp_gateway.upstream_status import UpstreamStatus
from lcp_gateway.upstreams.openai.connections import NO_ROUTE, NodeConnections, SendState, VirtualNode, payload
from lcp_gateway.upstreams.openai.errors import (
    FAILURES,
    MAX_ERROR_BYTES,
    connection_error,
    http_error,
    is_closed_connection,
    is_unreachable,
)
from lcp_gateway.upstreams.openai.result import NodeResult, read_at_most

_PATHS = {
    TaskKind.CHAT_COMPLETIONS: "/chat/completions",
    TaskKind.RESPONSES: "/responses",
    TaskKind.COMPLETIONS: "/completions",
    TaskKind.EMBEDDINGS: "/embeddings",
}
_QUOTE_LASTS = timedelta(seconds=300)
_MAX_RESULT_BYTES = 32 * 1024 * 1024
_CONNECT_TIMEOUT_S = 5.0
# A closed connection refuses the request within one round trip; a node that accepted the request fails later.
_CLOSE_KNOWN_S = 0.5
_MAX_LIST_BYTES = 8 * 1024 * 1024


class NoModelList(UpstreamError):
    """The node is up, and has no list of models."""


class OpenAIHttpUpstream:
    """Buys from virtual nodes. Implements the ``Upstream`` of purchases for the providers ``node:<name>``.

    Every error is an ``UpstreamError``, and names neither an address nor a key. There is no payment to look up: a task
    that a node got and did not refuse counts as bought, unless it is free.
    """

    def __init__(
        self,
        nodes: Sequence[VirtualNode],
        *,
        max_result_bytes: int = _MAX_RESULT_BYTES,
        now: Callable[[], datetime] = utc_now,
        clock: Callable[[], float] = time.monotonic,
        on_down: Callable[[str], None] = lambda _provider_id: None,
        tracing: Tracing = NO_TRACING,
    ) -> None:
        """``on_down`` gets the provider's id when a task could not connect."""
        self._connections = {node.provider_id: NodeConnections(node) for node in nodes}
        self._leaving: dict[NodeConnections, asyncio.Task[None]] = {}
        self._max_result_bytes = max_result_bytes
        self._now = now
        self._clock = clock
        self._on_down = on_down
        self._tracing = tracing

    def use(self, nodes: Sequence[VirtualNode]) -> None:
        """Buy from these nodes from now on.

        An unchanged one keeps its connections. Tasks of a removed or changed one go on to their end, and then its
        connections are closed.
        """
        kept = {}
        for node in nodes:
            held = self._connections.get(node.provider_id)
            kept[node.provider_id] = NodeConnections(node) if held is None or held.node != node else held
        gone = [connections for name, connections in self._connections.items() if kept.get(name) is not connections]
        self._connections = kept
        for connections in gone:
            self._leaving[connections] = asyncio.create_task(self._close_when_idle(connections))

    async def request_quote(self, task: Task, peer_id: str, timeout_s: float) -> Quote:  # noqa: ARG002 - computed here, which takes no time
        """Return the highest price of the task, from the node's price list.

        Raises:
            UpstreamError: there is no such node, or it does not take such tasks.
        """
        node = self._connections_of(peer_id).node
        if task.kind not in node.kinds:
            raise UpstreamError(UpstreamStatus.UNIMPLEMENTED, f"the node does not serve {_PATHS[task.kind]}")
        return node_quote(peer_id, node.name, task, node.price.most_msat(task, node.timeout_s), self._now())

    async def execute(self, quote: Quote, task: Task, timeout_s: float) -> Result:
        """Send the task and wait for the whole result. Goes out once."""
        async with self._result(quote, task, timeout_s) as result:
            body = b"".join([chunk async for chunk in result.chunks()])
            result.check_whole(body)
            return result.result(body)

    async def execute_stream(self, quote: Quote, task: Task, timeout_s: float) -> AsyncGenerator[StreamEvent, None]:
        """Send the task and yield the result as it comes, read from the node only on demand. Goes out once."""
        async with self._result(quote, task, timeout_s) as result:
            yield result.begin()
            async for chunk in result.chunks():
                yield chunk
            yield result.result(b"")

    async def cancel(self, quote: Quote, reason: str, timeout_s: float) -> None:
        """Do nothing: a quote reserves nothing at the node, and a closed connection ends its work."""

    async def list_models(self, node_name: str, timeout_s: float) -> tuple[ListedModel, ...]:
        """Ask a node for its models; those without a usable name are left out.

        Raises:
            NoModelList: it has no list.
            UpstreamError: it did not answer, or with another document.
        """
        connections = self._connections_of(NODE_PREFIX + node_name)
        sending = SendState()
        try:
            async with (
                connections.used(),
                connections.session().get(
                    connections.node.base_url + "/models",
                    allow_redirects=False,
                    timeout=_timeout(timeout_s),
                    trace_request_ctx=sending,
                ) as response,
            ):
                if response.status in NO_ROUTE:
                    raise NoModelList(UpstreamStatus.UNIMPLEMENTED, "the node has no list of models")
                if not _succeeded(response.status):
                    text = await read_at_most(response, MAX_ERROR_BYTES)
                    raise http_error(response.status, text, connections.node.api_key)
                body = await read_at_most(response, _MAX_LIST_BYTES + 1)
        except FAILURES as error:
            raise connection_error(error, evidence=Verdict.NONE) from None
        if len(body) > _MAX_LIST_BYTES:
            raise UpstreamError(UpstreamStatus.DATA_LOSS, "the node's list of models is too long")
        try:
            return read_model_list(body)
        except BadModelList as error:
            raise UpstreamError(UpstreamStatus.DATA_LOSS, f"the node: {error}") from None

    async def close(self) -> None:
        """Close all connections; calls under way end with an error."""
        for leaving in self._leaving.values():
            leaving.cancel()
        for connections in [*self._connections.values(), *self._leaving]:
            await connections.close()

    async def _close_when_idle(self, connections: NodeConnections) -> None:
        await connections.close_when_idle()
        del self._leaving[connections]

    def _connections_of(self, provider_id: str) -> NodeConnections:
        connections = self._connections.get(provider_id)
        if connections is None:
            raise UpstreamError(UpstreamStatus.NOT_FOUND, "no node of that name is configured", evidence=Verdict.NONE)
        return connections

    @asynccontextmanager
    async def _result(self, quote: Quote, task: Task, timeout_s: float) -> AsyncIterator[NodeResult]:
        """Send a task and yield the result's head; the connection is returned to the pool, or closed, at the end."""
        connections = self._connections_of(quote.peer_id)
        node = connections.node
        limit_s = min(node.timeout_s, timeout_s)
        deadline = time.monotonic() + limit_s
        async with connections.slot(limit_s):
            started = self._clock()
            # A request that reached the node and whose result is lost counts as bought.
            lost = Verdict.NONE if quote.is_free else Verdict.SETTLED

            def charge(usage_data: bytes, result_bytes: int) -> Msat:
                return node.price.charge_msat(
                    usage_of(usage_data),
                    body_bytes=len(task.body),
                    # Vectors are no tokens.
                    result_bytes=0 if task.kind is TaskKind.EMBEDDINGS else result_bytes,
                    elapsed_s=self._clock() - started,
                    ceiling_msat=quote.price_msat,
                )

            response = await self._send(connections, quote, task, deadline, lost)
            try:
                if not _succeeded(response.status):
                    text = await _read_refusal(response)
                    retry_after = response.headers.get("Retry-After", "")
                    raise http_error(response.status, text, node.api_key, retry_after)
                yield NodeResult(response, task, max_bytes=self._max_result_bytes, lost=lost, charge=charge)
            finally:
                # A connection whose answer was read to its end has gone back to the pool before.
                response.close()

    async def _send(
        self, connections: NodeConnections, quote: Quote, task: Task, deadline: float, lost: Verdict
    ) -> aiohttp.ClientResponse:
        """Send a task and return the head of the answer.

        A node closes connections that were idle for a while, and a request may meet that close: it was written, and
        never read. It is then sent once more, over a connection of its own. The difference to a node that took the
        request and died over it: the connection had been used before, not a byte of an answer came, and the loss was
        known at once. Both carry the same Idempotency-Key, and one result is booked.
        """
        session, is_repeat = connections.session(), False
        while True:
            state, sent_at = SendState(), time.monotonic()
            try:
                return await session.post(
                    connections.node.base_url + _PATHS[task.kind],
                    data=payload(task.body),
                    headers={**self._tracing.headers(), "Idempotency-Key": quote.job_id.hex()},
                    allow_redirects=False,
                    timeout=_timeout(max(deadline - sent_at, 0.001)),
                    trace_request_ctx=state,
                )
            except FAILURES as error:
                now = time.monotonic()
                met_close = (
                    not is_repeat
                    and state.on_used_connection
                    and is_closed_connection(error)
                    and now - sent_at < _CLOSE_KNOWN_S
                )
                if not met_close or now >= deadline:
                    if is_unreachable(error):
                        self._on_down(connections.node.provider_id)
                    raise connection_error(error, evidence=lost, had_connection=state.had_connection) from None
            session, is_repeat = connections.session(unpooled=True), True


def node_quote(
    provider_id: str,
    name: str,
    task: Task,
    price_msat: Msat,
    now: datetime,
    *,
    on_delivery: bool = False,
    payee: Payee | None = None,
) -> Quote:
    """Return the quote of a node, for five minutes: its price is the most that the task can come to."""
    return Quote(
        peer_id=provider_id,
        job_id=secrets.token_bytes(32),
        price_msat=price_msat,
        expires_at=now + _QUOTE_LASTS,
        terms_hash=node_terms_hash(name, task, price_msat),
        payment_request="",
        protocol_version=0,
        source=ProviderSource.NODE,
        on_delivery=on_delivery,
        payee=payee,
    )


def node_terms_hash(name: str, task: Task, price_msat: Msat) -> bytes:
    """Return the hash of the terms of a node's quote, for its receipt.

    SHA-256 over the ASCII JSON, without white space, of ``["lcp-gateway.node.v1", name, kind, model, price_msat,
    sha256]``, where ``sha256`` is that of the body in lower-case hex.
    """
    terms = [
        "lcp-gateway.node.v1",
        name,
        task.kind.value,
        task.model,
        price_msat,
        hashlib.sha256(task.body).hexdigest(),
    ]
    return hashlib.sha256(json.dumps(terms, separators=(",", ":")).encode("ascii")).digest()


def _timeout(total_s: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=total_s, connect=_CONNECT_TIMEOUT_S)


def _succeeded(status: int) -> bool:
    return HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES


async def _read_refusal(response: aiohttp.ClientResponse) -> bytes:
    """Read the text of a refusal. Its head says that it is one, so a text that breaks off changes nothing."""
    try:
        return await read_at_most(response, MAX_ERROR_BYTES)
    except FAILURES:
        return b""
