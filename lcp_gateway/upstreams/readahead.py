"""Reads a result stream ahead of its consumer within a bound, so that chunks already there are handed on as one."""

import asyncio
from collections import deque
from typing import Protocol

import grpc.aio

from lcp_gateway._gen.lcpd import lcpd_pb2

StreamMessage = lcpd_pb2.AcceptAndExecuteStreamResponse


class StreamCall(Protocol):
    """The part of grpc.aio's unary-stream call that is read."""

    async def read(self) -> object:
        """Give the next message, or grpc.aio.EOF; raises AioRpcError when the call ended badly."""
        ...


class ReadAhead:
    """Takes messages off a call in a task of its own; gives joined chunks and other messages in order.

    While ``limit_bytes`` of chunks wait, it stops reading: HTTP/2 flow control then stops the daemon.
    """

    def __init__(self, call: StreamCall, limit_bytes: int) -> None:
        self._call = call
        self._limit_bytes = limit_bytes
        self._waiting: deque[bytes | StreamMessage] = deque()
        self._waiting_bytes = 0
        self._consumer: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None
        self._error: BaseException | None = None
        self._ended = False
        self._task = asyncio.create_task(self._pump())

    async def next(self) -> bytes | StreamMessage | None:
        """Give all chunks that are there as one, or the next other message, or None at the end.

        Raises:
            grpc.aio.AioRpcError: the call ended badly; everything that came before it has been given.
        """
        waiting = self._waiting
        while not waiting:
            if self._error is not None:
                raise self._error
            if self._ended:
                return None
            self._consumer = asyncio.get_running_loop().create_future()
            await self._consumer
        first = waiting.popleft()
        if not isinstance(first, bytes):
            return first
        if not waiting or not isinstance(waiting[0], bytes):
            self._take(len(first))
            return first
        joined = [first]
        while waiting and isinstance(chunk := waiting[0], bytes):
            joined.append(chunk)
            waiting.popleft()
        block = b"".join(joined)
        self._take(len(block))
        return block

    async def close(self) -> None:
        """Stop reading. The call itself is its owner's to cancel."""
        self._task.cancel()
        await asyncio.wait([self._task])

    def _take(self, byte_count: int) -> None:
        self._waiting_bytes -= byte_count
        if self._room is not None and self._waiting_bytes < self._limit_bytes:
            _wake(self._room)
            self._room = None

    async def _pump(self) -> None:
        try:
            while (message := await self._call.read()) is not grpc.aio.EOF:
                assert isinstance(message, StreamMessage)  # noqa: S101 - narrows what grpc leaves untyped
                if message.HasField("result_chunk"):
                    data = message.result_chunk.data
                    self._waiting.append(data)
                    self._waiting_bytes += len(data)
                else:
                    self._waiting.append(message)
                self._notify()
                if self._waiting_bytes >= self._limit_bytes:
                    self._room = asyncio.get_running_loop().create_future()
                    await self._room
            self._ended = True
        except grpc.aio.AioRpcError as error:
            self._error = error
        finally:
            self._ended = True
            self._notify()

    def _notify(self) -> None:
        if self._consumer is not None:
            _wake(self._consumer)
            self._consumer = None


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
