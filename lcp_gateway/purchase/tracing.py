"""The trace of a request and its purchase, as a protocol that does nothing by default. Never a prompt or an output."""

import asyncio
import enum
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import ParamSpec, Protocol, Self

from lcp_gateway.purchase.errors import PaymentFailed, Refused, Undelivered, UpstreamError
from lcp_gateway.purchase.order import Task
from lcp_gateway.purchase.purchase import Purchase
from lcp_gateway.purchase.quote import Candidate, Quote
from lcp_gateway.purchase.result_buffer import ResultBuffer

MAX_TEXT = 256
"""Characters of a value that a client or a provider makes up; the rest is cut off."""

P = ParamSpec("P")
Facts = Mapping[str, str | int | float | bool]
"""Attributes of a span by name."""


class TraceStep(enum.StrEnum):
    """The steps of a purchase that have a span; the value is its name."""

    ROUTE = "route"
    QUOTE = "quote"
    """One for each provider that is asked."""
    PAY = "pay"
    """From the intent to the head of a stream, or to the end of a result that comes whole."""
    STREAM = "stream"
    """From the head to the last byte that the provider sent."""

    @property
    def is_call(self) -> bool:
        """Whether the step calls another party and waits for it."""
        return self is not TraceStep.ROUTE


class Span(Protocol):
    """Something that takes time. No method raises."""

    def note(self, facts: Callable[P, Facts], *args: P.args, **kwargs: P.kwargs) -> None:
        """Set attributes. ``facts`` is called at once, and not at all where nothing is recorded."""
        ...

    def failed(self, why: str) -> None:
        """Record an error, by a word of which there are few."""
        ...


class RequestSpan(Span, Protocol):
    """The span of a whole request, which those of its purchase belong to."""

    @property
    def trace_id(self) -> str:
        """The trace's id, 32 hex digits; empty where nothing is traced."""
        ...

    def name(self, name: str) -> None:
        """Set its name, once that is known."""
        ...


class Tracing(Protocol):
    """Makes spans. The one that is entered is the parent of those made meanwhile, in tasks begun meanwhile too.

    An exception inside of a span's block is recorded as its error, by ``error_type`` alone: no message, no stack trace.
    """

    def request(self, parents: Sequence[str], states: Sequence[str]) -> AbstractContextManager[RequestSpan]:
        """Trace a request; ``parents`` and ``states`` are its headers ``traceparent`` and ``tracestate``, valid or not."""
        ...

    def span(self, step: TraceStep) -> AbstractContextManager[Span]:
        """Trace a step of the request that is traced; nothing outside of one."""
        ...

    def headers(self) -> Mapping[str, str]:
        """Return the headers that name the present span to a server, in lower case; none outside of a request."""
        ...

    def origin(self) -> object | None:
        """Return the present span's place, as ``link`` takes it; None where it is not recorded."""
        ...

    def link(self, origin: object) -> None:
        """Point from the present span to an earlier one, of another request."""
        ...


class _NoSpan:
    """A span that is not recorded."""

    __slots__ = ()

    trace_id = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        pass

    def note(self, facts: Callable[P, Facts], *args: P.args, **kwargs: P.kwargs) -> None:
        pass

    def failed(self, why: str) -> None:
        pass

    def name(self, name: str) -> None:
        pass


NO_SPAN = _NoSpan()


class _NoTracing:
    """Traces nothing, at hardly any cost. Implements ``Tracing``."""

    def request(
        self,
        parents: Sequence[str],  # noqa: ARG002 - nothing is recorded
        states: Sequence[str],  # noqa: ARG002 - as above
    ) -> AbstractContextManager[RequestSpan]:
        return NO_SPAN

    def span(self, step: TraceStep) -> AbstractContextManager[Span]:  # noqa: ARG002 - as above
        return NO_SPAN

    def headers(self) -> Mapping[str, str]:
        return {}

    def origin(self) -> None:
        pass

    def link(self, origin: object) -> None:
        pass


NO_TRACING = _NoTracing()


def asked_facts(candidate: Candidate, task: Task) -> Facts:
    """Return the attributes of a provider that is asked, and for which model; the request's span has the operation."""
    return {"lcp.peer_id": candidate.provider_id[:MAX_TEXT], "gen_ai.request.model": task.model[:MAX_TEXT]}


def quote_facts(quote: Quote) -> Facts:
    """Return the attributes of a quote."""
    return {
        "gen_ai.provider.name": quote.source.value,
        "lcp.peer_id": quote.peer_id[:MAX_TEXT],
        "lcp.job_id": quote.job_id.hex(),
        "lcp.price_msat": quote.price_msat,
        "lcp.terms_hash": quote.terms_hash.hex(),
    }


def outcome_facts(purchase: Purchase) -> Facts:
    """Return the attributes of a purchase's state; the price is the final one, once that is known."""
    return {
        "lcp.job_id": purchase.quote.job_id.hex(),
        "lcp.price_msat": purchase.cost_msat,
        "lcp.payment": purchase.verdict.value,
        "lcp.state": purchase.state.value,
    }


def purchase_facts(purchase: Purchase) -> Facts:
    """Return the attributes of a purchase as it stands."""
    return {**quote_facts(purchase.quote), **outcome_facts(purchase)}


def paid_facts(purchase: Purchase) -> Facts:
    """Return the attributes of the call that pays."""
    return {"gen_ai.request.model": purchase.order.task.model[:MAX_TEXT], **purchase_facts(purchase)}


def choice_facts(candidates: Sequence[Candidate]) -> Facts:
    """Return the attributes of a choice."""
    return {"lcp.candidates": len(candidates)}


def stream_facts(buffer: ResultBuffer) -> Facts:
    """Return the attributes of a stream: ``lcp.waited_s`` is how much of it went by for readers that were behind."""
    facts: dict[str, int | float] = {"lcp.result_bytes": buffer.size}
    if buffer.first_byte_s is not None:
        # Since the call that pays, as the client of a provider sees it.
        facts["gen_ai.response.time_to_first_chunk"] = buffer.first_byte_s
    if buffer.waited_s:
        facts["lcp.waited_s"] = buffer.waited_s
    return facts


def error_type(error: BaseException) -> str:
    """Return a short type for an error: one of a few, and never a text of the provider."""
    match error:
        case asyncio.CancelledError():
            return "cancelled"
        case UpstreamError() | PaymentFailed():
            return error.status
        case Undelivered():
            return "undelivered"
        case Refused():
            return error.code
        case _:
            return type(error).__name__
