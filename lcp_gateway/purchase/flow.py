"""The flow of a purchase: inspect, authorise, pay once, deliver, settle."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

from lcp_gateway.purchase.delivery import (
    PROBLEMS,
    PaidStream,
    ending_of_error,
    problem_with_bytes,
    problem_with_status,
)
from lcp_gateway.purchase.errors import (
    PaymentFailed,
    QuoteExpired,
    Refused,
    Undelivered,
    UpstreamError,
)
from lcp_gateway.purchase.evidence import verdict_of_failure
from lcp_gateway.purchase.journal import EarlierPurchase, Intent, Learnt, PurchaseJournal
from lcp_gateway.purchase.limits import SpendingLimits
from lcp_gateway.purchase.market import Inspection
from lcp_gateway.purchase.outcome import (
    EndedBy,
    Ending,
    Judgement,
    Received,
    no_judgement,
)
from lcp_gateway.purchase.paid_jobs import PaidJobs
from lcp_gateway.purchase.ports import Exposure, Upstream
from lcp_gateway.purchase.purchase import Purchase
from lcp_gateway.purchase.quote import Source
from lcp_gateway.purchase.results import Result, StreamBegin
from lcp_gateway.purchase.states import Event, State, Verdict
from lcp_gateway.purchase.tracing import NO_TRACING, Step, Tracing, paid_facts

_NOTHING_LEARNT = Learnt()


def utc_now() -> datetime:
    """Give the time, aware."""
    return datetime.now(UTC)


class Buyer:
    """Buys results from one upstream.

    The call that may pay goes out at most once for a purchase: the state table has a single move into ``paying`` and
    none back, and nothing here repeats it.
    """

    def __init__(
        self,
        upstream: Upstream,
        *,
        journal: PurchaseJournal,
        inspect: Inspection,
        limits: SpendingLimits,
        exposure: Exposure,
        execute_timeout_s: float,
        judgement: Judgement = no_judgement,
        now: Callable[[], datetime] = utc_now,
        tracing: Tracing = NO_TRACING,
        paid_jobs: PaidJobs | None = None,
    ) -> None:
        """``judgement`` tells whether the bytes of a result, whose hash and length are right, are one.

        ``paid_jobs`` gets to know every job before it is paid for.
        """
        self._paid_jobs = PaidJobs() if paid_jobs is None else paid_jobs
        self._upstream = upstream
        self._journal = journal
        self._inspect = inspect
        self._limits = limits
        self._exposure = exposure
        self._execute_timeout_s = execute_timeout_s
        self._judgement = judgement
        self._now = now
        self._tracing = tracing

    async def buy(self, purchase: Purchase) -> Result:
        """Pay and wait for the whole result, checked against its hash and length.

        Raises:
            Refused: something said no; nothing was paid.
            PaymentFailed: the call ended in an error; its verdict says what is known of the money.
            Undelivered: paid, and no whole and right result came.
        """
        with self._tracing.span(Step.PAY) as span:
            try:
                return await self._buy(purchase)
            finally:
                span.note(paid_facts, purchase)

    async def open_stream(self, purchase: Purchase) -> PaidStream:
        """Pay and wait for the head of the streamed result.

        Raises:
            Refused, PaymentFailed, Undelivered: as in ``buy``.
        """
        with self._tracing.span(Step.PAY) as span:
            try:
                return await self._open_stream(purchase)
            finally:
                span.note(paid_facts, purchase)

    async def find(self, job_id: bytes) -> EarlierPurchase | None:
        """Return the purchase of a job as the journal has it, whoever made it; None where it has none.

        Raises:
            JournalUnavailable: the journal cannot be read.
        """
        return await self._journal.find(job_id)

    async def cancel(self, purchase: Purchase, reason: str, timeout_s: float) -> None:
        """Tell the peer that nobody waits any more. A payment is not undone.

        Raises:
            UpstreamError: it could not be told.
        """
        await self._upstream.cancel(purchase.quote, reason, timeout_s)

    async def _buy(self, purchase: Purchase) -> Result:
        await self._authorise(purchase)
        try:
            result = await self._upstream.execute(
                purchase.quote, purchase.order.task, self._execute_timeout_s
            )
        except UpstreamError as error:
            raise self._failed(purchase, error) from error
        except BaseException as error:
            self._lose_sight(purchase, Received.PART, error)
            raise
        self._move(purchase, Event.SETTLE)
        digest = hashlib.sha256(result.body).digest()
        problem = problem_with_status(result) or problem_with_bytes(
            digest, len(result.body), result.sha256, result.length
        )
        received = Received.ALTERED if problem else self._judge(purchase, result)
        if received is not Received.WHOLE:
            self._end(purchase, Ending(EndedBy.PROVIDER, received))
            raise Undelivered(
                problem or PROBLEMS[received],
                quote=purchase.quote,
                verdict=purchase.verdict,
                received=received,
            )
        self._end(
            purchase,
            Ending(EndedBy.PROVIDER, received),
            Learnt(
                result_sha256=digest,
                result_bytes=len(result.body),
                charged_msat=result.charged_msat,
            ),
        )
        return result

    async def _open_stream(self, purchase: Purchase) -> PaidStream:
        await self._authorise(purchase)
        events = self._upstream.execute_stream(
            purchase.quote, purchase.order.task, self._execute_timeout_s
        )
        try:
            first = await anext(events)
        except StopAsyncIteration:
            nothing = UpstreamError("UNKNOWN", "the stream ended before it began")
            raise self._failed(purchase, nothing) from None
        except UpstreamError as error:
            raise self._failed(purchase, error) from error
        except BaseException as error:
            self._lose_sight(purchase, Received.NOTHING, error)
            raise
        self._move(purchase, Event.SETTLE)
        if not isinstance(first, StreamBegin):
            # A provider whose first word is not the head failed before it produced anything.
            await events.aclose()
            self._end(purchase, Ending(EndedBy.PROVIDER, Received.NOTHING))
            problem = problem_with_status(first) if isinstance(first, Result) else None
            raise Undelivered(
                problem or "the stream has no head",
                quote=purchase.quote,
                verdict=purchase.verdict,
                received=Received.NOTHING,
            )
        judge = first.judge or self._judgement(
            purchase.order.task, first.content_type, first.content_encoding
        )
        return PaidStream(purchase, first, events, self._end, judge)

    def _judge(self, purchase: Purchase, result: Result) -> Received:
        judge = self._judgement(purchase.order.task, result.content_type, result.content_encoding)
        judge.feed(result.body)
        return judge.received()

    async def _authorise(self, purchase: Purchase) -> None:
        """Let a purchase through to the one call that pays, once everything speaks for it and it is written down."""
        quote, order = purchase.quote, purchase.order
        now = self._now()
        if now >= quote.expires_at:
            purchase.apply(Event.EXPIRE)
            raise QuoteExpired(
                "the quote expired before it was taken; nothing was paid", quote=quote
            )
        try:
            self._exposure.check(quote)
            if purchase.payment_hash is None:
                purchase.payment_hash = self._inspect(order, quote)
            # Again, and with what is written down now: the limits may have been changed since the quote was looked at.
            self._limits.check_price(order, quote)
            purchase.charge = self._limits.charge_for(order, quote)
            if not purchase.costs_nothing:
                budgets = (*self._limits.budgets_for(order.key_id), *order.budgets)
                await self._journal.intend(self._intent(purchase, now), budgets)
        except Refused:
            self._exposure.ended(quote, purchase.apply(Event.REFUSE))
            raise
        except BaseException:
            # Cancelled while it was being written: the intent may stand, and it is known that nothing went out.
            purchase.apply(Event.PAY)
            self._move(purchase, Event.FAIL_PAYMENT)
            raise
        # Written before the call goes out: after a crash the journal knows of every payment that may have happened.
        purchase.apply(Event.PAY)
        if self._now() >= quote.expires_at:
            # The journal may have taken seconds. Its intent is taken back, with all that it reserved.
            self._move(purchase, Event.FAIL_PAYMENT)
            raise QuoteExpired(
                "the quote expired while the purchase was being written down; nothing was paid",
                quote=quote,
            )
        self._paid_jobs.add(quote.job_id)
        self._exposure.paying(quote)

    def _intent(self, purchase: Purchase, now: datetime) -> Intent:
        order, quote = purchase.order, purchase.quote
        return Intent(
            quote=quote,
            kind=order.task.kind,
            model=order.task.model,
            stream=order.task.stream,
            request_id=order.request_id,
            key_id=order.key_id,
            request_sha256=order.body_sha256,
            request_bytes=len(order.task.body),
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
                self._move(purchase, Event.FAIL_PAYMENT)
            case Verdict.UNKNOWN:
                self._move(purchase, Event.LOSE_SIGHT)
            case Verdict.SETTLED:
                self._move(purchase, Event.SETTLE)
                self._end(purchase, ending_of_error(purchase, Received.NOTHING, error))
        return PaymentFailed(error, purchase.verdict, quote=purchase.quote)

    def _lose_sight(self, purchase: Purchase, received: Received, error: BaseException) -> None:
        """Leave a call of which nothing more will be heard."""
        if purchase.quote.source is Source.NODE:
            # A node has no payment to look up later: what it was handed and did not refuse counts as bought.
            self._move(purchase, Event.SETTLE)
            self._end(purchase, ending_of_error(purchase, received, error))
        else:
            self._move(purchase, Event.LOSE_SIGHT)

    def _end(self, purchase: Purchase, ending: Ending, learnt: Learnt = _NOTHING_LEARNT) -> None:
        """End a paid purchase: the table of endings decides about charge and blame."""
        ruling = purchase.end(ending)
        if ruling.event is not Event.DELIVER:
            learnt = replace(learnt, ending=ending)
        self._note(purchase, learnt)
        if ruling.blames_provider or ruling.event is Event.DELIVER:
            self._exposure.ended(purchase.quote, purchase.state)
        else:
            self._exposure.left(purchase.quote)

    def _move(self, purchase: Purchase, event: Event) -> None:
        """Move a purchase on while it is not settled, or to settled."""
        state = purchase.apply(event)
        self._note(purchase, _NOTHING_LEARNT)
        if event is not Event.SETTLE:
            self._exposure.ended(purchase.quote, state)

    def _note(self, purchase: Purchase, learnt: Learnt) -> None:
        if learnt.charged_msat is not None:
            purchase.charged_msat = learnt.charged_msat
        if purchase.costs_nothing:
            return
        job_id, state, now = purchase.quote.job_id, purchase.state, self._now()
        if purchase.awaits_refund:
            self._journal.note(job_id, state, now, learnt, purchase.hear_refund)
        elif state is State.DELIVERED and purchase.charge is not None and purchase.is_awaited():
            # A customer is not charged for what a killed gateway had in its memory: until its client has the whole
            # result, the journal says `settled`, which the sweep after a crash gives back.
            purchase.hold_delivery(partial(self._journal.note, job_id, state, now, learnt))
        else:
            self._journal.note(job_id, state, now, learnt)
