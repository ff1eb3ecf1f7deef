"""An order: a task with who asks for it and on what conditions."""

import hashlib
from dataclasses import dataclass, replace

from lcp_gateway.purchase.money import Msat
from lcp_gateway.purchase.tariff import Budget
from lcp_gateway.purchase.task import Task


@dataclass(frozen=True, slots=True)
class Order:
    """A task to be bought for somebody.

    ``key_id`` names the credential without being one, and is empty where there is none. ``account_id`` is the customer
    who is charged, None where nobody is. ``limit_msat`` is what the client itself will pay at most: a customer's charge,
    else price and reckoned fee together; None leaves it to the gateway's own limits. ``budgets`` are the credential's own,
    and ``models`` those that it is good for, all where it is empty.
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
        """Give the order for a task; hashes its body once for all who compare bodies."""
        digest = hashlib.sha256(task.body).digest()
        return cls(task, request_id, key_id, digest, limit_msat, account_id, budgets, models)

    def for_task(self, task: Task) -> "Order":
        """Give the order for the task that is really bought, which is another one where the gateway had to adapt it."""
        if task is self.task:
            return self
        return replace(self, task=task, body_sha256=hashlib.sha256(task.body).digest())

    def carrying(self, task: Task) -> "Order":
        """Give the order with what its request amounts to, where the gateway had to complete that.

        It is still told from others by what the client sent.
        """
        return self if task is self.task else replace(self, task=task)

    def without_body(self) -> "Order":
        """Give the order as it is remembered: what it was for, without what was said."""
        return replace(self, task=replace(self.task, body=b""))
