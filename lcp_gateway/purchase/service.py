"""Takes orders: finds a repeat or buys, in a task of its own that outlives the request which asked."""

import asyncio
import enum
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from lcp_gateway.purchase.answers import Answer, Bounds, Head
from lcp_gateway.purchase.book import HeldQuote, QuoteBook
from lcp_gateway.purchase.brake import LoopBrake
from lcp_gateway.purchase.candidate import Candidate
from lcp_gateway.purchase.errors import (
    PaymentFailed,
    PurchaseError,
    Refused,
    Undelivered,
    UpstreamError,
)
from lcp_gateway.purchase.flow import Buyer
from lcp_gateway.purchase.journal import InsufficientBalance
from lcp_gateway.purchase.market import Market, Offer
from lcp_gateway.purchase.memory import AnswerMemory, KeyReused, Repeat
from lcp_gateway.purchase.order import Order
from lcp_gateway.purchase.purchase import Purchase
from lcp_gateway.purchase.quote import Source
from lcp_gateway.purchase.shared import Bought, Claim, SharedAnswers
from lcp_gateway.purchase.states import State, Verdict

CANCEL_REASON = "request canceled"
# Statuses after which the peer may still be working for nobody.
_STILL_RUNNING = frozenset({"CANCELLED", "DEADLINE_EXCEEDED"})
_PERHAPS_AT_WORK = frozenset({State.PAYING, State.UNKNOWN, State.SETTLED, State.UNDELIVERED})

# Failures of a node after which another provider may do the work, because the node itself has not.
_WORTH_ANOTHER = frozenset({"UNAVAILABLE", "RESOURCE_EXHAUSTED", "NOT_FOUND", "DATA_LOSS"})

Routing = Callable[[Order], Awaitable[Sequence[Candidate]]]
"""Gives the candidates for an order, the first choice first; raises where there are none."""


class Reason(enum.StrEnum):
    """Why the gateway ended a purchase itself; the value is the error's code."""

    NOBODY_WAITS = "nobody_waits"
    SHUTTING_DOWN = "shutting_down"
    ENDED = "ended"
    TAKEN_OVER = "taken_over"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"


_WORDS = {
    Reason.NOBODY_WAITS: "nobody waited for the answer any more",
    Reason.SHUTTING_DOWN: "the gateway is shutting down and could not wait for this any longer",
    Reason.ENDED: "the gateway ended the request",
    Reason.TAKEN_OVER: "another gateway took the request over; nothing was paid here",
    Reason.TIMED_OUT: "the purchase took longer than this gateway allows",
    Reason.CANCELLED: "the client cancelled it",
}


class Interrupted(PurchaseError):
    """The gateway itself ended the purchase."""

    def __init__(self, reason: Reason, purchase: Purchase | None) -> None:
        super().__init__(_WORDS[reason], quote=None if purchase is None else purchase.quote)
        self.code = reason.value
        self.verdict = Verdict.NONE if purchase is None else purchase.verdict


class Observer:
    """Hears of what happens to orders. Does nothing itself."""

    def quoted(self, answer: Answer) -> None:
        """A quote was taken for it."""

    def let_go(self, purchase: Purchase) -> None:
        """Its quote is not taken after all, and another one is."""

    def fell_out(self, purchase: Purchase, error: PaymentFailed, *, goes_on: bool) -> None:
        """A node did not do it and nothing was paid; ``goes_on`` says that another provider is asked now."""

    def ended(self, answer: Answer) -> None:
        """Nothing more will come of it."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a paid answer that nobody waits for goes on being taken in, and how long a peer may take to be told.

    ``limit_s`` is what a purchase may take in all; 0 sets no limit.
    """

    grace_s: float = 10.0
    cancel_timeout_s: float = 2.0
    limit_s: float = 0.0


class PurchaseService:
    """Buys what is ordered, once."""

    def __init__(
        self,
        *,
        market: Market,
        buyer: Buyer,
        routing: Routing,
        memory: AnswerMemory,
        book: QuoteBook,
        brake: LoopBrake,
        bounds: Bounds,
        patience: Patience,
        background: Callable[[Coroutine[Any, Any, None]], None],
        observer: Observer,
        clock: Callable[[], float],
        shared: SharedAnswers | None = None,
    ) -> None:
        """``shared`` is what this gateway knows together with others; None where it is the only one."""
        self._market = market
        self._buyer = buyer
        self._routing = routing
        self._memory = memory
        self._book = book
        self._brake = brake
        self._bounds = bounds
        self._patience = patience
        self._background = background
        self._observer = observer
        self._clock = clock
        self._shared = shared
        self._elsewhere: set[Answer] = set()
        self._running: dict[Answer, asyncio.Task[None]] = {}
        self._leaving: dict[Answer, asyncio.TimerHandle] = {}
        self._reasons: dict[Answer, Reason] = {}

    def __len__(self) -> int:
        """How many orders are being bought now."""
        return len(self._running)

    def find(self, order: Order, repeat: Repeat) -> Answer | None:
        """Give the answer that a request asks for again, or None.

        Raises:
            KeyReused, AnswerLost: see ``AnswerMemory.find``.
        """
        return self._memory.find(order, repeat)

    def start(self, order: Order, repeat: Repeat, quote_name: str | None = None) -> Answer:
        """Begin to buy; with ``quote_name`` the quote of that id is taken.

        Raises:
            LoopDetected: the same request came too often.
            UnknownQuote, QuoteForAnotherBody, QuoteExpired: see ``QuoteBook.take``. Where answers are shared they come
                of the answer instead: another gateway may have taken the quote for the same request.
        """
        self._brake.check(order)
        work: Coroutine[Any, Any, None]
        answer = Answer(order, self._bounds, self._memory.pool)
        if self._shared is None:
            offer = self._take(order, quote_name)
            work = self._run(answer, lambda: self._buy(answer, offer))
        else:
            work = self._run_shared(self._shared, answer, repeat, quote_name)
        self._memory.add(answer, repeat)
        task = asyncio.create_task(work)
        self._running[answer] = task
        # A callback, since a task that is cancelled before its first step runs no code of its own.
        task.add_done_callback(lambda _task: self._finished(answer, repeat))
        if limit_s := self._patience.limit_s:
            loop = asyncio.get_running_loop()
            late = loop.call_later(limit_s, self.interrupt, answer, Reason.TIMED_OUT)
            answer.when_ended(lambda _answer: late.cancel())
        return answer

    async def quote(self, order: Order) -> HeldQuote:
        """Get a quote that can be taken later; pays nothing.

        Raises:
            Exception: no quote could be had.
        """
        try:
            offer = await self._market.offer(order, await self._routing(order))
        except Refused as refusal:
            self._hold_if_good(order, refusal, refusal.candidate)
            raise
        return self._hold(order, offer)

    def left(self, answer: Answer) -> None:
        """Say that a request no longer reads an answer; the last one to leave sets the end in motion."""
        answer.listeners -= 1
        if answer.listeners or answer.kept or answer.ended or answer not in self._running:
            return
        answer.abandoned = True
        if answer.verdict is Verdict.NONE:
            self.interrupt(answer, Reason.NOBODY_WAITS)
        elif answer not in self._leaving:
            loop = asyncio.get_running_loop()
            self._leaving[answer] = loop.call_later(self._patience.grace_s, self._abandon, answer)

    def joined(self, answer: Answer) -> None:
        """Say that a request waits for an answer; ``left`` has to follow."""
        answer.listeners += 1
        answer.abandoned = False
        if timer := self._leaving.pop(answer, None):
            timer.cancel()

    def interrupt(self, answer: Answer, reason: Reason) -> None:
        """End an order that is being bought."""
        # One that has ended only tells the other gateways so.
        if (task := self._running.get(answer)) and not answer.ended:
            self._reasons[answer] = reason
            task.cancel()

    def interrupt_all(self, reason: Reason) -> int:
        """End all orders that are being bought; gives how many."""
        running = list(self._running)
        for answer in running:
            self.interrupt(answer, reason)
        return len(running)

    async def wait_idle(self) -> None:
        """Wait for the orders that are being bought to come to their end."""
        if self._running:
            await asyncio.wait(self._running.values())

    def _abandon(self, answer: Answer) -> None:
        self._leaving.pop(answer, None)
        if not answer.listeners:
            self.interrupt(answer, Reason.NOBODY_WAITS)

    def _take(self, order: Order, quote_name: str | None) -> Offer | None:
        if quote_name is None:
            return None
        held = self._book.take(order, quote_name)
        # Without its payment hash, so that it is inspected again: limits may differ from when it was shown.
        bought = order.for_task(held.candidate.adapt(order.task))
        return replace(held, order=bought, payment_hash=None)

    async def _run_shared(
        self, shared: SharedAnswers, answer: Answer, repeat: Repeat, quote_name: str | None
    ) -> None:
        """Buy unless another gateway does or did; whoever waits for that here waits for this answer."""
        claim: Claim | None = None

        async def obtain() -> None:
            nonlocal claim
            try:
                found = await shared.claim(answer.order, repeat)
            except KeyReused:
                self._memory.take_back(answer, repeat)
                raise
            if isinstance(found, Bought):
                self._elsewhere.add(answer)
                found.give(answer)
                return
            claim = found
            await self._buy(answer, self._take(answer.order, quote_name), claim)

        await self._run(answer, obtain)
        if claim is not None:
            await claim.ended(answer)

    async def _run(self, answer: Answer, obtain: Callable[[], Awaitable[None]]) -> None:
        try:
            await obtain()
            answer.end()
        except asyncio.CancelledError:
            self._cancel_job(answer.purchase)
            answer.fail(self._interrupted(answer))
        except Exception as error:  # noqa: BLE001 - whatever it is, those who wait must hear of it
            self._cancel_if_at_work(answer.purchase, error)
            purchase = answer.purchase
            self._hold_if_good(answer.order, error, purchase.candidate if purchase else None)
            answer.fail(error)

    def _finished(self, answer: Answer, repeat: Repeat) -> None:
        if not answer.ended:
            answer.fail(self._interrupted(answer))
        del self._running[answer]
        self._reasons.pop(answer, None)
        if timer := self._leaving.pop(answer, None):
            timer.cancel()
        self._memory.ended(answer, repeat)
        if answer in self._elsewhere:
            # Counted where it was bought.
            self._elsewhere.remove(answer)
        else:
            self._observer.ended(answer)

    def _interrupted(self, answer: Answer) -> Interrupted:
        return Interrupted(self._reasons.get(answer, Reason.ENDED), answer.purchase)

    async def _buy(self, answer: Answer, offer: Offer | None, claim: Claim | None = None) -> None:
        order = answer.order
        candidates: Sequence[Candidate] = ()
        started = self._clock()
        if offer is None:
            candidates = await self._routing(order)
            offer = await self._market.offer(order, candidates)
        while True:
            answer.purchase = purchase = Purchase(
                offer.order,
                offer.quote,
                payment_hash=offer.payment_hash,
                runner_up_msat=offer.runner_up_msat,
                candidate=offer.candidate,
            )
            answer.quote_s = self._clock() - started
            self._observer.quoted(answer)
            if claim is not None and not await claim.may_pay():
                raise Interrupted(Reason.TAKEN_OVER, purchase)
            try:
                await self._carry_out(answer, purchase)
            except PaymentFailed as error:
                candidates = _others(candidates, answer, purchase, error)
                if purchase.quote.source is Source.NODE and error.verdict is Verdict.NONE:
                    self._observer.fell_out(purchase, error, goes_on=bool(candidates))
                if not candidates:
                    raise
                offer = await self._market.offer(order, candidates)
            except InsufficientBalance as error:
                candidates = _after(candidates, purchase.candidate)
                offer = await self._cheaper(order, candidates, error)
                self._observer.let_go(purchase)
            else:
                return

    async def _cheaper(
        self, order: Order, candidates: Sequence[Candidate], too_dear: InsufficientBalance
    ) -> Offer:
        """Give the next offer that asks less than the one that the customer cannot pay.

        Raises:
            InsufficientBalance: there is none; the one that was too dear is told.
        """
        for candidate in candidates:
            try:
                offer = await self._market.offer(order, [candidate])
            except PurchaseError:
                continue
            if offer.quote.price_msat < (too_dear.quote.price_msat if too_dear.quote else 0):
                return offer
        raise too_dear

    async def _carry_out(self, answer: Answer, purchase: Purchase) -> None:
        started = self._clock()
        try:
            if purchase.order.task.stream:
                await self._stream(answer, purchase)
            else:
                result = await self._buyer.buy(purchase)
                answer.append(result.body)
                answer.begin(Head(result.content_type, result.content_encoding))
        finally:
            answer.execute_s = self._clock() - started

    async def _stream(self, answer: Answer, purchase: Purchase) -> None:
        started = self._clock()
        stream = await self._buyer.open_stream(purchase)
        answer.begin(Head(stream.content_type, stream.content_encoding))
        async with aclosing(stream.chunks()) as chunks:
            async for block in chunks:
                if answer.first_byte_s is None:
                    answer.first_byte_s = self._clock() - started
                answer.append(block)
                if answer.is_ahead:
                    waits = self._clock()
                    await answer.room()
                    answer.waited_s += self._clock() - waits
                elif not answer.readable and not answer.listeners:
                    # Too large to be kept, and nobody takes it.
                    self.interrupt(answer, Reason.NOBODY_WAITS)

    def _hold_if_good(self, order: Order, error: Exception, candidate: Candidate | None) -> None:
        """Hold the quote of a refusal that may pass later, so that it can still be taken."""
        if isinstance(error, Refused) and error.may_pass_later and error.quote is not None:
            whose = error.candidate or candidate or Candidate(error.quote.peer_id)
            self._hold(order, Offer(order, whose, error.quote, None))

    def _hold(self, order: Order, offer: Offer) -> HeldQuote:
        # What is held has no body: it comes again with the request that takes the quote.
        held = HeldQuote(order.without_body(), replace(offer, order=offer.order.without_body()))
        self._book.hold(held)
        return held

    def _cancel_if_at_work(self, purchase: Purchase | None, error: Exception) -> None:
        # A deadline, or a stream that broke off before its end: the peer may still be at it.
        broke_off = isinstance(error, Undelivered) and isinstance(error.__cause__, UpstreamError)
        timed_out = isinstance(error, PaymentFailed) and error.status in _STILL_RUNNING
        if broke_off or timed_out:
            self._cancel_job(purchase)

    def _cancel_job(self, purchase: Purchase | None) -> None:
        if purchase is not None and purchase.state in _PERHAPS_AT_WORK:
            self._background(
                self._buyer.cancel(purchase, CANCEL_REASON, self._patience.cancel_timeout_s)
            )


def _others(
    candidates: Sequence[Candidate], answer: Answer, purchase: Purchase, error: PaymentFailed
) -> Sequence[Candidate]:
    """Give who else may do what a node did not do; nobody once anything was or may have been paid.

    A peer's failed payment is never repeated elsewhere: only a node's refusal is known to have cost nothing.
    """
    failed = purchase.candidate
    if (
        purchase.quote.source is not Source.NODE
        or error.verdict is not Verdict.NONE
        or error.status not in _WORTH_ANOTHER
        or answer.head is not None
    ):
        return ()
    return _after(candidates, failed)


def _after(candidates: Sequence[Candidate], one: Candidate) -> Sequence[Candidate]:
    """Give the candidates that come after one; none where it is not among them."""
    places = [at for at, candidate in enumerate(candidates) if candidate is one]
    return candidates[places[0] + 1 :] if places else ()
