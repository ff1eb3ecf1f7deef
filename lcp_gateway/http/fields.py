"""JSON bodies and queries of the gateway's own routes: every field checked, every mistake named."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import orjson
from aiohttp import web

from lcp_gateway.http.errors import ApiError, bad_request
from lcp_gateway.http.openai.request_body import read_body


def json_response(
    document: object, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> web.Response:
    """Return a document as a JSON response."""
    return web.Response(
        status=status,
        body=orjson.dumps(document),
        content_type="application/json",
        headers=headers,
    )


MOST_MSAT = 2_100_000_000_000_000_000
"""All the millisatoshi that there will ever be."""

_DIGITS = re.compile(r"[0-9]{1,9}")
# Whatever is asked for beyond these is none that was ever given, and databases disagree on what they make of it.
_NAME = re.compile(r"[A-Za-z0-9_]{0,64}")
_NUMBER = re.compile(r"[0-9]{1,18}")
_USUAL_PAGE = 50
_LARGEST_PAGE = 500


class Fields:
    """The fields of a body. Each is asked for once; ``done`` refuses what nobody asked for."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._left = dict(document)

    def text(self, name: str, *, required: bool = False, longest: int = 128) -> str:
        """Give a text, "" where there is none."""
        value = self._left.pop(name, None)
        if value is None and not required:
            return ""
        if not isinstance(value, str) or (required and not value.strip()):
            code = "missing_required_parameter" if value is None else "invalid_type"
            raise bad_request(f"{name} must be a text", name, code)
        if len(value) > longest or not value.isprintable():
            raise bad_request(
                f"{name} must have at most {longest} printable characters", name, "invalid_value"
            )
        return value

    def amount(self, name: str, *, signed: bool = False) -> int | None:
        """Give a whole amount, None where there is none."""
        value = self._left.pop(name, None)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            raise bad_request(f"{name} must be a whole number", name, "invalid_type")
        if abs(value) > MOST_MSAT or (value < 0 and not signed):
            raise bad_request(f"{name} is no possible amount", name, "invalid_value")
        return value

    def names(self, name: str, *, allowed: frozenset[str] | None = None) -> frozenset[str] | None:
        """Give an array of texts as a set, None where there is none."""
        value = self._left.pop(name, None)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise bad_request(f"{name} must be an array of texts", name, "invalid_type")
        if allowed is not None and not allowed.issuperset(value):
            raise bad_request(
                f"{name} may hold {', '.join(sorted(allowed))}", name, "invalid_value"
            )
        return frozenset(value)

    def time(self, name: str) -> datetime | None:
        """Give a time from Unix seconds or ISO 8601, None where there is none."""
        value = self._left.pop(name, None)
        if value is None:
            return None
        problem = bad_request(
            f"{name} must be Unix seconds or a time such as 2027-01-31T12:00:00Z",
            name,
            "invalid_value",
        )
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise problem
        try:
            if isinstance(value, str):
                found = datetime.fromisoformat(value)
                return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
            return datetime.fromtimestamp(value, UTC)
        except (ValueError, OverflowError, OSError):
            raise problem from None

    def done(self) -> None:
        """Refuse the fields that are left.

        Raises:
            ApiError: 400, naming one of them.
        """
        for name in self._left:
            raise bad_request(f"{name:.64} is not known here", name[:64], "unknown_parameter")


async def read_fields(request: web.Request, timeout_s: float) -> Fields:
    """Read a body that is a JSON object, or empty.

    Raises:
        ApiError: 400 for anything else.
    """
    body = await read_body(request, timeout_s)
    try:
        document = orjson.loads(body) if body.strip() else {}
    except orjson.JSONDecodeError as error:
        raise bad_request(f"the body is not valid JSON: {error.msg}", code="invalid_json") from None
    if not isinstance(document, dict):
        raise bad_request("the body must be a JSON object", code="invalid_json")
    return Fields(document)


def read_page(request: web.Request) -> tuple[int, str]:
    """Read ``limit`` (1 to 500) and ``after`` of a query.

    Raises:
        ApiError: 400, naming the parameter.
    """
    limit = request.query.get("limit", str(_USUAL_PAGE))
    if not _DIGITS.fullmatch(limit) or not 1 <= int(limit) <= _LARGEST_PAGE:
        raise bad_request(f"limit must be from 1 to {_LARGEST_PAGE}", "limit", "invalid_value")
    after = request.query.get("after", "")
    if not _NAME.fullmatch(after):
        raise _no_place()
    return int(limit), after


def read_numbered_page(request: web.Request) -> tuple[int, int | None]:
    """Read the same for what is asked for by number.

    Raises:
        ApiError: 400, naming the parameter.
    """
    limit, after = read_page(request)
    if not after:
        return limit, None
    if not _NUMBER.fullmatch(after):
        raise _no_place()
    return limit, int(after)


def read_id(request: web.Request) -> str:
    """Read the id of a path.

    Raises:
        ApiError: 404 for what can be none.
    """
    found = request.match_info["id"]
    if not _NAME.fullmatch(found):
        raise ApiError(404, "there is nothing of this id", code="not_found", param="id")
    return found


def _no_place() -> ApiError:
    return bad_request("after is not what a page gave", "after", "invalid_value")
