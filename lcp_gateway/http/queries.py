"""Query parameters, declared once: the declaration is what reads them and what /openapi.json shows.

A parameter that a route does not declare is refused: a misspelt filter would otherwise show too much.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, TypeVar

from aiohttp import web

from lcp_gateway.http.errors import bad_request
from lcp_gateway.http.fields import LARGEST_PAGE, USUAL_PAGE, parse_time, read_limit

E = TypeVar("E", bound=StrEnum)

_LONGEST_TEXT: Final = 256
_SECONDS: Final = re.compile(r"[0-9]{1,12}")


@dataclass(frozen=True, slots=True)
class QueryParameter:
    """A parameter of a query; ``schema`` is its JSON Schema."""

    name: str
    about: str
    schema: Mapping[str, Any] = field(default_factory=lambda: {"type": "string", "maxLength": _LONGEST_TEXT})


def choice(name: str, about: str, kind: type[E], default: E | None = None) -> QueryParameter:
    """Return a parameter whose values are those of an enumeration."""
    schema: dict[str, Any] = {"type": "string", "enum": [item.value for item in kind]}
    return QueryParameter(name, about, schema if default is None else {**schema, "default": default.value})


LIMIT: Final = QueryParameter(
    "limit", "At most so many.", {"type": "integer", "minimum": 1, "maximum": LARGEST_PAGE, "default": USUAL_PAGE}
)
AFTER: Final = QueryParameter(
    "after", "The cursor of the next page.", {"type": "string", "pattern": "^[A-Za-z0-9_.-]{0,96}$"}
)
_TIME_SCHEMA: Final = {"type": "string", "format": "date-time"}
SINCE: Final = QueryParameter("since", "Not before: RFC 3339, a date, or Unix seconds.", _TIME_SCHEMA)
UNTIL: Final = QueryParameter("until", "Before: RFC 3339, a date, or Unix seconds.", _TIME_SCHEMA)
_AFTER: Final = re.compile(r"[A-Za-z0-9_.-]{0,96}")


class Query:
    """The parameters of one request.

    Raises:
        ApiError: 400, by every method, naming the parameter.
    """

    def __init__(self, request: web.Request, parameters: Sequence[QueryParameter]) -> None:
        known = {parameter.name for parameter in parameters}
        for name in request.query:
            if name not in known:
                raise bad_request(f"{name:.64} is not a parameter of this route", name[:64], "unknown_parameter")
        self._query = request.query

    def text(self, name: str) -> str | None:
        """Return a text; None where it is missing or empty."""
        value = self._query.get(name)
        if not value:
            return None
        if len(value) > _LONGEST_TEXT or not value.isprintable():
            raise bad_request(f"{name} must have at most {_LONGEST_TEXT} printable characters", name, "invalid_value")
        return value

    def choice(self, name: str, kind: type[E], default: E) -> E:
        """Return one of the values of an enumeration."""
        return _one_of(name, self._query.get(name) or default.value, tuple(kind))

    def choices(self, name: str, allowed: Sequence[E]) -> list[E] | None:
        """Return the values of a parameter that is repeated, or separated by commas; None where it is missing."""
        words = [word for value in self._query.getall(name, []) for word in value.split(",") if word]
        return [_one_of(name, word, allowed) for word in words] or None

    def time(self, name: str) -> datetime | None:
        """Return a time, None where it is missing."""
        value = self._query.get(name)
        if not value:
            return None
        return parse_time(int(value) if _SECONDS.fullmatch(value) else value, name)

    def limit(self) -> int:
        """Return the size of a page."""
        return read_limit(self._query)

    def cursor(self, read: Callable[[str], E | Any]) -> Any:
        """Return the place of a page as ``read`` makes it of the text, None at the beginning."""
        value = self._query.get("after", "")
        if not value:
            return None
        try:
            if _AFTER.fullmatch(value):
                return read(value)
        except (ValueError, OverflowError):
            pass
        raise bad_request("after is not the cursor of a page", "after", "invalid_value")


def _one_of(name: str, word: str, allowed: Sequence[E]) -> E:
    for item in allowed:
        if item.value == word:
            return item
    raise bad_request(f"{name} may be {', '.join(item.value for item in allowed)}", name, "invalid_value")
