"""The outermost middleware: request ids, authentication, CORS, errors, metrics and the access log."""

import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import chain

from aiohttp import HttpVersion10, HttpVersion11, web
from structlog.contextvars import bind_contextvars
from structlog.typing import FilteringBoundLogger

from lcp_gateway.constants import BYTES_PER_TOKEN
from lcp_gateway.http.authentication import AGENT_TOKEN, Authenticator
from lcp_gateway.http.browser_guard import BrowserGuard
from lcp_gateway.http.console.cookies import is_loopback_name
from lcp_gateway.http.context import CONTEXT, SERVER, RequestContext, request_id_of
from lcp_gateway.http.cors import Cors
from lcp_gateway.http.error_mapping import map_handler_error, map_http_exception, map_purchase_error
from lcp_gateway.http.errors import PAGE_HEADERS, PAYMENT_HEADER, ApiError, internal_error
from lcp_gateway.http.gateway.node_connect import NODE_CONNECT
from lcp_gateway.http.server.connection import cut_off
from lcp_gateway.http.server.proxies import display_address
from lcp_gateway.http.tracing import NOT_TRACED, finish
from lcp_gateway.purchase.errors import PurchaseError
from lcp_gateway.purchase.states import Verdict
from lcp_gateway.purchase.tracing import NO_SPAN, NO_TRACING, RequestSpan, Tracing
from lcp_gateway.telemetry.logs import log_fields
from lcp_gateway.telemetry.metrics import Metrics

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

HSTS = "max-age=31536000"
"""Browsers that reached the gateway over https do so for a year."""

_API = "/api/"
# As nginx logs a client that left before the end of its response.
_CLIENT_LEFT = 499
# A colon and a space after a name, a line break after a value.
_BETWEEN_BYTES = 4
_VERSIONS = frozenset({HttpVersion10, HttpVersion11})


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestMiddleware:
    """Wraps every handler.

    ``open_paths`` (also as the route table writes them, or after a method) need no key; ``guard`` checks requests without one. ``unavailable`` are errors of an unreachable database.
    """

    authenticator: Authenticator
    cors: Cors
    guard: BrowserGuard
    metrics: Metrics
    log: FilteringBoundLogger
    open_paths: frozenset[str]
    max_header_bytes: int
    unavailable: tuple[type[Exception], ...] = ()
    tracing: Tracing = NO_TRACING

    @web.middleware
    async def handle(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Handle a request: the middleware of the application."""
        headers = request.headers
        context = RequestContext(request_id_of(headers.get("x-request-id")))
        resource = request.match_info.route.resource
        if resource is not None:
            context.endpoint = resource.canonical
        context.client = display_address(request.remote)
        request[CONTEXT] = context
        # Each request runs in a task, and so in a context, of its own: nothing has to be unbound.
        bind_contextvars(request_id=context.request_id)
        traced: AbstractContextManager[RequestSpan] = NO_SPAN
        if context.endpoint not in NOT_TRACED:
            traced = self.tracing.request(headers.getall("traceparent", ()), headers.getall("tracestate", ()))
        with traced as span:
            if span.trace_id:
                bind_contextvars(trace_id=span.trace_id)
            status = _CLIENT_LEFT
            try:
                try:
                    response = await self._admit(request, context)
                    if response is None:
                        response = await handler(request)
                except Exception as error:  # a bug must still become a response with the payment verdict
                    if request.writer.output_size:
                        status = self._break_off(request, error, context)
                        raise ConnectionResetError("a response that has begun failed") from error
                    response = self._refuse(self._api_error(error, context), context)
                status = response.status
                return response
            finally:
                finish(span, request, context, status)
                self._report(context, status)

    async def on_response_prepare(self, request: web.Request, response: web.StreamResponse) -> None:
        """Add the headers of every response."""
        # A request that is refused before the middleware runs has no context yet.
        context = request.get(CONTEXT) or RequestContext(request_id_of(request.headers.get("x-request-id")))
        headers = response.headers
        headers["x-request-id"] = context.request_id
        headers["Server"] = SERVER
        headers["openai-processing-ms"] = str(round(context.elapsed_s() * 1000))
        if PAYMENT_HEADER not in headers:
            headers[PAYMENT_HEADER] = Verdict.NONE.value
        for name, value in context.headers.items():
            headers.setdefault(name, value)
        if AGENT_TOKEN in request.match_info:
            # The URL holds a secret, which a browser must not send as a referrer.
            headers["Referrer-Policy"] = "no-referrer"
        for name, value in PAGE_HEADERS.items():
            headers.setdefault(name, value)
        if request.path.startswith(_API):
            headers["Cache-Control"] = "no-store"
            headers["Referrer-Policy"] = "no-referrer"
            headers["Cross-Origin-Opener-Policy"] = "same-origin"
        if request.scheme == "https" and not is_loopback_name(request.url.host or ""):
            # Browsers would take it for every server on their own machine, most of which speak no https.
            headers["Strict-Transport-Security"] = HSTS
        if context.is_shareable and (cors := self.cors.headers_for(request.headers.get("Origin"))):
            headers.update(cors)
            if "Access-Control-Allow-Origin" in cors:
                headers["Cross-Origin-Resource-Policy"] = "cross-origin"

    async def _admit(self, request: web.Request, context: RequestContext) -> web.StreamResponse | None:
        """Authenticate a request, and check it as far as every route does; return the response of a CORS preflight.

        Raises:
            ApiError: the request is refused.
        """
        if request.version not in _VERSIONS:
            raise ApiError(
                505,
                "this server speaks HTTP/1.1 and HTTP/1.0",
                code="http_version_not_supported",
                headers={"Connection": "close"},
            )
        raw = request.raw_headers
        size = sum(map(len, chain.from_iterable(raw))) + _BETWEEN_BYTES * len(raw)
        if size > self.max_header_bytes:
            raise ApiError(
                431,
                f"the headers are larger than {self.max_header_bytes} bytes",
                code="headers_too_large",
                reason="too_large",
                headers={"Connection": "close"},
            )
        if preflight := self.cors.preflight(request):
            return preflight
        if self._is_open(request, context):
            context.may_read_details = self.guard.passes(request)
        else:
            context.caller = await self.authenticator.admit(request)
            if not context.caller.key_id:
                self.guard.check(request)
        return None

    def _is_open(self, request: web.Request, context: RequestContext) -> bool:
        opened, endpoint = self.open_paths, context.endpoint
        return request.path in opened or endpoint in opened or f"{request.method} {endpoint}" in opened

    def _api_error(self, error: Exception, context: RequestContext) -> ApiError:
        if isinstance(error, ApiError):
            return error
        if isinstance(error, web.HTTPException):
            return map_http_exception(error)
        if isinstance(error, PurchaseError):
            return map_purchase_error(error)
        # None of these comes after a purchase, of whose payment they would say nothing.
        if context.purchase is None and (found := map_handler_error(error)) is not None:
            return found
        quote = context.purchase.quote if context.purchase else None
        if isinstance(error, self.unavailable):
            return ApiError(
                503,
                "the gateway's database cannot be read right now",
                code="journal_unavailable",
                retry=context.verdict is Verdict.NONE,
                verdict=context.verdict,
                quote=quote,
                reason="journal",
            )
        self.log.error("unexpected error", exc_info=error)
        return internal_error(context.verdict, quote)

    def _break_off(self, request: web.Request, error: Exception, context: RequestContext) -> int:
        """Cut off a response whose head is out: another one would go into its body. Return the status to report."""
        cut_off(request)
        if isinstance(error, ConnectionError):
            return _CLIENT_LEFT
        failure = self._api_error(error, context)
        context.problem = failure.code or str(failure.status)
        return failure.status

    def _refuse(self, error: ApiError, context: RequestContext) -> web.Response:
        context.problem = error.code or str(error.status)
        if error.reason:
            self.metrics.refusal(error.reason)
        response = error.response()
        if error.headers.get("Connection") == "close":
            response.force_close()
        return response

    def _report(self, context: RequestContext, status: int) -> None:
        if context.endpoint == NODE_CONNECT:
            # It lasts for as long as its node is here, which is no time of a request.
            self.log.debug("request", endpoint=context.endpoint, status=status, problem=context.problem)
            return
        verdict = context.verdict
        self.metrics.request(context.endpoint, context.model, status, str(verdict), context.stream, context.elapsed_s())
        if context.operation:
            # It was paid, or may have been, and there is no whole answer.
            is_grave = bool(context.problem) and verdict is not Verdict.NONE
            if self.log.is_enabled_for(logging.WARNING if is_grave else logging.INFO):
                self._log_job(context, status, is_grave=is_grave)
        else:
            self.log.debug("request", endpoint=context.endpoint, status=status, problem=context.problem)

    def _log_job(self, context: RequestContext, status: int, *, is_grave: bool) -> None:
        fields: dict[str, object] = {
            "status": status,
            "model": context.model,
            "stream": context.stream,
            "payment": str(context.verdict),
            "request_bytes": context.request_bytes,
            "request_tokens_approx": context.request_bytes // BYTES_PER_TOKEN,
            "total_ms": round(context.elapsed_s() * 1000),
        }
        purchase = context.purchase
        if purchase is not None:
            quote = purchase.quote
            fields["state"] = str(purchase.state)
            if (ending := purchase.ending) is not None:
                fields["ended_by"], fields["received"] = str(ending.ended_by), str(ending.received)
            fields["peer_id"] = quote.peer_id
            fields["job_id"] = quote.job_id.hex()
            fields["price_msat"] = purchase.cost_msat
            fields["source"] = str(quote.source)
            bought = purchase.order.task.model
            if bought != context.model:
                fields["bought_model"] = bought
            fields["terms_hash"] = quote.terms_hash.hex()
        answer = context.answer
        if answer is not None and answer.quote_s is not None:
            fields["quote_ms"] = round(answer.quote_s * 1000)
        if answer is not None and answer.head is not None:
            if answer.execute_s is not None:
                fields["execute_ms"] = round(answer.execute_s * 1000)
            size, tokens = context.result_bytes, context.result_bytes // BYTES_PER_TOKEN
            what = "streamed" if context.stream else "completion"
            fields[f"{what}_bytes"] = size
            fields[f"{what}_tokens_approx"] = tokens
            fields["total_tokens_approx"] = (context.request_bytes // BYTES_PER_TOKEN) + tokens
        for name in ("key_id", "client", "joined", "problem"):
            if value := getattr(context, name):
                fields[name] = value
        log_fields(self.log, "warning" if is_grave else "info", context.operation, fields)
