"""Takes orders: finds a repeat or buys, in a task of its own that outlives the request which asked."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from lcp_gateway.purchase.errors import (
    PaymentFailed,
    PurchaseError,
    Refused,
    Undelivered,
    UpstreamError,
)
from lcp_gateway.purchase.execution import PaidStream, PurchaseExecutor
from lcp_gateway.purchase.held_quotes import (
    NO_SUCH_QUOTE,
    HeldQuote,
    HeldQuotes,
    Holding,
    UnknownQuote,
    job_id_of,
)
from lcp_gateway.purchase.idempotency import IdempotencyCache, KeyReused, RepeatKeys
from lcp_gateway.purchase.journal import (
    DuplicateIntent,
    InsufficientBalance,
    JournalUnavailable,
    RepeatIdentity,
    RequestRepeated,
)
from lcp_gateway.purchase.limits import LoopBrake
from lcp_gateway.purchase.money import Refund
from lcp_gateway.purchase.order import Order
from lcp_gateway.purchase.purchase import (
    Interrupted,
    InterruptReason,
    Purchase,
    not_awaited,
    not_held_up,
    party_of,
)
from lcp_gateway.purchase.quote import Candidate, ProviderSource
from lcp_gateway.purchase.quoting import Offer, QuoteRequester, cheaper, others
from lcp_gateway.purchase.result_buffer import BufferLimits, ResultBuffer, ResultHead
from lcp_gateway.purchase.shared_purchases import (
    BoughtBefore,
    Claim,
    SharedOrder,
    SharedPurchases,
    find_bought_with,
    wait_until_unpaid,
)
from lcp_gateway.purchase.states import VERDICTS, PurchaseEvent, State, Verdict
from lcp_gateway.purchase.tracing import (
    NO_TRACING,
    TraceStep,
    Tracing,
    choice_facts,
    outcome_facts,
    stream_facts,
)
from lcp_gateway.upstream_status import UpstreamStatus

__all__ = [
    "CANCEL_REASON",
    "Observer",
    "PurchaseService",
    "Routing",
    "Timeouts",
]

CANCEL_REASON = "request canceled"
# Statuses after which the peer may still be working for nobody.
_STILL_RUNNING = frozenset({UpstreamStatus.CANCELLED, UpstreamStatus.DEADLINE_EXCEEDED})
_PERHAPS_AT_WORK = frozenset({State.PAYING, State.UNKNOWN, State.SETTLED, State.UNDELIVERED})

Routing = Callable[[Order], Awaitable[Sequence[Candidate]]]
"""Gives the candidates for an order, the first choice first; raises where there are none."""


class Observer:
    """Hears of what happens to orders. Does nothing itself."""

    def quoted(self, answer: ResultBuffer) -> None:
        """A quote was taken for it."""

    def let_go(self, purchase: Purchase) -> None:
        """Its quote is not taken after all, and another one is."""

    def fell_out(self, purchase: Purchase, error: PaymentFailed, *, goes_on: bool) -> None:
        """A node did not do it and nothing was paid; ``goes_on`` says that another provider is asked now."""

    def ended(self, answer: ResultBuffer) -> None:
        """Nothing more will come of it."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long a paid answer that nobody waits for goes on being taken in, and how long a peer may take to be told.

    ``limit_s`` is what a purchase may take in all; 0 sets no limit. ``elsewhere_s`` is how long a repeat waits for what
    another process is buying.
    """

    grace_s: float = 10.0
    cancel_timeout_s: float = 2.0
    limit_s: float = 0.0
    elsewhere_s: float = 60.0


class PurchaseService:
    """Buys what is ordered, once."""

    def __init__(
        self,
        *,
        market: QuoteRequester,
        buyer: PurchaseExecutor,
        routing: Routing,
        memory: IdempotencyCache,
        book: HeldQuotes,
        brake: LoopBrake,
        bounds: BufferLimits,
        patience: Timeouts,
        background: Callable[[Coroutine[Any, Any, None]], None],
        observer: Observer,
        clock: Callable[[], float],
        shared: SharedPurchases | None = None,
        tracing: Tracing = NO_TRACING,
    ) -> None:
        """``shared`` is what this gateway knows together with others; None where it is the only one."""
        self._market = market
        self._buyer = buyer
        self._routing = routing
        self._memory = memory
        self._holding = Holding(book)
        self._brake = brake
        self._bounds = bounds
        self._patience = patience
        self._background = background
        self._observer = observer
        self._clock = clock
        self._shared = shared
        self._tracing = tracing
        # Where the requests that began answers are traced.
        self._origins: WeakKeyDictionary[ResultBuffer, object] = WeakKeyDictionary()
        self._running: dict[ResultBuffer, asyncio.Task[None]] = {}
        self._leaving: dict[ResultBuffer, asyncio.TimerHandle] = {}
        self._reasons: dict[ResultBuffer, InterruptReason] = {}

    def __len__(self) -> int:
        """How many orders are being bought now."""
        return len(self._running)

    def use(
        self,
        *,
        market: QuoteRequester,
        buyer: PurchaseExecutor,
        routing: Routing,
        bounds: BufferLimits,
        patience: Timeouts,
        shared: SharedPurchases | None,
    ) -> None:
        """Buy with these from now on. What is being bought goes on, a call that has gone out with what it went out with."""
        self._market = market
        self._buyer = buyer
        self._routing = routing
        self._bounds = bounds
        self._patience = patience
        self._shared = shared

    def find(self, order: Order, repeat: RepeatKeys) -> ResultBuffer | None:
        """Give the answer that a request asks for again, or None.

        Raises:
            KeyReused, AnswerLost: see ``IdempotencyCache.find``.
        """
        answer = self._memory.find(order, repeat)
        if answer is not None and (origin := self._origins.get(answer)) is not None:
            self._tracing.link(origin)
        return answer

    def find_undecided(self, order: Order, repeat: RepeatKeys) -> ResultBuffer | None:
        """Return the answer that a request asks for again, if it ended with its payment unknown or its refund withheld."""
        answer = self._memory.find_undecided(order, repeat)
        return answer if answer not in self._running else None

    async def learn_outcome(self, answer: ResultBuffer) -> None:
        """Ask the journal what became of a payment that was unknown, or of a charge that was withheld.

        Where nothing was paid, it may be bought anew.

        Raises:
            BoughtBefore: it was paid.
        """
        purchase = answer.purchase
        if purchase is None:
            return
        try:
            found = await self._buyer.find(purchase.quote.job_id)
        except JournalUnavailable:
            return
        if found is None:
            return
        if purchase.refund is Refund.WITHHELD and found.refund is not None:
            purchase.hear_refund(found.refund)
        if purchase.state is not State.UNKNOWN:
            return
        if found.state is State.NOT_PAID:
            purchase.apply(PurchaseEvent.FAIL_PAYMENT)
        elif VERDICTS[found.state] is Verdict.SETTLED:
            raise BoughtBefore(found)

    async def check_quote(self, order: Order, quote_name: str) -> None:
        """Let a quote pass that is held, before it is taken by ``start``; where answers are shared that is done there.

        Raises:
            UnknownQuote: it is not held here.
            AnswerLost: it was taken before, by another process or before a restart.
        """
        if self._shared is None and not self._holding.has(order, quote_name):
            raise await self._explain(order, quote_name, UnknownQuote(NO_SUCH_QUOTE)) from None

    def identity(self, order: Order, repeat: RepeatKeys) -> RepeatIdentity:
        """Return what the journal recognises a repeat of an order by; before ``start``."""
        return self._memory.identity(order, repeat)

    def start(
        self, order: Order, repeat: RepeatKeys, quote_name: str | None = None
    ) -> ResultBuffer:
        """Begin to buy; with ``quote_name`` the quote of that id is taken.

        Raises:
            LoopDetected: the same request came too often.
            UnknownQuote, QuoteForAnotherBody, QuoteExpired: see ``HeldQuotes.take``. Where answers are shared they come
                of the answer instead: another gateway may have taken the quote for the same request.
        """
        self._brake.check(order)
        sharing: SharedOrder | None = None
        answer = ResultBuffer(order, self._bounds, self._memory.pool)
        answer.repeat = self._memory.identity(order, repeat)
        if self._shared is None:
            offer = self._holding.take(order, quote_name)
            work = self._run(answer, lambda: self._buy(answer, offer))
        else:
            sharing = SharedOrder(self._shared, self._memory, answer, repeat)
            work = self._run_shared(sharing, answer, quote_name)
        self._memory.add(answer, repeat)
        if repeat.key is not None:
            answer.when_ended(lambda _answer: self._take_back_if_reused(answer, repeat))
        if (origin := self._tracing.origin()) is not None:
            self._origins[answer] = origin
        task = asyncio.create_task(work)
        self._running[answer] = task
        # A callback, since a task that is cancelled before its first step runs no code of its own.
        task.add_done_callback(lambda _task: self._finished(answer, repeat, sharing))
        if limit_s := self._patience.limit_s:
            loop = asyncio.get_running_loop()
            late = loop.call_later(limit_s, self.interrupt, answer, InterruptReason.TIMED_OUT)
            answer.when_ended(lambda _answer: late.cancel())
        return answer

    async def quote(self, order: Order) -> HeldQuote:
        """Get a quote that can be taken later; pays nothing.

        Raises:
            Exception: no quote could be had.
        """
        try:
            offer = await self._market.offer(order, await self._route(order))
        except Refused as refusal:
            self._holding.hold_if_good(order, refusal)
            raise
        return self._holding.hold(order, offer)

    def left(self, answer: ResultBuffer) -> None:
        """Say that a request no longer reads an answer; the last one to leave sets the end in motion."""
        answer.listeners -= 1
        if not answer.listeners:
            self.handed_over(answer)
        if answer.listeners or answer.kept or answer.ended or answer not in self._running:
            return
        answer.outlives_requests = True
        if answer.verdict is Verdict.NONE:
            self.interrupt(answer, InterruptReason.NOBODY_WAITS)
        elif answer not in self._leaving:
            loop = asyncio.get_running_loop()
            self._leaving[answer] = loop.call_later(self._patience.grace_s, self._abandon, answer)

    def handed_over(self, answer: ResultBuffer) -> None:
        """Say that a client has the whole result, or that no request waits for it any more: it is recorded as delivered."""
        if answer.purchase is not None:
            answer.purchase.handed_over()

    def joined(self, answer: ResultBuffer) -> None:
        """Say that a request waits for an answer; ``left`` has to follow."""
        answer.listeners += 1
        answer.outlives_requests = False
        if timer := self._leaving.pop(answer, None):
            timer.cancel()

    def interrupt(self, answer: ResultBuffer, reason: InterruptReason) -> None:
        """End an order that is being bought."""
        # One that has ended only tells the other gateways so.
        if (task := self._running.get(answer)) and not answer.ended:
            self._reasons[answer] = reason
            if (purchase := answer.purchase) is not None:
                purchase.interrupted_by = party_of(reason, purchase)
            task.cancel()

    def interrupt_all(self, reason: InterruptReason) -> int:
        """End all orders that are being bought; gives how many."""
        running = list(self._running)
        for answer in running:
            self.interrupt(answer, reason)
        return len(running)

    async def wait_idle(self) -> None:
        """Wait for the orders that are being bought to come to their end."""
        if self._running:
            await asyncio.wait(self._running.values())

    def _abandon(self, answer: ResultBuffer) -> None:
        self._leaving.pop(answer, None)
        if not answer.listeners:
            self.interrupt(answer, InterruptReason.NOBODY_WAITS)

    async def _run_shared(
        self, sharing: SharedOrder, answer: ResultBuffer, quote_name: str | None
    ) -> None:
        """Buy unless another gateway does or did; whoever waits for that here waits for this answer."""

        async def buy(claim: Claim) -> None:
            try:
                offer = self._holding.take(answer.order, quote_name)
            except UnknownQuote as error:
                raise await self._explain(answer.order, quote_name, error) from None
            await self._buy(answer, offer, claim)

        await self._run(answer, lambda: sharing.obtain(buy))
        await sharing.ended()

    async def _run(self, answer: ResultBuffer, obtain: Callable[[], Awaitable[None]]) -> None:
        try:
            await obtain()
            answer.end()
        except asyncio.CancelledError:
            self._cancel_job(answer.purchase)
            answer.fail(self._interrupted(answer))
        except Exception as error:  # noqa: BLE001 - whatever it is, those who wait must hear of it
            self._cancel_if_at_work(answer.purchase, error)
            purchase = answer.purchase
            held = self._holding.hold_if_good(answer.order, error, purchase)
            # The job of a duplicate may be one that is paid for and running.
            is_dropped = not held and not isinstance(error, DuplicateIntent)
            if purchase is not None and purchase.state is State.REFUSED and is_dropped:
                self._market.drop([purchase.quote])
            answer.fail(error)

    def _take_back_if_reused(self, answer: ResultBuffer, repeat: RepeatKeys) -> None:
        """Forget an answer whose key turned out to be that of another request, before its error is seen."""
        if isinstance(answer.error, KeyReused):
            self._memory.take_back(answer, repeat)

    def _finished(
        self, answer: ResultBuffer, repeat: RepeatKeys, sharing: SharedOrder | None
    ) -> None:
        if not answer.ended:
            answer.fail(self._interrupted(answer))
        del self._running[answer]
        self._reasons.pop(answer, None)
        if timer := self._leaving.pop(answer, None):
            timer.cancel()
        self._memory.ended(answer, repeat)
        # What another gateway bought is counted there.
        if sharing is None or not sharing.bought_elsewhere:
            self._observer.ended(answer)

    def _interrupted(self, answer: ResultBuffer) -> Interrupted:
        return Interrupted(self._reasons.get(answer, InterruptReason.ENDED), answer.purchase)

    async def _explain(
        self, order: Order, quote_name: str | None, error: UnknownQuote
    ) -> PurchaseError:
        """Return what became of a quote that is not held: another process, or this one before a restart, may have taken it."""
        job_id = job_id_of(quote_name or "")
        if job_id is None:
            return error
        identity = self._memory.identity(order, RepeatKeys())
        bought = await find_bought_with(job_id, order.key_id, identity, self._buyer.find)
        return bought or error

    async def _buy(
        self, answer: ResultBuffer, offer: Offer | None, claim: Claim | None = None
    ) -> None:
        order = answer.order
        started = self._clock()
        if offer is None:
            offer = await self._market.offer(order, await self._route(order))
        while True:
            answer.purchase = purchase = Purchase(
                offer.order,
                offer.quote,
                payment_hash=offer.payment_hash,
                runner_up_msat=offer.runner_up_msat,
                candidate=offer.candidate,
                repeat=answer.repeat,
            )
            purchase.is_awaited = partial(_is_awaited, answer)
            answer.quote_s = self._clock() - started
            self._observer.quoted(answer)
            if claim is not None and not await claim.may_pay():
                raise Interrupted(InterruptReason.TAKEN_OVER, purchase)
            try:
                await self._carry_out(answer, purchase)
            except PaymentFailed as error:
                candidates = others(offer.rest, answer, purchase, error)
                if purchase.quote.source is ProviderSource.NODE and error.verdict is Verdict.NONE:
                    self._observer.fell_out(purchase, error, goes_on=bool(candidates))
                if not candidates:
                    raise
                offer = await self._market.offer(order, candidates)
            except RequestRepeated as error:
                # Its own quote stays good meanwhile: it is taken once the other purchase has come to nothing.
                await wait_until_unpaid(
                    error.earlier, answer.repeat, self._buyer.find, self._patience.elsewhere_s
                )
                self._observer.let_go(purchase)
            except InsufficientBalance as error:
                offer = await cheaper(self._market, order, offer.rest, error)
                self._market.drop([purchase.quote])
                self._observer.let_go(purchase)
            else:
                return

    async def _carry_out(self, answer: ResultBuffer, purchase: Purchase) -> None:
        started = self._clock()
        try:
            if purchase.order.task.stream:
                await self._stream(answer, purchase)
            else:
                result = await self._buyer.buy(purchase)
                answer.append(result.body)
                answer.begin(ResultHead(result.content_type, result.content_encoding))
        finally:
            answer.execute_s = self._clock() - started
            # Asked no more, and else a circle of the two.
            purchase.is_awaited = not_awaited

    async def _route(self, order: Order) -> Sequence[Candidate]:
        with self._tracing.span(TraceStep.ROUTE) as span:
            candidates = await self._routing(order)
            span.note(choice_facts, candidates)
            return candidates

    async def _stream(self, answer: ResultBuffer, purchase: Purchase) -> None:
        started = self._clock()
        stream = await self._buyer.open_stream(purchase)
        answer.begin(ResultHead(stream.content_type, stream.content_encoding))
        with self._tracing.span(TraceStep.STREAM) as span:
            try:
                await self._take_in(answer, purchase, stream, started)
            finally:
                span.note(outcome_facts, purchase)
                span.note(stream_facts, answer)

    async def _take_in(
        self, answer: ResultBuffer, purchase: Purchase, stream: PaidStream, started: float
    ) -> None:
        purchase.held_up_by_readers = partial(self._is_held_up, answer, started)
        try:
            await self._take_chunks(answer, stream, started)
        finally:
            # Asked no more, and else a circle of the two.
            purchase.held_up_by_readers = not_held_up

    async def _take_chunks(self, answer: ResultBuffer, stream: PaidStream, started: float) -> None:
        judge = stream.judge
        async with aclosing(stream.chunks()) as chunks:
            async for block in chunks:
                if answer.first_byte_s is None:
                    answer.first_byte_s = self._clock() - started
                answer.append(block, judge.free_bytes)
                if answer.is_ahead:
                    waits = answer.waits_since = self._clock()
                    await answer.room()
                    answer.waits_since = None
                    answer.waited_s += self._clock() - waits
                if not answer.listeners and not answer.readable:
                    # Too large to be kept, and nobody takes it. Whoever left it to us did not leave.
                    self.interrupt(
                        answer,
                        InterruptReason.ENDED if answer.kept else InterruptReason.NOBODY_WAITS,
                    )

    def _is_held_up(self, answer: ResultBuffer, started: float) -> bool:
        now = self._clock()
        waits_s = 0.0 if answer.waits_since is None else now - answer.waits_since
        return 2 * (answer.waited_s + waits_s) > now - started

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


def _is_awaited(answer: ResultBuffer) -> bool:
    return answer.listeners > 0 and not answer.kept
