"""The stateful half of a request: what it asks to be kept, and the earlier turns that it builds on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lcp_gateway.http.errors import ApiError, bad_request
from lcp_gateway.http.validation import parse_object
from lcp_gateway.purchase.answers import Answer
from lcp_gateway.purchase.order import Order
from lcp_gateway.purchase.task import TaskKind
from lcp_gateway.stored import ids
from lcp_gateway.stored.chain import request_for_provider
from lcp_gateway.stored.items import Item, Kind
from lcp_gateway.stored.keeping import Keeper, Plan
from lcp_gateway.stored.store import Store
from lcp_gateway.stored.wishes import BadWish, Wishes, read_wishes

_PREVIOUS = "previous_response_id"


@dataclass(frozen=True, slots=True)
class Completed:
    """An order as a provider gets it, and the turns before its input."""

    order: Order
    earlier: tuple[bytes, ...] = field(default=(), repr=False)


class Stateful:
    """Reads wishes, completes orders, and has answers kept."""

    def __init__(
        self,
        store: Store[Item],
        keeper: Keeper,
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

    def read(self, kind: TaskKind, document: Mapping[str, Any]) -> Wishes:
        """Read what a request asks for.

        Raises:
            ApiError: 400, naming the field; 404 for what needs a store where there is none.
        """
        try:
            wishes = read_wishes(kind, document)
        except BadWish as error:
            raise bad_request(error.message, error.param, error.code) from None
        if not self.is_on:
            if wishes.previous_response_id is not None:
                raise _off(_PREVIOUS)
            if wishes.background:
                raise _off("background")
        return wishes

    def complete(self, order: Order, wishes: Wishes) -> Completed:
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
            return Completed(order)
        if earlier is not None:
            self._check_length(task.model, body)
        changed = replace(task, body=body)
        return Completed(order.carrying(changed), earlier or ())

    def expand(self, owner: str, body: bytes, previous: str) -> bytes:
        """Put the earlier turns before the input of a request that buys nothing.

        Raises:
            ApiError: 404 for a response that is not there.
        """
        if not self.is_on:
            raise _off(_PREVIOUS)
        return request_for_provider(body, self._earlier(owner, previous))

    def keep(self, answer: Answer, plan: Plan) -> None:
        """Have an answer kept when it has come."""
        answer.given_id = plan.given_id
        self._keeper.keep(answer, plan)

    def plan(self, order: Order, completed: Completed, wishes: Wishes) -> Plan | None:
        """Say what is to be kept of an order's answer; None for nothing. ``order`` is as the client sent it."""
        if not (wishes.store and self.is_on):
            return None
        return Plan(
            owner=order.key_id,
            kind=order.task.kind,
            model=order.task.model,
            body=order.task.body,
            earlier=completed.earlier,
            given_id=_id_for(order.task.kind) if wishes.insists else "",
            metadata=wishes.metadata,
        )

    def _earlier(self, owner: str, previous: str) -> tuple[bytes, ...]:
        item = self._store.get(owner, Kind.RESPONSE, previous)
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
    return ids.response_id() if kind is TaskKind.RESPONSES else ids.chat_id()


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
