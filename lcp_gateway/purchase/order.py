"""An order: the task as the bytes that the client sent, the credential that orders it, and its conditions."""

import enum
import hashlib
from collections.abc import Mapping
from dataclasses import field, replace
from types import MappingProxyType
from typing import Any

from lcp_gateway.purchase.money import Budget, Msat
from lcp_gateway.values import value

OUTPUT_LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens")
"""The fields of requests that limit the output."""


class TaskKind(enum.StrEnum):
    """The kinds of task. Protocol version 2 knows the first two, and their value is the name that a terms hash covers."""

    CHAT_COMPLETIONS = "openai.chat_completions.v1"
    RESPONSES = "openai.responses.v1"
    COMPLETIONS = "openai.completions.v1"
    EMBEDDINGS = "openai.embeddings.v1"


SUBJECTS: Mapping[TaskKind, str] = MappingProxyType(
    {
        TaskKind.CHAT_COMPLETIONS: "messages",
        TaskKind.RESPONSES: "input",
        TaskKind.COMPLETIONS: "prompt",
        TaskKind.EMBEDDINGS: "input",
    }
)
"""The field of each kind that holds the prompt or the input."""


@value
class Task:
    """One computation to buy.

    ``body`` is the request exactly as the client sent it: no part of the gateway re-serialises it. ``output_tokens`` is
    the limit that it sets to its output, 0 where it sets none.
    """

    kind: TaskKind
    model: str
    body: bytes = field(repr=False)
    stream: bool
    output_tokens: int = 0
    _body_sha256: bytes | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def body_sha256(self) -> bytes:
        """The hash of its body, which is made once."""
        found = self._body_sha256
        if found is None:
            found = hashlib.sha256(self.body).digest()
            object.__setattr__(self, "_body_sha256", found)
        return found


def output_limit(document: Mapping[str, Any]) -> int:
    """Return the most tokens of output that a request's body allows, 0 where it sets no usable limit."""
    for name in OUTPUT_LIMITS:
        limit = document.get(name)
        if isinstance(limit, int) and not isinstance(limit, bool) and limit > 0:
            return limit
    return 0


@value
class Order:
    """A task to be bought for a client.

    ``key_id`` names the credential without being one, and is empty where there is none. ``account_id`` is the customer
    who is charged, None where no customer is. ``limit_msat`` is the most that the client itself is willing to pay: a
    customer's charge, else price and estimated fee together; None leaves it to the gateway's own limits. ``budgets``
    are the credential's own, and ``models`` those that it is good for, all where it is empty.
    """

    task: Task
    request_id: str
    key_id: str
    body_sha256: bytes
    limit_msat: Msat | None = None
    account_id: str | None = None
    budgets: tuple[Budget, ...] = ()
    models: frozenset[str] = frozenset()

    @classmethod
    def of(
        cls,
        task: Task,
        *,
        request_id: str,
        key_id: str,
        limit_msat: Msat | None,
        account_id: str | None = None,
        budgets: tuple[Budget, ...] = (),
        models: frozenset[str] = frozenset(),
    ) -> "Order":
        """Return the order for a task."""
        return cls(task, request_id, key_id, task.body_sha256, limit_msat, account_id, budgets, models)

    def for_task(self, task: Task) -> "Order":
        """Return the order for the task that is really bought: another one where the gateway had to adapt it."""
        if task is self.task:
            return self
        return replace(self, task=task, body_sha256=task.body_sha256)

    def carrying(self, task: Task) -> "Order":
        """Return the order with the task that its request amounts to, where the gateway had to complete it.

        It is still recognised by the body that the client sent.
        """
        return self if task is self.task else replace(self, task=task)

    def without_body(self) -> "Order":
        """Return the order as it is remembered, without the body."""
        # Written out: made for every purchase, and ``replace`` takes several times as long.
        task = Task(self.task.kind, self.task.model, b"", self.task.stream, self.task.output_tokens)
        return Order(
            task,
            self.request_id,
            self.key_id,
            self.body_sha256,
            self.limit_msat,
            self.account_id,
            self.budgets,
            self.models,
        )
