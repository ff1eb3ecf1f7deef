"""Errors of virtual nodes as the gateway's: mapped here once, and never with the node's key in them."""

import errno
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any

import aiohttp
import orjson

from lcp_gateway.purchase.errors import UpstreamError
from lcp_gateway.purchase.states import Verdict
from lcp_gateway.upstream_status import UpstreamStatus

FAILURES = (aiohttp.ClientError, TimeoutError, OSError)
"""The errors that a call over HTTP can end with."""
MAX_ERROR_BYTES = 64 * 1024
"""Bytes of an error's body that are read."""

_MAX_MESSAGE_CHARS = 500
_MAX_RETRY_AFTER_S = 3_600.0
_RESET = frozenset({errno.ECONNRESET, errno.EPIPE})
_UNPRINTABLE = re.compile(r"[^\x20-\x7e\u00a0-\ud7ff\ue000-\ufffd]+")
_CODE = re.compile(r"[a-z0-9_.-]{1,64}")
_BEARER = re.compile(r"bearer\s+\S+", re.IGNORECASE)
_REDACTED = "[redacted]"

_STATUSES: Mapping[int, UpstreamStatus] = {
    HTTPStatus.BAD_REQUEST: UpstreamStatus.INVALID_ARGUMENT,
    HTTPStatus.NOT_FOUND: UpstreamStatus.NOT_FOUND,
    HTTPStatus.METHOD_NOT_ALLOWED: UpstreamStatus.UNIMPLEMENTED,
    HTTPStatus.REQUEST_TIMEOUT: UpstreamStatus.DEADLINE_EXCEEDED,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: UpstreamStatus.INVALID_ARGUMENT,
    HTTPStatus.UNPROCESSABLE_ENTITY: UpstreamStatus.INVALID_ARGUMENT,
    HTTPStatus.TOO_MANY_REQUESTS: UpstreamStatus.RESOURCE_EXHAUSTED,
    HTTPStatus.NOT_IMPLEMENTED: UpstreamStatus.UNIMPLEMENTED,
    HTTPStatus.GATEWAY_TIMEOUT: UpstreamStatus.DEADLINE_EXCEEDED,
}
# The operator has to resolve these; the client cannot, and their text may quote a key.
_OPERATOR_PROBLEMS: Mapping[int, str] = {
    HTTPStatus.UNAUTHORIZED: "the node refused the gateway's credentials",
    HTTPStatus.FORBIDDEN: "the node refused the gateway's credentials",
    HTTPStatus.PAYMENT_REQUIRED: "the node wants to be paid by other means than the gateway has",
}
_REDIRECT = "the node redirects, which is not followed"


def http_error(status: int, body: bytes, api_key: str = "", retry_after: str = "") -> UpstreamError:
    """Return the error for an HTTP status that is no success; nothing was bought with it.

    ``body`` is the answer's body or its beginning; its message is passed on, bounded, printable and without the key.
    """
    if status < HTTPStatus.MULTIPLE_CHOICES or status == HTTPStatus.NOT_MODIFIED:
        return UpstreamError(
            UpstreamStatus.UNAVAILABLE,
            f"the node answered with HTTP status {status}, which is no answer to a POST",
            evidence=Verdict.NONE,
        )
    if status < HTTPStatus.BAD_REQUEST:
        return UpstreamError(UpstreamStatus.UNAVAILABLE, _REDIRECT, evidence=Verdict.NONE)
    if own := _OPERATOR_PROBLEMS.get(status):
        return UpstreamError(UpstreamStatus.UNAVAILABLE, own, evidence=Verdict.NONE)
    name = _STATUSES.get(status)
    if name is None:
        is_server_error = status >= HTTPStatus.INTERNAL_SERVER_ERROR
        name = UpstreamStatus.UNAVAILABLE if is_server_error else UpstreamStatus.FAILED_PRECONDITION
    message, code = _message_and_code(body)
    # Bounded last: a key that is cut in two would not be found.
    text = _redacted(_UNPRINTABLE.sub(" ", message).strip(), api_key)[:_MAX_MESSAGE_CHARS]
    if code is not None and (not _CODE.fullmatch(code) or (api_key and api_key in code)):
        code = None
    return UpstreamError(
        name,
        text or f"the node answered with HTTP status {status}",
        retryable=name.may_pass,
        evidence=Verdict.NONE,
        code=code,
        retry_after_s=retry_after_s(retry_after) if name.may_pass else None,
    )


def retry_after_s(value: str, now: datetime | None = None) -> float | None:
    """Return the seconds of a Retry-After header, given as such or as a date, at most an hour; None for neither."""
    text = value.strip()
    if text.isascii() and text.isdigit():
        seconds = float(text[:9])
    else:
        try:
            then = parsedate_to_datetime(text)
        except (TypeError, ValueError):
            return None
        if then.tzinfo is None:
            then = then.replace(tzinfo=UTC)
        seconds = (then - (now or datetime.now(UTC))).total_seconds()
    return min(max(seconds, 1.0), _MAX_RETRY_AFTER_S)


def is_closed_connection(error: BaseException) -> bool:
    """Return whether a connection ended before a byte of an answer came over it."""
    match error:
        case aiohttp.ServerDisconnectedError():
            # With a part of a head it carries that instead of a text.
            return isinstance(error.message, str)
        case aiohttp.ClientConnectionResetError():
            return True
        case aiohttp.ClientOSError():
            return error.errno in _RESET
        case _:
            return False


def is_unreachable(error: BaseException) -> bool:
    """Return whether no connection could be made."""
    return isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError)


def connection_error(error: BaseException, *, evidence: Verdict, had_connection: bool = True) -> UpstreamError:
    """Return the error for one of ``FAILURES``; ``evidence`` holds if it had a connection, else nothing was bought.

    Its own text is not used, since it may hold an address; its objects hold the key, so raise this ``from None``.
    """
    status = UpstreamStatus.UNAVAILABLE
    match error:
        case aiohttp.ClientConnectorDNSError():
            message = "the node's address does not resolve"
        case aiohttp.ClientSSLError():
            message = "no secure connection to the node can be made"
        case aiohttp.ClientConnectorError():
            message = "no connection to the node can be made"
        case aiohttp.ConnectionTimeoutError():
            message = "no connection to the node in time"
        case TimeoutError() if had_connection:
            status, message = UpstreamStatus.DEADLINE_EXCEEDED, "the node did not answer in time"
        case TimeoutError():
            message = "no connection to the node in time"
        case aiohttp.InvalidURL():
            message = "the node's address is not valid"
        case aiohttp.ClientResponseError() if "chunk" in error.message.lower():
            # The head was good, and came together with a body that is not.
            message = "the node's answer is not HTTP"
        case aiohttp.ClientResponseError():
            # No answer at all: it is not booked.
            message, evidence = "the node's answer is not HTTP", Verdict.NONE
        case _:
            message = "the connection to the node was lost"
    return UpstreamError(
        status,
        message,
        retryable=True,
        evidence=evidence if had_connection else Verdict.NONE,
        is_away=is_unreachable(error),
    )


def _message_and_code(body: bytes) -> tuple[str, str | None]:
    """Return an error's message and code, in any of the forms that servers write; empty where it has none."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        # A page of a proxy, or no body: no text for a client.
        return "", None
    if not isinstance(document, dict):
        return "", None
    error = document.get("error")
    inner: dict[str, Any] = error if isinstance(error, dict) else {}
    code = inner.get("code", document.get("code"))
    known_code = code if isinstance(code, str) else None
    for found in (error, inner.get("message"), document.get("message"), document.get("detail")):
        if isinstance(found, str) and found:
            return found, known_code
        if isinstance(found, list) and found:
            return _of_validation(found), known_code
    return "", known_code


def _of_validation(details: list[Any]) -> str:
    """Return FastAPI's list of faults as text: place and message, without the input that it quotes."""
    words = []
    for detail in details[:5]:
        if not isinstance(detail, dict) or not isinstance(detail.get("msg"), str):
            continue
        place = detail.get("loc")
        names = ".".join(str(part) for part in place) if isinstance(place, list) else ""
        words.append(f"{names}: {detail['msg']}" if names else detail["msg"])
    return "; ".join(words)


def _redacted(text: str, api_key: str) -> str:
    if api_key:
        text = text.replace(api_key, _REDACTED)
    return _BEARER.sub(f"Bearer {_REDACTED}", text)
