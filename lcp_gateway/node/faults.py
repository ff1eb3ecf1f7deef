"""Every failure that can be scripted: its name, its stage, whether the job was paid by then, and its effect.

A fault is asked for by model name (``fault/<name>`` on the extra peer that ``faults`` adds) or in process, through
``FaultScript``.
"""

import asyncio
import enum
import zlib
from collections import deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Final, NoReturn

import grpc

from lcp_gateway.node.config import FaultConfig
from lcp_gateway.node.lcp.buying_events import ResultHead
from lcp_gateway.node.runtime.calls import CallFailed
from lcp_gateway.upstream_status import UpstreamStatus

MODEL_PREFIX: Final = "fault/"
"""A model of this name and the fault's behind it asks for the fault."""
PEER_ALIAS: Final = "Mallory"


class Stage(enum.Enum):
    """The call that a fault is injected into."""

    QUOTE = enum.auto()
    EXECUTE = enum.auto()


@dataclass(frozen=True, slots=True)
class Fault:
    """A failure. ``paid`` says whether an accepted job has been paid; ``code`` is the status it ends with, if any."""

    name: str
    stage: Stage
    paid: bool
    summary: str
    code: grpc.StatusCode | None = None


def _status_codes() -> list[grpc.StatusCode]:
    return [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK]


def _quote(name: str, summary: str) -> Fault:
    return Fault(name, Stage.QUOTE, False, summary)


def _unpaid(name: str, summary: str) -> Fault:
    return Fault(name, Stage.EXECUTE, False, summary)


def _paid(name: str, summary: str) -> Fault:
    return Fault(name, Stage.EXECUTE, True, summary)


_ALL: Final = (
    _quote("quote-refused", "RESOURCE_EXHAUSTED lcp_error code=7 instead of a quote"),
    _quote("quote-slow", "no quote before the caller's deadline"),
    _quote("manifest-not-exchanged", "FAILED_PRECONDITION lcp_error code=10 the first few times, then a quote"),
    _quote("expensive", "a price far above what such a task costs"),
    _quote("expired", "a quote that has already expired"),
    _quote("wrong-price", "an invoice for another amount than the terms"),
    _quote("wrong-payee", "an invoice signed by another key"),
    _quote("wrong-description-hash", "an invoice whose description hash is not the terms hash"),
    _quote("wrong-terms-hash", "terms and invoice agree on a hash that the terms do not have"),
    _quote("wrong-network", "an invoice for mainnet"),
    _quote("wrong-invoice-expiry", "an invoice that outlives the quote by an hour"),
    _quote("expired-invoice", "an invoice that has already expired, in a quote that has not"),
    _quote("bad-signature", "an invoice whose signature reveals no key"),
    _quote("garbage-invoice", "text that is no invoice"),
    _quote("short-job-id", "a job id of 16 bytes"),
    *(
        Fault(f"quote-code-{code.name.lower()}", Stage.QUOTE, False, f"{code.name} instead of a quote", code)
        for code in _status_codes()
    ),
    _unpaid("no-route", "FAILED_PRECONDITION payment failed: FAILURE_REASON_NO_ROUTE"),
    _paid("already-paid", "UNAVAILABLE, because the invoice was paid before"),
    _paid("fail-after-payment", "RESOURCE_EXHAUSTED lcp_error code=7 once it is paid"),
    _paid("execute-hangs", "nothing once it is paid, until the caller's deadline"),
    _paid("wrong-hash", "a result hash that the bytes do not have"),
    _paid("wrong-length", "a result length that the bytes do not have"),
    _paid("result-failed", "a result with status FAILED"),
    _paid("result-cancelled", "a result with status CANCELLED"),
    _paid("no-result", "an answer without a result; a stream without a terminal message"),
    _paid("stream-cut", "UNAVAILABLE after a few chunks"),
    _paid("stream-cut-silently", "a stream that ends OK after a few chunks, without end or result"),
    _paid("stream-stalls", "a few chunks, then nothing until the caller's deadline"),
    _paid("stream-floods", "chunks without a pause, far past every limit"),
    _paid("stream-slow", "long pauses between chunks"),
    _paid("stream-split-utf8", "chunks that break inside characters"),
    _paid("stream-binary", "bytes that are no text at all"),
    _paid("big-result", "a result as large as the limit allows"),
    _paid("empty-chunks", "empty chunks between the others"),
    _paid("odd-content-type", "a content type that the request did not ask for"),
    _paid("gzip-encoding", "a result that is gzipped, and says so"),
    *(
        Fault(f"execute-code-{code.name.lower()}", Stage.EXECUTE, True, f"{code.name} once it is paid", code)
        for code in _status_codes()
    ),
)
FAULTS: Final = {fault.name: fault for fault in _ALL}
"""Every fault by name, quote side first. Its ``paid`` column is the truth table of payments: quotes cost nothing, and of the faults at
execution only no-route comes before the payment."""


class FaultScript:
    """Selects the fault of a call: the next one queued for its stage, else the one set for its model."""

    def __init__(self, *, by_model_name: bool) -> None:
        self._by_model_name = by_model_name
        self._queued: dict[Stage, deque[Fault | None]] = {stage: deque() for stage in Stage}
        self._for_model: dict[tuple[Stage, str], Fault] = {}

    def queue(self, *faults: str) -> None:
        """Make the next calls fail, one fault a call at the stage it belongs to.

        Raises:
            KeyError: there is no such fault.
        """
        for name in faults:
            fault = FAULTS[name]
            self._queued[fault.stage].append(fault)

    def queue_none(self, stage: Stage) -> None:
        """Let the next call of a stage succeed, between others that fail."""
        self._queued[stage].append(None)

    def set_for_model(self, model: str, name: str) -> None:
        """Make every call for a model fail, until ``clear``.

        Raises:
            KeyError: there is no such fault.
        """
        fault = FAULTS[name]
        self._for_model[fault.stage, model] = fault

    def clear(self) -> None:
        """Drop all faults that were scripted in process."""
        self._for_model.clear()
        for queue in self._queued.values():
            queue.clear()

    def next(self, stage: Stage, model: str) -> Fault | None:
        """Return the fault of this call, if any."""
        if queue := self._queued[stage]:
            return queue.popleft()
        if (fault := self._for_model.get((stage, model))) is not None:
            return fault
        if self._by_model_name and model.startswith(MODEL_PREFIX):
            fault = FAULTS.get(model.removeprefix(MODEL_PREFIX))
            return fault if fault is not None and fault.stage is stage else None
        return None


_GZIP_WINDOW = 31
_FIRST_LEAD_BYTE = 0xC0
_BINARY_CHUNKS = 16
_ODD_TYPE = 'application/x-odd; charset=koi8-r; q="a,b"'
_COMMENT = ": é € 😀\n\n".encode()

_Chunks = AsyncGenerator[bytes, None]
_ChunkFilter = Callable[[_Chunks], _Chunks]


async def wait_forever() -> NoReturn:
    """Wait until the call is cancelled."""
    while True:
        await asyncio.Event().wait()


class FaultInjector:
    """Changes results as a fault says: what a seller computes, and what a daemon delivers of it."""

    def __init__(self, config: FaultConfig) -> None:
        self._config = config
        self._computed: dict[str, _ChunkFilter] = {
            "stream-slow": self._slow,
            "stream-split-utf8": _split_characters,
            "stream-binary": _binary,
            "big-result": lambda chunks: self._enlarge(chunks, _white_space),
        }
        self._delivered: dict[str, _ChunkFilter] = {
            "stream-cut": self._cut,
            "stream-cut-silently": self._take,
            "stream-stalls": self._stall,
            "empty-chunks": _interleave_empty,
            "gzip-encoding": _gzip,
        }
        # These add bytes that are valid in a stream of events only.
        self._computed_events: dict[str, _ChunkFilter] = self._computed | {
            "stream-split-utf8": lambda chunks: _split_characters(_prepend(_COMMENT, chunks)),
            "big-result": lambda chunks: self._enlarge(chunks, _comment),
        }
        self._delivered_events: dict[str, _ChunkFilter] = self._delivered | {"stream-floods": self._flood}

    def computed(self, name: str, chunks: _Chunks, *, stream: bool) -> _Chunks:
        """Return what a seller computes with the fault in it; without such a fault, unchanged."""
        change = (self._computed_events if stream else self._computed).get(name)
        return chunks if change is None else change(chunks)

    def delivered(self, name: str, chunks: _Chunks, *, stream: bool) -> _Chunks:
        """Return what a daemon delivers of a result with the fault in it; without such a fault, unchanged."""
        change = (self._delivered_events if stream else self._delivered).get(name)
        return chunks if change is None else change(chunks)

    def head(self, name: str, honest: ResultHead) -> ResultHead:
        """Return a result's head with the fault in it."""
        match name:
            case "odd-content-type":
                return replace(honest, content_type=_ODD_TYPE)
            case "gzip-encoding":
                return replace(honest, content_encoding="gzip")
            case _:
                return honest

    async def _take(self, chunks: _Chunks) -> _Chunks:
        left = self._config.chunks_before_failure
        async for chunk in chunks:
            if left == 0:
                return
            left -= 1
            yield chunk

    async def _cut(self, chunks: _Chunks) -> _Chunks:
        async for chunk in self._take(chunks):
            yield chunk
        raise CallFailed(UpstreamStatus.UNAVAILABLE, "transport is closing")

    async def _stall(self, chunks: _Chunks) -> _Chunks:
        async for chunk in self._take(chunks):
            yield chunk
        await wait_forever()

    async def _flood(self, chunks: _Chunks) -> _Chunks:
        left = self._config.chunks_before_failure
        size = self._config.flood_chunk_bytes
        comment = b": " + b"x" * max(0, size - 4) + b"\n\n"
        async for chunk in chunks:
            if left == 0:
                for _ in range(max(1, self._config.flood_bytes // len(comment))):
                    yield comment
            left -= 1
            yield chunk

    async def _slow(self, chunks: _Chunks) -> _Chunks:
        async for chunk in chunks:
            await asyncio.sleep(self._config.slow_chunk_s)
            yield chunk

    async def _enlarge(self, chunks: _Chunks, filled: Callable[[int], bytes]) -> _Chunks:
        """Put bytes before a result that mean nothing in it, so that it has the size of the largest one."""
        parts = [chunk async for chunk in chunks]
        yield filled(max(0, self._config.big_result_bytes - sum(map(len, parts))))
        for part in parts:
            yield part


def _white_space(size: int) -> bytes:
    return b" " * size


def _comment(size: int) -> bytes:
    return (b": " + b"x" * (size - 4) + b"\n\n") if size >= 4 else b""  # noqa: PLR2004 - its frame


async def _prepend(head: bytes, chunks: _Chunks) -> _Chunks:
    yield head
    async for chunk in chunks:
        yield chunk


async def _split_characters(chunks: _Chunks) -> _Chunks:
    async for chunk in chunks:
        start = 0
        for at, byte in enumerate(chunk):
            if byte >= _FIRST_LEAD_BYTE:
                yield chunk[start : at + 1]
                start = at + 1
        yield chunk[start:]


async def _binary(chunks: _Chunks) -> _Chunks:
    await chunks.aclose()
    block = bytes(range(256))
    for _ in range(_BINARY_CHUNKS):
        yield block
        block = b"".join(sha256(block + bytes((at,))).digest() for at in range(8))


async def _interleave_empty(chunks: _Chunks) -> _Chunks:
    yield b""
    async for chunk in chunks:
        yield chunk
        yield b""


async def _gzip(chunks: _Chunks) -> _Chunks:
    deflate = zlib.compressobj(wbits=_GZIP_WINDOW)
    async for chunk in chunks:
        yield deflate.compress(chunk) + deflate.flush(zlib.Z_SYNC_FLUSH)
    yield deflate.flush()
