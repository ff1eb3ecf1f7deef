"""Purchases of the same request that this process did not make: by another gateway, or before a restart."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

from lcp_gateway.purchase.errors import PurchaseError
from lcp_gateway.purchase.idempotency import IdempotencyCache, KeyReused, RepeatKeys, ResultLost
from lcp_gateway.purchase.journal import EarlierPurchase, JournalUnavailable, RepeatIdentity
from lcp_gateway.purchase.order import Order
from lcp_gateway.purchase.purchase import Purchase
from lcp_gateway.purchase.quote import Quote
from lcp_gateway.purchase.result_buffer import ResultBuffer, ResultHead
from lcp_gateway.purchase.states import VERDICTS, State, Verdict


class LostElsewhere(ResultLost):
    """Another gateway bought it, or may have, and its answer cannot be had here."""

    request_id = ""
    """The request that bought it, where that is known: what a job in the background is polled by."""

    def __init__(self, message: str, *, verdict: Verdict, quote: Quote | None = None) -> None:
        PurchaseError.__init__(self, message, quote=quote)
        self.verdict = verdict


@dataclass(frozen=True, slots=True)
class BoughtElsewhere:
    """What came of the same order at another gateway: bytes, and the error that cut them short if one did."""

    purchase: Purchase
    head: ResultHead | None
    body: bytes = field(repr=False)
    error: PurchaseError | None

    def give(self, answer: ResultBuffer) -> None:
        """Let an answer be this one, to its end."""
        answer.purchase = self.purchase
        if self.head is not None:
            answer.append(self.body)
            answer.begin(self.head)
        if self.error is not None:
            answer.fail(self.error)
        else:
            answer.end()


class Claim(Protocol):
    """The right to buy an order, which no other gateway has at the same time."""

    async def may_pay(self) -> bool:
        """Tell, right before a payment, whether the claim still stands. Once it does not, nothing may be paid."""
        ...

    async def ended(self, answer: ResultBuffer) -> None:
        """Let the others have what came of it; what cost nothing may be bought anew. Raises nothing."""
        ...


class SharedPurchases(Protocol):
    """Finds what other gateways buy and bought."""

    async def claim(self, order: Order, repeat: RepeatKeys) -> Claim | BoughtElsewhere:
        """Claim an order that is about to be bought, or give what came of it elsewhere; waits while it is bought there.

        ``ended`` of the claim has to follow. While nothing can be shared every claim is granted, and it is reported.

        Raises:
            KeyReused: the idempotency key came with another body before.
            AnswerLost: it was bought, or may have been, and its answer cannot be had.
            Refused: nobody can tell.
        """
        ...


class SharedOrder:
    """One order that this gateway buys, unless another one does or did."""

    def __init__(
        self,
        shared: SharedPurchases,
        memory: IdempotencyCache,
        answer: ResultBuffer,
        repeat: RepeatKeys,
    ) -> None:
        self._shared = shared
        self._memory = memory
        self._answer = answer
        self._repeat = repeat
        self._claim: Claim | None = None
        self.bought_elsewhere = False

    async def obtain(self, buy: Callable[[Claim], Awaitable[None]]) -> None:
        """Buy with a claim, or give the answer what came of the order elsewhere. ``ended`` has to follow.

        Raises:
            Exception: as ``SharedPurchases.claim`` and ``buy``.
        """
        try:
            found = await self._shared.claim(self._answer.order, self._repeat)
        except KeyReused:
            self._memory.take_back(self._answer, self._repeat)
            raise
        if isinstance(found, BoughtElsewhere):
            self.bought_elsewhere = True
            found.give(self._answer)
            return
        self._claim = found
        await buy(found)

    async def ended(self) -> None:
        """Let the others have what came of it."""
        if self._claim is not None:
            await self._claim.ended(self._answer)


_FIRST_PAUSE_S: Final = 0.02
_MOST_PAUSE_S: Final = 0.5

FindPurchase = Callable[[bytes], Awaitable[EarlierPurchase | None]]
"""Finds the purchase of a job in the journal; raises ``JournalUnavailable``."""


class BoughtBefore(LostElsewhere):
    """The journal has a purchase of the same request, and its answer cannot be had here."""

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
        return "this was bought before, and its answer did not come; it is not paid for again"
    return "this was bought before and its answer is no longer held; it is not paid for again"


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
            # Away for a moment: what is known stands.
            continue
        if found is None:
            # Only what has ended is ever removed from the journal.
            break
        earlier = found
    if earlier.state is not State.NOT_PAID:
        raise BoughtBefore(earlier)


async def find_bought_with(
    job_id: bytes, key_id: str, identity: RepeatIdentity, find: FindPurchase
) -> LostElsewhere | None:
    """Return what became of a quote that is not held any more; None where nothing was bought with it for this request."""
    try:
        earlier = await find(job_id)
    except JournalUnavailable:
        return LostElsewhere(
            "there is no such quote, and the journal cannot be read to tell whether it was taken",
            verdict=Verdict.UNKNOWN,
        )
    if earlier is None or earlier.key_id != key_id or earlier.repeat_body != identity.body:
        return None
    if earlier.state is State.NOT_PAID:
        return None
    return BoughtBefore(earlier)
