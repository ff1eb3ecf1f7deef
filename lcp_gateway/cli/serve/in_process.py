"""The transport to a node in the gateway's own process: the calls of its service, without sockets and without gRPC."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Final

from lcp_gateway.node.rpc.reports import PAYMENT_TRAILER, report_message
from lcp_gateway.node.rpc.service import RpcService
from lcp_gateway.node.runtime.calls import CallFailed
from lcp_gateway.upstream_status import UpstreamStatus
from lcp_gateway.upstreams.lcpd.transport import MessageSink, Metadata, RpcError

_MAX_WAITING: Final = 8
"""Messages of a stream that wait for their reader; the node's job waits while there are that many."""

OnBug = Callable[[str, BaseException], None]
"""Gets the name of a call and the error that it ended in where that is none of the node's own."""


class InProcessTransport:
    """Calls to a node of this process. To the node, a caller that is cancelled or whose time is over is gone."""

    name = "in-process"

    def __init__(self, service: RpcService, *, on_bug: OnBug) -> None:
        self._service = service
        self._on_bug = on_bug
        self._tasks: set[asyncio.Task[bytes]] = set()
        self._streams: set[_Stream] = set()
        self._is_closed = False

    @property
    def connection(self) -> object:
        """The service: it is the same for as long as this process lives."""
        return self._service

    async def connect(self, timeout_s: float) -> object:  # noqa: ARG002 - the protocol's: the node is here at once
        """Return the service."""
        return self._service

    async def unary(
        self,
        path: str,
        request: bytes,
        timeout_s: float,
        metadata: Metadata,
        *,
        on: object | None = None,  # noqa: ARG002 - the protocol's: there is one connection
    ) -> bytes:
        """Make a call with one answer."""
        call = self._service.unary.get(path)
        if self._is_closed or call is None:
            raise _closed() if self._is_closed else _not_served(path)
        # A task of its own: closing the transport ends it without ending its caller.
        task = asyncio.ensure_future(call(request, metadata))
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        try:
            await asyncio.wait([task], timeout=max(timeout_s, 0.0))
        finally:
            is_late = not task.done()
            task.cancel()
        if is_late:
            raise _deadline()
        if task.cancelled():
            raise _closed()
        error = task.exception()
        if error is None:
            return task.result()
        raise _rpc_error(error) if isinstance(error, CallFailed) else _bug(path, error, self._on_bug) from error

    def stream(
        self,
        path: str,
        request: bytes,
        timeout_s: float,
        metadata: Metadata,
        *,
        on: object | None = None,  # noqa: ARG002 - as above
    ) -> "_Stream":
        """Start a call with many messages."""
        call = self._service.streams.get(path)
        stream = _Stream(path, self._on_bug)
        if self._is_closed or call is None:
            stream.end(_closed() if self._is_closed else _not_served(path))
            return stream
        self._streams.add(stream)
        stream.start(call(request, metadata), timeout_s, self._streams.discard)
        return stream

    async def close(self) -> None:
        """End all calls."""
        self._is_closed = True
        running: list[asyncio.Task[bytes] | asyncio.Task[None]] = list(self._tasks)
        for stream in list(self._streams):
            if stream.task is not None:
                running.append(stream.task)
            stream.end(_closed())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def _ended(self, task: asyncio.Task[bytes]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            # Retrieved: its caller may have left.
            task.exception()


class _Stream:
    """A call with many messages: a task takes them from the node, and waits while its reader does not."""

    def __init__(self, path: str, on_bug: OnBug) -> None:
        self._path = path
        self._on_bug = on_bug
        self._messages: list[bytes] = []
        self._sink: MessageSink | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._room = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._is_done = False
        self._error: RpcError | None = None
        self.task: asyncio.Task[None] | None = None

    def start(
        self, messages: AsyncGenerator[bytes, None], timeout_s: float, ended: Callable[["_Stream"], None]
    ) -> None:
        """Take the messages until they end, or the time is over."""
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(max(timeout_s, 0.0), self.end, _deadline())
        self.task = loop.create_task(self._take(messages))
        self.task.add_done_callback(lambda _: ended(self))

    async def read(self) -> list[bytes]:
        """Return the messages that are there, at least one; an empty list after the last.

        Raises:
            RpcError: the call failed.
        """
        while not self._messages:
            if self._is_done:
                if self._error is not None:
                    raise self._error
                return []
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        messages, self._messages = self._messages, []
        self._room.set()
        return messages

    def hand_to(self, sink: MessageSink) -> None:
        """Offer messages to ``sink`` the moment they come, while a reader waits in ``read``."""
        self._sink = sink

    def cancel(self) -> None:
        """End the call, if it has not ended."""
        self.end(RpcError(UpstreamStatus.CANCELLED, "the call was cancelled here"))

    def end(self, error: RpcError | None) -> None:
        """Record the end of the call, by this side or the node."""
        if self._is_done:
            return
        self._is_done, self._error = True, error
        if self._timer is not None:
            self._timer.cancel()
        if self.task is not None and self.task is not asyncio.current_task():
            self.task.cancel()
        self._wake()

    async def _take(self, messages: AsyncGenerator[bytes, None]) -> None:
        error: RpcError | None = None
        try:
            async with aclosing(messages):
                async for message in messages:
                    self._deliver(message)
                    while len(self._messages) >= _MAX_WAITING:
                        self._room.clear()
                        await self._room.wait()
        except CallFailed as failure:
            error = _rpc_error(failure)
        except Exception as bug:  # noqa: BLE001 - recorded, and an error of the call as it would be over gRPC
            error = _bug(self._path, bug, self._on_bug)
        self.end(error)

    def _deliver(self, message: bytes) -> None:
        is_awaited = self._waiter is not None and not self._waiter.done()
        if is_awaited and self._sink is not None and self._sink([message]):
            return
        self._messages.append(message)
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _rpc_error(failure: CallFailed) -> RpcError:
    report = report_message(failure.payment)
    trailers = {} if report is None else {PAYMENT_TRAILER: report.SerializeToString()}
    return RpcError(failure.status, failure.details, trailers=trailers)


def _bug(path: str, error: BaseException, on_bug: OnBug) -> RpcError:
    on_bug(path.rpartition("/")[2], error)
    return RpcError(UpstreamStatus.INTERNAL, "the node failed; its log says how")


def _deadline() -> RpcError:
    return RpcError(UpstreamStatus.DEADLINE_EXCEEDED, "Deadline Exceeded")


def _closed() -> RpcError:
    return RpcError(UpstreamStatus.UNAVAILABLE, "the channel is closed")


def _not_served(path: str) -> RpcError:
    return RpcError(UpstreamStatus.UNIMPLEMENTED, f"{path} is not served")
