"""The connection of one node: its requests, its slots, its heartbeat, and the models that it says it has."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, Protocol

import orjson

from lcp_gateway.node_protocol.frames import Dead, Heartbeat, PingCame
from lcp_gateway.node_protocol.gateway_side import (
    BodyCame,
    EndCame,
    Event,
    FailureCame,
    GatewaySide,
    HeadCame,
    ModelsCame,
    Released,
)
from lcp_gateway.node_protocol.messages import (
    Failure,
    Goodbye,
    Hello,
    NodeModel,
    Offered,
    ProtocolError,
    Receipt,
    Request,
    Welcome,
)
from lcp_gateway.purchase.errors import UpstreamError
from lcp_gateway.purchase.states import Verdict
from lcp_gateway.upstream_status import UpstreamStatus
from lcp_gateway.upstreams.dialin.grants import Grant, NodeTerms
from lcp_gateway.upstreams.dialin.requests import RemoteRequest, lost_connection
from lcp_gateway.upstreams.openai.errors import http_error

HELLO_WITHIN_S: Final = 10.0
"""How long a node may take to say hello."""
_CANCELLED_WITHIN_S = 30.0
# More lists than these in a minute are no change of models.
_MOST_LISTS = 60
_LISTS_WITHIN_S = 60.0


class NodeSocket(Protocol):
    """The WebSocket of one node, as the HTTP server has it."""

    async def receive(self) -> bytes | None:
        """Wait for the next frame; None once the connection has ended."""
        ...

    def post(self, frame: bytes) -> None:
        """Send a small frame without waiting; nothing happens on a connection that has ended."""
        ...

    async def send(self, frame: bytes) -> None:
        """Send a frame, and wait while the other side reads too slowly.

        Raises:
            ConnectionError: the connection has ended.
        """
        ...

    @property
    def is_behind(self) -> bool:
        """Whether bytes wait to be sent."""
        ...

    async def close(self) -> None:
        """Close the connection in order, within a few seconds."""
        ...

    def abort(self) -> None:
        """Cut the connection."""
        ...


@dataclass(frozen=True, slots=True)
class ConnectionRules:
    """How connections are kept: heartbeats, the window of a result, and the longest one; and which of the workers this is."""

    heartbeat_s: float = 5.0
    window_bytes: int = 64 * 1024
    max_result_bytes: int = 32 * 1024 * 1024
    worker: int = 0
    workers: int = 1


class NodeConnection:
    """A node that is welcome, until it leaves.

    ``models`` are those that it says it has. ``passed`` and ``failed`` are those whose probes went so; the hub decides
    which are offered.
    """

    def __init__(
        self,
        socket: NodeSocket,
        side: GatewaySide,
        hello: Hello,
        grant: Grant,
        terms: NodeTerms,
        rules: ConnectionRules,
        *,
        on_change: Callable[["NodeConnection"], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.hello = hello
        self.terms = terms
        self.models: Mapping[str, NodeModel] = {model.id: model for model in hello.models}
        self.passed: set[str] = set()
        self.failed: dict[str, str] = {}
        self.probed_at = -float("inf")
        self.is_probing = False
        self.closed_for = ""
        self.delivered = 0
        self._socket = socket
        self._side = side
        self._grant = grant
        self._rules = rules
        self._on_change = on_change
        self._clock = clock
        self._heart = Heartbeat(rules.heartbeat_s, clock())
        self._requests: dict[int, RemoteRequest] = {}
        self._models_of: dict[int, str] = {}
        self._cancelled_at: dict[int, float] = {}
        self._waiting: list[asyncio.Future[None]] = []
        self._lists_at: list[float] = []
        self._said_offered: Offered | None = None
        self._offered_due: Offered | None = None

    # -- what is known of it ------------------------------------------------------------------------

    @property
    def is_usable(self) -> bool:
        """Whether it may be asked now."""
        return not self.closed_for and not self._side.is_leaving and self._grant.holds()

    @property
    def is_revoked(self) -> bool:
        """Whether its token is not good any more, or its terms have changed."""
        return self._grant.is_revoked()

    @property
    def running(self) -> int:
        """How many requests it works on, cancelled ones included that it has not ended yet."""
        return self._side.open_requests

    @property
    def concurrent(self) -> int:
        """How many requests it may work on at once."""
        return min(self.hello.concurrent, self.terms.concurrent or self.hello.concurrent)

    def has_room(self, model: str) -> bool:
        """Whether another request to a model may begin now."""
        most = self.models[model].concurrent if model in self.models else 0
        of_model = sum(name == model for name in self._models_of.values()) if most else 0
        return self.running < self.concurrent and (not most or of_model < most)

    @property
    def is_crowded(self) -> bool:
        """Whether so many requests wait for it already that another should go elsewhere."""
        return len(self._waiting) >= self.concurrent

    # -- requests -----------------------------------------------------------------------------------

    @asynccontextmanager
    async def request(
        self, kind: str, model: str, body: bytes, *, stream: bool, timeout_s: float
    ) -> AsyncIterator[RemoteRequest]:
        """Send a request, once there is room for it; it is cancelled at the block's end unless it is over.

        Raises:
            UpstreamError: there was no room in time, or the node is gone. Nothing was bought.
        """
        deadline = self._clock() + timeout_s
        await self.wait_for_room(model, timeout_s)
        left_s = max(deadline - self._clock(), 0.001)
        request = Request(
            kind=kind,
            model=model,
            stream=stream,
            body_bytes=len(body),
            credit_bytes=self._rules.window_bytes,
            timeout_ms=max(round(left_s * 1000), 1),
            result_bytes=self._rules.max_result_bytes,
        )
        try:
            request_id, frames = self._side.request(request, body)
        except ProtocolError as error:
            self.cut(error.code)
            raise lost_connection() from None
        remote = RemoteRequest(request_id, self._rules.window_bytes, self._allow)
        self._requests[request_id] = remote
        self._models_of[request_id] = model
        remote.fail_after(left_s)
        try:
            try:
                async with asyncio.timeout(left_s):
                    for frame in frames:
                        await self._socket.send(frame)
            except (ConnectionError, TimeoutError):
                raise lost_connection("the node did not take the request") from None
            yield remote
        finally:
            remote.close()
            del self._requests[request_id]
            if not remote.is_over or request_id in self._models_of:
                self._cancel(request_id)

    def send_receipt(self, request_id: int, receipt: Receipt) -> None:
        """Say what a request came to."""
        self.delivered += receipt.outcome == "delivered"
        if not self.closed_for:
            self._socket.post(self._side.receipt(request_id, receipt))

    async def wait_for_room(self, model: str, timeout_s: float | None) -> None:
        """Wait until another request to a model may begin; without a time-out for as long as the node is here.

        Raises:
            UpstreamError: there was no room in time, or the node is gone.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    if not self.is_usable:
                        raise lost_connection("the node is leaving")
                    if self.has_room(model):
                        return
                    waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                    self._waiting.append(waiter)
                    try:
                        await waiter
                    finally:
                        if waiter in self._waiting:
                            self._waiting.remove(waiter)
        except TimeoutError:
            raise busy() from None

    def _allow(self, request_id: int, byte_count: int) -> None:
        if (frame := self._side.grant(request_id, byte_count)) is not None:
            self._socket.post(frame)

    def _cancel(self, request_id: int) -> None:
        if (frame := self._side.cancel(request_id)) is not None and not self.closed_for:
            self._cancelled_at[request_id] = self._clock()
            self._socket.post(frame)

    def _release(self, request_id: int) -> None:
        self._models_of.pop(request_id, None)
        self._cancelled_at.pop(request_id, None)
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)

    # -- life ---------------------------------------------------------------------------------------

    def welcome(self) -> None:
        """Tell the node that it is welcome."""
        terms, rules = self.terms, self._rules
        self._socket.post(
            self._side.welcome(
                Welcome(
                    terms.node_id,
                    rules.heartbeat_s,
                    rules.window_bytes,
                    terms.commission_ppm,
                    rules.worker,
                    rules.workers,
                )
            )
        )

    def tell_offered(self, offered: Offered) -> None:
        """Tell the node which models are offered, where that has changed; one that does not read once it does.

        It may change its list, and so this answer, again and again: no more than one waits here.
        """
        self._offered_due = None
        if offered == self._said_offered or self.closed_for:
            return
        if self._socket.is_behind:
            self._offered_due = offered
            return
        self._said_offered = offered
        self._socket.post(self._side.offered(offered))

    async def run(self) -> str:
        """Read frames until the node leaves; return why, as a word."""
        receive, side, heard = self._socket.receive, self._side, self._heart.heard
        try:
            while (frame := await receive()) is not None:
                heard(self._clock())
                if (event := side.receive(frame)) is None:
                    continue
                if type(event) is BodyCame:
                    # Nearly all events are these; the reader of a request that was closed wants none.
                    if (remote := self._requests.get(event.request_id)) is not None:
                        remote.on_body(event.data)
                else:
                    self._take(event)
        except ProtocolError as error:
            self.leave(Goodbye(error.code, error.message))
            return error.code
        return self.closed_for or "lost"

    def tick(self) -> None:
        """Send what is due, and cut the connection of a node that is dead or does not end a cancelled request."""
        now = self._clock()
        try:
            if (ping := self._heart.tick(now)) is not None and not self._socket.is_behind:
                self._socket.post(ping)
        except Dead:
            self.cut("dead")
            return
        if self._offered_due is not None:
            self.tell_offered(self._offered_due)
        oldest = min(self._cancelled_at.values(), default=now)
        if now - oldest > _CANCELLED_WITHIN_S:
            self.leave(Goodbye("cancel_ignored", "answer each CANCEL within 30 seconds, with ERROR or END"))
            self.cut("cancel_ignored")

    def leave(self, goodbye: Goodbye) -> None:
        """Say goodbye. Requests under way may end."""
        if not self.closed_for and not self._side.is_leaving:
            self._socket.post(self._side.goodbye(goodbye))
        self._on_change(self)

    def cut(self, reason: str) -> None:
        """End the connection at once."""
        self.closed(reason)
        self._socket.abort()

    def closed(self, reason: str) -> None:
        """The connection has ended: all requests that are under way fail."""
        if self.closed_for:
            return
        self.closed_for = reason
        for remote in self._requests.values():
            remote.on_failure(lost_connection())
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)
        self._on_change(self)

    def _take(self, event: Event) -> None:  # noqa: C901 - a row for each event
        match event:
            case HeadCame(request_id=request_id, head=head):
                if (remote := self._requests.get(request_id)) is not None:
                    remote.on_head(head)
            case EndCame(request_id=request_id, end=end):
                self._release(request_id)
                if (remote := self._requests.get(request_id)) is not None:
                    remote.on_end(end)
            case FailureCame(request_id=request_id, failure=failure):
                self._release(request_id)
                if (remote := self._requests.get(request_id)) is not None:
                    remote.on_failure(error_of(failure))
            case Released(request_id=request_id):
                self._release(request_id)
            case PingCame(answer=answer):
                if not self._socket.is_behind:
                    self._socket.post(answer)
            case ModelsCame(models=models):
                self._take_models({model.id: model for model in models})
            case Goodbye():
                self._on_change(self)
            case Hello() | BodyCame():
                # The hello was taken before this began, and bodies above.
                pass

    def _take_models(self, models: Mapping[str, NodeModel]) -> None:
        now = self._clock()
        self._lists_at = [at for at in self._lists_at if now - at < _LISTS_WITHIN_S]
        self._lists_at.append(now)
        if len(self._lists_at) > _MOST_LISTS:
            raise ProtocolError("too_many_lists", "the models change too often")
        self.passed.intersection_update(models)
        self.failed = {name: why for name, why in self.failed.items() if name in models}
        if models.keys() - self.models.keys():
            # New ones are probed at once.
            self.probed_at = -float("inf")
        self.models = models
        self._on_change(self)


def busy() -> UpstreamError:
    """Return the error of a node that works on as much as it can."""
    return UpstreamError(
        UpstreamStatus.RESOURCE_EXHAUSTED,
        "the node works on as many requests as it takes",
        retryable=True,
        evidence=Verdict.NONE,
    )


def error_of(failure: Failure) -> UpstreamError:
    """Return the error for a node's own, mapped as that of an HTTP server: nothing was bought with it."""
    text = orjson.dumps({"error": {"message": failure.message, "code": failure.code or None}})
    status = failure.status if failure.status >= 400 else 500  # noqa: PLR2004 - a failure has no status of success
    return http_error(status, text, "", f"{failure.retry_after_s:.0f}" if failure.retry_after_s else "")
