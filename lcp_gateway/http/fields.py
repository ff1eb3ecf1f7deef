"""Requests and responses of the gateway's own routes: JSON fields checked one by one, pages, ids, the caller."""

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import orjson
from aiohttp import web

from lcp_gateway.http.context import CONTEXT
from lcp_gateway.http.errors import ApiError, bad_request
from lcp_gateway.http.openai.request_body import read_body

MOST_MSAT = 2_100_000_000_000_000_000
"""21 million bitcoin in millisatoshi."""

_DIGITS = re.compile(r"[0-9]{1,9}")
# No id is longer or has other characters (those with dots and dashes are nodes'), and databases differ in how they treat
# such text: PostgreSQL refuses NUL.
_NAME = re.compile(r"[A-Za-z0-9_.-]{0,64}")
_NUMBER = re.compile(r"[0-9]{1,18}")
USUAL_PAGE = 50
LARGEST_PAGE = 500


def json_response(document: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """Return a document as a JSON response."""
    return web.Response(status=status, body=orjson.dumps(document), content_type="application/json", headers=headers)


def list_response(data: Iterable[object], after: str | int | None) -> web.Response:
    """Return a page of a list; ``after`` is the cursor of the next page, None at the end."""
    following = None if after is None else str(after)
    return json_response({"object": "list", "data": [*data], "after": following})


def unix_time(at: datetime) -> int:
    """Return a time as Unix seconds."""
    return int(at.timestamp())


def account_of(request: web.Request) -> str:
    """Return the account that a request's key belongs to.

    Raises:
        ApiError: 403, the key belongs to none.
    """
    account_id = request[CONTEXT].caller.account_id
    if account_id is None:
        raise ApiError(403, "this key belongs to no account", code="no_account", reason="auth")
    return account_id


def actor_of(request: web.Request) -> str:
    """Return the administrator of a request as the log of administrators names it."""
    context = request[CONTEXT]
    return f"{'api' if context.session is None else 'console'}:{context.key_id}"


def customer_of(request: web.Request) -> str:
    """Return the customer of a request as the log of administrators names it."""
    return f"customer:{request[CONTEXT].key_id}"


class Fields:
    """The fields of a body. Each is read once; ``done`` refuses the fields that were not read."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._left = dict(document)

    def text(self, name: str, *, required: bool = False, longest: int = 128) -> str:
        """Return a string, "" where the field is missing."""
        value = self._left.pop(name, None)
        if value is None and not required:
            return ""
        if not isinstance(value, str) or (required and not value.strip()):
            code = "missing_required_parameter" if value is None else "invalid_type"
            raise bad_request(f"{name} must be a string", name, code)
        if len(value) > longest or not value.isprintable():
            raise bad_request(f"{name} must have at most {longest} printable characters", name, "invalid_value")
        return value

    def has(self, name: str) -> bool:
        """Return whether a field that was not read yet is there, if only with null."""
        return name in self._left

    def amount(self, name: str, *, signed: bool = False) -> int | None:
        """Return an integer amount, None where the field is missing."""
        value = self._left.pop(name, None)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            raise bad_request(f"{name} must be a whole number", name, "invalid_type")
        if abs(value) > MOST_MSAT or (value < 0 and not signed):
            raise bad_request(f"{name} is out of range for an amount", name, "invalid_value")
        return value

    def number(self, name: str) -> float | None:
        """Return a number, None where the field is missing."""
        value = self._left.pop(name, None)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise bad_request(f"{name} must be a number", name, "invalid_type")
        return value

    def flag(self, name: str, *, required: bool = True) -> bool | None:
        """Return a boolean, None where the field is missing and may be."""
        value = self._left.pop(name, None)
        if value is None and not required:
            return None
        if not isinstance(value, bool):
            code = "missing_required_parameter" if value is None else "invalid_type"
            raise bad_request(f"{name} must be true or false", name, code)
        return value

    def names(self, name: str, *, allowed: frozenset[str] | None = None) -> frozenset[str] | None:
        """Return an array of strings as a set, None where the field is missing."""
        value = self._left.pop(name, None)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise bad_request(f"{name} must be an array of strings", name, "invalid_type")
        if allowed is not None and not allowed.issuperset(value):
            raise bad_request(f"{name} may hold {', '.join(sorted(allowed))}", name, "invalid_value")
        return frozenset(value)

    def time(self, name: str) -> datetime | None:
        """Return a time given in Unix seconds or ISO 8601, None where there is none."""
        value = self._left.pop(name, None)
        if value is None:
            return None
        return parse_time(value, name)

    def done(self) -> None:
        """Refuse the fields that were not read.

        Raises:
            ApiError: 400, naming one of them.
        """
        for name in self._left:
            raise bad_request(f"{name:.64} is not a known field", name[:64], "unknown_parameter")


def parse_time(value: object, name: str) -> datetime:
    """Return a time given in Unix seconds or ISO 8601; one without a zone is in UTC.

    Raises:
        ApiError: 400, naming the field.
    """
    problem = bad_request(f"{name} must be Unix seconds or a time such as 2027-01-31T12:00:00Z", name, "invalid_value")
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise problem
    try:
        if isinstance(value, str):
            found = datetime.fromisoformat(value)
            return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
        return datetime.fromtimestamp(value, UTC)
    except (ValueError, OverflowError, OSError):
        raise problem from None


def rfc3339(at: datetime) -> str:
    """Return a time as RFC 3339 in UTC."""
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")


def rfc3339_or_none(at: datetime | None) -> str | None:
    """Return a time that may not be known, as ``rfc3339``."""
    return None if at is None else rfc3339(at)


async def read_object(request: web.Request, timeout_s: float) -> dict[str, Any]:
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
    return document


async def read_fields(request: web.Request, timeout_s: float) -> Fields:
    """Read the fields of a body, as ``read_object``."""
    return Fields(await read_object(request, timeout_s))


def read_page(request: web.Request) -> tuple[int, str]:
    """Read ``limit`` (1 to 500) and ``after`` of a query.

    Raises:
        ApiError: 400, naming the parameter.
    """
    limit, after = read_limit(request.query), request.query.get("after", "")
    if not _NAME.fullmatch(after):
        raise _bad_place()
    return limit, after


def read_limit(query: Mapping[str, str]) -> int:
    """Read ``limit`` (1 to 500) of a query.

    Raises:
        ApiError: 400, naming it.
    """
    limit = query.get("limit", str(USUAL_PAGE))
    if not _DIGITS.fullmatch(limit) or not 1 <= int(limit) <= LARGEST_PAGE:
        raise bad_request(f"limit must be from 1 to {LARGEST_PAGE}", "limit", "invalid_value")
    return int(limit)


def read_numbered_page(request: web.Request) -> tuple[int, int | None]:
    """Read ``limit`` and ``after`` of a list whose places are numbers.

    Raises:
        ApiError: 400, naming the parameter.
    """
    limit, after = read_page(request)
    if not after:
        return limit, None
    if not _NUMBER.fullmatch(after):
        raise _bad_place()
    return limit, int(after)


def read_id(request: web.Request) -> str:
    """Read the id of a path.

    Raises:
        ApiError: 404 for a text that is no id.
    """
    found = request.match_info["id"]
    if not _NAME.fullmatch(found):
        raise ApiError(404, "no object has this id", code="not_found", param="id")
    return found


def read_id_filter(request: web.Request, name: str) -> str | None:
    """Read an id that a list is filtered by; None where there is none.

    Raises:
        ApiError: 400, naming the parameter.
    """
    found = request.query.get(name, "")
    if not _NAME.fullmatch(found):
        raise bad_request(f"{name} is no id", name, "invalid_value")
    return found or None


def _bad_place() -> ApiError:
    return bad_request("after is not the cursor of a page", "after", "invalid_value")
