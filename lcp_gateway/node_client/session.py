"""One connection to the gateway: requests come in, results go out within their credit."""

import asyncio
import hashlib
import time
from collections.abc import Callable
from typing import Final

import aiohttp
from structlog.typing import FilteringBoundLogger

from lcp_gateway.adapters.usage import Usage, usage_of
from lcp_gateway.constants import BYTES_PER_TOKEN
from lcp_gateway.node_client.backend import Backend, BackendFailed
from lcp_gateway.node_client.catalog import ModelCatalog
from lcp_gateway.node_client.statistics import Statistics
from lcp_gateway.node_protocol.frames import MAX_DATA_BYTES, Dead, Heartbeat, PingCame
from lcp_gateway.node_protocol.messages import (
    End,
    Failure,
    Goodbye,
    Head,
    Hello,
    Offered,
    ProtocolError,
    Request,
    Welcome,
)
from lcp_gateway.node_protocol.node_side import (
    CANCELLED,
    Cancelled,
    CreditCame,
    Event,
    NodeSide,
    ReceiptCame,
    RequestCame,
    RequestTooMuch,
)

_WELCOME_WITHIN_S: Final = 15.0
_CLOSE_S = 3.0
_TAIL_BYTES = 4 * 1024
_BROKEN_OFF = Failure(502, "broken_off", "the answer of the node's backend broke off")
_LATE = Failure(504, "timed_out", "the node's backend did not answer in time")
_INTERNAL = Failure(500, "node_failed", "the node failed on this request")
_NO_MODEL = Failure(404, "model_not_found", "the node does not serve this model")


class SessionOver(Exception):
    """The connection has ended; ``goodbye`` is the gateway's, None where it was lost."""

    def __init__(self, goodbye: Goodbye | None, problem: str = "") -> None:
        super().__init__(problem)
        self.goodbye = goodbye
        self.problem = problem


class Session:
    """Serves requests over one WebSocket until that ends.

    ``room`` bounds what the node works on at once over all its connections. ``on_welcome`` is called with the welcome.
    """

    def __init__(
        self,
        socket: aiohttp.ClientWebSocketResponse,
        hello: Hello,
        catalog: ModelCatalog,
        statistics: Statistics,
        log: FilteringBoundLogger,
        *,
        room: asyncio.Semaphore,
        on_welcome: Callable[[Welcome], None] = lambda _welcome: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._socket = socket
        self._side = NodeSide(hello)
        self._catalog = catalog
        self._statistics = statistics
        self._log = log
        self._room = room
        self._on_welcome = on_welcome
        self._clock = clock
        self._heart = Heartbeat(_WELCOME_WITHIN_S / 3, clock())
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._credit: dict[int, asyncio.Event] = {}
        self._goodbye: Goodbye | None = None
        self._is_draining = False
        self._idle = asyncio.Event()
        self._idle.set()
        self.was_welcome = False
        self.worker = -1

    async def run(self) -> None:
        """Serve; returns once the node has drained.

        Raises:
            SessionOver: the connection has ended otherwise.
        """
        await self._socket.send_bytes(self._side.hello())
        beating = asyncio.create_task(self._beat())
        try:
            while True:
                message = await self._socket.receive()
                if message.type is not aiohttp.WSMsgType.BINARY:
                    break
                self._heart.heard(self._clock())
                event = self._side.receive(message.data)
                if event is not None:
                    await self._take(event)
        except ProtocolError as error:
            await self._say_goodbye(Goodbye(error.code, error.message))
            raise SessionOver(None, f"the gateway broke the protocol: {error.message}") from None
        except ConnectionError:
            pass
        finally:
            beating.cancel()
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(beating, *self._tasks.values(), return_exceptions=True)
            await self._close()
        if not self._is_draining or self._goodbye is not None:
            raise SessionOver(self._goodbye, "the connection to the gateway was lost")

    async def send_models(self) -> None:
        """Tell the gateway which models there are now."""
        if self.was_welcome and not self._socket.closed:
            await self._socket.send_bytes(self._side.models(self._catalog.models))

    async def drain(self, timeout_s: float) -> None:
        """Take no new request, let the running ones end, and close."""
        self._is_draining = True
        await self._say_goodbye(Goodbye("draining"))
        await self._until_idle(timeout_s)
        await self._close()

    async def _until_idle(self, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            self._log.warning("requests were ended before they were done", requests=len(self._tasks))

    async def _say_goodbye(self, goodbye: Goodbye) -> None:
        try:
            async with asyncio.timeout(_CLOSE_S):
                await self._socket.send_bytes(self._side.goodbye(goodbye))
        except (ConnectionError, TimeoutError):
            pass

    async def _close(self) -> None:
        try:
            async with asyncio.timeout(_CLOSE_S):
                await self._socket.close()
        except (ConnectionError, TimeoutError):
            pass

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._heart.interval_s / 4)
            try:
                ping = self._heart.tick(self._clock())
            except Dead:
                self._log.warning("the gateway is silent; the connection is given up")
                await self._close()
                return
            if ping is not None:
                try:
                    async with asyncio.timeout(self._heart.interval_s):
                        await self._socket.send_bytes(ping)
                except TimeoutError:
                    # Bytes wait already; the silence of the other side decides.
                    continue
                except ConnectionError:
                    return

    async def _take(self, event: Event) -> None:  # noqa: C901 - a row for each event
        match event:
            case RequestCame(request_id=request_id, request=request, body=body):
                self._begin(request_id, request, body)
            case CreditCame(request_id=request_id):
                if (waiting := self._credit.get(request_id)) is not None:
                    waiting.set()
            case RequestTooMuch(request_id=request_id, failure=failure):
                await self._socket.send_bytes(self._side.error(request_id, failure))
            case Cancelled(request_id=request_id):
                await self._cancel(request_id)
            case ReceiptCame(receipt=receipt):
                self._statistics.delivered += receipt.outcome == "delivered"
                self._statistics.earned_msat += receipt.earned_msat
                self._statistics.on_change()
                self._log.debug("receipt", outcome=receipt.outcome, earned_msat=receipt.earned_msat)
            case PingCame(answer=answer):
                await self._socket.send_bytes(answer)
            case Welcome() as welcome:
                self.was_welcome, self.worker = True, welcome.worker
                self._on_welcome(welcome)
                self._heart = Heartbeat(welcome.heartbeat_s, self._clock())
                self._statistics.node_id, self._statistics.state = welcome.node_id, "connected"
                self._statistics.connections += 1
                self._statistics.on_change()
                self._log.info(
                    "joined",
                    node=welcome.node_id,
                    commission_percent=welcome.commission_ppm / 10_000,
                    worker=welcome.worker,
                )
            case Offered() as offered:
                self._statistics.offered = offered.offered
                self._statistics.refused = {one.id: one.reason for one in offered.refused}
                self._statistics.on_change()
                self._log.info(
                    "offered",
                    models=list(offered.offered),
                    refused=[f"{one.id}: {one.reason}" for one in offered.refused],
                )
            case Goodbye() as goodbye:
                self._goodbye = goodbye
                self._statistics.state = f"the gateway says goodbye: {goodbye.reason}"
                self._statistics.on_change()
                # It closes once the running requests have ended.

    def _begin(self, request_id: int, request: Request, body: bytes) -> None:
        self._idle.clear()
        self._credit[request_id] = asyncio.Event()
        self._tasks[request_id] = asyncio.create_task(self._serve(request_id, request, body))
        self._statistics.running += 1
        self._statistics.on_change()

    async def _cancel(self, request_id: int) -> None:
        # A task that is cancelled before its first step runs no code of its own.
        await asyncio.sleep(0)
        if (task := self._tasks.get(request_id)) is not None:
            # Its own end answers the gateway.
            task.cancel()
        elif self._side.is_open(request_id):
            # Its body was still coming.
            await self._socket.send_bytes(self._side.error(request_id, CANCELLED))

    async def _serve(self, request_id: int, request: Request, body: bytes) -> None:
        """Answer one request; every end but a lost connection is told to the gateway."""
        started = self._clock()
        failure: Failure | None = _INTERNAL
        usage = Usage(0, 0)
        try:
            async with asyncio.timeout(request.timeout_ms / 1000):
                usage = await self._answer(request_id, request, body)
            failure = None
        except BackendFailed as error:
            failure = error.failure
        except TimeoutError:
            failure = _LATE
        except asyncio.CancelledError:
            failure = CANCELLED
        except ConnectionError:
            return
        except Exception as error:  # noqa: BLE001 - the gateway must hear of every end
            self._log.error("a request failed in the node", exc_info=error)
        finally:
            try:
                # Its end may have gone out before: then it is over for the gateway as well.
                if failure is not None and self._side.is_open(request_id) and not self._socket.closed:
                    await self._socket.send_bytes(self._side.error(request_id, failure))
            except ConnectionError:
                pass
            self._over(request_id, request, failure, usage, self._clock() - started, len(body))

    def _over(
        self, request_id: int, request: Request, failure: Failure | None, usage: Usage, took_s: float, body_bytes: int
    ) -> None:
        self._tasks.pop(request_id, None)
        self._credit.pop(request_id, None)
        if not self._tasks:
            self._idle.set()
        numbers = self._statistics
        numbers.running -= 1
        numbers.requests += 1
        numbers.cancelled += failure is CANCELLED
        numbers.failed += failure is not None and failure is not CANCELLED
        if failure is None:
            numbers.input_tokens += usage.input_tokens or body_bytes // BYTES_PER_TOKEN
            numbers.output_tokens += usage.output_tokens
        numbers.on_change()
        self._log.info(
            "request",
            kind=request.kind,
            model=request.model,
            seconds=round(took_s, 3),
            tokens=usage.output_tokens,
            problem="" if failure is None else failure.code or str(failure.status),
        )

    async def _answer(self, request_id: int, request: Request, body: bytes) -> Usage:
        backend = self._catalog.backend_for(request.model, request.kind)
        if backend is None:
            raise BackendFailed(_NO_MODEL)
        async with self._room:
            return await self._forward(request_id, request, body, backend)

    async def _forward(self, request_id: int, request: Request, body: bytes, backend: Backend) -> Usage:
        send, side = self._socket.send_bytes, self._side
        digest, length, events, tail = hashlib.sha256(), 0, 0, b""
        async with backend.post(request.kind, body) as response:
            content_type = _header(response, "Content-Type", "application/json")
            encoding = _header(response, "Content-Encoding", "identity")
            await send(side.head(request_id, Head(content_type, encoding)))
            is_stream = content_type.startswith("text/event-stream")
            try:
                async for chunk in response.content.iter_any():
                    digest.update(chunk)
                    length += len(chunk)
                    events += chunk.count(b"data:") if is_stream else 0
                    tail = (tail + chunk)[-_TAIL_BYTES:]
                    if len(chunk) <= min(side.credit_bytes(request_id), MAX_DATA_BYTES):
                        await send(side.body(request_id, chunk))
                    else:
                        await self._send_pieces(request_id, chunk)
            except (aiohttp.ClientError, OSError) as error:
                if isinstance(error, ConnectionError) and self._socket.closed:
                    raise
                raise BackendFailed(_BROKEN_OFF) from None
        stated = usage_of(tail)
        end = End(
            digest.digest(),
            length,
            None if stated is None else stated.input_tokens,
            None if stated is None else stated.output_tokens,
        )
        await send(side.end(request_id, end))
        return stated or Usage(0, events if is_stream else length // BYTES_PER_TOKEN)

    async def _send_pieces(self, request_id: int, chunk: bytes) -> None:
        """Send bytes as the credit allows; meanwhile nothing is read from the backend."""
        at, waiting = 0, self._credit[request_id]
        while at < len(chunk):
            most = min(self._side.credit_bytes(request_id), MAX_DATA_BYTES)
            if not most:
                waiting.clear()
                await waiting.wait()
                continue
            piece = chunk[at : at + most]
            await self._socket.send_bytes(self._side.body(request_id, piece))
            at += len(piece)


def _header(response: aiohttp.ClientResponse, name: str, default: str) -> str:
    value = response.headers.get(name, default)
    return value if len(value) <= 256 and value.isascii() and value.isprintable() else default  # noqa: PLR2004 - the protocol's own limit
