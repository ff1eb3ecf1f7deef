"""The attributes of a request's span, by the semantic conventions for HTTP servers and generative AI; never a prompt."""

from collections.abc import Mapping

from aiohttp import web

from lcp_gateway.http.context import RequestContext
from lcp_gateway.purchase.errors import PaymentFailed, UpstreamError
from lcp_gateway.purchase.states import Verdict
from lcp_gateway.purchase.tracing import MAX_TEXT, Facts, RequestSpan, error_type, purchase_facts

NOT_TRACED = frozenset({"/healthz", "/readyz", "/metrics", "/api/nodes/connect"})
"""Routes that monitoring calls every few seconds, and the connections of nodes, which last for days."""

# Other methods are arbitrary text of the client.
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE"})  # fmt: skip
# By the names in the access log; to the conventions a response is a chat.
_OPERATIONS: Mapping[str, str] = {
    "chat completion": "chat",
    "response": "chat",
    "completion": "text_completion",
    "embedding": "embeddings",
}
_CLIENT_LEFT = 499
_SERVER_ERROR = 500


def finish(span: RequestSpan, request: web.Request, context: RequestContext, status: int) -> None:
    """Record the end of a request on its span; ``status`` is 499 where the client left before its response."""
    if not span.trace_id:
        return
    span.name(_name(request, context))
    span.note(_http_facts, request, context, status)
    if _operation(context):
        span.note(_inference_facts, context)
    if context.purchase is not None:
        span.note(purchase_facts, context.purchase)
    if not context.problem:
        return
    if status == _CLIENT_LEFT:
        span.failed("cancelled")
    elif status >= _SERVER_ERROR or context.result_bytes or context.verdict is not Verdict.NONE:
        # An error of this gateway or a provider; a client's own mistake is no error of the server.
        span.failed(_error_type(context))
    else:
        span.note(_refusal_facts, context)


def _name(request: web.Request, context: RequestContext) -> str:
    operation = _operation(context)
    if operation:
        return f"{operation} {context.model}".rstrip()
    method = request.method if request.method in _METHODS else "HTTP"
    return f"{method} {context.endpoint}" if _is_matched(context) else method


def _is_matched(context: RequestContext) -> bool:
    return context.endpoint.startswith("/")


def _operation(context: RequestContext) -> str:
    return _OPERATIONS.get(context.operation, "")


def _http_facts(request: web.Request, context: RequestContext, status: int) -> Facts:
    facts: dict[str, str | int] = {
        "http.request.method": request.method if request.method in _METHODS else "_OTHER",
        "lcp.request_id": context.request_id,
    }
    if _is_matched(context):
        # The template: the path itself may hold an agent's token.
        facts["http.route"] = context.endpoint
    if status != _CLIENT_LEFT:
        facts["http.response.status_code"] = status
    # The address listened on, and not the header Host, which is the client's text.
    name = request.transport.get_extra_info("sockname") if request.transport else None
    if isinstance(name, tuple):
        facts["server.address"], facts["server.port"] = str(name[0]), int(name[1])
    return facts


def _inference_facts(context: RequestContext) -> Facts:
    facts: dict[str, str | bool] = {
        "gen_ai.operation.name": _operation(context),
        "gen_ai.request.stream": context.stream,
        "lcp.payment": context.verdict.value,
        "lcp.joined": context.joined,
    }
    if context.model:
        facts["gen_ai.request.model"] = context.model[:MAX_TEXT]
    if context.purchase is not None:
        bought = context.purchase.order.task.model
        if bought != context.model:
            facts["lcp.bought_model"] = bought[:MAX_TEXT]
    return facts


def _refusal_facts(context: RequestContext) -> Facts:
    return {"error.type": _error_type(context)}


def _error_type(context: RequestContext) -> str:
    error = context.answer.error if context.answer is not None else None
    # The problem is the gateway's own text, unless a provider failed: then it may be the provider's.
    if isinstance(error, PaymentFailed | UpstreamError):
        return error_type(error)
    return context.problem
