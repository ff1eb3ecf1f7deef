"""Stored history over HTTP: earlier turns of a request, the storing of its result, and pages of stored items."""

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field, replace
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
from lcp_gateway.responses.paging import list_object, read_page, select_page
from lcp_gateway.responses.recording import Recorder, RecordingPlan
from lcp_gateway.responses.request_options import RequestOptions, read_options
from lcp_gateway.responses.stored_items import StoredItems
from lcp_gateway.values import value

Renderer = Callable[[Any, str, int], dict[str, Any]]
"""Returns an item in OpenAI's form, from the item, the id of its owner, and its place there."""


def page_response(
    query: Mapping[str, str], array: bytes, owner_id: str, render: Renderer, *, order: str
) -> web.Response:
    """Return a page of the items of a JSON array.

    Raises:
        InvalidPageQuery: the query cannot be read.
        ApiError: 502 for items that cannot be read.
    """
    try:
        items = parse_json(array)
    except ValueError:
        raise unreadable("input") from None
    assert isinstance(items, list)  # noqa: S101 - ``array`` is one
    entries = [render(item, owner_id, place) for place, item in enumerate(items)]
    asked = read_page(query, default_order=order)
    found = select_page([(str(entry["id"]), entry) for entry in entries], asked)
    try:
        body = dump_json(list_object(found))
    except ValueError:
        raise unreadable("input") from None
    return web.Response(body=body, headers={"Content-Type": JSON})


def not_stored(store: StoredItems, what: str, word: str) -> ApiError:
    """Return the error for an id that this credential does not have; ``word`` begins the names of parameter and code."""
    why = "it was not stored, was deleted, or is too old"
    if store.limits.items_per_owner == 0:
        why = "this gateway stores nothing (max_stored_items is 0)"
    return ApiError(
        404, f"there is no such {what}: {why}", code=f"{word}_not_found", param=f"{word}_id", reason="not_found"
    )


def unreadable(what: str) -> ApiError:
    """Return the error for stored bytes of a provider that cannot be read."""
    return ApiError(502, f"the stored {what} cannot be read: its provider sent something else", "unreadable")


def document_of(item: Item, what: str) -> bytes:
    """Return the document of a stored item.

    Raises:
        ApiError: 502, it cannot be read.
    """
    try:
        return item.document()
    except ValueError:
        raise unreadable(what) from None


_PREVIOUS = "previous_response_id"


@value
class CompletedOrder:
    """An order as a provider gets it, with the turns before its input."""

    order: Order
    earlier: tuple[bytes, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class History:
    """Reads a request's options, puts earlier turns into its order, and has its result recorded.

    ``context_tokens`` returns the length of a model's context, 0 if unknown; ``estimate`` counts a request's tokens.
    """

    store: StoredItems
    recorder: Recorder
    _: KW_ONLY
    max_body_bytes: int
    context_tokens: Callable[[str], int]
    estimate: Callable[[Mapping[str, Any]], int]

    @property
    def is_on(self) -> bool:
        """Whether anything is stored."""
        return self.store.limits.items_per_owner > 0

    def read(self, kind: TaskKind, document: Mapping[str, Any]) -> RequestOptions:
        """Read the options of a request.

        Raises:
            InvalidOption: an option cannot be read.
            ApiError: 404 for an option that needs a store where nothing is stored.
        """
        options = read_options(kind, document)
        if options.previous_response_id is not None and not self.is_on:
            raise _off(_PREVIOUS)
        if options.background and not self.is_on:
            raise _off("background")
        return options

    async def complete(self, order: Order, options: RequestOptions) -> CompletedOrder:
        """Put the earlier turns before an order's input, and remove the fields that no provider knows.

        Raises:
            ApiError: 404 for a missing response, 400 for a context that is too long; nothing was paid.
        """
        earlier: tuple[bytes, ...] | None = None
        if options.previous_response_id is not None:
            earlier = await self._earlier(order.key_id, options.previous_response_id)
        task = order.task
        body = request_for_provider(task.body, earlier, without_background=options.background)
        if body is task.body:
            return CompletedOrder(order)
        if earlier is not None:
            self._check_length(task.model, body)
        changed = replace(task, body=body)
        return CompletedOrder(order.carrying(changed), earlier or ())

    async def expand(self, owner: str, body: bytes, previous: str) -> bytes:
        """Put the earlier turns before the input of a request that buys nothing.

        Raises:
            ApiError: 404 for a missing response.
        """
        if not self.is_on:
            raise _off(_PREVIOUS)
        return request_for_provider(body, await self._earlier(owner, previous))

    def keep(self, answer: ResultBuffer, plan: RecordingPlan) -> None:
        """Record an answer when it has come whole."""
        answer.given_id = plan.given_id
        self.recorder.record(answer, plan)

    def plan(self, order: Order, completed: CompletedOrder, options: RequestOptions) -> RecordingPlan | None:
        """Return how an order's answer is recorded, None if it is not. ``order`` is as the client sent it."""
        if not (options.store and self.is_on):
            return None
        return RecordingPlan(
            owner=order.key_id,
            kind=order.task.kind,
            model=order.task.model,
            body=order.task.body,
            earlier=completed.earlier,
            given_id=_id_for(order.task.kind) if options.stores_explicitly else "",
            metadata=options.metadata,
        )

    async def _earlier(self, owner: str, previous: str) -> tuple[bytes, ...]:
        item = await self.store.get(owner, ItemKind.RESPONSE, previous)
        if item is None:
            raise ApiError(
                404,
                "the previous response is missing: it was not stored, was deleted, or is too old; nothing was paid",
                code="previous_response_not_found",
                param=_PREVIOUS,
                reason="not_found",
            )
        try:
            return item.context()
        except ValueError:
            raise bad_request(
                "the previous response cannot be built on: its provider's result cannot be read",
                _PREVIOUS,
                "previous_response_unreadable",
            ) from None

    def _check_length(self, model: str, body: bytes) -> None:
        if len(body) > self.max_body_bytes:
            raise _too_long(
                f"with the earlier turns the request has {len(body)} bytes, this gateway takes {self.max_body_bytes}"
            )
        context_tokens = self.context_tokens(model)
        # The estimate may be twice too high, and a request that would fit is not to be refused for it.
        if context_tokens and self.estimate(parse_object(body)) // 2 > context_tokens:
            raise _too_long(
                f"with the earlier turns the request is longer than the {context_tokens} tokens of this model's context"
            )


def _id_for(kind: TaskKind) -> str:
    return ids.new_response_id() if kind is TaskKind.RESPONSES else ids.new_chat_id()


def _too_long(message: str) -> ApiError:
    return ApiError(
        400, f"{message}; nothing was paid", code="context_length_exceeded", param="input", reason="too_large"
    )


def _off(param: str) -> ApiError:
    return ApiError(
        404,
        "this gateway stores nothing (max_stored_items is 0): no response can be built on or fetched later",
        code="storing_is_off",
        param=param,
        reason="not_found",
    )
