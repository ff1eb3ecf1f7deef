"""The buffer of one order's result: filled as the result comes, read by any number of requests, held for a while after."""

import asyncio
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass

from lcp_gateway.purchase.journal import RepeatIdentity
from lcp_gateway.purchase.order import Order
from lcp_gateway.purchase.ports import ChunkSink
from lcp_gateway.purchase.purchase import Purchase
from lcp_gateway.purchase.states import Verdict
from lcp_gateway.values import value


@value
class ResultHead:
    """The facts of a result that are known before its bytes."""

    content_type: str
    content_encoding: str


@dataclass(frozen=True, slots=True)
class BufferLimits:
    """How far the producer may be ahead of the slowest reader, and up to which size a result is held whole."""

    window_bytes: int = 262_144
    whole_bytes: int = 8 * 1024 * 1024


class BufferPool:
    """Counts the bytes that all buffers hold together; ``make_room`` is called when they exceed ``limit_bytes``."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0
        self.make_room: Callable[[], None] = lambda: None

    def take(self, byte_count: int) -> bool:
        """Count bytes in; return whether there is room for them."""
        self.held_bytes += byte_count
        if self.held_bytes > self.limit_bytes:
            self.make_room()
        return self.held_bytes <= self.limit_bytes

    def give_back(self, byte_count: int) -> None:
        """Count bytes out."""
        self.held_bytes -= byte_count


class ResultGone(Exception):
    """The result was bought, and its bytes are no longer held."""


@dataclass(slots=True, eq=False)
class _Reader:
    """How far one reader has come: the blocks that it got, and the bytes that it took; ``waiter`` while it has all."""

    take: ChunkSink | None
    blocks: int = 0
    taken_bytes: int = 0
    waiter: "asyncio.Future[None] | None" = None

    def takes(self, block: bytes) -> bool:
        """Return whether it takes the next block at once, because it waits for just that."""
        waiter = self.waiter
        if waiter is None or waiter.done() or self.take is None or not self.take(block):
            return False
        self.blocks += 1
        self.taken_bytes += len(block)
        return True

    def wake(self) -> None:
        if self.waiter is not None:
            _wake(self.waiter)


class ResultBuffer:
    """One order's result: written by the one task that buys it, read by any number of requests from its beginning.

    Memory is bounded: past ``whole_bytes`` the bytes that all readers have taken are released, and from then on no new
    reader can join.

    ``quote_s`` and ``execute_s`` are how long the quote and the call that pays took, ``executing_since`` when that call
    began, ``first_byte_s`` the time from then to a stream's first byte; ``waited_s`` is the part that went by for readers
    that were behind, to which adds what goes by since ``waits_since``. ``outlives_requests``: its last listener has left.
    ``retained_for`` is a party that wants the result also while no request reads it (a response in the background).
    ``before_end`` is awaited once all bytes have come and before readers get the end; ``is_complete`` from then on. ``is_copy``: it
    was bought by another process, and copied here.
    ``given_id`` is the id of a result that has none of its own, ``repeat`` what the journal recognises a repeat by,
    ``trace_origin`` the place of its first request in the traces.
    """

    def __init__(self, order: Order, limits: BufferLimits, pool: BufferPool) -> None:
        self.order = order
        self.purchase: Purchase | None = None
        self.head: ResultHead | None = None
        self.error: Exception | None = None
        self.ended = False
        self.is_complete = False
        self.is_copy = False
        self.before_end: Callable[[ResultBuffer], Awaitable[None]] | None = None
        self.size = 0
        self.listeners = 0
        self.outlives_requests = False
        self.retained_for: object | None = None
        self.repeat: RepeatIdentity | None = None
        self.trace_origin: object | None = None
        self.given_id = ""
        self.quote_s: float | None = None
        self.executing_since = 0.0
        self.execute_s: float | None = None
        self.first_byte_s: float | None = None
        self.waited_s = 0.0
        self.waits_since: float | None = None
        self._limits = limits
        self._pool = pool
        self._blocks: list[bytes] = []
        self._held_back: list[bytes] = []
        self._free_bytes = 0
        self._released_blocks = 0
        self.readable = True
        """Whether a new reader can still read it from its beginning."""
        self._readers: list[_Reader] = []
        self._waiting: list[asyncio.Future[None]] = []
        self._producer: asyncio.Future[None] | None = None
        self._on_end: list[Callable[[ResultBuffer], None]] = []

    @property
    def verdict(self) -> Verdict:
        """The present verdict on the payment."""
        return Verdict.NONE if self.purchase is None else self.purchase.verdict

    @property
    def is_retained(self) -> bool:
        """Whether the result is wanted also while no request reads it."""
        return self.retained_for is not None

    def has_waiting_client(self) -> bool:
        """Return whether a request waits for the result, and nothing else wants it."""
        return self.listeners > 0 and not self.is_retained

    def blocks(self) -> tuple[bytes, ...]:
        """Return the bytes that have come so far, without copying them.

        Raises:
            ResultGone: the beginning is no longer held.
        """
        if not self.readable:
            raise ResultGone
        return tuple(self._blocks)

    def all_blocks(self) -> tuple[bytes, ...]:
        """Return the same with those that are held back for a good end.

        Raises:
            ResultGone: the beginning is no longer held.
        """
        return (*self.blocks(), *self._held_back)

    def when_ended(self, listener: "Callable[[ResultBuffer], None]") -> None:
        """Call ``listener`` at the end, good or bad; at once if it has ended.

        Its exceptions are reported to the event loop and change nothing: the result stays bought.
        """
        if self.ended:
            self._tell(listener)
        else:
            self._on_end.append(listener)

    # -- the producer's side ------------------------------------------------------------------------

    def begin(self, head: ResultHead) -> None:
        """Make the head known."""
        self.head = head
        self._wake_all()

    def append(self, block: bytes, free_bytes: int = sys.maxsize) -> None:
        """Add bytes. Of all that were added readers get the first ``free_bytes`` now, the others with a good end."""
        self.size += len(block)
        is_free = not self._held_back and free_bytes >= self.size
        if is_free:
            self._blocks.append(block)
            self._free_bytes = self.size
        else:
            self._hold_back(block, free_bytes - self._free_bytes)
        fits = self._pool.take(len(block))
        # Bytes retained for a later reader are not released to make room: they may be paid for already.
        if not (fits or self.is_retained) or self.size > self._limits.whole_bytes:
            self.readable = False
        for reader in self._readers:
            if not (is_free and reader.takes(block)):
                reader.wake()
        if not self.readable:
            self._trim()

    def can_take(self) -> bool:
        """Return whether ``append`` is all that the producer has to do for a block now."""
        readers = self._readers
        if len(readers) == 1:
            # Nearly always: it is asked for every block.
            is_ahead = self._free_bytes - readers[0].taken_bytes >= self._limits.window_bytes
        else:
            is_ahead = self.is_ahead
        return self.listeners > 0 and not is_ahead

    @property
    def is_ahead(self) -> bool:
        """Whether the producer must wait for its readers. Without a reader everything counts as taken."""
        least_bytes = self._free_bytes - self._limits.window_bytes
        return any(reader.taken_bytes <= least_bytes for reader in self._readers)

    async def room(self) -> None:
        """Wait until the slowest reader has taken enough."""
        while self.is_ahead:
            self._producer = asyncio.get_running_loop().create_future()
            await self._producer

    async def prepare_end(self) -> None:
        """Do what has to be done before readers get the end; its errors are reported and change nothing."""
        self.is_complete = True
        if self.before_end is None:
            return
        try:
            await self.before_end(self)
        except Exception as error:  # noqa: BLE001 - no error of a listener may turn a paid result into a failure
            context = {"message": "what comes before a result's end failed", "exception": error}
            asyncio.get_running_loop().call_exception_handler(context)

    def end(self) -> None:
        """Record that the whole result has come. The request's body is not needed any more."""
        self._blocks += self._held_back
        self._held_back, self._free_bytes = [], self.size
        self._end()

    def fail(self, error: Exception) -> None:
        """Record that nothing more will come, and why. Bytes held back for a good end are dropped."""
        self.error = error
        held_bytes = self.size - self._free_bytes
        self._pool.give_back(held_bytes)
        self.size -= held_bytes
        self._held_back = []
        self._end()

    def release_frames(self) -> None:
        """Drop the tracebacks of its error, once no request has to handle that any more.

        A failed result is remembered for minutes, and the frames in them hold whole requests and their connections.
        """
        error: BaseException | None = self.error
        seen: set[int] = set()
        while error is not None and id(error) not in seen:
            seen.add(id(error))
            error.__traceback__ = None
            error = error.__cause__ or error.__context__

    def forget(self) -> None:
        """Release the bytes; readers, and requests that wait, get those that they have not taken."""
        self.readable = False
        self._trim()

    def _end(self) -> None:
        self.ended = True
        order, purchase = self.order, self.purchase
        self.order = order.without_body()
        if purchase is not None:
            # Nearly always the same one: it is another where the gateway had to adapt the task.
            is_same = purchase.order is order
            purchase.order = self.order if is_same else purchase.order.without_body()
        listeners, self._on_end = self._on_end, []
        for listener in listeners:
            self._tell(listener)
        self._wake_all()

    # -- the readers' side --------------------------------------------------------------------------

    async def wait_head(self) -> ResultHead:
        """Wait for the head, or for the error that came instead.

        Raises:
            Exception: the order failed before there was a head.
        """
        while self.head is None:
            if self.error is not None:
                raise self.error
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(future)
            await future
        return self.head

    async def whole(self) -> bytes:
        """Wait for the end and return all bytes.

        Raises:
            ResultGone: the beginning is no longer held.
            Exception: the result was cut short.
        """
        if self.ended and self.error is None and self.readable:
            return self._blocks[0] if len(self._blocks) == 1 else b"".join(self._blocks)
        return b"".join([block async for block in self.chunks()])

    async def chunks(self, take: ChunkSink | None = None) -> AsyncGenerator[bytes, None]:
        """Yield all bytes from the first on, those that are there as one block.

        A block that comes while this waits for one is offered to ``take`` first, and is not yielded if that takes it.

        Raises:
            ResultGone: the beginning is no longer held.
            Exception: the result was cut short; raised after everything that came before.
        """
        if self._released_blocks:
            raise ResultGone
        me = _Reader(take)
        self._readers.append(me)
        try:
            while True:
                waiting = self._blocks[me.blocks - self._released_blocks :]
                if waiting:
                    block = waiting[0] if len(waiting) == 1 else b"".join(waiting)
                    me.blocks += len(waiting)
                    yield block
                    # Counted as taken only now that the consumer asks for more: bytes that it still writes are not
                    # taken.
                    me.taken_bytes += len(block)
                    self._took()
                elif not self.ended:
                    me.waiter = asyncio.get_running_loop().create_future()
                    try:
                        await me.waiter
                    finally:
                        me.waiter = None
                elif self.error is not None:
                    raise self.error
                else:
                    return
        finally:
            self._readers.remove(me)
            self._took()

    def _hold_back(self, block: bytes, free_bytes: int) -> None:
        """Hold a block back, and free the first ``free_bytes`` of all that is held back."""
        self._held_back.append(block)
        if free_bytes > 0:
            data = b"".join(self._held_back)
            self._blocks.append(data[:free_bytes])
            self._held_back = [data[free_bytes:]] if free_bytes < len(data) else []
            self._free_bytes = min(self._free_bytes + free_bytes, self.size)

    def _took(self) -> None:
        if not self.readable:
            self._trim()
        if self._producer is not None and not self.is_ahead:
            _wake(self._producer)
            self._producer = None

    def _trim(self) -> None:
        if self.listeners > len(self._readers):
            # A request that waits and has not begun to read needs the beginning too.
            return
        read = min((reader.blocks for reader in self._readers), default=self._released_blocks + len(self._blocks))
        gone = read - self._released_blocks
        if gone > 0:
            gone_bytes = sum(len(block) for block in self._blocks[:gone])
            self._pool.give_back(gone_bytes)
            del self._blocks[:gone]
            self._released_blocks = read

    def _tell(self, listener: "Callable[[ResultBuffer], None]") -> None:
        try:
            listener(self)
        except Exception as error:  # noqa: BLE001 - no error of a listener may turn a paid result into a failure
            context = {"message": "a listener failed at a result's end", "exception": error}
            asyncio.get_running_loop().call_exception_handler(context)

    def _wake_all(self) -> None:
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            _wake(future)
        for reader in self._readers:
            reader.wake()


def _wake(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
