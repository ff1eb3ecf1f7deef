"""Purchases of the same request that this process did not make: by another gateway, or before a restart."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

from lcp_gateway.purchase.errors import PurchaseError
from lcp_gateway.purchase.held_quotes import HeldQuote
from lcp_gateway.purchase.idempotency import KeyReused, RepeatKeys, ResultLost
from lcp_gateway.purchase.journal import EarlierPurchase, JournalUnavailable, RepeatIdentity
from lcp_gateway.purchase.order import Order
from lcp_gateway.purchase.purchase import Purchase
from lcp_gateway.purchase.quote import Quote
from lcp_gateway.purchase.result_buffer import ResultBuffer, ResultHead
from lcp_gateway.purchase.states import VERDICTS, State, Verdict

_FIRST_PAUSE_S: Final = 0.02
_MOST_PAUSE_S: Final = 0.5

FindPurchase = Callable[[bytes], Awaitable[EarlierPurchase | None]]
"""Finds the purchase of a job in the journal; raises ``JournalUnavailable``."""


class LostElsewhere(ResultLost):
    """Another gateway bought it, or may have, and its result is not available here."""

    request_id = ""
    """The request that bought it, where that is known: the id by which a job in the background is polled."""

    def __init__(self, message: str, *, verdict: Verdict, quote: Quote | None = None) -> None:
        PurchaseError.__init__(self, message, quote=quote)
        self.verdict = verdict


class BoughtBefore(LostElsewhere):
    """The journal has a purchase of the same request, and its result is not available here."""

    def __init__(self, earlier: EarlierPurchase) -> None:
        verdict = VERDICTS[earlier.state]
        super().__init__(_message(earlier.state, verdict), verdict=verdict, quote=earlier.quote)
        self.request_id = earlier.request_id
        self.earlier = earlier


def _message(state: State, verdict: Verdict) -> str:
    if state is State.PAYING:
        return "this is still being bought by another gateway; asking again would not pay again"
    if verdict is Verdict.UNKNOWN:
        return (
            "this was asked for before and it is not known yet whether it was paid; asking again pays only "
            "if it turns out that it was not"
        )
    if state is State.UNDELIVERED:
        return "this was bought before, and its result did not come; it is not paid for again"
    return "this was bought before and its result is no longer held; it is not paid for again"


# -- by another gateway that runs now ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BoughtElsewhere:
    """The result of the same order at another gateway: bytes, and the error that cut them short if one did."""

    purchase: Purchase
    head: ResultHead | None
    body: bytes = field(repr=False)
    error: PurchaseError | None
    given_id: str = ""

    def copy_to(self, buffer: ResultBuffer) -> None:
        """Fill a buffer with this result; its end, or its error, is to follow."""
        buffer.purchase, buffer.is_copy = self.purchase, True
        buffer.given_id = self.given_id or buffer.given_id
        if self.head is not None:
            buffer.append(self.body)
            buffer.begin(self.head)


class Claim(Protocol):
    """The right to buy an order, which no other gateway has at the same time."""

    @property
    def is_counted(self) -> bool:
        """Whether the loop brake counted the order for all gateways."""
        ...

    async def may_pay(self) -> bool:
        """Return, right before a payment, whether the claim still stands. Once it does not, nothing may be paid."""
        ...

    async def ended(self, buffer: ResultBuffer) -> None:
        """Publish the result to the other gateways; an order that cost nothing may be bought again. Raises nothing."""
        ...


class SharedPurchases(Protocol):
    """Finds the purchases of other gateways, made and under way."""

    async def claim(self, order: Order, keys: RepeatKeys, per_minute: int) -> Claim | BoughtElsewhere:
        """Claim an order that is about to be bought, or return its result elsewhere; waits while it is bought there.

        ``ended`` of the claim has to follow. While nothing can be shared every claim is granted, and it is reported.
        ``per_minute`` orders of one body may be claimed within a minute; 0 sets no limit.

        Raises:
            LoopDetected: there were as many; no claim was made.
            KeyReused: the idempotency key came with another body before.
            ResultLost: it was bought, or may have been, and its result is not available.
            Refused: it cannot be known.
        """
        ...

    async def hold_quote(self, order: Order, held: HeldQuote) -> bool:
        """Hold a quote for all gateways; return whether it is held. ``order`` has its body."""
        ...

    async def find_quote(self, quote_name: str) -> HeldQuote | None:
        """Return a quote that is held; None where it is not, or cannot be read now."""
        ...

    async def name_job(self, order: Order, keys: RepeatKeys, job_id: str) -> str:
        """Give an order's names to a job in the background; return its id, or that of the job that has one of them already.

        Raises:
            KeyReused: the idempotency key came with another body before.
        """
        ...

    async def forget_job(self, order: Order, keys: RepeatKeys, job_id: str) -> None:
        """Take the names of a job back that did not begin."""
        ...

    async def drop_quote(self, quote_name: str) -> bool:
        """Drop a quote; of several that drop it at one time, one gets True."""
        ...


# -- before a restart, as the journal says ----------------------------------------------------------


def refusal_of(earlier: EarlierPurchase, identity: RepeatIdentity | None) -> PurchaseError:
    """Return the error for a request that repeats an earlier purchase, or another request under the same key."""
    if identity is not None and earlier.repeat_body != identity.body:
        return KeyReused("the idempotency key was used with another request before")
    return BoughtBefore(earlier)


async def wait_until_unpaid(
    earlier: EarlierPurchase, identity: RepeatIdentity | None, find: FindPurchase, wait_s: float
) -> None:
    """Return once an earlier purchase is known not to be paid, so that the order may be bought after all.

    While another process is paying it, this waits for the outcome, ``wait_s`` at most.

    Raises:
        KeyReused: the Idempotency-Key was used for another request.
        BoughtBefore: it was paid, or it is not known to be unpaid.
    """
    refusal = refusal_of(earlier, identity)
    if isinstance(refusal, KeyReused):
        raise refusal
    give_up_at = time.monotonic() + wait_s
    pause_s = _FIRST_PAUSE_S
    while earlier.state is State.PAYING and time.monotonic() < give_up_at:
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 1.5, _MOST_PAUSE_S)
        try:
            found = await find(earlier.quote.job_id)
        except JournalUnavailable:
            # The journal is unavailable for a moment: the state read before stands.
            continue
        if found is None:
            # Only purchases that have ended are ever removed from the journal.
            break
        earlier = found
    if earlier.state is not State.NOT_PAID:
        raise BoughtBefore(earlier)


async def find_bought_with(
    job_id: bytes, key_id: str, identity: RepeatIdentity, find: FindPurchase
) -> LostElsewhere | None:
    """Return the outcome of a quote that is no longer held; None where nothing was bought with it for this request."""
    try:
        earlier = await find(job_id)
    except JournalUnavailable:
        return LostElsewhere(
            "there is no such quote, and the journal cannot be read to check whether it was taken",
            verdict=Verdict.UNKNOWN,
        )
    if earlier is None or earlier.key_id != key_id or earlier.repeat_body != identity.body:
        return None
    if earlier.state is State.NOT_PAID:
        return None
    return BoughtBefore(earlier)
