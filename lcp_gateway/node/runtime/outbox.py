"""Messages that wait to be sent to one peer: each job has a lane of its own, and the lanes take turns.

So a request of a mebibyte delays a short one by a message at most, and only the job whose lane is full has to wait.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from lcp_gateway.node.lcp.effects import Send

_PAUSE_AFTER: Final = 8
"""How many messages are sent before other tasks get their turn, where sending itself waits for nothing."""

LINK: Final = b""
"""The lane of manifests. It goes before all others."""


class _Lane:
    __slots__ = ("drained", "messages", "waiting_bytes")

    def __init__(self) -> None:
        self.messages: deque[Send] = deque()
        self.waiting_bytes = 0
        # Made by the first task that waits: most lanes hold one message for one turn of the loop.
        self.drained: asyncio.Event | None = None

    def tell(self) -> None:
        """Wake the tasks that wait for room."""
        if self.drained is not None:
            self.drained.set()


class Outbox:
    """The messages for one peer, in lanes by job id. A lane that is empty takes no memory."""

    def __init__(self) -> None:
        self.messages = 0
        """How many messages wait."""
        self._lanes: dict[bytes, _Lane] = {}
        self._turns: deque[bytes] = deque()
        self._filled = asyncio.Event()

    def put(self, lane_id: bytes, messages: Iterable[Send]) -> None:
        """Append messages to a lane."""
        messages = list(messages)
        if not messages:
            return
        lane = self._lanes.get(lane_id)
        if lane is None:
            lane = self._lanes[lane_id] = _Lane()
            self._queue(lane_id)
        for message in messages:
            lane.messages.append(message)
            self.messages += 1
            lane.waiting_bytes += len(message.payload)
        self._filled.set()

    @property
    def waiting(self) -> tuple[int, int]:
        """How many messages wait, and how many bytes they have."""
        return self.messages, sum(lane.waiting_bytes for lane in self._lanes.values())

    def waiting_bytes(self, lane_id: bytes) -> int:
        """Return how many bytes of a lane wait."""
        lane = self._lanes.get(lane_id)
        return lane.waiting_bytes if lane else 0

    async def until_below(self, lane_id: bytes, waiting_bytes: int) -> None:
        """Return once at most that many bytes of a lane wait, or the lane was dropped."""
        while (lane := self._lanes.get(lane_id)) is not None and lane.waiting_bytes > waiting_bytes:
            if lane.drained is None:
                lane.drained = asyncio.Event()
            lane.drained.clear()
            await lane.drained.wait()

    def drop(self, lane_id: bytes) -> None:
        """Drop the messages of a lane."""
        lane = self._lanes.pop(lane_id, None)
        if lane is not None:
            self._turns.remove(lane_id)
            self.messages -= len(lane.messages)
            lane.tell()

    def clear(self) -> set[bytes]:
        """Drop all messages, and return the lanes that had any."""
        had = set(self._lanes)
        for lane_id in had:
            self.drop(lane_id)
        return had

    async def run(self, send: Callable[[bytes, Send], Awaitable[bool]]) -> None:
        """Send messages one after the other, as long as the node runs.

        ``send`` returns False where the message was not taken and may be tried again: it stays the first of its lane.
        """
        count = 0
        while True:
            count += 1
            if count % _PAUSE_AFTER == 0:
                await asyncio.sleep(0)
            while not self._turns:
                self._filled.clear()
                await self._filled.wait()
            lane_id = self._turns[0]
            lane = self._lanes[lane_id]
            message = lane.messages[0]
            if await send(lane_id, message) and self._lanes.get(lane_id) is lane:
                self._sent(lane_id, lane)

    def _sent(self, lane_id: bytes, lane: _Lane) -> None:
        lane.waiting_bytes -= len(lane.messages.popleft().payload)
        self.messages -= 1
        lane.tell()
        self._turns.remove(lane_id)
        if lane.messages:
            self._queue(lane_id)
        else:
            del self._lanes[lane_id]

    def _queue(self, lane_id: bytes) -> None:
        if lane_id == LINK:
            self._turns.appendleft(lane_id)
        else:
            self._turns.append(lane_id)
