"""Errors as responses in OpenAI's format, which say whether money was paid."""

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
"""Headers that keep a web page from framing a response, embedding it, or taking it for another type."""
RETRY_AFTER_S = 1
_MAX_MESSAGE_CHARS = 1_000

_TYPES = {401: "authentication_error", 402: "insufficient_quota", 403: "permission_error", 429: "rate_limit_error"}


@dataclass(slots=True)
class ApiError(Exception):
    """An error that becomes the response.

    ``retry`` goes out as ``x-should-retry``, with a ``retry-after`` when it is true. ``reason`` is the label in the metric
    of refusals; empty for an error that is no refusal.
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
        """OpenAI's type of the error."""
        if self.status == HTTPStatus.HTTP_VERSION_NOT_SUPPORTED:
            return "invalid_request_error"
        if self.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return "server_error"
        return _TYPES.get(self.status, "invalid_request_error")

    def as_object(self) -> dict[str, object]:
        """Return the ``error`` object: OpenAI's four keys, and ``lcp`` where there was a quote."""
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
        """Return the whole response."""
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


_CALLS_SINCE = 3


def quote_headers(quote: Quote) -> dict[str, str]:
    """Return the headers of the quote that a response belongs to."""
    job_id = quote.job_id.hex()
    headers = {
        "X-Lcp-Peer-Id": quote.peer_id,
        "X-Lcp-Job-Id": job_id,
        "X-Lcp-Price-Msat": str(quote.price_msat),
        "X-Lcp-Terms-Hash": quote.terms_hash.hex(),
    }
    if quote.protocol_version == _CALLS_SINCE:
        # Version 3 calls a job a call. Clients of the earlier version read the other header.
        headers["X-Lcp-Call-Id"] = job_id
    return headers


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """Return the error for an invalid request."""
    return ApiError(400, message, code=code, param=param, reason="bad_request")


def internal_error(verdict: Verdict, quote: Quote | None) -> ApiError:
    """Return the error for a bug, without any detail of it."""
    return ApiError(500, "the gateway failed; see its log", "internal_error", verdict=verdict, quote=quote)
