"""Delivery: what was paid for, checked as it flows, so that a cut or altered result never passes for a whole one."""

import hashlib
from collections.abc import AsyncGenerator
from typing import Protocol

from lcp_gateway.purchase.errors import Undelivered, UpstreamError
from lcp_gateway.purchase.journal import Learnt
from lcp_gateway.purchase.purchase import Purchase
from lcp_gateway.purchase.results import Result, ResultStatus, StreamBegin, StreamEnd, StreamEvent
from lcp_gateway.purchase.states import Event


def problem_with_status(result: Result) -> str | None:
    """Say what is wrong with what a provider says of its own work, or give None."""
    if result.status is ResultStatus.OK:
        return None
    return result.message.strip() or f"the provider's result has the status {result.status}"


def problem_with_bytes(
    sha256: bytes, length: int, claimed: bytes, claimed_length: int
) -> str | None:
    """Compare what came with what the provider says it sent; give the difference in words, or None."""
    if length != claimed_length:
        return f"the result has {length} bytes, its provider says {claimed_length}"
    if sha256 != claimed:
        return "the result's SHA-256 is not the one that its provider gives"
    return None


class Move(Protocol):
    """Moves a purchase on and has it written down."""

    def __call__(self, purchase: Purchase, event: Event, learnt: Learnt = ...) -> None:
        """Apply ``event``; ``learnt`` is what became known with it."""
        ...


class PaidStream:
    """A streamed result that has been paid for: its head, and its chunks checked as they flow."""

    def __init__(
        self,
        purchase: Purchase,
        begin: StreamBegin,
        events: AsyncGenerator[StreamEvent, None],
        move: Move,
    ) -> None:
        self.content_type = begin.content_type
        self.content_encoding = begin.content_encoding
        self._purchase = purchase
        self._events = events
        self._move = move

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Give the result's bytes as they come. Iterate once; close it when you stop early.

        Ends normally only when the whole result came and its status, length and hash are right.

        Raises:
            Undelivered: the stream was cut, or something about it is wrong.
        """
        digest = hashlib.sha256()
        length = 0
        purchase = self._purchase
        end: StreamEnd | None = None
        terminal: Result | None = None
        outcome, learnt = Event.FAIL_DELIVERY, Learnt()
        try:
            async for event in self._events:
                # bytes first: nearly every event is a chunk
                if isinstance(event, bytes) and end is None:
                    digest.update(event)
                    length += len(event)
                    purchase.has_begun = True
                    yield event
                elif isinstance(event, StreamEnd) and end is None:
                    end = event
                elif isinstance(event, Result) and terminal is None:
                    terminal = event
                else:
                    raise self._undelivered("the stream's events are out of order")
            if problem := _problem_with_end(digest.digest(), length, end, terminal):
                raise self._undelivered(problem)
            outcome = Event.DELIVER
            charged_msat = None if terminal is None else terminal.charged_msat
            learnt = Learnt(
                result_sha256=digest.digest(), result_bytes=length, charged_msat=charged_msat
            )
        except UpstreamError as error:
            raise self._undelivered(f"the stream broke off: {error.message}") from error
        finally:
            self._move(purchase, outcome, learnt)
            await self._events.aclose()

    def _undelivered(self, problem: str) -> Undelivered:
        purchase = self._purchase
        return Undelivered(problem, quote=purchase.quote, verdict=purchase.verdict)


def _problem_with_end(
    sha256: bytes, length: int, end: StreamEnd | None, terminal: Result | None
) -> str | None:
    if terminal is None:
        return "the stream ended without the provider's word that it is complete"
    if problem := problem_with_status(terminal):
        return problem
    if end is None:
        return problem_with_bytes(sha256, length, terminal.sha256, terminal.length)
    if problem := problem_with_bytes(sha256, length, end.sha256, end.length):
        return problem
    if terminal.sha256 and terminal.sha256 != end.sha256:
        return "the stream's end and the result name different hashes"
    return None
