"""Execution: pay once, and verify the result as it flows, so that a cut or altered result never counts as whole."""

import asyncio
import hashlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from types import MappingProxyType, TracebackType
from typing import Final, Protocol

from lcp_gateway.purchase.errors import PaymentFailed, QuoteExpired, Refused, Undelivered, UpstreamError
from lcp_gateway.purchase.inspection import QuoteInspector
from lcp_gateway.purchase.journal import NOTHING_NEW, Intent, PurchaseJournal, PurchaseUpdate
from lcp_gateway.purchase.limits import SpendingLimits
from lcp_gateway.purchase.outcome import EndedBy, Ending, Judge, JudgeFactory, Received, no_judge
from lcp_gateway.purchase.payment_evidence import PaymentReport, verdict_of_failure
from lcp_gateway.purchase.ports import Exposure, Result, ResultStatus, StreamBegin, StreamEnd, StreamEvent, Upstream
from lcp_gateway.purchase.purchase import Purchase
from lcp_gateway.purchase.quote import ProviderSource, Quote
from lcp_gateway.purchase.quoting import PaidJobs
from lcp_gateway.purchase.states import PurchaseEvent, State, Verdict
from lcp_gateway.purchase.tracing import NO_TRACING, TraceStep, Tracing, paid_facts
from lcp_gateway.upstream_status import UpstreamStatus

END_WAIT_S: Final = 15.0
"""How long a peer may take, after its result's own end, to say which hash and length it sent."""
CLOSE_WAIT_S: Final = 2.0
"""How long a call may take to end, once the whole result has come and its hash is right."""
# Named here, because Python 3.11 takes ten times as long to find the member of an enumeration.
_PAY: Final = PurchaseEvent.PAY
_SETTLE: Final = PurchaseEvent.SETTLE
_DELIVER: Final = PurchaseEvent.DELIVER
_OK: Final = ResultStatus.OK
_PAY_STEP: Final = TraceStep.PAY
_WHOLE: Final = Ending(EndedBy.PROVIDER, Received.WHOLE)
# The stream's end and the result.
_ALL_ENDS: Final = 2
# What has arrived already is still taken.
_LEAST_WAIT_S: Final = 0.05


def problem_with_status(result: Result) -> str | None:
    """Return what is wrong with the status that a provider gives its result, or None."""
    if result.status is _OK:
        return None
    return result.message.strip() or f"the provider's result has the status {result.status}"


def problem_with_bytes(sha256: bytes, length: int, claimed: bytes, claimed_length: int) -> str | None:
    """Compare the received bytes with the stated length and hash; return the difference as text, or None."""
    if length != claimed_length:
        return f"the result has {length} bytes, its provider says {claimed_length}"
    if sha256 != claimed:
        return "the result's SHA-256 is not the one that its provider gives"
    return None


EndPurchase = Callable[[Purchase, Ending, PurchaseUpdate], None]
"""Ends a paid purchase and has it recorded, with what became known."""


def ending_of_error(purchase: Purchase, received: Received, error: BaseException) -> Ending:
    """Return the ending of a paid purchase whose call ended in an error before everything had come."""
    if not isinstance(error, UpstreamError):
        return Ending(purchase.interrupted_by or EndedBy.GATEWAY, received)
    # Only a deadline can be caused by slow readers; the provider caused every other error.
    late = error.status == UpstreamStatus.DEADLINE_EXCEEDED and purchase.held_up_by_readers()
    return Ending(EndedBy.CLIENT if late else EndedBy.PROVIDER, received)


def reported(purchase: Purchase, payment: PaymentReport | None) -> PurchaseUpdate:
    """Return the fee and the preimage of a report whose preimage proves that this purchase's invoice was paid."""
    if (
        payment is None
        or payment.preimage is None
        or hashlib.sha256(payment.preimage).digest() != purchase.payment_hash
    ):
        return NOTHING_NEW
    return PurchaseUpdate(fee_msat=payment.fee_msat, preimage=payment.preimage)


class BlockSink(Protocol):
    """The place where the blocks of a result go."""

    def can_take(self) -> bool:
        """Return whether it takes a block now, and its producer has nothing else to do for it."""
        ...

    def append(self, block: bytes, free_bytes: int) -> None:
        """Add a block; readers may have the first ``free_bytes`` of all."""
        ...


class PaidStream:
    """A streamed result that has been paid for: its head, and its chunks checked as they flow."""

    def __init__(
        self,
        purchase: Purchase,
        begin: StreamBegin,
        events: AsyncGenerator[StreamEvent, None],
        end: EndPurchase,
        judge: Judge,
    ) -> None:
        self.content_type = begin.content_type
        self.content_encoding = begin.content_encoding
        self.purchase = purchase
        self._events = events
        self._end = end
        self.judge = judge
        self._is_read = begin.judge is not None
        self._offer = begin.hand_to
        self._sink: BlockSink | None = None
        self._digest = hashlib.sha256()
        self._length = 0
        self._ends: list[StreamEvent] = []

    def hand_to(self, sink: BlockSink) -> None:
        """Let chunks that need no decision go to ``sink`` as they arrive, while ``chunks`` is awaited.

        They are hashed, counted and judged like the others, which are yielded. An upstream may yield all of them.
        """
        if self._offer is not None and not self._is_read:
            self._sink = sink
            self._offer(self._take)

    def _take(self, chunk: bytes) -> bool:
        sink = self._sink
        # A chunk after the stream's end is out of order, which is found where it is an event.
        if sink is None or self._ends or not sink.can_take() or not self.judge.feed_ordinary(chunk):
            return False
        self._digest.update(chunk)
        self._length += len(chunk)
        sink.append(chunk, self.judge.free_bytes)
        return True

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Yield the result's bytes as they come. Iterate once; close it when you stop early.

        Ends normally only when the whole result came, its status, length and hash are right, and it is a result.

        Raises:
            Undelivered: the stream was cut, or something about it is wrong.
        """
        judge, ends = self.judge, self._ends
        ending, update = Ending(EndedBy.PROVIDER, Received.WHOLE), PurchaseUpdate()
        try:
            async for event in self._events:
                # bytes first: nearly every event is a chunk
                if isinstance(event, bytes) and not ends:
                    self._read(event)
                    yield event
                    if judge.is_complete:
                        break
                else:
                    ends.append(event)
                    self._check_order(ends)
            if judge.is_complete and not ends:
                async for event in self._after_end(ends):
                    if isinstance(event, bytes) and not ends:
                        self._read(event)
                        yield event
                    else:
                        ends.append(event)
                        self._check_order(ends)
            update = self._check(self._digest.digest(), self._length, ends)
        except Undelivered as error:
            ending = Ending(EndedBy.PROVIDER, error.received)
            raise
        except UpstreamError as error:
            ending = ending_of_error(self.purchase, _begun(self._length), error)
            problem = f"the stream broke off: {error.message}"
            raise self._undelivered(problem, ending.received) from error
        except BaseException as error:
            ending = ending_of_error(self.purchase, _begun(self._length), error)
            raise
        finally:
            self._end(self.purchase, ending, update)
            await self._events.aclose()

    def _read(self, chunk: bytes) -> None:
        self._digest.update(chunk)
        self._length += len(chunk)
        if not self._is_read:
            self.judge.feed(chunk)

    async def _after_end(self, ends: Sequence[StreamEvent]) -> AsyncGenerator[StreamEvent, None]:
        """Return the events that follow the result's own end; ``ends`` are those after its last chunk so far.

        The wait for them is bounded. The peer has to state hash and length: without them the result cannot be verified.
        Once it has, how the call ends does not matter.
        """
        judge, left_s = self.judge, END_WAIT_S
        while not judge.is_flooded:
            has_word = judge.shows_error or any(isinstance(event, StreamEnd) for event in ends)
            waits_since = time.monotonic()
            try:
                async with asyncio.timeout(min(left_s, CLOSE_WAIT_S) if has_word else left_s):
                    event = await anext(self._events)
            except StopAsyncIteration:
                return
            except (TimeoutError, UpstreamError) as error:
                if has_word:
                    return
                if isinstance(error, UpstreamError):
                    raise
                raise UpstreamError(UpstreamStatus.DATA_LOSS, "its hash did not follow its end") from None
            left_s = max(left_s - (time.monotonic() - waits_since), _LEAST_WAIT_S)
            yield event
            if len(ends) == _ALL_ENDS:
                return
        raise UpstreamError(UpstreamStatus.DATA_LOSS, "too much follows its end")

    def _check_order(self, ends: Sequence[StreamEvent]) -> None:
        """Allow what may follow the last chunk: the stream's end, the result, or both in this order, once each."""
        kinds = tuple(map(type, ends))
        if kinds not in {(StreamEnd,), (Result,), (StreamEnd, Result), (Result, StreamEnd)}:
            raise self._undelivered("the stream's events are out of order", Received.ALTERED)

    def _check(self, sha256: bytes, length: int, ends: Sequence[StreamEvent]) -> PurchaseUpdate:
        """Return the update of a purchase whose result is whole.

        Raises:
            Undelivered: it is not.
        """
        end = next((event for event in ends if isinstance(event, StreamEnd)), None)
        terminal = next((event for event in ends if isinstance(event, Result)), None)
        if terminal is None and not (end is not None and self.judge.is_complete):
            problem = "the stream ended before the provider said that it is complete"
            received = Received.ERROR if self.judge.shows_error else _begun(length)
            raise self._undelivered(problem, received)
        if problem_found := _problem_with_end(sha256, length, end, terminal):
            raise self._undelivered(problem_found, Received.ALTERED)
        received = self.judge.received()
        if received is not Received.WHOLE:
            raise self._undelivered(PROBLEMS[received], received)
        charged_msat = None if terminal is None else terminal.charged_msat
        return PurchaseUpdate(result_sha256=sha256, result_bytes=length, charged_msat=charged_msat)

    def _undelivered(self, problem: str, received: Received) -> Undelivered:
        purchase = self.purchase
        return Undelivered(
            problem, quote=purchase.quote, verdict=purchase.verdict, received=received, is_told=self.judge.shows_error
        )


PROBLEMS: Mapping[Received, str] = MappingProxyType(
    {
        Received.NOTHING: "the provider sent nothing",
        Received.PART: "the result ends before its end",
        Received.ALTERED: "the result is not what its provider says it is",
        Received.UNKNOWN: "it cannot be known what the provider sent",
        Received.ERROR: "the provider sent an error in place of a result",
        Received.EMPTY: "the provider's result is empty, or not of the kind that was asked for",
    }
)
"""The message for each kind of result that cannot be used."""


def _begun(length: int) -> Received:
    return Received.PART if length else Received.NOTHING


def _problem_with_end(sha256: bytes, length: int, end: StreamEnd | None, terminal: Result | None) -> str | None:
    if terminal is not None and (problem := problem_with_status(terminal)):
        return problem
    claim = end or terminal
    assert claim is not None  # noqa: S101 - one of them has come, or this is not asked
    if problem := problem_with_bytes(sha256, length, claim.sha256, claim.length):
        return problem
    if end and terminal and terminal.sha256 and terminal.sha256 != end.sha256:
        return "the stream's end and the result name different hashes"
    return None


def utc_now() -> datetime:
    """Return the time, aware."""
    return datetime.now(UTC)


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
