"""A paid result as it flows: verified, so that a cut or altered one never counts as whole."""

import asyncio
import hashlib
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from lcp_gateway.purchase.errors import Undelivered, UpstreamError
from lcp_gateway.purchase.journal import PurchaseUpdate
from lcp_gateway.purchase.outcome import EndedBy, Ending, Judge, Received
from lcp_gateway.purchase.ports import Result, ResultStatus, StreamBegin, StreamEnd, StreamEvent
from lcp_gateway.purchase.purchase import Purchase
from lcp_gateway.purchase.result_buffer import ResultBuffer
from lcp_gateway.upstream_status import UpstreamStatus

END_WAIT_S: Final = 15.0
"""How long a peer may take, after its result's own end, to say which hash and length it sent."""
CLOSE_WAIT_S: Final = 2.0
"""How long a call may take to end, once the whole result has come and its hash is right."""
# Named here: see execution.py.
_OK: Final = ResultStatus.OK
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
        self._sink: ResultBuffer | None = None
        self._digest = hashlib.sha256()
        self._length = 0
        self._ends: list[StreamEvent] = []

    def hand_to(self, sink: ResultBuffer) -> None:
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
