"""Executes orders: finds a repeat or buys, in a task of its own that outlives the request which asked."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from lcp_gateway.purchase.errors import PaymentFailed, PurchaseError, QuoteExpired, Refused, Undelivered, UpstreamError
from lcp_gateway.purchase.execution import PurchaseExecutor
from lcp_gateway.purchase.held_quotes import (
    NO_SUCH_QUOTE,
    HeldQuote,
    HeldQuotes,
    UnknownQuote,
    good_quote,
    job_id_of,
    quote_for,
)
from lcp_gateway.purchase.idempotency import IdempotencyCache, KeyReused, RepeatKeys
from lcp_gateway.purchase.journal import (
    DuplicateIntent,
    InsufficientBalance,
    JournalUnavailable,
    PurchaseJournal,
    RepeatIdentity,
    RequestRepeated,
)
from lcp_gateway.purchase.limits import LoopBrake
from lcp_gateway.purchase.money import Refund
from lcp_gateway.purchase.order import Order
from lcp_gateway.purchase.paid_stream import PaidStream
from lcp_gateway.purchase.purchase import Interrupted, InterruptReason, Purchase, not_awaited, not_held_up, party_of
from lcp_gateway.purchase.quote import Candidate, ProviderSource
from lcp_gateway.purchase.quoting import Offer, QuoteRequester
from lcp_gateway.purchase.result_buffer import BufferLimits, ResultBuffer, ResultHead
from lcp_gateway.purchase.shared_purchases import (
    BoughtBefore,
    BoughtElsewhere,
    Claim,
    SharedPurchases,
    find_bought_with,
    wait_until_unpaid,
)
from lcp_gateway.purchase.states import VERDICTS, PurchaseEvent, State, Verdict
from lcp_gateway.purchase.tracing import NO_TRACING, TraceStep, Tracing, choice_facts, outcome_facts, stream_facts
from lcp_gateway.upstream_status import UpstreamStatus

CANCEL_REASON: Final = "request canceled"
# Statuses after which the peer may still be working on a job that has no client any more.
_STILL_RUNNING: Final = frozenset({UpstreamStatus.CANCELLED, UpstreamStatus.DEADLINE_EXCEEDED})
# Failures of a node after which another provider may be asked, because the node did not do the work.
_WORTH_ANOTHER: Final = frozenset(
    {UpstreamStatus.UNAVAILABLE, UpstreamStatus.RESOURCE_EXHAUSTED, UpstreamStatus.NOT_FOUND, UpstreamStatus.DATA_LOSS}
)
_PERHAPS_AT_WORK: Final = frozenset({State.PAYING, State.UNKNOWN, State.SETTLED, State.UNDELIVERED})
# Named here: see execution.py.
_ROUTE_STEP: Final = TraceStep.ROUTE

Routing = Callable[[Order], Awaitable[Sequence[Candidate]]]
"""Returns the candidates for an order, the first choice first; raises where there are none."""


class Observer:
    """Observes orders. Does nothing itself."""

    def quote_taken(self, buffer: ResultBuffer) -> None:
        """A quote was taken for the order."""

    def quote_released(self, purchase: Purchase) -> None:
        """The quote is not taken after all, and another one is."""

    def node_failed(self, purchase: Purchase, error: PaymentFailed, *, fails_over: bool) -> None:
        """A node did not do the work and was not paid; ``fails_over``: another provider is asked now."""

    def ended(self, buffer: ResultBuffer) -> None:
        """The order has ended."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long a purchase may take, in seconds.

    ``grace_s``: a paid result without a listener is still received; ``cancel_timeout_s``: limits the call that notifies
    a peer of the end; ``limit_s``: the whole purchase, 0 sets no limit; ``elsewhere_s``: a repeat waits for another
    process that is buying.
    """

    grace_s: float = 10.0
    cancel_timeout_s: float = 2.0
    limit_s: float = 0.0
    elsewhere_s: float = 60.0


@dataclass(slots=True, eq=False)
class _Running:
    """A running purchase and its data. ``shared`` is None where this gateway is alone."""

    buffer: ResultBuffer
    keys: RepeatKeys
    shared: SharedPurchases | None
    task: asyncio.Task[None] | None = None
    claim: Claim | None = None
    reason: InterruptReason = InterruptReason.ENDED
    bought_elsewhere: bool = False
    grace: asyncio.TimerHandle | None = None
    deadline: asyncio.TimerHandle | None = None

    def end_grace(self) -> None:
        if self.grace is not None:
            self.grace.cancel()
            self.grace = None


class PurchaseService:
    """Buys what is ordered, once."""

    def __init__(
        self,
        *,
        quoting: QuoteRequester,
        executor: PurchaseExecutor,
        routing: Routing,
        journal: PurchaseJournal,
        cache: IdempotencyCache,
        held_quotes: HeldQuotes,
        brake: LoopBrake,
        buffer_limits: BufferLimits,
        timeouts: Timeouts,
        background: Callable[[Coroutine[Any, Any, None]], None],
        observer: Observer,
        clock: Callable[[], float],
        shared: SharedPurchases | None = None,
        tracing: Tracing = NO_TRACING,
    ) -> None:
        """``shared`` holds the purchases of all gateways that share results; None where this is the only one."""
        self._quoting = quoting
        self._executor = executor
        self._routing = routing
        self._journal = journal
        self._cache = cache
        self._held_quotes = held_quotes
        self._brake = brake
        self._buffer_limits = buffer_limits
        self._timeouts = timeouts
        self._background = background
        self._observer = observer
        self._clock = clock
        self._shared = shared
        self._tracing = tracing
        self._running: dict[ResultBuffer, _Running] = {}

    def __len__(self) -> int:
        """How many orders are being bought now."""
        return len(self._running)

    def use(
        self,
        *,
        quoting: QuoteRequester,
        executor: PurchaseExecutor,
        routing: Routing,
        buffer_limits: BufferLimits,
        timeouts: Timeouts,
        shared: SharedPurchases | None,
    ) -> None:
        """Buy with these from now on; a call that has gone out keeps those that it went out with."""
        self._quoting = quoting
        self._executor = executor
        self._routing = routing
        self._buffer_limits = buffer_limits
        self._timeouts = timeouts
        self._shared = shared

    # -- repeats ------------------------------------------------------------------------------------

    def find(self, order: Order, keys: RepeatKeys) -> ResultBuffer | None:
        """Return the result that a request asks for again, or None.

        Raises:
            KeyReused, ResultLost: see ``IdempotencyCache.find``.
        """
        buffer = self._cache.find(order, keys)
        if buffer is not None and buffer.trace_origin is not None:
            self._tracing.link(buffer.trace_origin)
        return buffer

    def find_undecided(self, order: Order, keys: RepeatKeys) -> ResultBuffer | None:
        """Return the result that a request asks for again, if its payment is unknown or its refund withheld."""
        buffer = self._cache.find_undecided(order, keys)
        return buffer if buffer not in self._running else None

    async def learn_outcome(self, buffer: ResultBuffer) -> None:
        """Read the outcome of an unknown payment or of a withheld charge from the journal.

        Where nothing was paid, the order may be bought again.

        Raises:
            BoughtBefore: it was paid.
        """
        purchase = buffer.purchase
        if purchase is None:
            return
        try:
            found = await self._journal.find(purchase.quote.job_id)
        except JournalUnavailable:
            return
        if found is None:
            return
        if purchase.refund is Refund.WITHHELD and found.refund is not None:
            purchase.record_refund(found.refund)
        if purchase.state is not State.UNKNOWN:
            return
        if found.state is State.NOT_PAID:
            purchase.apply(PurchaseEvent.FAIL_PAYMENT)
        elif VERDICTS[found.state] is Verdict.SETTLED:
            raise BoughtBefore(found)

    def identity(self, order: Order, keys: RepeatKeys) -> RepeatIdentity:
        """Return the identity that the journal recognises a repeat of an order by; before ``start``."""
        return self._cache.identity(order, keys)

    async def name_job(self, order: Order, keys: RepeatKeys, job_id: str) -> str:
        """Return the id of the background job that an order belongs to: ``job_id``, or that of one at another process.

        Raises:
            KeyReused: the idempotency key came with another body before.
        """
        return job_id if self._shared is None else await self._shared.name_job(order, keys, job_id)

    async def forget_job(self, order: Order, keys: RepeatKeys, job_id: str) -> None:
        """Record that a job that was named did not begin."""
        if self._shared is not None:
            await self._shared.forget_job(order, keys, job_id)

    # -- quotes -------------------------------------------------------------------------------------

    async def quote(self, order: Order) -> HeldQuote:
        """Get a quote that can be taken later; pays nothing.

        Raises:
            Exception: no quote could be had.
        """
        try:
            offer = await self._quoting.request(order, await self._route(order))
        except Refused as refusal:
            await self._hold(order, good_quote(order, refusal))
            raise
        held = quote_for(order, offer)
        await self._hold(order, held)
        return held

    async def _hold(self, order: Order, held: HeldQuote | None) -> bool:
        """Hold a quote, for all processes where they share; return whether there is one. ``order`` has its body."""
        if held is None:
            return False
        if self._shared is None or not await self._shared.hold_quote(order, held):
            self._held_quotes.keep(held)
        return True

    async def check_quote(self, order: Order, quote_name: str) -> None:
        """Check that a quote is held, before ``start`` takes it; where results are shared ``start`` does that.

        Raises:
            UnknownQuote: it is not held here.
            ResultLost: it was taken before, by another process or before a restart.
        """
        if self._shared is None and not self._held_quotes.has(order, quote_name):
            raise await self._explain(order, quote_name, UnknownQuote(NO_SUCH_QUOTE))

    async def _explain(self, order: Order, quote_name: str, error: UnknownQuote) -> PurchaseError:
        """Return the outcome of a missing quote: this process before a restart, or another, may have taken it."""
        job_id = job_id_of(quote_name)
        if job_id is None:
            return error
        identity = self._cache.identity(order, RepeatKeys())
        return await find_bought_with(job_id, order.key_id, identity, self._journal.find) or error

    # -- a purchase, as requests see it -------------------------------------------------------------

    def start(self, order: Order, keys: RepeatKeys, quote_name: str | None = None) -> ResultBuffer:
        """Begin to buy; with ``quote_name`` the quote of that name is taken.

        Raises:
            LoopDetected: the same request came too often.
            UnknownQuote, QuoteForAnotherBody, QuoteExpired: see ``HeldQuotes.take``. Where results are shared all of them come
                of the buffer instead: another gateway may have taken the quote for the same request.
        """
        if self._shared is None:
            self._brake.check(order)
        buffer = ResultBuffer(order, self._buffer_limits, self._cache.pool)
        buffer.repeat = self._cache.identity(order, keys)
        running = _Running(buffer, keys, self._shared)
        offer = None
        if running.shared is None and quote_name is not None:
            offer, quote_name = self._held_quotes.take(order, quote_name), None
        self._cache.add(buffer, keys)
        if keys.key is not None:
            buffer.when_ended(lambda _buffer: self._remove_if_reused(buffer, keys))
        buffer.trace_origin = self._tracing.origin()
        self._running[buffer] = running
        running.task = asyncio.create_task(self._run(running, offer, quote_name))
        # A callback, since a task that is cancelled before its first step runs no code of its own.
        running.task.add_done_callback(lambda _task: self._finished(running))
        if limit_s := self._timeouts.limit_s:
            running.deadline = asyncio.get_running_loop().call_later(
                limit_s, self.interrupt, buffer, InterruptReason.TIMED_OUT
            )
        return buffer

    def joined(self, buffer: ResultBuffer) -> None:
        """Record that a request waits for a result; ``left`` has to follow."""
        buffer.listeners += 1
        buffer.outlives_requests = False
        if running := self._running.get(buffer):
            running.end_grace()

    def left(self, buffer: ResultBuffer) -> None:
        """Record that a request no longer reads a result; the last one to leave starts the end of the purchase."""
        buffer.listeners -= 1
        if not buffer.listeners:
            self.handed_over(buffer)
            if buffer.error is not None:
                # In its next step, once the request that has just left has handled the error.
                asyncio.get_running_loop().call_soon(buffer.release_frames)
        running = self._running.get(buffer)
        if buffer.listeners or buffer.is_retained or buffer.ended or running is None:
            return
        buffer.outlives_requests = True
        if buffer.verdict is Verdict.NONE:
            self.interrupt(buffer, InterruptReason.NO_LISTENER)
        elif running.grace is None:
            loop = asyncio.get_running_loop()
            running.grace = loop.call_later(self._timeouts.grace_s, self._end_grace, running)

    def handed_over(self, buffer: ResultBuffer) -> None:
        """Record the delivery: a client has the whole result, or no request waits for it any more."""
        if buffer.purchase is not None:
            buffer.purchase.handed_over()

    def interrupt(self, buffer: ResultBuffer, reason: InterruptReason) -> None:
        """End an order that is being bought."""
        running = self._running.get(buffer)
        # One that has ended only notifies the other gateways.
        if running is None or buffer.ended or buffer.is_complete:
            return
        running.reason = reason
        if (purchase := buffer.purchase) is not None:
            purchase.interrupted_by = party_of(reason, purchase)
        if running.task is not None:
            running.task.cancel()

    def interrupt_all(self, reason: InterruptReason) -> int:
        """End all orders that are being bought; return how many."""
        buffers = list(self._running)
        for buffer in buffers:
            self.interrupt(buffer, reason)
        return len(buffers)

    async def wait_idle(self) -> None:
        """Wait until the orders that are being bought have ended."""
        if tasks := [one.task for one in self._running.values() if one.task is not None]:
            await asyncio.wait(tasks)

    def _end_grace(self, running: _Running) -> None:
        running.grace = None
        if not running.buffer.listeners:
            self.interrupt(running.buffer, InterruptReason.NO_LISTENER)

    # -- a purchase, in its own task ----------------------------------------------------------------

    async def _run(self, running: _Running, offer: Offer | None, quote_name: str | None) -> None:
        """Buy, and end the buffer in every case. Each chunk passes through as few coroutines below this as can be."""
        buffer = running.buffer
        try:
            if running.shared is not None:
                offer = await self._claim(running, running.shared, quote_name)
            if not running.bought_elsewhere:
                stream = await self._buy(running, offer)
                if stream is not None:
                    await self._receive(buffer, stream)
            if buffer.before_end is not None:
                await buffer.prepare_end()
            buffer.end()
        except asyncio.CancelledError:
            self._cancel_job(buffer.purchase)
            buffer.fail(Interrupted(running.reason, buffer.purchase))
        except Exception as error:  # noqa: BLE001 - every error must reach the requests that wait
            if buffer.is_copy:
                buffer.fail(error)
                return
            self._cancel_if_at_work(buffer.purchase, error)
            purchase = buffer.purchase
            held = await self._hold(buffer.order, good_quote(buffer.order, error, purchase))
            # The job of a duplicate may be one that is paid for and running.
            is_dropped = not held and not isinstance(error, DuplicateIntent)
            if purchase is not None and purchase.state is State.REFUSED and is_dropped:
                self._quoting.drop([purchase.quote])
            buffer.fail(error)
        if running.claim is not None:
            await running.claim.ended(buffer)

    def _finished(self, running: _Running) -> None:
        buffer = running.buffer
        if not buffer.ended:
            buffer.fail(Interrupted(running.reason, buffer.purchase))
        del self._running[buffer]
        running.end_grace()
        if running.deadline is not None:
            running.deadline.cancel()
        self._cache.ended(buffer, running.keys)
        # A purchase by another gateway is counted there.
        if not running.bought_elsewhere:
            self._observer.ended(buffer)
        if not buffer.listeners:
            buffer.release_frames()

    def _remove_if_reused(self, buffer: ResultBuffer, keys: RepeatKeys) -> None:
        """Remove a result whose key turned out to be that of another request, before its error is seen."""
        if isinstance(buffer.error, KeyReused):
            self._cache.remove(buffer, keys)

    async def _claim(self, running: _Running, shared: SharedPurchases, quote_name: str | None) -> Offer | None:
        """Claim the order, and take the quote that it names; where another gateway bought it, take its result."""
        buffer = running.buffer
        found = await shared.claim(buffer.order, running.keys, self._brake.per_minute)
        if isinstance(found, BoughtElsewhere):
            running.bought_elsewhere = True
            found.copy_to(buffer)
            if found.error is not None:
                raise found.error
            return None
        running.claim = found
        if not found.is_counted:
            self._brake.check(buffer.order)
        if quote_name is None:
            return None
        try:
            return await self._take_shared(shared, buffer.order, quote_name)
        except UnknownQuote as error:
            raise await self._explain(buffer.order, quote_name, error) from None

    async def _take_shared(self, shared: SharedPurchases, order: Order, quote_name: str) -> Offer:
        """Take a quote that is held here, or for all processes.

        Raises:
            UnknownQuote, QuoteForAnotherBody, QuoteExpired: see ``HeldQuotes.take``.
        """
        if self._held_quotes.has(order, quote_name):
            return self._held_quotes.take(order, quote_name)
        try:
            offer = self._held_quotes.redeem(await shared.find_quote(quote_name), order)
        except QuoteExpired:
            await shared.drop_quote(quote_name)
            raise
        if not await shared.drop_quote(quote_name):
            raise UnknownQuote(NO_SUCH_QUOTE)
        return offer

    async def _buy(self, running: _Running, offer: Offer | None) -> PaidStream | None:
        """Pay for one quote, after others where that is free; return the stream, None once a whole result is buffered."""
        buffer = running.buffer
        order = buffer.order
        started = self._clock()
        if offer is None:
            offer = await self._quoting.request(order, await self._route(order))
        while True:
            buffer.purchase = purchase = Purchase(
                offer.order,
                offer.quote,
                payment_hash=offer.payment_hash,
                runner_up_msat=offer.runner_up_msat,
                candidate=offer.candidate,
                repeat=buffer.repeat,
            )
            purchase.is_awaited = buffer.has_waiting_client
            buffer.quote_s = self._clock() - started
            self._observer.quote_taken(buffer)
            if running.claim is not None and not await running.claim.may_pay():
                raise Interrupted(InterruptReason.TAKEN_OVER, purchase)
            try:
                return await self._pay(buffer, purchase)
            except PaymentFailed as error:
                # A peer's failed payment is never repeated elsewhere: only a node's refusal is known to have cost nothing.
                is_free = purchase.quote.source is ProviderSource.NODE and error.verdict is Verdict.NONE
                fails_over = is_free and error.status in _WORTH_ANOTHER and bool(offer.rest)
                if is_free:
                    self._observer.node_failed(purchase, error, fails_over=fails_over)
                if not fails_over:
                    raise
                offer = await self._quoting.request(order, offer.rest)
            except RequestRepeated as error:
                # Its own quote stays good meanwhile: it is taken once the other purchase is known to be unpaid.
                await wait_until_unpaid(error.earlier, buffer.repeat, self._journal.find, self._timeouts.elsewhere_s)
                self._observer.quote_released(purchase)
            except InsufficientBalance as error:
                offer = await self._quoting.request_cheaper(order, offer.rest, error)
                self._quoting.drop([purchase.quote])
                self._observer.quote_released(purchase)

    async def _route(self, order: Order) -> Sequence[Candidate]:
        with self._tracing.span(_ROUTE_STEP) as span:
            candidates = await self._routing(order)
            span.note(choice_facts, candidates)
            return candidates

    async def _pay(self, buffer: ResultBuffer, purchase: Purchase) -> PaidStream | None:
        buffer.executing_since = self._clock()
        stream = None
        try:
            if purchase.order.task.stream:
                stream = await self._executor.open_stream(purchase)
            else:
                result = await self._executor.execute(purchase)
                buffer.append(result.body)
                buffer.begin(ResultHead(result.content_type, result.content_encoding))
        finally:
            if stream is None:
                self._call_ended(buffer, purchase)
        return stream

    async def _receive(self, buffer: ResultBuffer, stream: PaidStream) -> None:
        """Take a stream's chunks in; waits while the slowest reader is too far behind."""
        purchase, judge = stream.purchase, stream.judge
        purchase.held_up_by_readers = partial(self._is_held_up, buffer)
        buffer.begin(ResultHead(stream.content_type, stream.content_encoding))
        with self._tracing.span(TraceStep.STREAM) as span:
            try:
                async with aclosing(stream.chunks()) as chunks:
                    async for block in chunks:
                        if buffer.first_byte_s is None:
                            buffer.first_byte_s = self._clock() - buffer.executing_since
                            stream.hand_to(buffer)
                        buffer.append(block, judge.free_bytes)
                        if buffer.is_ahead:
                            waits = buffer.waits_since = self._clock()
                            await buffer.room()
                            buffer.waits_since = None
                            buffer.waited_s += self._clock() - waits
                        if not buffer.listeners and not buffer.readable:
                            # Too large to be held, and without a reader. A client that handed it over did not leave.
                            self.interrupt(
                                buffer, InterruptReason.ENDED if buffer.is_retained else InterruptReason.NO_LISTENER
                            )
            finally:
                span.note(outcome_facts, purchase)
                span.note(stream_facts, buffer)
                self._call_ended(buffer, purchase)

    def _call_ended(self, buffer: ResultBuffer, purchase: Purchase) -> None:
        buffer.execute_s = self._clock() - buffer.executing_since
        # Asked no more; with these the buffer and its purchase would hold each other.
        purchase.is_awaited, purchase.held_up_by_readers = not_awaited, not_held_up

    def _is_held_up(self, buffer: ResultBuffer) -> bool:
        now = self._clock()
        waits_s = 0.0 if buffer.waits_since is None else now - buffer.waits_since
        return 2 * (buffer.waited_s + waits_s) > now - buffer.executing_since

    def _cancel_if_at_work(self, purchase: Purchase | None, error: Exception) -> None:
        # A deadline, or a stream that broke off before its end: the peer may still be working.
        broke_off = isinstance(error, Undelivered) and isinstance(error.__cause__, UpstreamError)
        timed_out = isinstance(error, PaymentFailed) and error.status in _STILL_RUNNING
        if broke_off or timed_out:
            self._cancel_job(purchase)

    def _cancel_job(self, purchase: Purchase | None) -> None:
        if purchase is not None and purchase.state in _PERHAPS_AT_WORK:
            self._background(self._executor.cancel(purchase, CANCEL_REASON, self._timeouts.cancel_timeout_s))
