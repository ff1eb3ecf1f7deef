"""A node that dials in as a test says: over a real WebSocket or in memory, honest or not."""

import asyncio
import contextlib
import hashlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import aiohttp

from lcp_gateway.node_protocol.frames import Dead, FrameKind, Heartbeat, PingCame, write_frame
from lcp_gateway.node_protocol.messages import (
    SUBPROTOCOL,
    End,
    Failure,
    Goodbye,
    Head,
    Hello,
    NodeModel,
    Offered,
    Price,
    Request,
    Welcome,
)
from lcp_gateway.node_protocol.node_side import (
    CANCELLED,
    Cancelled,
    CreditCame,
    NodeSide,
    ReceiptCame,
    RequestCame,
    RequestTooMuch,
)

EVENTS = "text/event-stream"
JSON = "application/json"


def model(name: str = "m", *kinds: str, price_msat: int = 1_000, **more) -> NodeModel:
    return NodeModel(name, kinds or ("chat",), Price(request_msat=price_msat), **more)


def hello(*models: NodeModel, name: str = "gpu", concurrent: int = 4, request_bytes: int = 2**20) -> Hello:
    return Hello(
        name=name,
        instance="instance",
        agent="test/1",
        models=models or (model(),),
        concurrent=concurrent,
        request_bytes=request_bytes,
    )


def chat_document(model_name: str, text: str, usage: dict | None = None) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    made = {"id": "c1", "object": "chat.completion", "created": 1, "model": model_name, "choices": [choice]}
    return json.dumps(made | ({"usage": usage} if usage else {})).encode()


def chat_events(model_name: str, words: list[str]) -> list[bytes]:
    base = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": model_name}
    deltas = [{"role": "assistant", "content": ""}, *({"content": word} for word in words)]
    made = [{**base, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    made.append({**base, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    return [*(b"data: " + json.dumps(one).encode() + b"\n\n" for one in made), b"data: [DONE]\n\n"]


class MemorySocket:
    """The gateway's end of a connection in memory; ``frames`` has what it sent."""

    def __init__(self):
        self.frames: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._incoming: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.is_behind = False
        self.is_cut = False

    async def receive(self):
        return await self._incoming.get()

    def post(self, frame):
        self.frames.put_nowait(frame)

    async def send(self, frame):
        if self.is_cut:
            raise ConnectionResetError
        self.post(frame)
        await asyncio.sleep(0)

    async def close(self):
        self.abort()

    def abort(self):
        self.is_cut = True
        self._incoming.put_nowait(None)
        self.frames.put_nowait(None)

    # The node's end.

    async def send_bytes(self, frame):
        self._incoming.put_nowait(frame)

    async def receive_frame(self):
        return await self.frames.get()


class WebSocketEnd:
    """The node's end of a real WebSocket."""

    def __init__(self, socket):
        self.socket = socket
        self.send_bytes = socket.send_bytes

    async def receive_frame(self):
        message = await self.socket.receive()
        return message.data if message.type is aiohttp.WSMsgType.BINARY else None


Behave = Callable[["ScriptedNode", int, Request, bytes], Awaitable[None]]


@dataclass
class ScriptedNode:
    """A node on one end of a connection: ``behave`` answers each request, in a task of its own."""

    end: MemorySocket | WebSocketEnd
    behave: Behave
    said: Hello = field(default_factory=hello)
    side: NodeSide = field(init=False)
    requests: dict[int, Request] = field(default_factory=dict)
    cancelled: set[int] = field(default_factory=set)
    receipts: list = field(default_factory=list)
    offered: tuple[str, ...] = ()
    refused: dict[str, str] = field(default_factory=dict)
    goodbye: object = None
    welcome: object = None
    answers_cancel: bool = True

    def __post_init__(self):
        self.side = NodeSide(self.said)
        self.changed = asyncio.Event()
        self.tasks: dict[int, asyncio.Task] = {}
        self.heart = Heartbeat(1e9, 0.0)

    async def run(self):
        await self.end.send_bytes(self.side.hello())
        try:
            while (frame := await self.end.receive_frame()) is not None:
                await self._take(self.side.receive(frame))
                self.changed.set()
                self.changed = asyncio.Event()
        finally:
            for task in self.tasks.values():
                task.cancel()
            self.changed.set()

    async def until(self, is_so):
        """Wait for something that a frame brings about, or the gateway without one."""
        async with asyncio.timeout(60):
            while not is_so():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.changed.wait(), 0.02)

    async def _take(self, event):  # noqa: C901 - a row for each event
        match event:
            case Welcome() as welcome:
                self.welcome = welcome
            case Offered() as offered:
                self.offered = offered.offered
                self.refused = {one.id: one.reason for one in offered.refused}
            case RequestCame(request_id=request_id, request=request, body=body):
                self.requests[request_id] = request
                self.tasks[request_id] = asyncio.create_task(self.behave(self, request_id, request, body))
            case RequestTooMuch(request_id=request_id, failure=failure):
                await self.end.send_bytes(self.side.error(request_id, failure))
            case CreditCame():
                pass
            case Cancelled(request_id=request_id):
                self.cancelled.add(request_id)
                self.tasks[request_id].cancel()
                if self.answers_cancel:
                    await self.end.send_bytes(self.side.error(request_id, CANCELLED))
            case ReceiptCame(receipt=receipt):
                self.receipts.append(receipt)
            case PingCame(answer=answer):
                await self.end.send_bytes(answer)
            case Goodbye() as goodbye:
                self.goodbye = goodbye

    async def beat(self, interval_s: float):
        self.heart = Heartbeat(interval_s, 0.0)
        now = 0.0
        while True:
            await asyncio.sleep(interval_s)
            now += interval_s
            self.heart.heard(now)
            try:
                if (ping := self.heart.tick(now)) is not None:
                    await self.end.send_bytes(ping)
            except Dead:
                return

    # What a behaviour sends.

    async def head(self, request_id: int, content_type: str = JSON):
        await self.end.send_bytes(self.side.head(request_id, Head(content_type)))

    async def body(self, request_id: int, data: bytes):
        """Send bytes within the credit."""
        at = 0
        while at < len(data):
            most = min(self.side.credit_bytes(request_id), 65_536)
            if not most:
                await self.changed.wait()
                continue
            await self.end.send_bytes(self.side.body(request_id, data[at : at + most]))
            at += most

    async def raw(self, kind: FrameKind, request_id: int, payload: bytes = b""):
        """Send a frame that the protocol may not allow."""
        await self.end.send_bytes(write_frame(kind, request_id, payload))

    async def finish(self, request_id: int, data: bytes, **more):
        await self.end.send_bytes(self.side.end(request_id, End(hashlib.sha256(data).digest(), len(data), **more)))

    async def fail(self, request_id: int, status: int = 500, code: str = "broken", message: str = "it broke"):
        await self.end.send_bytes(self.side.error(request_id, Failure(status, code, message)))


async def honest(node: ScriptedNode, request_id: int, request: Request, _body: bytes) -> None:
    """Answer any chat with three words."""
    if request.stream:
        pieces = chat_events(request.model, ["one ", "two ", "three"])
        await node.head(request_id, EVENTS)
    else:
        pieces = [chat_document(request.model, "one two three")]
        await node.head(request_id)
    for piece in pieces:
        await node.body(request_id, piece)
    await node.finish(request_id, b"".join(pieces))


async def dial(session: aiohttp.ClientSession, port: int, token: str) -> WebSocketEnd:
    """Open the WebSocket of a node at a gateway on this machine."""
    socket = await session.ws_connect(
        f"ws://127.0.0.1:{port}/api/nodes/connect",
        protocols=(SUBPROTOCOL,),
        headers={"Authorization": f"Bearer {token}"},
        max_msg_size=2**20,
        compress=0,
    )
    return WebSocketEnd(socket)
