"""Lists of what a stored result was made from: input items and messages, a page at a time."""

from collections.abc import Callable, Mapping
from typing import Any

from aiohttp import web

from lcp_gateway.adapters.documents import parse_json
from lcp_gateway.http.errors import ApiError, bad_request
from lcp_gateway.http.result_headers import JSON
from lcp_gateway.stored.items import Item
from lcp_gateway.stored.paging import BadPage, list_object, page, read_page
from lcp_gateway.stored.slices import write
from lcp_gateway.stored.store import Store

Shown = Callable[[Any, str, int], dict[str, Any]]
"""Gives an item as it is shown, from what it is, what it belongs to, and its place there."""

_PARTS = {"assistant": "output_text"}


def page_of(
    query: Mapping[str, str], array: bytes, owner_id: str, shown: Shown, *, order: str
) -> web.Response:
    """Give the page that a query asks for of the items of an array.

    Raises:
        ApiError: 400 for a query that makes no sense, 502 for items that cannot be read.
    """
    try:
        items = parse_json(array)
    except ValueError:
        raise unreadable("input") from None
    assert isinstance(items, list)  # noqa: S101 - ``array`` is one
    entries = [shown(item, owner_id, place) for place, item in enumerate(items)]
    try:
        asked = read_page(query, default_order=order)
        found = page([(str(entry["id"]), entry) for entry in entries], asked)
    except BadPage as error:
        raise bad_request(error.message, error.param, error.code) from None
    try:
        body = write(list_object(found))
    except ValueError:
        raise unreadable("input") from None
    return web.Response(body=body, headers={"Content-Type": JSON})


def input_item(item: Any, response_id: str, place: int) -> dict[str, Any]:
    """Give an input item in the form that OpenAI lists it: with an id, and a message's text in parts."""
    if not isinstance(item, dict):
        return {"id": _made_up(response_id, place), "type": "unknown", "value": item}
    shown = dict(item)
    if "role" in item:
        shown.setdefault("type", "message")
        if isinstance(item.get("content"), str):
            part = _PARTS.get(str(item["role"]), "input_text")
            shown["content"] = [{"type": part, "text": item["content"]}]
            if part == "output_text":
                shown["content"][0]["annotations"] = []
        shown.setdefault("status", "completed")
    if not isinstance(item.get("id"), str):
        shown["id"] = _made_up(response_id, place)
    return shown


def not_there(store: Store[Item], what: str, word: str) -> ApiError:
    """Nothing of this id, as far as this credential is concerned; ``word`` begins the names of parameter and code."""
    why = "it was not stored, was deleted, or is too old"
    if store.limits.items_per_owner == 0:
        why = "this gateway stores nothing (max_stored_items is 0)"
    return ApiError(
        404,
        f"there is no such {what}: {why}",
        code=f"{word}_not_found",
        param=f"{word}_id",
        reason="not_found",
    )


def unreadable(what: str) -> ApiError:
    """What a provider sent and nobody can read."""
    return ApiError(
        502, f"the stored {what} cannot be read: its provider sent no such thing", "unreadable"
    )


def _made_up(response_id: str, place: int) -> str:
    return f"item_{response_id}_{place}"
