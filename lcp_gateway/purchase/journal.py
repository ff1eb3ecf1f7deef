"""The journal as a purchase sees it: the intent that is written before a payment, and the states recorded after it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from lcp_gateway.purchase.errors import Refused
from lcp_gateway.purchase.money import Budget, Charge, Msat, Refund
from lcp_gateway.purchase.order import TaskKind
from lcp_gateway.purchase.outcome import Ending
from lcp_gateway.purchase.quote import Quote
from lcp_gateway.purchase.states import State
from lcp_gateway.values import value


@value
class RepeatIdentity:
    """The identity by which the journal recognises a repeat of a request.

    ``key`` is None where the client sent nothing that it keeps over its retries; it counts until ``until``. ``body``
    is the same for the same kind and body from the same credential. ``first_try_since`` is set for a retry whose first
    try is not known to this process: a purchase for the same body since then counts as that.
    """

    body: bytes
    key: bytes | None = None
    until: datetime | None = None
    first_try_since: datetime | None = None


@value
class Intent:
    """A payment that is about to be made. Holds hashes, sizes and amounts; no prompt.

    ``fee_cap_msat`` is the routing fee that is estimated until the real one is known. ``key_id`` names the
    credential without being one, and is empty where there is none. ``charge`` is None where no customer is charged.
    ``repeat`` identifies repeats of the request, None where repeats are not to be recognised. Times are aware UTC.
    """

    quote: Quote
    kind: TaskKind
    model: str
    stream: bool
    request_id: str
    key_id: str
    request_sha256: bytes
    request_bytes: int
    payment_hash: bytes | None
    fee_cap_msat: Msat
    runner_up_msat: Msat | None
    at: datetime
    charge: Charge | None = None
    repeat: RepeatIdentity | None = None

    @property
    def amount_msat(self) -> Msat:
        """The amount counted as spent until the real one is known: price and estimated fee."""
        return Msat(self.quote.price_msat + self.fee_cap_msat)


@value
class PurchaseUpdate:
    """The facts that became known with a later state; None means nothing new."""

    result_sha256: bytes | None = None
    result_bytes: int | None = None
    fee_msat: Msat | None = None
    preimage: bytes | None = None
    charged_msat: Msat | None = None
    """The final price, where the quote's price was only the most that it could be."""
    ending: Ending | None = None
    """How a paid purchase ended, with which its charge is kept or given back."""


NOTHING_NEW = PurchaseUpdate()


class BudgetExceeded(Refused):
    """The purchase would take a budget over its limit."""

    code = "budget_exceeded"
    may_pass_later = True

    def __init__(self, quote: Quote, budget: Budget, spent_msat: Msat) -> None:
        whose = "this key's" if budget.key_id is not None else "the gateway's"
        super().__init__(
            f"{whose} budget a {budget.period} is {budget.limit_msat} msat, of which {spent_msat} msat "
            f"are spent or reserved; the quote asks {quote.price_msat} msat; nothing was paid",
            quote=quote,
        )
        self.budget = budget
        self.spent_msat = spent_msat


class InsufficientBalance(Refused):
    """The account has less than the charge: ``available_msat`` is its balance without what is held."""

    code = "insufficient_balance"
    may_pass_later = True

    def __init__(self, quote: Quote, required_msat: Msat, available_msat: Msat) -> None:
        super().__init__(
            f"this is charged at {required_msat} msat, of the balance {available_msat} msat are available; "
            "nothing was paid",
            quote=quote,
        )
        self.required_msat = required_msat
        self.available_msat = available_msat


class KeyRevoked(Refused):
    """The key was revoked after it was let in, and before its intent was written."""

    code = "invalid_api_key"


class JournalUnavailable(Refused):
    """The intent could not be made durable, so nothing may be paid."""

    code = "journal_unavailable"
    may_pass_later = True


@dataclass(frozen=True, slots=True)
class EarlierPurchase:
    """A purchase that the journal has, as a repeat of its request needs to know it.

    ``repeat_body`` is None for one that was made before repeats were recorded. ``charge`` is None where no customer is
    charged, ``refund`` where its charge was not to be given back.
    """

    quote: Quote
    state: State
    key_id: str
    request_id: str
    repeat_body: bytes | None
    charge: Charge | None = None
    refund: Refund | None = None

    @property
    def customer_msat(self) -> Msat | None:
        """The present charge of the customer, or None where there is no customer."""
        return None if self.charge is None else self.charge.due_msat(self.state)


class DuplicateIntent(Refused):
    """The journal knows this job already: it is not paid again, whatever its outcome.

    The job may be paid for and running, so its quote must not be cancelled.
    """

    code = "duplicate_purchase"


class RequestRepeated(Refused):
    """The journal has a purchase of the same request, or under the same repeat key, that is not known to be unpaid.

    ``earlier`` is that purchase; the quote of this one was not taken.
    """

    code = "request_repeated"

    def __init__(self, quote: Quote | None, earlier: EarlierPurchase) -> None:
        super().__init__("this request was bought before; nothing more was paid", quote=quote)
        self.earlier = earlier


class PurchaseJournal(Protocol):
    """The durable record of purchases."""

    async def intend(self, intent: Intent, budgets: Sequence[Budget]) -> None:
        """Reserve the amount in every budget and write the intent as ``paying``; durable when this returns.

        The charge, where there is one, is held of the account's balance in the same step.

        Raises:
            BudgetExceeded: a budget has no room; nothing was written.
            KeyRevoked: the key of the account was revoked; nothing was written.
            InsufficientBalance: the account cannot pay the charge; nothing was written.
            DuplicateIntent: the journal has an intent for this job.
            RequestRepeated: the journal has a purchase of the same request; nothing was written.
            JournalUnavailable: it cannot be made durable; nothing is to be paid.
        """
        ...

    async def find(self, job_id: bytes) -> EarlierPurchase | None:
        """Return the purchase of a job, or None where the journal has none.

        Raises:
            JournalUnavailable: the journal cannot be read.
        """
        ...

    def record(
        self,
        job_id: bytes,
        state: State,
        at: datetime,
        update: PurchaseUpdate = NOTHING_NEW,
        on_refund: Callable[[Refund], None] | None = None,
    ) -> None:
        """Write a later state soon, in order, without being waited for; ``not_paid`` releases its reservation.

        A charge follows: taken when ``settled``, released when ``not_paid``, lowered with the final price, and refunded
        when ``undelivered`` unless it is kept. ``on_refund`` is called, once it is durable, with the decision on a
        charge that is to be refunded.
        """
        ...
