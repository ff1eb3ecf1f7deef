"""Lists a page at a time, as OpenAI's clients turn them: ``limit``, ``order``, and the id after which to go on."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

T = TypeVar("T")
SortOrder = Literal["asc", "desc"]

MAX_LIMIT = 100
DEFAULT_LIMIT = 20

_DIGITS = re.compile(r"[0-9]{1,9}")


class InvalidPageQuery(Exception):
    """A query that makes no sense; ``param`` names what in it."""

    def __init__(self, message: str, param: str, code: str = "invalid_value") -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code


@dataclass(frozen=True, slots=True)
class PageRequest:
    """Which page is wanted. ``after`` and ``before`` are ids that stand right outside of it, in its order."""

    limit: int
    order: SortOrder
    after: str | None = None
    before: str | None = None


@dataclass(frozen=True, slots=True)
class ListPage(Generic[T]):
    """A page. The ids are of its first and its last item; ``has_more`` tells of more in the direction of turning."""

    data: tuple[T, ...]
    first_id: str | None
    last_id: str | None
    has_more: bool


def read_page(
    query: Mapping[str, str],
    *,
    default_order: str,
    max_limit: int = MAX_LIMIT,
    default_limit: int = DEFAULT_LIMIT,
) -> PageRequest:
    """Read what a query asks for. What is empty counts as not said.

    Raises:
        BadPage: a limit or an order that there is not.
    """
    return PageRequest(
        limit=_limit(query.get("limit") or str(default_limit), max_limit),
        order=_order(query.get("order") or default_order),
        after=query.get("after") or None,
        before=query.get("before") or None,
    )


def select_page(items: Sequence[tuple[str, T]], request: PageRequest) -> ListPage[T]:
    """Give a page of items with their ids, which come the oldest first.

    With ``before`` alone it is the page that ends there, and ``has_more`` tells of more in front of it. Of an id that
    stands several times the last counts for ``after``: whoever turns the pages comes to their end.

    Raises:
        BadPage: an id that is not among them.
    """
    ordered = items if request.order == "asc" else items[::-1]
    ids = [item_id for item_id, _ in ordered]
    start, end = 0, len(ordered)
    if request.after is not None:
        start = len(ids) - _place(ids[::-1], request.after, "after")
    if request.before is not None:
        end = _place(ids, request.before, "before")
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
    """Give the list object that a client reads a page from."""
    return {
        "object": "list",
        "data": list(found.data),
        "first_id": found.first_id,
        "last_id": found.last_id,
        "has_more": found.has_more,
    }


def _limit(text: str, max_limit: int) -> int:
    if not _DIGITS.fullmatch(text):
        raise InvalidPageQuery("limit must be a whole number", "limit", "invalid_type")
    limit = int(text)
    if not 1 <= limit <= max_limit:
        raise InvalidPageQuery(f"limit must be from 1 to {max_limit}", "limit")
    return limit


def _order(text: str) -> SortOrder:
    match text:
        case "asc" | "desc":
            return text
        case _:
            raise InvalidPageQuery("order must be asc or desc", "order")


def _place(ids: Sequence[str], wanted: str, param: str) -> int:
    try:
        return ids.index(wanted)
    except ValueError:
        raise InvalidPageQuery(f"{param} must be the id of an item of this list", param) from None
