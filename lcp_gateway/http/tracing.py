"""What the span of a request says, by the semantic conventions for HTTP servers and generative AI. Never what was said."""

from collections.abc import Mapping

from aiohttp import web

from lcp_gateway.http.context import RequestContext
from lcp_gateway.purchase.errors import PaymentFailed, UpstreamError
from lcp_gateway.purchase.states import Verdict
from lcp_gateway.purchase.tracing import (
    MAX_TEXT,
    Facts,
    RequestSpan,
    error_type,
    purchase_facts,
)

NOT_TRACED = frozenset({"/healthz", "/readyz", "/metrics"})
"""Routes that are asked every few seconds by machines."""

# Other words for a method are the client's own.
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE"})  # fmt: skip
# By what the log calls them; a response is a chat to the conventions.
_OPERATIONS: Mapping[str, str] = {
    "chat completion": "chat",
    "response": "chat",
    "completion": "text_completion",
    "embedding": "embeddings",
}
_CLIENT_LEFT = 499
_SERVER_ERROR = 500


def finish(span: RequestSpan, request: web.Request, exchange: RequestContext, status: int) -> None:
    """Say on a request's span how it ended; ``status`` is 499 where the client went away before its answer."""
    if not span.trace_id:
        return
    span.name(_name(request, exchange))
    span.note(_http_facts, request, exchange, status)
    if _operation(exchange):
        span.note(_inference_facts, exchange)
    if exchange.purchase is not None:
        span.note(purchase_facts, exchange.purchase)
    if not exchange.problem:
        return
    if status == _CLIENT_LEFT:
        span.failed("cancelled")
    elif status >= _SERVER_ERROR or exchange.result_bytes or exchange.verdict is not Verdict.NONE:
        # Ours or a provider's; what the client got wrong is no error of the server's.
        span.failed(_error_type(exchange))
    else:
        span.note(_refusal_facts, exchange)


def _name(request: web.Request, exchange: RequestContext) -> str:
    operation = _operation(exchange)
    if operation:
        return f"{operation} {exchange.model}".rstrip()
    method = request.method if request.method in _METHODS else "HTTP"
    return f"{method} {exchange.endpoint}" if _is_matched(exchange) else method


def _is_matched(exchange: RequestContext) -> bool:
    return exchange.endpoint.startswith("/")


def _operation(exchange: RequestContext) -> str:
    return _OPERATIONS.get(exchange.operation, "")


def _http_facts(request: web.Request, exchange: RequestContext, status: int) -> Facts:
    facts: dict[str, str | int] = {
        "http.request.method": request.method if request.method in _METHODS else "_OTHER",
        "lcp.request_id": exchange.request_id,
    }
    if _is_matched(exchange):
        # The template: the path itself may hold an agent's token.
        facts["http.route"] = exchange.endpoint
    if status != _CLIENT_LEFT:
        facts["http.response.status_code"] = status
    # Where it was taken in, and not the header Host, which is whatever the client says.
    name = request.transport.get_extra_info("sockname") if request.transport else None
    if isinstance(name, tuple):
        facts["server.address"], facts["server.port"] = str(name[0]), int(name[1])
    return facts


def _inference_facts(exchange: RequestContext) -> Facts:
    facts: dict[str, str | bool] = {
        "gen_ai.operation.name": _operation(exchange),
        "gen_ai.request.stream": exchange.stream,
        "lcp.payment": exchange.verdict.value,
        "lcp.joined": exchange.joined,
    }
    if exchange.model:
        facts["gen_ai.request.model"] = exchange.model[:MAX_TEXT]
    if exchange.purchase is not None:
        bought = exchange.purchase.order.task.model
        if bought != exchange.model:
            facts["lcp.bought_model"] = bought[:MAX_TEXT]
    return facts


def _refusal_facts(exchange: RequestContext) -> Facts:
    return {"error.type": _error_type(exchange)}


def _error_type(exchange: RequestContext) -> str:
    error = exchange.answer.error if exchange.answer is not None else None
    # The problem is a word of the gateway's own, unless a provider failed: then it may be one of the provider's.
    if isinstance(error, PaymentFailed | UpstreamError):
        return error_type(error)
    return exchange.problem
