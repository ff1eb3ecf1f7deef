"""An answer that is an error, in OpenAI's shape, that says what happened to the money."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from types import MappingProxyType

import orjson
from aiohttp import web

from lcp_gateway.purchase.quote import Quote
from lcp_gateway.purchase.states import Verdict

PAYMENT_HEADER = "X-Lcp-Payment"
PAGE_HEADERS = MappingProxyType(
    {
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
        "Cross-Origin-Resource-Policy": "same-origin",
    }
)
"""What keeps a web page from framing an answer, embedding it, or taking it for something that it is not."""
RETRY_AFTER_S = 1
_MAX_MESSAGE_CHARS = 1_000

_TYPES = {
    401: "authentication_error",
    402: "insufficient_quota",
    403: "permission_error",
    429: "rate_limit_error",
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
    details: Mapping[str, object] = field(default_factory=dict)
    retry_after_s: int = RETRY_AFTER_S
    reason: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def type(self) -> str:
        """The error's type in OpenAI's words."""
        if self.status == HTTPStatus.HTTP_VERSION_NOT_SUPPORTED:
            return "invalid_request_error"
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


def map_http_exception(error: web.HTTPException) -> ApiError:
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
