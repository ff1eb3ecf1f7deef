"""What comes of an order, as it comes and for a while after, so that who asks again gets it instead of paying again."""

import asyncio
import sys
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

from lcp_gateway.purchase.journal import RepeatIdentity
from lcp_gateway.purchase.order import Order
from lcp_gateway.purchase.purchase import Purchase
from lcp_gateway.purchase.states import Verdict


@dataclass(frozen=True, slots=True)
class ResultHead:
    """What is known of a result before its bytes."""

    content_type: str
    content_encoding: str


@dataclass(frozen=True, slots=True)
class BufferLimits:
    """How much of an answer is held: so far the producer may be ahead of the slowest reader, so much is kept whole."""

    window_bytes: int = 262_144
    whole_bytes: int = 8 * 1024 * 1024


# After its first block a reader lets the event loop go round so often before it takes what is there: chunks that have
# arrived already are then handed on together. No time is waited for.
_ROUNDS = 4
# While more came during these, it goes on up to so many times.
_MOST_TIMES = 3


class BufferPool:
    """Counts the bytes that all answers hold together, and has room made when they are more than ``limit_bytes``."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0
        self.make_room: Callable[[], None] = lambda: None

    def take(self, byte_count: int) -> bool:
        """Count bytes in; tells whether there is room for them."""
        self.held_bytes += byte_count
        if self.held_bytes > self.limit_bytes:
            self.make_room()
        return self.held_bytes <= self.limit_bytes

    def give_back(self, byte_count: int) -> None:
        """Count bytes out."""
        self.held_bytes -= byte_count


class ResultGone(Exception):
    """The answer was bought, and its bytes are no longer held."""


class ResultBuffer:
    """One order's answer: written by the one task that buys it, read by any number of requests from its beginning.

    ``quote_s`` and ``execute_s`` say how long its quote and the call that pays took, ``first_byte_s`` how long it was from
    that call to a stream's first byte, and ``waited_s`` how much of it went by for readers that were behind, to which adds
    what goes by since ``waits_since``. ``outlives_requests`` says that its last listener has left. ``kept_for`` is whoever
    wants it also while nobody reads it, ``given_id`` the id by which a result goes that has none,
    ``repeat`` what the journal recognises a repeat of its request by. Memory is bounded: past
    ``whole_bytes`` what all readers have taken is let go, and from then on nobody new can join.
    """

    def __init__(self, order: Order, bounds: BufferLimits, pool: BufferPool) -> None:
        self.order = order
        self.purchase: Purchase | None = None
        self.head: ResultHead | None = None
        self.error: Exception | None = None
        self.ended = False
        self.size = 0
        self.listeners = 0
        self.outlives_requests = False
        self.kept_for: object | None = None
        self.repeat: RepeatIdentity | None = None
        self.given_id = ""
        self.quote_s: float | None = None
        self.execute_s: float | None = None
        self.first_byte_s: float | None = None
        self.waited_s = 0.0
        self.waits_since: float | None = None
        self._bounds = bounds
        self._pool = pool
        self._blocks: list[bytes] = []
        self._held: list[bytes] = []
        self._free_bytes = 0
        self._let_go = 0
        self._whole = True
        self._readers: dict[object, int] = {}
        self._taken: dict[object, int] = {}
        self._waiting: list[asyncio.Future[None]] = []
        self._producer: asyncio.Future[None] | None = None
        self._on_end: list[Callable[[ResultBuffer], None]] = []

    @property
    def verdict(self) -> Verdict:
        """What can be said of the money now."""
        return Verdict.NONE if self.purchase is None else self.purchase.verdict

    @property
    def kept(self) -> bool:
        """Tell whether it is wanted also while nobody reads it."""
        return self.kept_for is not None

    @property
    def readable(self) -> bool:
        """Tell whether somebody new can still read it from its beginning."""
        return self._whole

    def blocks(self) -> tuple[bytes, ...]:
        """Give what has come so far, without copying it.

        Raises:
            AnswerGone: the beginning is no longer held.
        """
        if not self._whole:
            raise ResultGone
        return tuple(self._blocks)

    def when_ended(self, hear: "Callable[[ResultBuffer], None]") -> None:
        """Have somebody told of the end, whatever it is; at once if it has been.

        What they raise is reported to the event loop and changes nothing: what was bought stays bought.
        """
        if self.ended:
            self._tell(hear)
        else:
            self._on_end.append(hear)

    # The producer's side.

    def begin(self, head: ResultHead) -> None:
        """Make the head known."""
        self.head = head
        self._wake_readers()

    def append(self, block: bytes, free_bytes: int = sys.maxsize) -> None:
        """Add bytes. Of all that has been added readers get the first ``free_bytes`` now, the others with a good end."""
        self.size += len(block)
        if self._held or free_bytes < self.size:
            self._hold(block, free_bytes - self._free_bytes)
        else:
            self._blocks.append(block)
            self._free_bytes = self.size
        fits = self._pool.take(len(block))
        # What is kept for somebody who comes later is not let go for want of room: it may be paid for already.
        if not (fits or self.kept) or self.size > self._bounds.whole_bytes:
            self._whole = False
            self._trim()
        if self._waiting:
            self._wake_readers()

    @property
    def is_ahead(self) -> bool:
        """Tell whether the producer must wait for its readers. Nobody reading counts as everything taken."""
        if not self._taken:
            return False
        return self._free_bytes - min(self._taken.values()) >= self._bounds.window_bytes

    async def room(self) -> None:
        """Wait until the slowest reader has taken enough."""
        while self.is_ahead:
            self._producer = asyncio.get_running_loop().create_future()
            await self._producer

    def end(self) -> None:
        """Say that the whole result has come. What it was asked with is not needed any more."""
        self._blocks += self._held
        self._held, self._free_bytes = [], self.size
        self._end()

    def _end(self) -> None:
        self.ended = True
        order, purchase = self.order, self.purchase
        self.order = order.without_body()
        if purchase is not None:
            # Nearly always the same one: it is another where the gateway had to adapt the task.
            is_same = purchase.order is order
            purchase.order = self.order if is_same else purchase.order.without_body()
        heard, self._on_end = self._on_end, []
        for hear in heard:
            self._tell(hear)
        self._wake_readers()

    def fail(self, error: Exception) -> None:
        """Say that nothing more will come, and why. What waited for a good end is dropped."""
        self.error = error
        held_bytes = self.size - self._free_bytes
        self._pool.give_back(held_bytes)
        self.size -= held_bytes
        self._held = []
        self._end()

    def forget(self) -> None:
        """Let the bytes go; those who wait or read get what they have not taken."""
        self._whole = False
        self._trim()

    # The readers' side.

    async def wait_head(self) -> ResultHead:
        """Wait for the head, or for the error that came instead.

        Raises:
            Exception: what kept the order from its end before there was a head.
        """
        while self.head is None:
            if self.error is not None:
                raise self.error
            await self._change()
        return self.head

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Give all bytes from the first on, those that are there as one block.

        Raises:
            AnswerGone: the beginning is no longer held.
            Exception: what cut the answer short, after everything that came before it.
        """
        if self._let_go:
            raise ResultGone
        me = object()
        self._readers[me], self._taken[me] = 0, 0
        try:
            while True:
                position = self._readers[me] - self._let_go
                waiting = self._blocks[position:]
                if waiting and self._readers[me] and not self.ended:
                    await self._gather()
                    waiting = self._blocks[self._readers[me] - self._let_go :]
                if waiting:
                    block = waiting[0] if len(waiting) == 1 else b"".join(waiting)
                    self._readers[me] += len(waiting)
                    yield block
                    # Taken only now that the consumer asks for more: what it still writes counts as not taken.
                    self._taken[me] += len(block)
                    self._took()
                elif not self.ended:
                    await self._change()
                elif self.error is not None:
                    raise self.error
                else:
                    return
        finally:
            del self._readers[me], self._taken[me]
            self._took()

    async def _gather(self) -> None:
        """Let what has arrived at the upstream come in, for as long as something does, within bounds."""
        for _ in range(_MOST_TIMES):
            before = self._let_go + len(self._blocks)
            for _ in range(_ROUNDS):
                await asyncio.sleep(0)
            if self.ended or self._let_go + len(self._blocks) == before:
                return

    def _hold(self, block: bytes, free_bytes: int) -> None:
        """Hold a block back, and let the first ``free_bytes`` of all that is held go."""
        self._held.append(block)
        if free_bytes > 0:
            data = b"".join(self._held)
            self._blocks.append(data[:free_bytes])
            self._held = [data[free_bytes:]] if free_bytes < len(data) else []
            self._free_bytes = min(self._free_bytes + free_bytes, self.size)

    def _took(self) -> None:
        if not self._whole:
            self._trim()
        if self._producer is not None and not self.is_ahead:
            _wake(self._producer)
            self._producer = None

    def _trim(self) -> None:
        if self.listeners > len(self._readers):
            # Somebody waits who has not begun to read: the beginning is theirs too.
            return
        read = min(self._readers.values(), default=self._let_go + len(self._blocks))
        gone = read - self._let_go
        if gone > 0:
            gone_bytes = sum(len(block) for block in self._blocks[:gone])
            self._pool.give_back(gone_bytes)
            del self._blocks[:gone]
            self._let_go = read

    def _tell(self, hear: "Callable[[ResultBuffer], None]") -> None:
        try:
            hear(self)
        except Exception as error:  # noqa: BLE001 - whatever it is, a paid answer must not become a failure by it
            context = {"message": "a listener failed at an answer's end", "exception": error}
            asyncio.get_running_loop().call_exception_handler(context)

    async def _change(self) -> None:
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        await future

    def _wake_readers(self) -> None:
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            for future in waiting:
                _wake(future)


def _wake(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
