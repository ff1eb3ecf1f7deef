"""Carries out the faults of the execute side on an answer that would otherwise be sound."""

import asyncio
import zlib
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from hashlib import sha256
from typing import NoReturn

import grpc

from lcp_gateway._gen.lcpd import lcpd_pb2
from lcp_gateway.node.compute.base import STREAM_TYPE, Answer
from lcp_gateway.node.config import FaultConfig
from lcp_gateway.node.faults import Fault
from lcp_gateway.node.finish import Finish
from lcp_gateway.node.status import CallError, LcpErrorCode, lcp_error

_GZIP_WINDOW = 31
_FIRST_LEAD_BYTE = 0xC0
_BINARY_CHUNKS = 16
_COMMENT = ": é € 😀\n\n".encode()

_Chunks = AsyncGenerator[bytes, None]
_Spoiler = Callable[[_Chunks], _Chunks]


async def wait_forever() -> NoReturn:
    """Answer nothing; only the end of the call ends it."""
    while True:
        await asyncio.Event().wait()


class Saboteur:
    """Spoils answers as a fault says."""

    def __init__(self, config: FaultConfig) -> None:
        self._config = config
        self._any_spoilers: dict[str, _Spoiler] = {
            "stream-cut": self._cut,
            "stream-cut-silently": self._take,
            "stream-stalls": self._stall,
            "stream-slow": self._slow,
            "stream-split-utf8": _split_characters,
            "stream-binary": _binary,
            "empty-chunks": _interleave_empty,
        }
        # These add what only a stream of events may hold.
        self._stream_spoilers: dict[str, _Spoiler] = {
            "stream-floods": self._flood,
            "stream-split-utf8": lambda chunks: _split_characters(_prepend(_COMMENT, chunks)),
        }

    async def strike(self, fault: Fault) -> None:
        """Do what a fault does between the payment and the answer.

        Raises:
            CallError: the fault ends the call.
        """
        if fault.code is not None:
            raise CallError(fault.code, "scripted failure after payment")
        if fault.name == "fail-after-payment":
            raise lcp_error(LcpErrorCode.RATE_LIMITED, "backend unavailable: scripted failure")
        if fault.name == "execute-hangs":
            await wait_forever()

    def spoil(self, fault: Fault, answer: Answer, *, stream: bool) -> Answer:
        """Give an answer with the fault in its head or its chunks; others come back as they are."""
        if fault.name == "odd-content-type":
            return replace(answer, content_type='application/x-odd; charset=koi8-r; q="a,b"')
        if fault.name == "gzip-encoding":
            return replace(answer, content_encoding="gzip", chunks=_gzip(answer.chunks))
        if fault.name == "big-result":
            return replace(answer, chunks=self._enlarge(answer))
        spoilers = {**self._any_spoilers, **(self._stream_spoilers if stream else {})}
        if (spoiler := spoilers.get(fault.name)) is not None:
            return replace(answer, chunks=spoiler(answer.chunks))
        return answer

    def finish(self, fault: Fault, finish: Finish) -> Finish:
        """Give the end of an answer with the fault in it."""
        match fault.name:
            case "wrong-hash":
                return replace(finish, sha256=sha256(finish.sha256).digest())
            case "wrong-length":
                return replace(finish, length=finish.length + 1)
            case "result-failed":
                return replace(
                    finish, status=lcpd_pb2.Result.STATUS_FAILED, message="scripted failure"
                )
            case "result-cancelled":
                return replace(
                    finish, status=lcpd_pb2.Result.STATUS_CANCELLED, message="scripted cancel"
                )
            case "stream-cut-silently":
                return replace(finish, sent=False)
            case _:
                return finish

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
        raise CallError(grpc.StatusCode.UNAVAILABLE, "transport is closing")

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

    async def _enlarge(self, answer: Answer) -> _Chunks:
        """Put white space before a JSON text, or a comment before events: both mean the same as without."""
        parts = [chunk async for chunk in answer.chunks]
        room = max(0, self._config.big_result_bytes - sum(map(len, parts)))
        if answer.content_type == STREAM_TYPE:
            yield (b": " + b"x" * (room - 4) + b"\n\n") if room >= 4 else b""  # noqa: PLR2004 - its frame
        else:
            yield b" " * room
        for part in parts:
            yield part


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
