"""One request at a node that dialled in: the bytes of its result as they come, and the credit for more."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

from lcp_gateway.node_protocol.messages import End, Head
from lcp_gateway.purchase.errors import UpstreamError
from lcp_gateway.purchase.states import Verdict
from lcp_gateway.upstream_status import UpstreamStatus

_LATE: Final = "the node did not answer in time"


class RemoteRequest:
    """A request at a node. Its result comes in order: the head, bytes, the end; an error may take the place of any.

    The node may be ``window_bytes`` ahead of the reader. ``grant`` allows it more bytes.
    """

    __slots__ = (
        "_chunks",
        "_error",
        "_grant",
        "_is_begun",
        "_taken",
        "_timer",
        "_waiter",
        "_window_bytes",
        "end",
        "head",
        "request_id",
    )

    def __init__(self, request_id: int, window_bytes: int, grant: Callable[[int, int], None]) -> None:
        self.request_id = request_id
        self.head: Head | None = None
        self.end: End | None = None
        self._chunks: deque[bytes] = deque()
        self._error: UpstreamError | None = None
        self._grant = grant
        self._taken = 0
        self._is_begun = False
        self._window_bytes = window_bytes
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come."""
        return self.end is not None or self._error is not None

    # -- from the connection ------------------------------------------------------------------------

    def on_head(self, head: Head) -> None:
        """The head came."""
        self.head = head
        self._wake()

    def on_body(self, data: bytes) -> None:
        """Bytes came."""
        self._chunks.append(data)
        if self._waiter is not None:
            self._wake()

    def on_end(self, end: End) -> None:
        """The whole result came, as the node says."""
        self.end = end
        self._over()

    def on_failure(self, error: UpstreamError) -> None:
        """Nothing more will come; the bytes that are here already can still be read."""
        if not self.is_over:
            self._error = error
            self._over()

    # -- from the reader ----------------------------------------------------------------------------

    def fail_after(self, timeout_s: float) -> None:
        """End with an error unless the whole result comes in this time."""
        self._timer = asyncio.get_running_loop().call_later(timeout_s, self._late)

    async def wait_head(self) -> Head:
        """Wait for the head.

        Raises:
            UpstreamError: an error came instead.
        """
        while self.head is None:
            if self._error is not None:
                raise self._error
            await self._changed()
        return self.head

    async def chunk(self) -> bytes:
        """Wait for the next bytes, and return all that are there; empty at the end.

        Raises:
            UpstreamError: the result broke off.
        """
        while not self._chunks:
            if self._error is not None:
                raise self._error
            if self.end is not None:
                return b""
            await self._changed()
        if len(self._chunks) == 1:
            data = self._chunks.popleft()
        else:
            data = b"".join(self._chunks)
            self._chunks.clear()
        self._is_begun = True
        self._taken += len(data)
        # Half a window at a time: a frame of credit for each chunk would cost as much as the chunk.
        if 2 * self._taken >= self._window_bytes and self.end is None:
            self._grant(self.request_id, self._taken)
            self._taken = 0
        return data

    def close(self) -> None:
        """Stop waiting."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        # Before the first byte nothing is settled, and another provider may be asked.
        status = UpstreamStatus.DEADLINE_EXCEEDED if self._is_begun else UpstreamStatus.UNAVAILABLE
        self.on_failure(UpstreamError(status, _LATE, retryable=True, evidence=Verdict.NONE))

    def _over(self) -> None:
        self.close()
        self._wake()

    def _changed(self) -> "asyncio.Future[None]":
        self._waiter = asyncio.get_running_loop().create_future()
        return self._waiter

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


def lost_connection(message: str = "the connection to the node was lost") -> UpstreamError:
    """Return the error of a node that is gone: it was not paid, so another may be asked."""
    return UpstreamError(UpstreamStatus.UNAVAILABLE, message, retryable=True, evidence=Verdict.NONE)
