"""The events of a streamed result: head, chunks and end are the same on the wire in all versions, the result is not."""

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from google.protobuf.message import DecodeError

from lcp_gateway._gen.lcpd import lcpd_pb2 as pb
from lcp_gateway.purchase.errors import UpstreamError
from lcp_gateway.purchase.ports import ChunkSink, Result, StreamBegin, StreamEnd, StreamEvent
from lcp_gateway.purchase.states import Verdict
from lcp_gateway.upstream_status import UpstreamStatus
from lcp_gateway.upstreams.lcpd.payment_report import read_report

EVENT_STREAM: Final = "text/event-stream; charset=utf-8"
"""The content type of a stream whose peer states none."""


def too_long(limit: int) -> UpstreamError:
    """Return the error of a result that is longer than its peer may send; the daemon has paid for it."""
    return UpstreamError(
        UpstreamStatus.DATA_LOSS,
        f"the result is longer than its peer may send ({limit} bytes)",
        evidence=Verdict.SETTLED,
    )


class Chunks:
    """The chunks of one result: counted against their peer's limit, and offered to a sink as they come."""

    __slots__ = ("_left", "_limit", "_sink")

    def __init__(self, limit: int) -> None:
        self._limit = self._left = limit
        self._sink: ChunkSink | None = None

    def hand_to(self, sink: ChunkSink) -> None:
        """Offer the chunks to ``sink`` from now on."""
        self._sink = sink

    def count(self, chunk: bytes) -> None:
        """Count a chunk that comes as an event.

        Raises:
            UpstreamError: the result is too long.
        """
        self._left -= len(chunk)
        if self._left < 0:
            raise too_long(self._limit)

    def take(self, messages: list[bytes]) -> bool:
        """Hand the chunks in ``messages`` to the sink, as one; return False where other events are among them."""
        sink = self._sink
        if sink is None:
            return False
        parts: list[bytes] = []
        for message in messages:
            try:
                event = pb.AcceptAndExecuteStreamResponse.FromString(message)
            except DecodeError:
                return False
            if not event.HasField("result_chunk"):
                return False
            parts.append(event.result_chunk.data)
        chunk = parts[0] if len(parts) == 1 else b"".join(parts)
        if len(chunk) > self._left or not sink(chunk):
            return False
        self._left -= len(chunk)
        return True


def read_events(messages: Sequence[bytes], last_event: Callable[[bytes], Result]) -> Iterator[StreamEvent]:
    """Return the events in messages, in order; neighbouring chunks of the result as one.

    ``last_event`` reads a message that holds the result.
    """
    chunks: list[bytes] = []
    for message in messages:
        try:
            event = pb.AcceptAndExecuteStreamResponse.FromString(message)
        except DecodeError:
            if chunks:
                yield b"".join(chunks)
            raise UpstreamError(UpstreamStatus.DATA_LOSS, "the daemon sent a stream event of an unknown kind") from None
        if event.HasField("result_chunk"):
            chunks.append(event.result_chunk.data)
            continue
        if chunks:
            yield b"".join(chunks)
            chunks.clear()
        match event.WhichOneof("event"):
            case "result_begin":
                begin = event.result_begin
                yield StreamBegin(
                    begin.content_type or EVENT_STREAM, begin.content_encoding, payment=read_report(begin.payment)
                )
            case "result_end":
                yield StreamEnd(event.result_end.result_hash, event.result_end.result_len)
            case "result":
                yield last_event(message)
            case _:
                raise UpstreamError(UpstreamStatus.DATA_LOSS, "the daemon sent a stream event of an unknown kind")
    if chunks:
        yield chunks[0] if len(chunks) == 1 else b"".join(chunks)
