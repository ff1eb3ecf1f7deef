"""Responses of the routes that buy: headers, changes of the body that the client asked for, and delivery."""

import asyncio
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from functools import partial

from aiohttp import web

from lcp_gateway.adapters.completions import FromChatStream, from_chat, to_chat
from lcp_gateway.adapters.json_bytes import with_changes
from lcp_gateway.adapters.routing_info import RoutingInfoStream, add_to_result, header_value
from lcp_gateway.adapters.sse import StreamRewriter, is_uncompressed
from lcp_gateway.http.context import RequestContext
from lcp_gateway.http.error_mapping import map_error
from lcp_gateway.http.errors import PAYMENT_HEADER, ApiError, quote_headers
from lcp_gateway.http.fields import json_response
from lcp_gateway.http.openai.charges import ChargeReport
from lcp_gateway.http.openai.sse_relay import SseRelay
from lcp_gateway.http.server.connection import close_if_http10
from lcp_gateway.purchase.errors import Undelivered
from lcp_gateway.purchase.held_quotes import HeldQuote
from lcp_gateway.purchase.limits import SpendingLimits
from lcp_gateway.purchase.order import Order
from lcp_gateway.purchase.purchase import Purchase
from lcp_gateway.purchase.result_buffer import ResultBuffer, ResultHead
from lcp_gateway.purchase.service import PurchaseService
from lcp_gateway.responses.documents import find_id
from lcp_gateway.responses.ids import IdInjector
from lcp_gateway.telemetry.metrics import Metrics

JSON = "application/json; charset=utf-8"
EVENTS = "text/event-stream; charset=utf-8"
STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
"""Headers that keep proxies from holding a stream up."""

ADAPTER_HEADER = "X-Lcp-Adapter"
ROUTING_HEADER = "X-Lcp-Routing"

_SAFE_HEADER = re.compile(r"[\x20-\x7e]{1,256}")
# The counter of streamed bytes is updated this often, not for every chunk.
_COUNT_EVERY_BYTES = 16_384
# How often to check whether a slow client has read the bytes written.
_LEAST_PAUSE_S = 0.002
_MOST_PAUSE_S = 0.1

# -- headers --------------------------------------------------------------------------------------


def safe_header(value: str, otherwise: str) -> str:
    """Return a provider's header value if it may stand in a header as it is, else ``otherwise``."""
    value = value.strip()
    return value if _SAFE_HEADER.fullmatch(value) else otherwise


def purchase_headers(purchase: Purchase) -> dict[str, str]:
    """Return the headers of a purchase: payment, peer, job, price."""
    headers = {
        # Every head is that of a purchase that was paid, or that is free; a stream's goes out before it is whole.
        PAYMENT_HEADER: str(purchase.verdict),
        **quote_headers(purchase.quote),
        "X-Lcp-Price-Msat": str(purchase.cost_msat),
    }
    if purchase.runner_up_msat is not None:
        headers["X-Lcp-Runner-Up-Msat"] = str(purchase.runner_up_msat)
    return headers


def result_headers(purchase: Purchase, head: ResultHead, otherwise: str) -> dict[str, str]:
    """Return the headers of a result; ``otherwise`` is its type where the provider's cannot be sent."""
    headers = {
        "Content-Type": safe_header(head.content_type, otherwise),
        # The provider sets the content type, and a browser must not guess another.
        "X-Content-Type-Options": "nosniff",
        **purchase_headers(purchase),
    }
    encoding = safe_header(head.content_encoding, "identity")
    if encoding.lower() != "identity":
        headers["Content-Encoding"] = encoding
    return headers


def quote_response(held: HeldQuote, limits: SpendingLimits) -> web.Response:
    """Return the response to ``X-Lcp-Quote-Only``: a quote that can be taken with ``X-Lcp-Quote-Id``."""
    offer = held.offer
    quote = offer.quote
    document: dict[str, object] = {
        "object": "lcp.quote",
        "id": held.id,
        "model": offer.order.task.model,
        "source": quote.source.value,
        "peer_id": quote.peer_id,
        "job_id": quote.job_id.hex(),
        "price_msat": quote.price_msat,
        "max_fee_msat": limits.fee.fee_for(quote),
        "runner_up_msat": offer.runner_up_msat,
        "expires_at": int(quote.expires_at.timestamp()),
        "terms_hash": quote.terms_hash.hex(),
    }
    if charge := limits.charge_for(offer.order, quote):
        document["charge_msat"] = charge.amount_msat
    if offer.candidate.routing is not None:
        document["routing_info"] = {**offer.candidate.routing, "price_msat": quote.price_msat}
    return json_response(document, headers=quote_headers(quote))


# -- the body -------------------------------------------------------------------------------------


class ResultTransform:
    """Changes a result only where the client asked for it: adapter, given id, routing information."""

    def __init__(self, order: Order, purchase: Purchase, content_encoding: str, *, given_id: str = "") -> None:
        """``order`` is as the client sent it; ``given_id`` is the id of a result that has none."""
        candidate = purchase.candidate
        plain = is_uncompressed(content_encoding)
        self._adapter = candidate.adapter
        self._plan = to_chat(order.task.body).plan if self._adapter and plain else None
        self._info: Mapping[str, object] | None = None
        if candidate.routing is not None:
            self._info = {**candidate.routing, "price_msat": purchase.cost_msat}
        self._body_info = self._info if plain else None
        self._purchase = purchase
        self._given_id = given_id if plain else ""

    def headers(self) -> dict[str, str]:
        """Return the headers that name the adapter and the routing."""
        headers = {}
        if self._adapter:
            headers[ADAPTER_HEADER] = self._adapter
        if self._info is not None:
            headers[ROUTING_HEADER] = header_value(self._info)
        return headers

    def whole(self, body: bytes) -> bytes:
        """Return a whole result as the client gets it."""
        if self._plan is not None:
            try:
                body = from_chat(body, self._plan)
            except ValueError as error:
                raise self._undelivered(error) from error
        if self._given_id and find_id((body,), stream=False) is None:
            # A body that is no JSON object has no place for an id, and is not stored either.
            with suppress(ValueError):
                body = with_changes(body, {"id": self._given_id})
        if self._body_info is not None:
            body = add_to_result(body, self._body_info)
        return body

    @property
    def changes_streams(self) -> bool:
        """Whether ``stream`` changes anything."""
        return self._plan is not None or bool(self._given_id) or self._body_info is not None

    def stream(self, chunks: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        """Return a stream's chunks as the client gets them."""
        steps: list[StreamRewriter] = []
        if self._plan is not None:
            steps.append(FromChatStream(self._plan))
        if self._given_id:
            steps.append(IdInjector(self._given_id))
        if self._body_info is not None:
            steps.append(RoutingInfoStream(self._body_info))
        return self._through(chunks, steps) if steps else chunks

    async def _through(
        self, chunks: AsyncGenerator[bytes, None], steps: Sequence[StreamRewriter]
    ) -> AsyncGenerator[bytes, None]:
        try:
            async with aclosing(chunks):
                async for chunk in chunks:
                    changed = chunk
                    for step in steps:
                        changed = step.feed(changed)
                    if changed:
                        yield changed
            tail = b""
            for step in steps:
                tail = step.feed(tail) + step.rest()
            if tail:
                yield tail
        except ValueError as error:
            # The result came whole, and the adapter cannot convert it.
            raise self._undelivered(error) from error

    def _undelivered(self, error: ValueError) -> Undelivered:
        return Undelivered(
            f"the result cannot be adapted: {error}", quote=self._purchase.quote, verdict=self._purchase.verdict
        )


# -- delivery -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseWriter:
    """Sends answers to the clients that wait for them: whole, or as they come.

    ``relay_limit_s`` is how long a client may take to read a result.
    """

    service: PurchaseService
    metrics: Metrics
    charges: ChargeReport
    heartbeat_s: float
    relay_limit_s: float

    async def deliver(
        self, request: web.Request, context: RequestContext, order: Order, answer: ResultBuffer
    ) -> web.StreamResponse:
        """Return the response. ``order`` is as the client sent it.

        Raises:
            Exception: the answer's own failure, as long as the response has not begun.
        """
        context.answer = answer
        self.service.joined(answer)
        try:
            head = await answer.wait_head()
            purchase = answer.purchase
            assert purchase is not None  # noqa: S101 - every head belongs to a purchase
            transform = ResultTransform(order, purchase, head.content_encoding, given_id=answer.given_id)
            await self.charges.add_headers(context)
            if not purchase.order.task.stream:
                headers = {**result_headers(purchase, head, JSON), **transform.headers()}
                body = transform.whole(await answer.whole())
                return await self._whole(request, context, answer, body, headers)
            response = web.StreamResponse(
                headers={**result_headers(purchase, head, EVENTS), **transform.headers(), **STREAM_HEADERS}
            )
            relay = SseRelay(
                request,
                response,
                kind=answer.order.task.kind,
                heartbeat_s=self.heartbeat_s,
                limit_s=self.relay_limit_s,
                on_bytes=partial(self._count, context),
            )
            try:
                # Blocks that nothing changes go to the client's socket as they come.
                chunks = answer.chunks(None if transform.changes_streams else relay.take)
                await relay.run(transform.stream(chunks))
                await self._confirm(request, answer)
            except ConnectionError:
                # The write noticed that the client is gone before the task was cancelled.
                raise asyncio.CancelledError from None
            except Exception as error:
                failure = _not_read(answer) if isinstance(error, TimeoutError) else map_error(error)
                if failure is None or not relay.begun:
                    raise
                context.problem = failure.code or "broken off"
                await self.charges.describe(context, failure)
                is_told = isinstance(error, Undelivered) and error.is_told
                await relay.break_off(failure, is_told=is_told)
            finally:
                self._count_streamed(context)
            return response
        finally:
            self.service.left(answer)

    async def _whole(
        self,
        request: web.Request,
        context: RequestContext,
        answer: ResultBuffer,
        body: bytes,
        headers: Mapping[str, str],
    ) -> web.Response:
        context.result_bytes = len(body)
        self.metrics.first_byte(context.endpoint, context.model, context.elapsed_s())
        response = web.Response(body=body, headers=headers)
        if answer.purchase is not None and answer.purchase.holds_delivery:
            # Written here and not by aiohttp, so that it is known when it has left this process.
            try:
                async with asyncio.timeout(self.relay_limit_s):
                    close_if_http10(request, response)
                    await response.prepare(request)
                    await response.write_eof()
                await self._confirm(request, answer)
            except (ConnectionError, TimeoutError):
                if request.transport is not None:
                    request.transport.abort()
                raise asyncio.CancelledError from None
        return response

    async def _confirm(self, request: web.Request, answer: ResultBuffer) -> None:
        """Record a delivery that waits for it, once the kernel has taken all bytes: killing this process then loses none.

        A client that does not read for as long as a result may take is cut off.
        """
        if answer.purchase is None or not answer.purchase.holds_delivery:
            return
        pause_s, left_s = _LEAST_PAUSE_S, self.relay_limit_s
        transport = request.transport
        while transport is not None and not transport.is_closing():
            if not transport.get_write_buffer_size():
                break
            if left_s <= 0:
                transport.abort()
                break
            await asyncio.sleep(pause_s)
            left_s -= pause_s
            pause_s = min(2 * pause_s, _MOST_PAUSE_S)
        self.service.handed_over(answer)

    def _count(self, context: RequestContext, byte_count: int) -> None:
        if not context.result_bytes:
            self.metrics.first_byte(context.endpoint, context.model, context.elapsed_s())
        context.result_bytes += byte_count
        if context.result_bytes - context.counted_bytes >= _COUNT_EVERY_BYTES:
            self._count_streamed(context)

    def _count_streamed(self, context: RequestContext) -> None:
        self.metrics.streamed(context.result_bytes - context.counted_bytes)
        context.counted_bytes = context.result_bytes


def _not_read(answer: ResultBuffer) -> ApiError:
    return ApiError(
        408,
        "the client did not read the answer in time",
        code="answer_not_read",
        verdict=answer.verdict,
        quote=answer.purchase.quote if answer.purchase is not None else None,
    )
