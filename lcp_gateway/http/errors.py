"""The one error map: every failure becomes an answer in OpenAI's shape that says what happened to the money."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus

import orjson
from aiohttp import web

from lcp_gateway.purchase.errors import (
    PaymentFailed,
    PurchaseError,
    QuoteExpired,
    Refused,
    Undelivered,
    UpstreamError,
)
from lcp_gateway.purchase.quote import Quote
from lcp_gateway.purchase.states import Verdict
from lcp_gateway.routing.choice import ModelNotFound, NoProvider, RoutingError

PAYMENT_HEADER = "X-Lcp-Payment"
RETRY_AFTER_S = 1
_MAX_MESSAGE_CHARS = 1_000

# As openai-serve maps them, so that clients written for it see no change.
STATUS_OF_GRPC: Mapping[str, int] = {
    "CANCELLED": 408,
    "UNKNOWN": 500,
    "INTERNAL": 500,
    "DATA_LOSS": 500,
    "INVALID_ARGUMENT": 400,
    "NOT_FOUND": 400,
    "FAILED_PRECONDITION": 400,
    "OUT_OF_RANGE": 400,
    "ALREADY_EXISTS": 409,
    "ABORTED": 409,
    "PERMISSION_DENIED": 403,
    "UNAUTHENTICATED": 401,
    "RESOURCE_EXHAUSTED": 429,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 502,
    "DEADLINE_EXCEEDED": 504,
}

_TYPES = {
    401: "authentication_error",
    402: "insufficient_quota",
    403: "permission_error",
    429: "rate_limit_error",
}

_CODES_OF_GRPC = {
    "RESOURCE_EXHAUSTED": "rate_limit_exceeded",
    "DEADLINE_EXCEEDED": "upstream_timeout",
    "UNAVAILABLE": "upstream_unavailable",
}


@dataclass(slots=True)
class ApiError(Exception):
    """An answer that is an error.

    ``retry`` goes out as ``x-should-retry``, with a ``retry-after`` when it is true. ``reason`` is the word that the
    metric of refusals counts it under; empty when it is none.
    """

    status: int
    message: str
    code: str | None = None
    param: str | None = None
    retry: bool = False
    verdict: Verdict = Verdict.NONE
    quote: Quote | None = None
    reason: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def type(self) -> str:
        """The error's type in OpenAI's words."""
        if self.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return "server_error"
        return _TYPES.get(self.status, "invalid_request_error")

    def as_object(self) -> dict[str, object]:
        """The ``error`` object: OpenAI's four keys, and ``lcp`` where there was a quote."""
        error: dict[str, object] = {
            "message": self.message[:_MAX_MESSAGE_CHARS],
            "type": self.type,
            "param": self.param,
            "code": self.code,
        }
        if self.quote is not None:
            error["lcp"] = {
                "payment": self.verdict.value,
                "job_id": self.quote.job_id.hex(),
                "price_msat": self.quote.price_msat,
                "peer_id": self.quote.peer_id,
            }
        return error

    def response(self) -> web.Response:
        """The whole answer."""
        headers = {
            PAYMENT_HEADER: self.verdict.value,
            "x-should-retry": "true" if self.retry else "false",
            **self.headers,
        }
        if self.retry:
            headers.setdefault("retry-after", str(RETRY_AFTER_S))
        if self.quote is not None:
            headers.update(quote_headers(self.quote))
        return web.Response(
            status=self.status,
            body=orjson.dumps({"error": self.as_object()}),
            content_type="application/json",
            headers=headers,
        )


def quote_headers(quote: Quote) -> dict[str, str]:
    """The headers that tell which quote an answer belongs to."""
    return {
        "X-Lcp-Peer-Id": quote.peer_id,
        "X-Lcp-Job-Id": quote.job_id.hex(),
        "X-Lcp-Price-Msat": str(quote.price_msat),
        "X-Lcp-Terms-Hash": quote.terms_hash.hex(),
    }


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """A request that makes no sense."""
    return ApiError(400, message, code=code, param=param, reason="bad_request")


def of_routing(error: RoutingError) -> ApiError:
    """No provider for a task."""
    if isinstance(error, ModelNotFound):
        return ApiError(
            404, error.message, code="model_not_found", param="model", reason="model_not_found"
        )
    assert isinstance(error, NoProvider)  # noqa: S101 - the tree has these two leaves
    return ApiError(503, error.message, code="no_provider", retry=True, reason="no_peer")


def of_purchase(error: PurchaseError) -> ApiError:
    """A purchase that did not come to its end."""
    match error:
        case UpstreamError():
            return _of_quote_failure(error)
        case PaymentFailed():
            return _of_payment_failure(error)
        case Undelivered():
            return ApiError(
                502,
                error.message,
                code="undelivered",
                verdict=error.verdict,
                quote=error.quote,
            )
        case QuoteExpired():
            return ApiError(
                410,
                error.message,
                error.code,
                retry=True,
                quote=error.quote,
                reason="quote_expired",
            )
        case Refused():
            return ApiError(402, error.message, error.code, quote=error.quote, reason="price_limit")
        case _:
            return ApiError(500, error.message, verdict=error.verdict, quote=error.quote)


def _of_quote_failure(error: UpstreamError) -> ApiError:
    return ApiError(
        STATUS_OF_GRPC.get(error.status, 500),
        error.message,
        code=_CODES_OF_GRPC.get(error.status, "quote_failed"),
        retry=error.retryable,
        quote=error.quote,
    )


def _of_payment_failure(error: PaymentFailed) -> ApiError:
    match error.verdict:
        case Verdict.NONE:
            code = "payment_failed"
        case Verdict.UNKNOWN:
            code = "payment_unknown"
        case Verdict.SETTLED:
            code = "undelivered"
    return ApiError(
        STATUS_OF_GRPC.get(error.status, 500),
        error.message,
        code=code,
        # A new quote may find a route; whatever may have been paid is never tried again.
        retry=error.verdict is Verdict.NONE,
        verdict=error.verdict,
        quote=error.quote,
    )


def of_http_exception(error: web.HTTPException) -> ApiError:
    """What aiohttp itself refuses: an unknown route, a wrong method, a body that is too large."""
    match error:
        case web.HTTPNotFound():
            return ApiError(404, "there is no such route", code="not_found", reason="not_found")
        case web.HTTPMethodNotAllowed():
            allow = ", ".join(sorted(error.allowed_methods))
            return ApiError(
                405,
                f"this route does not take {error.method}; it takes {allow}",
                code="method_not_allowed",
                headers={"Allow": allow},
            )
        case web.HTTPExpectationFailed():
            return ApiError(417, "only 100-continue can be expected", code="expectation_failed")
        case _:
            return ApiError(error.status, error.reason)


def internal_error(verdict: Verdict, quote: Quote | None) -> ApiError:
    """A bug: nothing of its inside is shown."""
    return ApiError(
        500, "the gateway failed; see its log", "internal_error", verdict=verdict, quote=quote
    )
