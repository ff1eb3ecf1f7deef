"""The one error map: every failure becomes an answer in OpenAI's shape that says what happened to the money."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus

import orjson
from aiohttp import web

from lcp_gateway.adapters.completions import NotAdaptable
from lcp_gateway.purchase.answers import AnswerGone
from lcp_gateway.purchase.book import QuoteForAnotherBody, UnknownQuote, quote_id
from lcp_gateway.purchase.brake import LoopDetected
from lcp_gateway.purchase.errors import (
    PaymentFailed,
    PeerNotTrusted,
    PriceLimitExceeded,
    PurchaseError,
    QuoteExpired,
    Refused,
    Undelivered,
    UpstreamError,
)
from lcp_gateway.purchase.journal import BudgetExceeded, JournalUnavailable
from lcp_gateway.purchase.memory import AnswerLost, KeyReused
from lcp_gateway.purchase.quote import Quote, Source
from lcp_gateway.purchase.service import Interrupted
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

# What another try may cure where a node has done nothing and nothing was paid.
_WORTH_A_RETRY = frozenset({"UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "DATA_LOSS"})


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
    details: Mapping[str, object] = field(default_factory=dict)
    retry_after_s: int = RETRY_AFTER_S
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
                **self.details,
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
            headers.setdefault("retry-after", str(self.retry_after_s))
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
            404,
            error.message,
            code="model_not_available",
            param="model",
            reason="model_not_found",
        )
    assert isinstance(error, NoProvider)  # noqa: S101 - the tree has these two leaves
    return ApiError(503, error.message, code="no_provider", retry=True, reason="no_peer")


def of_error(error: Exception) -> ApiError | None:
    """Give the answer for whatever came of an order, or None for what nobody foresaw."""
    match error:
        case RoutingError():
            return of_routing(error)
        case NotAdaptable():
            return bad_request(error.message, error.param, error.code)
        case PurchaseError():
            return of_purchase(error)
        case AnswerGone():
            return ApiError(
                409,
                "this was bought before and its answer is no longer held",
                code="answer_gone",
                verdict=Verdict.SETTLED,
            )
        case _:
            return None


def of_purchase(error: PurchaseError) -> ApiError:
    """A purchase that did not come to its end."""
    match error:
        case UpstreamError():
            return _of_quote_failure(error)
        case PaymentFailed():
            return _of_payment_failure(error)
        case Refused():
            return _of_refusal(error)
        case Undelivered():
            return _of(error, 502, "undelivered")
        case AnswerLost():
            return _of(error, 409, "answer_gone")
        case KeyReused():
            return _of(error, 422, "idempotency_key_reused", reason="idempotency")
        case QuoteForAnotherBody():
            return _of(error, 409, "quote_for_another_request", reason="quote_unknown")
        case UnknownQuote():
            return _of(error, 404, "quote_not_found", reason="quote_unknown")
        case Interrupted():
            return _of(error, 503, error.code, retry=error.verdict is Verdict.NONE)
        case _:
            return _of(error, 500, "internal_error")


def _of(
    error: PurchaseError, status: int, code: str, *, retry: bool = False, reason: str = ""
) -> ApiError:
    return ApiError(
        status,
        error.message,
        code,
        retry=retry,
        verdict=error.verdict,
        quote=error.quote,
        reason=reason,
    )


def _of_refusal(error: Refused) -> ApiError:
    details: dict[str, object] = {}
    if error.may_pass_later and error.quote is not None:
        details["quote_id"] = quote_id(error.quote)
    match error:
        case QuoteExpired():
            answer = _of(error, 410, error.code, retry=not error.was_named, reason="quote_expired")
        case PriceLimitExceeded():
            details["limit_msat"] = error.limit_msat
            answer = _of(error, 402, error.code, reason="price_limit")
        case BudgetExceeded():
            details["limit_msat"] = error.budget.limit_msat
            details["spent_msat"] = error.spent_msat
            answer = _of(error, 402, error.code, reason="budget")
        case JournalUnavailable():
            answer = _of(error, 503, error.code, retry=True, reason="journal")
        case LoopDetected():
            answer = _of(error, 429, error.code, retry=True, reason="loop")
            answer.retry_after_s = math.ceil(error.wait_s)
        case PeerNotTrusted():
            answer = _of(error, 503, error.code, retry=True, reason="peer_not_trusted")
        case _:
            # A quote that is not what it says it is. Another try may find an honest peer, or the same one.
            answer = _of(error, 502, error.code, reason="quote_mismatch")
    answer.details = details
    return answer


def _of_quote_failure(error: UpstreamError) -> ApiError:
    return ApiError(
        STATUS_OF_GRPC.get(error.status, 500),
        error.message,
        code=error.code or _CODES_OF_GRPC.get(error.status, "quote_failed"),
        retry=error.retryable,
        quote=error.quote,
    )


def _of_payment_failure(error: PaymentFailed) -> ApiError:
    if error.quote is not None and error.quote.source is Source.NODE:
        return _of_node_failure(error)
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
        # A new quote may find a route; an invoice that the daemon refused will be no better, and whatever may have
        # been paid is never tried again.
        retry=error.verdict is Verdict.NONE and "invoice" not in error.message,
        verdict=error.verdict,
        quote=error.quote,
    )


def _of_node_failure(error: PaymentFailed) -> ApiError:
    """A node that did not do it: its own word for the error, where it gave one."""
    return ApiError(
        STATUS_OF_GRPC.get(error.status, 500),
        error.message,
        code=error.code or _CODES_OF_GRPC.get(error.status, "node_failed"),
        retry=error.verdict is Verdict.NONE and error.status in _WORTH_A_RETRY,
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
