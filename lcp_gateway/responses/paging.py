"""Pages of lists with OpenAI's parameters: ``limit``, ``order``, and the ids ``after`` and ``before``."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from lcp_gateway.responses.request_options import InvalidOption

T = TypeVar("T")
SortOrder = Literal["asc", "desc"]

MAX_LIMIT = 100
DEFAULT_LIMIT = 20

_DIGITS = re.compile(r"[0-9]{1,9}")


class InvalidPageQuery(InvalidOption):
    """A query with a wrong value; ``param`` names its parameter."""


@dataclass(frozen=True, slots=True)
class PageRequest:
    """The page to return. ``after`` and ``before`` are the ids right outside of it, in its order."""

    limit: int
    order: SortOrder
    after: str | None = None
    before: str | None = None


@dataclass(frozen=True, slots=True)
class ListPage(Generic[T]):
    """A page, with the ids of its first and last item; ``has_more`` says that more follow in the direction of paging."""

    data: tuple[T, ...]
    first_id: str | None
    last_id: str | None
    has_more: bool


def read_page(query: Mapping[str, str], *, default_order: str, default_limit: int = DEFAULT_LIMIT) -> PageRequest:
    """Read the parameters of a query. An empty one counts as missing.

    Raises:
        InvalidPageQuery: the limit or the order is not valid.
    """
    return PageRequest(
        limit=_limit(query.get("limit") or str(default_limit)),
        order=_order(query.get("order") or default_order),
        after=query.get("after") or None,
        before=query.get("before") or None,
    )


def select_page(items: Sequence[tuple[str, T]], request: PageRequest) -> ListPage[T]:
    """Return a page of items with their ids, which are given the oldest first.

    With ``before`` alone it is the page that ends there, and ``has_more`` is about those in front of it. Of a duplicate id
    the last counts for ``after``, so that paging always ends.

    Raises:
        InvalidPageQuery: the list has no such id.
    """
    ordered = items if request.order == "asc" else items[::-1]
    ids = [item_id for item_id, _ in ordered]
    start, end = 0, len(ordered)
    if request.after is not None:
        start = len(ids) - _index(ids[::-1], request.after, "after")
    if request.before is not None:
        end = _index(ids, request.before, "before")
    if request.after is None and request.before is not None:
        has_more = end > request.limit
        chosen = ordered[max(end - request.limit, 0) : end]
    else:
        has_more = end - start > request.limit
        chosen = ordered[start : min(start + request.limit, max(start, end))]
    return ListPage(
        data=tuple(item for _, item in chosen),
        first_id=chosen[0][0] if chosen else None,
        last_id=chosen[-1][0] if chosen else None,
        has_more=has_more,
    )


def list_object(found: ListPage[T]) -> dict[str, object]:
    """Return a page as OpenAI's list object."""
    return {
        "object": "list",
        "data": list(found.data),
        "first_id": found.first_id,
        "last_id": found.last_id,
        "has_more": found.has_more,
    }


def _limit(text: str) -> int:
    if not _DIGITS.fullmatch(text):
        raise InvalidPageQuery("limit must be a whole number", "limit", "invalid_type")
    limit = int(text)
    if not 1 <= limit <= MAX_LIMIT:
        raise InvalidPageQuery(f"limit must be from 1 to {MAX_LIMIT}", "limit")
    return limit


def _order(text: str) -> SortOrder:
    match text:
        case "asc" | "desc":
            return text
        case _:
            raise InvalidPageQuery("order must be asc or desc", "order")


def _index(ids: Sequence[str], wanted: str, param: str) -> int:
    try:
        return ids.index(wanted)
    except ValueError:
        raise InvalidPageQuery(f"{param} must be the id of an item of this list", param) from None
