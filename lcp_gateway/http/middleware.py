"""The outermost middleware: request ids, authentication, CORS, errors, metrics and the access log."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import HttpVersion10, HttpVersion11, web
from structlog.contextvars import bind_contextvars
from structlog.typing import FilteringBoundLogger

from lcp_gateway.http.authentication import AGENT_TOKEN, Authenticator
from lcp_gateway.http.browser_guard import BrowserGuard
from lcp_gateway.http.context import CONTEXT, SERVER, RequestContext, request_id_of
from lcp_gateway.http.cors import Cors
from lcp_gateway.http.errors import (
    PAGE_HEADERS,
    PAYMENT_HEADER,
    ApiError,
    internal_error,
    map_http_exception,
)
from lcp_gateway.http.server.proxies import display_address
from lcp_gateway.http.tracing import NOT_TRACED, finish
from lcp_gateway.purchase.states import Verdict
from lcp_gateway.purchase.tracing import NO_SPAN, NO_TRACING, RequestSpan, Tracing
from lcp_gateway.telemetry.metrics import Metrics

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_BYTES_PER_TOKEN = 4
_API = "/api/"
_VERSIONS = frozenset({HttpVersion10, HttpVersion11})


class RequestMiddleware:
    """Wraps every handler."""

    def __init__(
        self,
        *,
        door: Authenticator,
        cors: Cors,
        guard: BrowserGuard,
        metrics: Metrics,
        log: FilteringBoundLogger,
        open_paths: frozenset[str],
        max_header_bytes: int,
        away: tuple[type[Exception], ...] = (),
        tracing: Tracing = NO_TRACING,
    ) -> None:
        """``open_paths`` need no key, ``guard`` checks who comes without one. ``away`` are the errors of a database that cannot be reached."""
        self._away = away
        self._tracing = tracing
        self._door = door
        self._cors = cors
        self._guard = guard
        self._metrics = metrics
        self._log = log
        self._open_paths = open_paths
        self._max_header_bytes = max_header_bytes

    def middleware(self) -> Any:
        """Give the middleware for the application."""

        @web.middleware
        async def edge(request: web.Request, handler: Handler) -> web.StreamResponse:
            exchange = RequestContext(request_id_of(request.headers.get("x-request-id")))
            resource = request.match_info.route.resource
            if resource is not None:
                exchange.endpoint = resource.canonical
            exchange.client = display_address(request.remote)
            request[CONTEXT] = exchange
            # Each request runs in a task, and so in a context, of its own: nothing has to be unbound.
            bind_contextvars(request_id=exchange.request_id)
            if exchange.endpoint in NOT_TRACED:
                return await self._answer(request, handler, exchange, NO_SPAN)
            headers = request.headers
            with self._tracing.request(
                headers.getall("traceparent", ()), headers.getall("tracestate", ())
            ) as span:
                if span.trace_id:
                    bind_contextvars(trace_id=span.trace_id)
                return await self._answer(request, handler, exchange, span)

        return edge

    async def on_response_prepare(self, request: web.Request, response: web.StreamResponse) -> None:
        """Put the headers on that every answer carries."""
        # What is refused before the middlewares run has no exchange yet.
        exchange = request.get(CONTEXT) or RequestContext(
            request_id_of(request.headers.get("x-request-id"))
        )
        headers = response.headers
        headers["x-request-id"] = exchange.request_id
        headers["Server"] = SERVER
        headers["openai-processing-ms"] = str(round(exchange.elapsed_s() * 1000))
        if PAYMENT_HEADER not in headers:
            headers[PAYMENT_HEADER] = Verdict.NONE.value
        for name, value in exchange.headers.items():
            headers.setdefault(name, value)
        if AGENT_TOKEN in request.match_info:
            # The address holds a secret, which no page may pass on.
            headers["Referrer-Policy"] = "no-referrer"
        for name, value in PAGE_HEADERS.items():
            headers.setdefault(name, value)
        if request.path.startswith(_API):
            headers["Cache-Control"] = "no-store"
        if cors := self._cors.headers_for(request.headers.get("Origin")):
            headers.update(cors)
            if "Access-Control-Allow-Origin" in cors:
                headers["Cross-Origin-Resource-Policy"] = "cross-origin"

    async def _answer(
        self, request: web.Request, handler: Handler, exchange: RequestContext, span: RequestSpan
    ) -> web.StreamResponse:
        status = 499  # as nginx logs a client that went away before its answer
        try:
            response = await self._guarded(request, handler, exchange)
            status = response.status
            return response
        finally:
            finish(span, request, exchange, status)
            self._account(exchange, status)

    async def _guarded(
        self, request: web.Request, handler: Handler, exchange: RequestContext
    ) -> web.StreamResponse:
        try:
            _check_version(request)
            self._check_headers(request)
            if preflight := self._cors.preflight(request):
                return preflight
            if request.path in self._open_paths:
                exchange.may_read_details = self._guard.passes(request)
            else:
                exchange.caller = await self._door.admit(request)
                if not exchange.caller.key_id:
                    self._guard.check(request)
            return await handler(request)
        except ApiError as error:
            return self._refuse(error, exchange)
        except web.HTTPException as error:
            return self._refuse(map_http_exception(error), exchange)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - a bug must still become an answer that says what was paid
            if isinstance(error, self._away):
                return self._refuse(_away(exchange), exchange)
            self._log.error("unexpected error", exc_info=error)
            quote = exchange.purchase.quote if exchange.purchase else None
            return self._refuse(internal_error(exchange.verdict, quote), exchange)

    def _check_headers(self, request: web.Request) -> None:
        size = sum(len(name) + len(value) + 4 for name, value in request.raw_headers)
        if size > self._max_header_bytes:
            raise ApiError(
                431,
                f"the headers are larger than {self._max_header_bytes} bytes",
                code="headers_too_large",
                reason="too_large",
                headers={"Connection": "close"},
            )

    def _refuse(self, error: ApiError, exchange: RequestContext) -> web.Response:
        exchange.problem = error.code or str(error.status)
        if error.reason:
            self._metrics.refusal(error.reason)
        response = error.response()
        if error.headers.get("Connection") == "close":
            response.force_close()
        return response

    def _account(self, exchange: RequestContext, status: int) -> None:
        verdict = exchange.verdict
        self._metrics.request(
            exchange.endpoint,
            exchange.model,
            status,
            verdict.value,
            exchange.stream,
            exchange.elapsed_s(),
        )
        if exchange.operation:
            self._log_job(exchange, status)
        else:
            self._log.debug(
                "request", endpoint=exchange.endpoint, status=status, problem=exchange.problem
            )

    def _log_job(self, exchange: RequestContext, status: int) -> None:
        fields: dict[str, object] = {
            "status": status,
            "model": exchange.model,
            "stream": exchange.stream,
            "payment": exchange.verdict.value,
            "request_bytes": exchange.request_bytes,
            "request_tokens_approx": exchange.request_bytes // _BYTES_PER_TOKEN,
            "total_ms": round(exchange.elapsed_s() * 1000),
        }
        if exchange.purchase is not None:
            quote = exchange.purchase.quote
            fields["state"] = exchange.purchase.state.value
            if (ending := exchange.purchase.ending) is not None:
                fields["ended_by"], fields["received"] = ending
            fields["peer_id"] = quote.peer_id
            fields["job_id"] = quote.job_id.hex()
            fields["price_msat"] = exchange.purchase.cost_msat
            fields["source"] = quote.source.value
            bought = exchange.purchase.order.task.model
            if bought != exchange.model:
                fields["bought_model"] = bought
            fields["terms_hash"] = quote.terms_hash.hex()
        answer = exchange.answer
        if answer is not None and answer.quote_s is not None:
            fields["quote_ms"] = round(answer.quote_s * 1000)
        if answer is not None and answer.head is not None:
            if answer.execute_s is not None:
                fields["execute_ms"] = round(answer.execute_s * 1000)
            size, tokens = exchange.result_bytes, exchange.result_bytes // _BYTES_PER_TOKEN
            what = "streamed" if exchange.stream else "completion"
            fields[f"{what}_bytes"] = size
            fields[f"{what}_tokens_approx"] = tokens
            fields["total_tokens_approx"] = (exchange.request_bytes // _BYTES_PER_TOKEN) + tokens
        said = {
            "key_id": exchange.key_id,
            "client": exchange.client,
            "joined": exchange.joined,
            "problem": exchange.problem,
        }
        fields.update((name, value) for name, value in said.items() if value)
        if exchange.problem and exchange.verdict is not Verdict.NONE:
            # Money has left, or may have, and no whole answer came of it.
            self._log.warning(exchange.operation, **fields)
        else:
            self._log.info(exchange.operation, **fields)


def _away(exchange: RequestContext) -> ApiError:
    quote = exchange.purchase.quote if exchange.purchase else None
    return ApiError(
        503,
        "the gateway's books cannot be read right now",
        code="journal_unavailable",
        retry=exchange.verdict is Verdict.NONE,
        verdict=exchange.verdict,
        quote=quote,
        reason="journal",
    )


def _check_version(request: web.Request) -> None:
    if request.version not in _VERSIONS:
        raise ApiError(
            505,
            "this server speaks HTTP/1.1 and HTTP/1.0",
            code="http_version_not_supported",
            headers={"Connection": "close"},
        )
