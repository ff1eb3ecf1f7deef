"""Stored history over HTTP: earlier turns that a request builds on, what is stored of its result, and pages of stored items."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from aiohttp import web

from lcp_gateway.adapters.json_bytes import dump_json, parse_json
from lcp_gateway.http.errors import ApiError, bad_request
from lcp_gateway.http.openai.request_body import parse_object
from lcp_gateway.http.openai.response import JSON
from lcp_gateway.purchase.order import Order, TaskKind
from lcp_gateway.purchase.result_buffer import ResultBuffer
from lcp_gateway.responses import ids
from lcp_gateway.responses.history import request_for_provider
from lcp_gateway.responses.items import Item, ItemKind
from lcp_gateway.responses.paging import InvalidPageQuery, list_object, read_page, select_page
from lcp_gateway.responses.recording import Recorder, RecordingPlan
from lcp_gateway.responses.request_options import InvalidOption, RequestOptions, read_options
from lcp_gateway.responses.store import ResponseStore

Renderer = Callable[[Any, str, int], dict[str, Any]]
"""Gives an item as it is shown, from what it is, what it belongs to, and its place there."""

_PARTS = {"assistant": "output_text"}


def page_response(
    query: Mapping[str, str], array: bytes, owner_id: str, shown: Renderer, *, order: str
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
        found = select_page([(str(entry["id"]), entry) for entry in entries], asked)
    except InvalidPageQuery as error:
        raise bad_request(error.message, error.param, error.code) from None
    try:
        body = dump_json(list_object(found))
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


def not_stored(store: ResponseStore[Item], what: str, word: str) -> ApiError:
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


_PREVIOUS = "previous_response_id"


@dataclass(frozen=True, slots=True)
class CompletedOrder:
    """An order as a provider gets it, and the turns before its input."""

    order: Order
    earlier: tuple[bytes, ...] = field(default=(), repr=False)


class History:
    """Reads wishes, completes orders, and has answers kept."""

    def __init__(
        self,
        store: ResponseStore[Item],
        keeper: Recorder,
        *,
        max_body_bytes: int,
        context_tokens: Callable[[str], int],
        estimate: Callable[[Mapping[str, Any]], int],
    ) -> None:
        """``context_tokens`` gives how long a model's context is, 0 where nobody knows; ``estimate`` counts a request's tokens."""
        self._store = store
        self._keeper = keeper
        self._max_body_bytes = max_body_bytes
        self._context_tokens = context_tokens
        self._estimate = estimate

    @property
    def is_on(self) -> bool:
        """Whether anything is stored."""
        return self._store.limits.items_per_owner > 0

    def read(self, kind: TaskKind, document: Mapping[str, Any]) -> RequestOptions:
        """Read what a request asks for.

        Raises:
            ApiError: 400, naming the field; 404 for what needs a store where there is none.
        """
        try:
            wishes = read_options(kind, document)
        except InvalidOption as error:
            raise bad_request(error.message, error.param, error.code) from None
        if not self.is_on:
            if wishes.previous_response_id is not None:
                raise _off(_PREVIOUS)
            if wishes.background:
                raise _off("background")
        return wishes

    def complete(self, order: Order, wishes: RequestOptions) -> CompletedOrder:
        """Put the earlier turns before an order's input, and take out what no provider knows.

        Raises:
            ApiError: 404 for a response that is not there, 400 for a context that is too long; nothing was paid.
        """
        earlier: tuple[bytes, ...] | None = None
        if wishes.previous_response_id is not None:
            earlier = self._earlier(order.key_id, wishes.previous_response_id)
        task = order.task
        body = request_for_provider(task.body, earlier, without_background=wishes.background)
        if body is task.body:
            return CompletedOrder(order)
        if earlier is not None:
            self._check_length(task.model, body)
        changed = replace(task, body=body)
        return CompletedOrder(order.carrying(changed), earlier or ())

    def expand(self, owner: str, body: bytes, previous: str) -> bytes:
        """Put the earlier turns before the input of a request that buys nothing.

        Raises:
            ApiError: 404 for a response that is not there.
        """
        if not self.is_on:
            raise _off(_PREVIOUS)
        return request_for_provider(body, self._earlier(owner, previous))

    def keep(self, answer: ResultBuffer, plan: RecordingPlan) -> None:
        """Have an answer kept when it has come."""
        answer.given_id = plan.given_id
        self._keeper.keep(answer, plan)

    def plan(
        self, order: Order, completed: CompletedOrder, wishes: RequestOptions
    ) -> RecordingPlan | None:
        """Say what is to be kept of an order's answer; None for nothing. ``order`` is as the client sent it."""
        if not (wishes.store and self.is_on):
            return None
        return RecordingPlan(
            owner=order.key_id,
            kind=order.task.kind,
            model=order.task.model,
            body=order.task.body,
            earlier=completed.earlier,
            given_id=_id_for(order.task.kind) if wishes.insists else "",
            metadata=wishes.metadata,
        )

    def _earlier(self, owner: str, previous: str) -> tuple[bytes, ...]:
        item = self._store.get(owner, ItemKind.RESPONSE, previous)
        if item is None:
            raise ApiError(
                404,
                "the previous response is not there: it was not stored, was deleted, or is too old; nothing was paid",
                code="previous_response_not_found",
                param=_PREVIOUS,
                reason="not_found",
            )
        try:
            return item.context()
        except ValueError:
            raise bad_request(
                "the previous response cannot be built on: what its provider sent cannot be read",
                _PREVIOUS,
                "previous_response_unreadable",
            ) from None

    def _check_length(self, model: str, body: bytes) -> None:
        if len(body) > self._max_body_bytes:
            raise _too_long(
                f"with the earlier turns the request has {len(body)} bytes, "
                f"this gateway takes {self._max_body_bytes}"
            )
        context_tokens = self._context_tokens(model)
        # The estimate may be twice too high, and a request that would fit is not to be refused for it.
        if context_tokens and self._estimate(parse_object(body)) // 2 > context_tokens:
            raise _too_long(
                f"with the earlier turns the request is longer than the {context_tokens} tokens of this model's context"
            )


def _id_for(kind: TaskKind) -> str:
    return ids.new_response_id() if kind is TaskKind.RESPONSES else ids.new_chat_id()


def _too_long(message: str) -> ApiError:
    return ApiError(
        400,
        f"{message}; nothing was paid",
        code="context_length_exceeded",
        param="input",
        reason="too_large",
    )


def _off(param: str) -> ApiError:
    return ApiError(
        404,
        "this gateway stores nothing (max_stored_items is 0), so there is nothing to build on or to come back for",
        code="storing_is_off",
        param=param,
        reason="not_found",
    )
