"""Execution: pay once, and verify the result."""

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import datetime
from functools import partial
from types import TracebackType
from typing import Final

from lcp_gateway.clock import utc_now
from lcp_gateway.purchase.errors import PaymentFailed, QuoteExpired, Refused, Undelivered, UpstreamError
from lcp_gateway.purchase.inspection import QuoteInspector
from lcp_gateway.purchase.journal import NOTHING_NEW, Intent, PurchaseJournal, PurchaseUpdate
from lcp_gateway.purchase.limits import SpendingLimits
from lcp_gateway.purchase.outcome import EndedBy, Ending, JudgeFactory, Received, no_judge
from lcp_gateway.purchase.paid_stream import (
    PROBLEMS,
    PaidStream,
    ending_of_error,
    problem_with_bytes,
    problem_with_status,
)
from lcp_gateway.purchase.payment_evidence import PaymentReport, verdict_of_failure
from lcp_gateway.purchase.ports import Exposure, Result, StreamBegin, Upstream
from lcp_gateway.purchase.purchase import Purchase
from lcp_gateway.purchase.quote import ProviderSource, Quote
from lcp_gateway.purchase.quoting import PaidJobs
from lcp_gateway.purchase.states import PurchaseEvent, State, Verdict
from lcp_gateway.purchase.tracing import NO_TRACING, TraceStep, Tracing, paid_facts
from lcp_gateway.upstream_status import UpstreamStatus

# Named here, because Python 3.11 takes ten times as long to find the member of an enumeration.
_PAY: Final = PurchaseEvent.PAY
_SETTLE: Final = PurchaseEvent.SETTLE
_DELIVER: Final = PurchaseEvent.DELIVER
_PAY_STEP: Final = TraceStep.PAY
_WHOLE: Final = Ending(EndedBy.PROVIDER, Received.WHOLE)


def reported(purchase: Purchase, payment: PaymentReport | None) -> PurchaseUpdate:
    """Return the fee and the preimage of a report whose preimage proves that this purchase's invoice was paid."""
    if (
        payment is None
        or payment.preimage is None
        or hashlib.sha256(payment.preimage).digest() != purchase.payment_hash
    ):
        return NOTHING_NEW
    return PurchaseUpdate(fee_msat=payment.fee_msat, preimage=payment.preimage)


class _PaySpan:
    """The span of the call that pays, which notes its outcome. Cheaper than a generator: made for every purchase."""

    __slots__ = ("_purchase", "_span", "_traced")

    def __init__(self, tracing: Tracing, purchase: Purchase) -> None:
        self._traced = tracing.span(_PAY_STEP)
        self._purchase = purchase

    def __enter__(self) -> None:
        self._span = self._traced.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        self._span.note(paid_facts, self._purchase)
        return self._traced.__exit__(kind, error, traceback)


class PurchaseExecutor:
    """Buys results from one upstream.

    The call that may pay goes out at most once for a purchase: the state table has a single move into ``paying`` and
    none back, and nothing here repeats it.
    """

    def __init__(
        self,
        upstream: Upstream,
        *,
        journal: PurchaseJournal,
        inspector: QuoteInspector,
        limits: SpendingLimits,
        exposure: Exposure,
        execute_timeout_s: float,
        judges: JudgeFactory = no_judge,
        now: Callable[[], datetime] = utc_now,
        tracing: Tracing = NO_TRACING,
        paid_jobs: PaidJobs | None = None,
        reserve: Callable[[Quote], Awaitable[None]] | None = None,
    ) -> None:
        """``judges`` read the bytes of results whose hash and length are right; every job is added to ``paid_jobs``.

        ``reserve`` checks right before a payment what may be out with its peer, where several processes buy; it raises
        ``PeerNotTrusted``.
        """
        self._paid_jobs = PaidJobs() if paid_jobs is None else paid_jobs
        self._upstream = upstream
        self._journal = journal
        self._inspector = inspector
        self._limits = limits
        self._exposure = exposure
        self._reserve = reserve
        self._execute_timeout_s = execute_timeout_s
        self._judges = judges
        self._now = now
        self._tracing = tracing

    async def execute(self, purchase: Purchase) -> Result:
        """Pay and wait for the whole result, checked against its hash and length.

        Raises:
            Refused: a check failed; nothing was paid.
            PaymentFailed: the call ended in an error; its verdict says what is known of the money.
            Undelivered: paid, and no whole and right result came.
        """
        with _PaySpan(self._tracing, purchase):
            await self._authorise(purchase)
            try:
                result = await self._upstream.execute(purchase.quote, purchase.order.task, self._execute_timeout_s)
            except UpstreamError as error:
                raise self._failed(purchase, error) from error
            except BaseException as error:
                self._lose_sight(purchase, Received.PART, error)
                raise
            self._move(purchase, _SETTLE, reported(purchase, result.payment))
            digest = hashlib.sha256(result.body).digest()
            problem = problem_with_status(result) or problem_with_bytes(
                digest, len(result.body), result.sha256, result.length
            )
            received = Received.ALTERED if problem else self._judge(purchase, result)
            if received is not _WHOLE.received:
                self._end(purchase, Ending(EndedBy.PROVIDER, received))
                raise Undelivered(
                    problem or PROBLEMS[received], quote=purchase.quote, verdict=purchase.verdict, received=received
                )
            update = PurchaseUpdate(
                result_sha256=digest, result_bytes=len(result.body), charged_msat=result.charged_msat
            )
            self._end(purchase, _WHOLE, update)
            return result

    async def open_stream(self, purchase: Purchase) -> PaidStream:
        """Pay and wait for the head of the streamed result.

        Raises:
            Refused, PaymentFailed, Undelivered: as in ``execute``.
        """
        with _PaySpan(self._tracing, purchase):
            await self._authorise(purchase)
            events = self._upstream.execute_stream(purchase.quote, purchase.order.task, self._execute_timeout_s)
            try:
                first = await anext(events)
            except StopAsyncIteration:
                nothing = UpstreamError(UpstreamStatus.UNKNOWN, "the stream ended before it began")
                raise self._failed(purchase, nothing) from None
            except UpstreamError as error:
                raise self._failed(purchase, error) from error
            except BaseException as error:
                self._lose_sight(purchase, Received.NOTHING, error)
                raise
            payment = first.payment if isinstance(first, StreamBegin | Result) else None
            self._move(purchase, _SETTLE, reported(purchase, payment))
            if not isinstance(first, StreamBegin):
                # A provider whose first event is not the head failed before it produced anything.
                await events.aclose()
                self._end(purchase, Ending(EndedBy.PROVIDER, Received.NOTHING))
                problem = problem_with_status(first) if isinstance(first, Result) else None
                raise Undelivered(
                    problem or "the stream has no head",
                    quote=purchase.quote,
                    verdict=purchase.verdict,
                    received=Received.NOTHING,
                )
            judge = first.judge or self._judges(purchase.order.task, first.content_type, first.content_encoding)
            return PaidStream(purchase, first, events, self._end, judge)

    async def cancel(self, purchase: Purchase, reason: str, timeout_s: float) -> None:
        """Notify the peer that no client waits any more. A payment is not undone.

        Raises:
            UpstreamError: the peer could not be notified.
        """
        await self._upstream.cancel(purchase.quote, reason, timeout_s)

    def _judge(self, purchase: Purchase, result: Result) -> Received:
        judge = self._judges(purchase.order.task, result.content_type, result.content_encoding)
        judge.feed(result.body)
        return judge.received()

    async def _authorise(self, purchase: Purchase) -> None:
        """Authorise the one call that pays, once every check has passed and the intent is durable."""
        quote, order = purchase.quote, purchase.order
        now = self._now()
        if now >= quote.expires_at:
            purchase.apply(PurchaseEvent.EXPIRE)
            raise QuoteExpired("the quote expired before it was taken; nothing was paid", quote=quote)
        try:
            self._inspector.before_paying(purchase)
            if self._reserve is not None:
                await self._reserve(quote)
        except BaseException:
            # Also where it was cancelled meanwhile: nothing was written.
            self._exposure.ended(quote, purchase.apply(PurchaseEvent.REFUSE))
            raise
        try:
            if not purchase.costs_nothing:
                budgets = (*self._limits.budgets_for(order.key_id), *order.budgets)
                await self._journal.intend(self._intent(purchase, now), budgets)
        except Refused:
            self._exposure.ended(quote, purchase.apply(PurchaseEvent.REFUSE))
            raise
        except BaseException:
            # Cancelled while it was being written: the intent may stand, and it is known that nothing went out.
            purchase.apply(_PAY)
            self._move(purchase, PurchaseEvent.FAIL_PAYMENT)
            raise
        # Written before the call goes out: after a crash the journal knows of every payment that may have happened.
        purchase.apply(_PAY)
        if self._now() >= quote.expires_at:
            # The journal may have taken seconds. Its intent is taken back, with all that it reserved.
            self._move(purchase, PurchaseEvent.FAIL_PAYMENT)
            raise QuoteExpired("the quote expired while the purchase was being recorded; nothing was paid", quote=quote)
        self._paid_jobs.add(quote.job_id)
        self._exposure.paying(quote)

    def _intent(self, purchase: Purchase, now: datetime) -> Intent:
        order, quote = purchase.order, purchase.quote
        task = order.task
        return Intent(
            quote=quote,
            kind=task.kind,
            model=task.model,
            stream=task.stream,
            request_id=order.request_id,
            key_id=order.key_id,
            request_sha256=order.body_sha256,
            request_bytes=len(task.body),
            payment_hash=purchase.payment_hash,
            fee_cap_msat=self._limits.fee.fee_for(quote),
            runner_up_msat=purchase.runner_up_msat,
            at=now,
            charge=purchase.charge,
            repeat=purchase.repeat,
        )

    def _failed(self, purchase: Purchase, error: UpstreamError) -> PaymentFailed:
        verdict = error.evidence or verdict_of_failure(error.status, error.message)
        match verdict:
            case Verdict.NONE:
                self._move(purchase, PurchaseEvent.FAIL_PAYMENT)
            case Verdict.UNKNOWN:
                self._move(purchase, PurchaseEvent.LOSE_SIGHT)
            case Verdict.SETTLED:
                self._move(purchase, _SETTLE, reported(purchase, error.payment))
                self._end(purchase, ending_of_error(purchase, Received.NOTHING, error))
        return PaymentFailed(error, purchase.verdict, quote=purchase.quote)

    def _lose_sight(self, purchase: Purchase, received: Received, error: BaseException) -> None:
        """Record a call whose outcome will not be known."""
        if purchase.quote.on_delivery:
            # Its provider is paid for a whole result only, and nothing of one has been handed on: neither it nor the
            # gateway gets anything for that, whichever party ended the purchase.
            self._move(purchase, PurchaseEvent.FAIL_PAYMENT)
        elif purchase.quote.source is ProviderSource.NODE:
            # A node has no payment to look up later: a request that it got and did not refuse counts as bought.
            self._move(purchase, _SETTLE)
            self._end(purchase, ending_of_error(purchase, received, error))
        else:
            self._move(purchase, PurchaseEvent.LOSE_SIGHT)

    def _end(self, purchase: Purchase, ending: Ending, update: PurchaseUpdate = NOTHING_NEW) -> None:
        """End a paid purchase: the table of endings decides about charge and blame."""
        ruling = purchase.end(ending)
        is_delivered = ruling.event is _DELIVER
        if not is_delivered:
            update = replace(update, ending=ending)
        self._record(purchase, update)
        if ruling.blames_provider or is_delivered:
            self._exposure.ended(purchase.quote, purchase.state)
        else:
            self._exposure.released(purchase.quote)

    def _move(self, purchase: Purchase, event: PurchaseEvent, update: PurchaseUpdate = NOTHING_NEW) -> None:
        """Move a purchase on while it is not settled, or to settled, with what became known of its payment."""
        state = purchase.apply(event)
        self._record(purchase, update)
        if event is not _SETTLE:
            self._exposure.ended(purchase.quote, state)

    def _record(self, purchase: Purchase, update: PurchaseUpdate) -> None:
        if update.charged_msat is not None:
            purchase.charged_msat = update.charged_msat
        if purchase.costs_nothing:
            return
        job_id, state, now = purchase.quote.job_id, purchase.state, self._now()
        if purchase.awaits_refund:
            self._journal.record(job_id, state, now, update, purchase.record_refund)
        elif purchase.charge is not None and state is State.DELIVERED and purchase.is_awaited():
            # A customer is not charged for a result in the memory of a killed gateway: until its client has the whole
            # result, the journal says `settled`, which the sweep after a crash refunds.
            purchase.hold_delivery(partial(self._journal.record, job_id, state, now, update))
        else:
            self._journal.record(job_id, state, now, update)
