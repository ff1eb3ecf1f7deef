"""A bound on bytes that are held at once; later comers wait in their order."""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator


class ByteGate:
    """Lets as many bytes in as there is room for. One that needs more than all of the room waits until it is alone."""

    def __init__(self, room_bytes: int) -> None:
        self._room_bytes = room_bytes
        self._taken_bytes = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @contextlib.asynccontextmanager
    async def taken(self, size_bytes: int) -> AsyncIterator[None]:
        """Hold room for the block. Zero bytes never wait."""
        if size_bytes and (self._waiting or not self._fits(size_bytes)):
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((size_bytes, turn))
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._release(size_bytes)
                else:
                    self._waiting.remove((size_bytes, turn))
                    self._admit()
                raise
        else:
            self._taken_bytes += size_bytes
        try:
            yield
        finally:
            self._release(size_bytes)

    def _fits(self, size_bytes: int) -> bool:
        return not self._taken_bytes or self._taken_bytes + size_bytes <= self._room_bytes

    def _release(self, size_bytes: int) -> None:
        self._taken_bytes -= size_bytes
        self._admit()

    def _admit(self) -> None:
        while self._waiting and self._fits(self._waiting[0][0]):
            size_bytes, turn = self._waiting.popleft()
            self._taken_bytes += size_bytes
            turn.set_result(None)
