"""The journal as the heart sees it: what is written before a payment may go out, and what is learnt after."""

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from lcp_gateway.purchase.errors import Refused
from lcp_gateway.purchase.money import Msat
from lcp_gateway.purchase.quote import Quote
from lcp_gateway.purchase.states import State
from lcp_gateway.purchase.task import TaskKind


@dataclass(frozen=True, slots=True)
class Intent:
    """A payment that is about to be made. Holds hashes, sizes and amounts; no prompt.

    ``fee_cap_msat`` is the routing fee that is reckoned with until the real one is known. ``key_id`` names the
    credential without being one, and is empty where there is none. Times are aware UTC.
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

    @property
    def amount_msat(self) -> Msat:
        """What is counted as spent until more is known: price and reckoned fee."""
        return Msat(self.quote.price_msat + self.fee_cap_msat)


@dataclass(frozen=True, slots=True)
class Learnt:
    """What became known with a later state; None means nothing new."""

    result_sha256: bytes | None = None
    result_bytes: int | None = None
    fee_msat: Msat | None = None
    preimage: bytes | None = None
    charged_msat: Msat | None = None
    """What it came to, where the quote's price was only the most that it could."""


class Period(enum.StrEnum):
    """The calendar periods of a budget, in UTC."""

    HOUR = "hour"
    DAY = "day"
    MONTH = "month"


@dataclass(frozen=True, slots=True)
class Budget:
    """At most ``limit_msat`` in each period; for one credential, or for all when ``key_id`` is None."""

    period: Period
    limit_msat: Msat
    key_id: str | None = None


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


class JournalUnavailable(Refused):
    """The intent could not be made durable, so nothing may be paid."""

    code = "journal_unavailable"
    may_pass_later = True


class PurchaseJournal(Protocol):
    """Where purchases are written down."""

    async def intend(self, intent: Intent, budgets: Sequence[Budget]) -> None:
        """Reserve the amount in every budget and write the intent as ``paying``; durable when this returns.

        Raises:
            BudgetExceeded: a budget has no room; nothing was written.
            JournalUnavailable: it cannot be made durable; nothing is to be paid.
        """
        ...

    def note(self, job_id: bytes, state: State, at: datetime, learnt: Learnt = Learnt()) -> None:
        """Write a later state soon, in order, without being waited for; ``not_paid`` gives its reservation back."""
        ...
