"""Asking for quotes: one provider after another or several at once, until one can be bought."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from lcp_gateway.purchase.errors import PriceLimitExceeded, PurchaseError, Refused, UpstreamError
from lcp_gateway.purchase.inspection import QuoteInspector
from lcp_gateway.purchase.journal import InsufficientBalance
from lcp_gateway.purchase.money import Msat
from lcp_gateway.purchase.order import Order
from lcp_gateway.purchase.ports import Upstream
from lcp_gateway.purchase.quote import Candidate, Comparison, Quote
from lcp_gateway.purchase.tracing import NO_TRACING, TraceStep, Tracing, asked_facts, error_type, quote_facts
from lcp_gateway.values import value

_MOST_JOBS: Final = 4_096
_NOT_TAKEN: Final = "another quote was taken"
# Named here: see execution.py.
_QUOTE_STEP: Final = TraceStep.QUOTE


class PaidJobs:
    """Ids of jobs whose one call that may pay has gone out, the newest few thousand.

    Job ids are the peer's choice. One that hands out the id of a running job again must not have that job cancelled when
    its second quote is not taken.
    """

    def __init__(self) -> None:
        self._ids: OrderedDict[bytes, None] = OrderedDict()

    def __contains__(self, job_id: bytes) -> bool:
        """Return whether a job was paid for lately, or may have been."""
        return job_id in self._ids

    def add(self, job_id: bytes) -> None:
        """Add a job that is about to be paid for."""
        self._ids[job_id] = None
        if len(self._ids) > _MOST_JOBS:
            self._ids.popitem(last=False)


@value
class Offer:
    """The quote that was chosen, its candidate, and the price of the next best where several were asked.

    ``order`` is for the task as the candidate gets it, which is what was quoted. ``rest`` are the candidates that may still
    do the task, in their order: those that were not asked, and those whose quotes were not taken.
    """

    order: Order
    candidate: Candidate
    quote: Quote
    payment_hash: bytes | None
    runner_up_msat: Msat | None = None
    rest: tuple[Candidate, ...] = ()


@dataclass(frozen=True, slots=True)
class QuotingRules:
    """How providers are asked: how many at once, how many in all, and how long each may take.

    Once one quote can be bought, the others that were requested with it have ``patience_s`` left.
    """

    at_once: int = 1
    at_most: int = 3
    timeout_s: float = 5.0
    patience_s: float = 0.3


class QuoteRequester:
    """Requests the quotes and chooses the one to buy. Everything here costs nothing and may fail over freely."""

    def __init__(
        self,
        upstream: Upstream,
        asking: QuotingRules,
        *,
        inspector: QuoteInspector,
        background: Callable[[Coroutine[Any, Any, None]], None],
        cancel_timeout_s: float,
        on_quote: Callable[[Order, Quote, float], None] = lambda _order, _quote, _duration_s: None,
        on_failure: Callable[[str, PurchaseError], None] = lambda _peer_id, _error: None,
        clock: Callable[[], float] = time.monotonic,
        tracing: Tracing = NO_TRACING,
        paid_jobs: PaidJobs | None = None,
    ) -> None:
        """``on_quote`` gets each quote and the seconds it took, ``on_failure`` the reason of a provider that failed.

        ``paid_jobs`` are never cancelled, whatever quote names them again.
        """
        self._paid_jobs = PaidJobs() if paid_jobs is None else paid_jobs
        self._upstream = upstream
        self._asking = asking
        self._inspector = inspector
        self._background = background
        self._cancel_timeout_s = cancel_timeout_s
        self._on_quote = on_quote
        self._on_failure = on_failure
        self._clock = clock
        self._tracing = tracing

    async def request(self, order: Order, candidates: Sequence[Candidate]) -> Offer:
        """Return the best acceptable quote of the first candidates that have one.

        Where several are asked at once the cheapest is the best; else the first is, unless the gateway chose it and its
        quote is a surprise: then it is compared with the quotes of others.

        Raises:
            Refused: no quote was acceptable; carries the cheapest one that was only too expensive, if any.
            UpstreamError: no provider gave a quote.
        """
        failures: list[PurchaseError] = []
        left, calls = [*candidates], self._asking.at_most
        while left and calls > 0:
            group = left[: min(self._asking.at_once, calls)]
            del left[: len(group)]
            calls -= len(group)
            offers = await self._ask(order, group, failures)
            if offers:
                if (comparison := offers[0].candidate.comparison) is not None:
                    offers = await self._compare(comparison, order, offers, left, calls, failures)
                best, *others = offers
                if others:
                    self.drop(offer.quote for offer in others)
                if failures:
                    self.drop(error.quote for error in failures)
                return _taken(best, others, left)
        error = _most_telling(failures)
        # The cheapest that was too expensive is not dropped: the client can take it once it raises the limit.
        kept = error.quote if isinstance(error, PriceLimitExceeded) else None
        self.drop(failed.quote for failed in failures if failed.quote is not kept)
        raise error

    async def request_cheaper(
        self, order: Order, candidates: Sequence[Candidate], too_dear: InsufficientBalance
    ) -> Offer:
        """Return the next offer that asks less than the one that the customer cannot pay.

        Quotes that ask as much or more are dropped.

        Raises:
            InsufficientBalance: there is none; ``too_dear`` itself.
        """
        for number, candidate in enumerate(candidates, 1):
            try:
                offer = await self.request(order, [candidate])
            except PurchaseError as error:
                if isinstance(error, PriceLimitExceeded):
                    # ``request`` keeps such a quote for the client, which gets another one here.
                    self.drop([error.quote])
                continue
            if offer.quote.price_msat < (too_dear.quote.price_msat if too_dear.quote else 0):
                return replace(offer, rest=tuple(candidates[number:]))
            self.drop([offer.quote])
        raise too_dear

    async def _compare(
        self,
        comparison: Comparison,
        order: Order,
        offers: list[Offer],
        left: list[Candidate],
        calls: int,
        failures: list[PurchaseError],
    ) -> list[Offer]:
        """Ask more candidates where a quote is not the price that was expected; return the best offer first."""
        while True:
            asked = _asked(offers)
            place = comparison.next(asked, [one.place for one in left], peers_too=calls > 0)
            candidate = next((one for one in left if one.place == place), None)
            if candidate is None:
                break
            left.remove(candidate)
            calls -= 1
            offers += await self._ask(order, [candidate], failures)
        if self._asking.at_once > 1:
            return sorted(offers, key=_price)
        best = comparison.best(asked)
        return sorted(offers, key=lambda offer: (offer.candidate.place != best, _price(offer)))

    def drop(self, quotes: Iterable[Quote | None]) -> None:
        """Notify the providers that their quotes are not taken; wait for no answer."""
        for quote in quotes:
            if quote is not None and quote.job_id not in self._paid_jobs:
                self._background(self._upstream.cancel(quote, _NOT_TAKEN, self._cancel_timeout_s))

    async def _ask(self, order: Order, candidates: Sequence[Candidate], failures: list[PurchaseError]) -> list[Offer]:
        """Ask some at once; return the quotes that can be bought, the cheapest first."""
        results: Sequence[Offer | PurchaseError | None]
        if len(candidates) == 1:
            result = await self._try(order, candidates[0])
            if isinstance(result, Offer):
                return [result]
            results = [result]
        else:
            results = await self._ask_together(order, candidates)
        offers = []
        for candidate, found in zip(candidates, results, strict=True):
            if isinstance(found, Offer):
                offers.append(found)
            elif found is not None:
                failures.append(found)
                self._on_failure(candidate.provider_id, found)
        return sorted(offers, key=_price)

    async def _ask_together(
        self, order: Order, candidates: Sequence[Candidate]
    ) -> "Sequence[Offer | PurchaseError | None]":
        tasks = [asyncio.create_task(self._try(order, candidate)) for candidate in candidates]
        try:
            waiting = set(tasks)
            while waiting and not any(_has_offer(task) for task in tasks):
                _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if waiting:
                await asyncio.wait(waiting, timeout=self._asking.patience_s)
        finally:
            for task in tasks:
                task.cancel()
        return [task.result() if task.done() and not task.cancelled() else None for task in tasks]

    async def _try(self, asked: Order, candidate: Candidate) -> Offer | PurchaseError:
        started = self._clock()
        order = asked.for_task(candidate.adapt(asked.task))
        with self._tracing.span(_QUOTE_STEP) as span:
            span.note(asked_facts, candidate, order.task)
            try:
                quote = await self._upstream.request_quote(order.task, candidate.provider_id, self._asking.timeout_s)
                span.note(quote_facts, quote)
                self._on_quote(order, quote, self._clock() - started)
                return Offer(order, candidate, quote, self._inspector.at_quote(order, quote))
            except UpstreamError as error:
                span.failed(error_type(error))
                return error
            except Refused as error:
                span.failed(error_type(error))
                error.candidate = candidate
                return error


def _taken(best: Offer, others: Sequence[Offer], left: Sequence[Candidate]) -> Offer:
    """Return the offer to buy as it compares with the others that were made."""
    candidate = best.candidate
    if candidate.comparison is None and not others and not left:
        return best
    if candidate.comparison is not None:
        told = candidate.comparison.taken(candidate.place, _asked([best, *others]))
        # The comparison is over, and its data need not be kept as long as the purchase.
        candidate = replace(candidate, routing=told, comparison=None)
    # One that asked less and was not taken for other reasons is no saving.
    dearer = [price for price in map(_price, others) if price >= best.quote.price_msat]
    return replace(
        best,
        candidate=candidate,
        runner_up_msat=min(dearer, default=None),
        rest=(*(offer.candidate for offer in others), *left),
    )


def _asked(offers: Sequence[Offer]) -> dict[int, Msat]:
    return {offer.candidate.place: offer.quote.price_msat for offer in offers}


def _price(offer: Offer) -> Msat:
    return offer.quote.price_msat


def _most_telling(failures: Sequence[PurchaseError]) -> PurchaseError:
    too_dear = [error for error in failures if isinstance(error, PriceLimitExceeded)]
    if too_dear:
        return min(too_dear, key=lambda error: error.price_msat)
    refused = [error for error in failures if isinstance(error, Refused)]
    return (refused or failures)[-1]


def _has_offer(task: "asyncio.Task[Offer | PurchaseError]") -> bool:
    return task.done() and not task.cancelled() and isinstance(task.result(), Offer)
