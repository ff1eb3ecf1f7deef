"""Resolves unknown payments by evidence from lnd only, or from the node of lcp-gateway that paid.

No I/O of its own: it is given the journal's open payments, a look-up at lnd or at the node, and a way to record the resolution. A
payment without proof stays as it is, and is looked up again later.
"""

import asyncio
import enum
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Final

from lcp_gateway.clock import utc_now
from lcp_gateway.lightning.bolt11 import InvoiceError, decode
from lcp_gateway.lightning.lnd.records import LndError, PaymentRecord, PaymentState
from lcp_gateway.purchase.errors import UpstreamError
from lcp_gateway.purchase.journal import JournalUnavailable, PurchaseUpdate
from lcp_gateway.purchase.states import State

MAX_ERRORS_IN_A_ROW: Final = 3
"""After so many look-ups without an answer lnd counts as away, and the rest of the batch waits."""

_AT_ONCE = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class OpenPayment:
    """A purchase whose payment is unknown.

    ``payment_hash`` is 32 bytes, or None where there is none. ``payable_until`` is when its invoice expires,
    ``paying_since`` when the call went out; both aware UTC.
    """

    job_id: bytes
    payment_hash: bytes | None
    payable_until: datetime
    paying_since: datetime


def open_payment(job_id: bytes, payment_request: str, quote_ends: datetime, paying_since: datetime) -> OpenPayment:
    """Return the open payment of a journal's row; hash and expiry are the invoice's own, not the quote's.

    An invoice that cannot be read has neither, and its payment cannot be looked up.
    """
    try:
        invoice = decode(payment_request)
    except InvoiceError:
        return OpenPayment(job_id, None, quote_ends, paying_since)
    try:
        payable_until = datetime.fromtimestamp(invoice.expires_at, UTC)
    except (ValueError, OverflowError, OSError):
        payable_until = datetime.max.replace(tzinfo=UTC)
    return OpenPayment(job_id, invoice.payment_hash, payable_until, paying_since)


class ResolvedBy(enum.StrEnum):
    """The evidence that resolved an open payment."""

    PREIMAGE = "preimage"
    """lnd holds the preimage of the payment hash: it was paid."""
    FAILED = "failed"
    """lnd failed the payment for good, or the node that pays never began it."""
    ABSENT = "absent"
    """The lnd that pays has no record of it, and its invoice can no longer be paid."""


@dataclass(frozen=True, slots=True)
class PaymentResolution:
    """The resolution of a payment: ``state`` is ``settled`` (with fee and preimage in ``update``) or ``not_paid``."""

    state: State
    evidence: ResolvedBy
    at: datetime
    update: PurchaseUpdate = field(default_factory=PurchaseUpdate)


OpenPayments = Callable[[], AsyncIterator[OpenPayment]]
"""Yields each purchase that is in state ``unknown`` in the journal at the time of the call once, oldest first."""

RecordResolution = Callable[[OpenPayment, PaymentResolution], Awaitable[bool]]
"""Records the resolution of a payment; returns whether this changed the journal. False when it was resolved before, by another
process for example. Raises ``JournalUnavailable`` where it could not be recorded now."""

Lookup = Callable[[OpenPayment], Awaitable[PaymentRecord | None]]
"""Returns a payment that has a hash; None where the answer is no evidence. Raises ``LndError`` or ``UpstreamError`` without an answer."""


@dataclass(frozen=True, slots=True)
class ReconcilerTiming:
    """The times of look-ups, and when absence from lnd is evidence; all in seconds.

    ``absent_after_s`` counts from the expiry of the invoice: lnd refuses to begin paying an expired one, and the
    margin covers clocks that differ and a payment that began in the last moment.
    """

    interval_s: float = 30.0
    first_delay_s: float = 5.0
    max_delay_s: float = 600.0
    absent_after_s: float = 600.0


@dataclass(slots=True)
class ReconcilerSummary:
    """The outcome of one pass. Each open payment is counted in one of the numbers.

    ``settled`` and ``not_paid`` were resolved, ``elsewhere`` by another process. lnd's answer is no evidence, or none
    yet, for the ``unproven``, and does not fit the ``contradictory``; those ``without_hash`` cannot be looked up; the
    ``unanswered`` had no answer or could not be recorded; the ``waiting`` were not looked up in this pass.
    """

    settled: int = 0
    not_paid: int = 0
    elsewhere: int = 0
    in_flight: int = 0
    unproven: int = 0
    contradictory: int = 0
    without_hash: int = 0
    unanswered: int = 0
    waiting: int = 0
    fees_msat: int = 0
    oldest: datetime | None = None
    more: bool = False

    @property
    def still_open(self) -> int:
        """Payments that stay unknown after this pass."""
        return self.in_flight + self.unproven + self.contradictory + self.without_hash + self.unanswered + self.waiting


@dataclass(frozen=True, slots=True)
class _Wait:
    delay_s: float
    until: datetime


class Reconciler:
    """Looks every open payment up, at the start and then at intervals.

    ``lnd_pays`` returns whether this lnd, or this node, is the one that the daemon pays with, and False when in doubt. A preimage is
    proof from any lnd; that a payment failed, or is absent, is evidence only from the one that pays.
    """

    def __init__(
        self,
        *,
        lookup: Lookup,
        open_payments: OpenPayments,
        resolve: RecordResolution,
        lnd_pays: Callable[[], bool],
        timing: ReconcilerTiming = ReconcilerTiming(),
        batch: int = 100,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._lookup = lookup
        self._open_payments = open_payments
        self._resolve = resolve
        self._lnd_pays = lnd_pays
        self._timing = timing
        self._batch = batch
        self._now = now
        self._waits: dict[bytes, _Wait] = {}

    async def run(self, on_pass: Callable[[ReconcilerSummary], None], on_error: Callable[[Exception], None]) -> None:
        """Make passes until cancelled.

        ``on_error`` gets the error of an lnd or a journal that is away; the next pass follows anyway. Every other error is
        raised, for the supervisor to log it and start this again: the waits are kept.
        """
        while True:
            more = False
            try:
                summary = await self.once()
                more = summary.more
                on_pass(summary)
            except (LndError, UpstreamError, JournalUnavailable) as error:
                on_error(error)
            if not more:
                await asyncio.sleep(self._timing.interval_s)

    async def once(self) -> ReconcilerSummary:
        """Make one pass: at most one batch of look-ups, one after the other."""
        # Read to the end before anything is written: a database may lock one against the other.
        open_payments = [payment async for payment in self._open_payments()]
        known = [payment for payment in open_payments if payment.payment_hash is not None]
        # Those that were never looked up come first, so that a few without an answer do not hold up the others.
        due = sorted(filter(self._is_due, known), key=self._next_look)
        batch = due[: self._batch]
        summary = ReconcilerSummary(
            without_hash=len(open_payments) - len(known), waiting=len(known) - len(batch), more=len(due) > len(batch)
        )
        closed: set[bytes] = set()
        errors_in_a_row = 0
        for place, payment in enumerate(batch):
            if errors_in_a_row >= MAX_ERRORS_IN_A_ROW:
                summary.waiting += len(batch) - place
                summary.more = False
                break
            try:
                resolved = await self._look_up(summary, payment)
            except (LndError, UpstreamError, JournalUnavailable) as error:
                errors_in_a_row += 1
                summary.unanswered += 1
                self._put_off(payment, self._longest_delay_s(error))
                continue
            except Exception:
                # An error of one must not keep the others from being looked up.
                self._put_off(payment, self._timing.max_delay_s)
                raise
            errors_in_a_row = 0
            if resolved:
                closed.add(payment.job_id)
            else:
                self._put_off(payment, self._timing.max_delay_s)
        still_open = {payment.job_id: payment.paying_since for payment in open_payments if payment.job_id not in closed}
        summary.oldest = min(still_open.values(), default=None)
        self._waits = {job_id: wait for job_id, wait in self._waits.items() if job_id in still_open}
        return summary

    async def _look_up(self, summary: ReconcilerSummary, payment: OpenPayment) -> bool:
        """Look a payment up, judge and record it; return whether it is open no longer."""
        # Read before the call: lnd's answer may be as old as that.
        asked_at = self._now()
        record = await self._lookup(payment)
        resolution = self._judge(summary, payment, record, asked_at)
        if resolution is None:
            return False
        if not await self._resolve(payment, resolution):
            summary.elsewhere += 1
        elif resolution.state is State.SETTLED:
            summary.settled += 1
            summary.fees_msat += resolution.update.fee_msat or 0
        else:
            summary.not_paid += 1
        return True

    def _judge(
        self, summary: ReconcilerSummary, payment: OpenPayment, record: PaymentRecord | None, asked_at: datetime
    ) -> PaymentResolution | None:
        if record is None:
            summary.unproven += 1
            return None
        if record.payment_hash != payment.payment_hash:
            summary.contradictory += 1
            return None
        match record.state:
            case PaymentState.SETTLED:
                if record.preimage is None or sha256(record.preimage).digest() != payment.payment_hash:
                    summary.contradictory += 1
                    return None
                return PaymentResolution(
                    State.SETTLED,
                    ResolvedBy.PREIMAGE,
                    asked_at,
                    PurchaseUpdate(fee_msat=record.fee_msat, preimage=record.preimage),
                )
            case PaymentState.FAILED:
                if self._lnd_pays():
                    return PaymentResolution(State.NOT_PAID, ResolvedBy.FAILED, asked_at)
                summary.unproven += 1
                return None
            case PaymentState.IN_FLIGHT:
                summary.in_flight += 1
                return None
            case PaymentState.UNKNOWN_TO_LND:
                last_moment = max(payment.payable_until, payment.paying_since)
                since_then_s = (asked_at - last_moment).total_seconds()
                if since_then_s > self._timing.absent_after_s and self._lnd_pays():
                    return PaymentResolution(State.NOT_PAID, ResolvedBy.ABSENT, asked_at)
                summary.unproven += 1
                return None

    def _next_look(self, payment: OpenPayment) -> datetime:
        wait = self._waits.get(payment.job_id)
        return wait.until if wait else _AT_ONCE

    def _is_due(self, payment: OpenPayment) -> bool:
        left_s = (self._next_look(payment) - self._now()).total_seconds()
        # A clock that was set back must not delay a look-up for longer than the longest delay.
        return left_s <= 0 or left_s > self._timing.max_delay_s

    def _longest_delay_s(self, error: LndError | UpstreamError | JournalUnavailable) -> float:
        """Return a short delay where the cause may pass, so that lnd is called soon after it is back."""
        if not isinstance(error, JournalUnavailable) and not error.retryable:
            return self._timing.max_delay_s
        return 2 * self._timing.interval_s

    def _put_off(self, payment: OpenPayment, longest_s: float) -> None:
        wait = self._waits.get(payment.job_id)
        delay_s = min(wait.delay_s * 2, longest_s) if wait else self._timing.first_delay_s
        self._waits[payment.job_id] = _Wait(delay_s, self._now() + timedelta(seconds=delay_s))
