"""The flow of a purchase: quote, authorise, pay once, deliver, settle."""

import hashlib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from lcp_gateway.purchase.delivery import PaidStream, problem_with_bytes, problem_with_status
from lcp_gateway.purchase.errors import (
    PaymentFailed,
    QuoteExpired,
    Refused,
    Undelivered,
    UpstreamError,
)
from lcp_gateway.purchase.evidence import verdict_of_failure
from lcp_gateway.purchase.guards import Guard
from lcp_gateway.purchase.ports import Journal, Upstream
from lcp_gateway.purchase.purchase import Purchase
from lcp_gateway.purchase.quote import Quote
from lcp_gateway.purchase.results import Result, StreamBegin
from lcp_gateway.purchase.states import Event, State, Verdict
from lcp_gateway.purchase.task import Task


class Unwritten:
    """A journal that writes nothing down: after a crash nobody knows what was paid."""

    async def record(self, quote: Quote, task: Task, state: State) -> None:
        """Forget it."""


def _utc_now() -> datetime:
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
        journal: Journal,
        guards: Sequence[Guard],
        quote_timeout_s: float,
        execute_timeout_s: float,
        now: Callable[[], datetime] = _utc_now,
    ) -> None:
        self._upstream = upstream
        self._journal = journal
        self._guards = tuple(guards)
        self._quote_timeout_s = quote_timeout_s
        self._execute_timeout_s = execute_timeout_s
        self._now = now

    async def quote(self, task: Task, peer_id: str) -> Purchase:
        """Ask a peer for its price.

        Raises:
            UpstreamError: no quote came; nothing was paid.
        """
        quote = await self._upstream.request_quote(task, peer_id, self._quote_timeout_s)
        return Purchase(task, quote)

    async def buy(self, purchase: Purchase) -> Result:
        """Pay and wait for the whole result, checked against its hash and length.

        Raises:
            Refused: a guard said no; nothing was paid.
            PaymentFailed: the call ended in an error; its verdict says what is known of the money.
            Undelivered: paid, and no whole and right result came.
        """
        await self._authorise(purchase)
        try:
            result = await self._upstream.execute(purchase.quote, self._execute_timeout_s)
        except UpstreamError as error:
            raise await self._failed(purchase, error) from error
        except BaseException:
            await self._move(purchase, Event.LOSE_SIGHT)
            raise
        await self._move(purchase, Event.SETTLE)
        problem = problem_with_status(result) or problem_with_bytes(
            hashlib.sha256(result.body).digest(), len(result.body), result.sha256, result.length
        )
        if problem:
            await self._move(purchase, Event.FAIL_DELIVERY)
            raise Undelivered(problem, quote=purchase.quote)
        await self._move(purchase, Event.DELIVER)
        return result

    async def open_stream(self, purchase: Purchase) -> PaidStream:
        """Pay and wait for the head of the streamed result.

        Raises:
            Refused, PaymentFailed, Undelivered: as in ``buy``.
        """
        await self._authorise(purchase)
        events = self._upstream.execute_stream(purchase.quote, self._execute_timeout_s)
        try:
            first = await anext(events)
        except StopAsyncIteration:
            nothing = UpstreamError("UNKNOWN", "the stream ended before it began")
            raise await self._failed(purchase, nothing) from None
        except UpstreamError as error:
            raise await self._failed(purchase, error) from error
        except BaseException:
            await self._move(purchase, Event.LOSE_SIGHT)
            raise
        await self._move(purchase, Event.SETTLE)
        if not isinstance(first, StreamBegin):
            # A provider whose first word is not the head failed before it produced anything.
            await events.aclose()
            await self._move(purchase, Event.FAIL_DELIVERY)
            problem = problem_with_status(first) if isinstance(first, Result) else None
            raise Undelivered(problem or "the stream has no head", quote=purchase.quote)
        return PaidStream(purchase, first, events, self._move)

    async def cancel(self, purchase: Purchase, reason: str, timeout_s: float) -> None:
        """Tell the peer that nobody waits any more. A payment is not undone.

        Raises:
            UpstreamError: it could not be told.
        """
        await self._upstream.cancel(purchase.quote, reason, timeout_s)

    async def _authorise(self, purchase: Purchase) -> None:
        now = self._now()
        try:
            for guard in self._guards:
                guard(purchase.task, purchase.quote, now)
        except QuoteExpired:
            await self._move(purchase, Event.EXPIRE)
            raise
        except Refused:
            await self._move(purchase, Event.REFUSE)
            raise
        # Written before the call goes out: after a crash the journal knows of every payment that may have happened.
        await self._move(purchase, Event.PAY)

    async def _failed(self, purchase: Purchase, error: UpstreamError) -> PaymentFailed:
        verdict = verdict_of_failure(error.status, error.message)
        match verdict:
            case Verdict.NONE:
                await self._move(purchase, Event.FAIL_PAYMENT)
            case Verdict.UNKNOWN:
                await self._move(purchase, Event.LOSE_SIGHT)
            case Verdict.SETTLED:
                await self._move(purchase, Event.SETTLE)
                await self._move(purchase, Event.FAIL_DELIVERY)
        return PaymentFailed(error, verdict, quote=purchase.quote)

    async def _move(self, purchase: Purchase, event: Event) -> None:
        state = purchase.apply(event)
        await self._journal.record(purchase.quote, purchase.task, state)
