"""POST /v1/chat/completions and /v1/responses: a request in, a purchase, and its result out."""

import asyncio
import time

from aiohttp import web

from lcp_gateway.http.background import Background
from lcp_gateway.http.catalog_source import CatalogSource
from lcp_gateway.http.errors import (
    PAYMENT_HEADER,
    ApiError,
    bad_request,
    of_purchase,
    of_routing,
    quote_headers,
)
from lcp_gateway.http.exchange import EXCHANGE, Exchange
from lcp_gateway.http.jobs import Job, Jobs
from lcp_gateway.http.relay import Relay, safe_header
from lcp_gateway.http.validation import parse_task
from lcp_gateway.purchase.errors import PaymentFailed, PurchaseError, Undelivered, UpstreamError
from lcp_gateway.purchase.flow import Buyer
from lcp_gateway.purchase.purchase import Purchase
from lcp_gateway.purchase.states import State
from lcp_gateway.purchase.task import Task, TaskKind
from lcp_gateway.routing.catalog import Provider
from lcp_gateway.routing.choice import RoutingError, RoutingRules, choose
from lcp_gateway.telemetry.metrics import Metrics

CANCEL_REASON = "request canceled"
_JSON = "application/json; charset=utf-8"
_EVENTS = "text/event-stream; charset=utf-8"
# Statuses after which the peer may still be working for nobody.
_STILL_RUNNING = frozenset({"CANCELLED", "DEADLINE_EXCEEDED"})
_PERHAPS_AT_WORK = frozenset({State.PAYING, State.UNKNOWN, State.SETTLED, State.UNDELIVERED})


# The counter of streamed bytes is touched this often, not for every chunk.
_COUNT_EVERY_BYTES = 16_384


class Inference:
    """Serves the routes that buy something."""

    def __init__(
        self,
        *,
        buyer: Buyer,
        catalog: CatalogSource,
        rules: RoutingRules,
        jobs: Jobs,
        background: Background,
        metrics: Metrics,
        read_timeout_s: float,
        cancel_timeout_s: float,
        heartbeat_s: float,
        relay_limit_s: float,
    ) -> None:
        self._buyer = buyer
        self._catalog = catalog
        self._rules = rules
        self._jobs = jobs
        self._background = background
        self._metrics = metrics
        self._read_timeout_s = read_timeout_s
        self._cancel_timeout_s = cancel_timeout_s
        self._heartbeat_s = heartbeat_s
        self._relay_limit_s = relay_limit_s

    async def chat_completions(self, request: web.Request) -> web.StreamResponse:
        """Serve POST /v1/chat/completions."""
        return await self._serve(request, TaskKind.CHAT_COMPLETIONS, "chat completion")

    async def responses(self, request: web.Request) -> web.StreamResponse:
        """Serve POST /v1/responses."""
        return await self._serve(request, TaskKind.RESPONSES, "response")

    async def _serve(
        self, request: web.Request, kind: TaskKind, operation: str
    ) -> web.StreamResponse:
        exchange = request[EXCHANGE]
        exchange.operation = operation
        with self._jobs.admit() as job:
            phase = "request"
            try:
                task = parse_task(kind, await self._read_body(request))
                exchange.model, exchange.stream = task.model, task.stream
                exchange.request_bytes = len(task.body)
                provider = await self._choose(task)
                phase = "quote"
                purchase = await self._quote(exchange, task, provider)
                if task.stream:
                    phase = "stream"
                    return await self._stream(request, exchange, purchase, job)
                phase = "execute"
                return await self._whole(exchange, purchase)
            except asyncio.CancelledError:
                self._abandoned(exchange)
                if not job.aborted:
                    self._metrics.client_disconnect(phase)
                    exchange.problem = f"the client went away ({phase})"
                    raise
                _take_back_cancellation()
                raise _shutting_down(exchange) from None

    async def _read_body(self, request: web.Request) -> bytes:
        encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding not in {"", "identity"}:
            raise ApiError(
                415,
                "compressed request bodies are not taken",
                code="unsupported_content_encoding",
                reason="bad_request",
            )
        limit = request.client_max_size
        if request.content_length is not None and request.content_length > limit:
            raise _too_large(limit)
        try:
            if request.content.is_eof():
                return await request.read()
            async with asyncio.timeout(self._read_timeout_s):
                return await request.read()
        except web.HTTPRequestEntityTooLarge:
            raise _too_large(limit) from None
        except TimeoutError:
            raise ApiError(
                408,
                "the request's body took too long",
                code="request_timeout",
                retry=True,
                reason="bad_request",
                headers={"Connection": "close"},
            ) from None
        except web.RequestPayloadError:
            raise bad_request(
                "the request's body cannot be read", code="malformed_request"
            ) from None

    async def _choose(self, task: Task) -> Provider:
        try:
            return choose(self._catalog.catalog, task, self._rules)
        except RoutingError:
            # Perhaps the peer or the model has just appeared.
            catalog = await self._catalog.refresh_if_stale()
        try:
            return choose(catalog, task, self._rules)
        except RoutingError as error:
            raise of_routing(error) from error

    async def _quote(self, exchange: Exchange, task: Task, provider: Provider) -> Purchase:
        started = time.monotonic()
        try:
            purchase = await self._buyer.quote(task, provider.peer_id)
        except UpstreamError as error:
            raise of_purchase(error) from error
        exchange.quote_s = time.monotonic() - started
        exchange.purchase = purchase
        self._metrics.quote(
            provider.peer_id, task.model, exchange.quote_s, purchase.quote.price_msat
        )
        return purchase

    async def _whole(self, exchange: Exchange, purchase: Purchase) -> web.Response:
        started = time.monotonic()
        try:
            result = await self._buyer.buy(purchase)
        except PurchaseError as error:
            raise self._failed(error, purchase) from error
        finally:
            self._note_execution(exchange, started)
        exchange.result_bytes = len(result.body)
        self._metrics.first_byte(exchange.endpoint, exchange.model, exchange.elapsed_s())
        return web.Response(
            body=result.body,
            headers=_result_headers(
                purchase, result.content_type, result.content_encoding, otherwise=_JSON
            ),
        )

    async def _stream(
        self, request: web.Request, exchange: Exchange, purchase: Purchase, job: Job
    ) -> web.StreamResponse:
        started = time.monotonic()
        relay: Relay | None = None
        try:
            stream = await self._buyer.open_stream(purchase)
            response = web.StreamResponse(
                headers={
                    **_result_headers(
                        purchase, stream.content_type, stream.content_encoding, otherwise=_EVENTS
                    ),
                    "Cache-Control": "no-cache",
                    "X-Accel-Buffering": "no",
                }
            )
            relay = Relay(
                request,
                response,
                kind=purchase.task.kind,
                heartbeat_s=self._heartbeat_s,
                limit_s=self._relay_limit_s,
                on_bytes=lambda count: self._note_bytes(exchange, count),
            )
            await relay.run(stream.chunks())
        except ConnectionError:
            # The write found the client gone before the cancellation did.
            raise asyncio.CancelledError from None
        except TimeoutError:
            assert relay is not None  # noqa: S101 - nothing else here has a time-out of its own
            self._abandoned(exchange)
            if not relay.begun:
                raise _not_read(exchange) from None
            await self._break_off(relay, exchange, _not_read(exchange))
        except asyncio.CancelledError:
            if relay is None or not relay.begun or not job.aborted:
                raise
            self._abandoned(exchange)
            _take_back_cancellation()
            await self._break_off(relay, exchange, _shutting_down(exchange))
        except PurchaseError as error:
            failure = self._failed(error, purchase)
            if relay is None or not relay.begun:
                raise failure from error
            await self._break_off(relay, exchange, failure)
        finally:
            self._count(exchange)
            self._note_execution(exchange, started)
        return response

    async def _break_off(self, relay: Relay, exchange: Exchange, error: ApiError) -> None:
        exchange.problem = error.code or "broken off"
        await relay.break_off(error)

    def _failed(self, error: PurchaseError, purchase: Purchase) -> ApiError:
        if isinstance(error, PaymentFailed) and error.status in _STILL_RUNNING:
            self._cancel(purchase)
        elif isinstance(error, Undelivered) and isinstance(error.__cause__, UpstreamError):
            # The stream broke off before its end, so the peer may still be at it.
            self._cancel(purchase)
        return of_purchase(error)

    def _abandoned(self, exchange: Exchange) -> None:
        if exchange.purchase is not None and exchange.purchase.state in _PERHAPS_AT_WORK:
            self._cancel(exchange.purchase)

    def _cancel(self, purchase: Purchase) -> None:
        self._background.start(self._buyer.cancel(purchase, CANCEL_REASON, self._cancel_timeout_s))

    def _note_bytes(self, exchange: Exchange, count: int) -> None:
        if not exchange.result_bytes:
            self._metrics.first_byte(exchange.endpoint, exchange.model, exchange.elapsed_s())
        exchange.result_bytes += count
        if exchange.result_bytes - exchange.counted_bytes >= _COUNT_EVERY_BYTES:
            self._count(exchange)

    def _count(self, exchange: Exchange) -> None:
        self._metrics.streamed(exchange.result_bytes - exchange.counted_bytes)
        exchange.counted_bytes = exchange.result_bytes

    def _note_execution(self, exchange: Exchange, started: float) -> None:
        exchange.execute_s = time.monotonic() - started
        if exchange.purchase is not None:
            self._metrics.execute(
                exchange.purchase.quote.peer_id, exchange.model, exchange.execute_s
            )


def _result_headers(
    purchase: Purchase, content_type: str, content_encoding: str, *, otherwise: str
) -> dict[str, str]:
    headers = {
        "Content-Type": safe_header(content_type, otherwise),
        # A provider chooses the type of its bytes, and no browser shall guess another.
        "X-Content-Type-Options": "nosniff",
        # A stream's head goes out when it is paid for and before it is whole.
        PAYMENT_HEADER: purchase.verdict.value,
        **quote_headers(purchase.quote),
    }
    encoding = safe_header(content_encoding, "identity")
    if encoding.lower() != "identity":
        headers["Content-Encoding"] = encoding
    return headers


def _too_large(limit: int) -> ApiError:
    return ApiError(
        413,
        f"the request's body is larger than {limit} bytes",
        code="request_too_large",
        reason="too_large",
        headers={"Connection": "close"},
    )


def _shutting_down(exchange: Exchange) -> ApiError:
    quote = exchange.purchase.quote if exchange.purchase is not None else None
    return ApiError(
        503,
        "the gateway is shutting down and could not wait for this any longer",
        code="shutting_down",
        retry=exchange.verdict.value == "none",
        verdict=exchange.verdict,
        quote=quote,
        headers={"Connection": "close"},
    )


def _not_read(exchange: Exchange) -> ApiError:
    quote = exchange.purchase.quote if exchange.purchase is not None else None
    return ApiError(
        408,
        "the answer was not read in time",
        code="answer_not_read",
        verdict=exchange.verdict,
        quote=quote,
    )


def _take_back_cancellation() -> None:
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - handlers run in tasks
    task.uncancel()
