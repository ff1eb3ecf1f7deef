"""Request headers meant for the gateway: quote only, route only, a held quote, a price limit, an idempotency key."""

import re
from collections.abc import Mapping

from lcp_gateway.http.errors import ApiError, bad_request
from lcp_gateway.purchase.idempotency import RepeatKeys
from lcp_gateway.purchase.money import Msat
from lcp_gateway.values import value

_MAX_KEY_CHARS = 255
_ROUTE_ONLY = "X-Lcp-Route-Only"
_DIGITS = re.compile(r"[0-9]{1,18}")


@value
class RequestHeaders:
    """The headers of a request that are meant for the gateway."""

    repeat: RepeatKeys
    quote_only: bool = False
    route_only: bool = False
    quote_id: str | None = None
    limit_msat: Msat | None = None


def read_request_headers(headers: Mapping[str, str]) -> RequestHeaders:
    """Read the headers.

    Raises:
        ApiError: 400, naming the header.
    """
    key = headers.get("Idempotency-Key")
    if key is not None and not (0 < len(key) <= _MAX_KEY_CHARS and key.isprintable()):
        raise _bad("Idempotency-Key", f"must have 1 to {_MAX_KEY_CHARS} printable characters")
    limit = headers.get("X-Lcp-Max-Price-Msat")
    if limit is not None and not _DIGITS.fullmatch(limit.strip()):
        raise _bad("X-Lcp-Max-Price-Msat", "must be a whole number of millisatoshi")
    return RequestHeaders(
        repeat=RepeatKeys(
            key=key,
            is_retry=_is_retry(headers.get("x-stainless-retry-count")),
            # Codex keeps this over the retries of one request.
            client_request_id=headers.get("x-client-request-id"),
        ),
        quote_only=_switch(headers, "X-Lcp-Quote-Only"),
        route_only=is_route_only(headers),
        quote_id=headers.get("X-Lcp-Quote-Id"),
        limit_msat=None if limit is None else Msat(int(limit)),
    )


def is_route_only(headers: Mapping[str, str]) -> bool:
    """Return whether a request only asks how it would be routed.

    Raises:
        ApiError: 400; the header cannot be read.
    """
    return _switch(headers, _ROUTE_ONLY)


def _switch(headers: Mapping[str, str], name: str) -> bool:
    given = headers.get(name)
    if given is None:
        return False
    word = given.strip().lower()
    if word not in {"true", "false"}:
        raise _bad(name, "must be true or false")
    return word == "true"


def _is_retry(count: str | None) -> bool:
    """OpenAI's SDKs count their retries; the first try has 0."""
    return count is not None and bool(_DIGITS.fullmatch(count)) and int(count) > 0


def _bad(header: str, what: str) -> ApiError:
    return bad_request(f"{header} {what}", header, "invalid_header")
