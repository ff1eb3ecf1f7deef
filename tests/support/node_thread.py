"""A node in a thread of the test, behind a real port; it records the received messages."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from unittest import mock

from lcp_gateway.node.config import NodeConfig
from lcp_gateway.node.server import Node
from lcp_gateway.node.service import LcpdService
from tests.support.gateway import node_in_use


@dataclass
class Received:
    """The messages that came in and the unary answers to them, oldest first, by the name of their call.

    ``streams`` has the bytes that were streamed, one entry a stream.
    """

    calls: list[tuple[str, object]] = field(default_factory=list)
    answers: list[tuple[str, object]] = field(default_factory=list)
    streams: list[bytearray] = field(default_factory=list)

    def of(self, name: str) -> list:
        return [message for called, message in list(self.calls) if called == name]

    def last_answer(self, name: str):
        return [answer for called, answer in list(self.answers) if called == name][-1]

    def clear(self) -> None:
        for noted in (self.calls, self.answers, self.streams):
            noted.clear()


class _Context:
    """Delegates to a call's context, and records the chunks that are written to it."""

    def __init__(self, context, chunks: bytearray) -> None:
        self._context = context
        self._chunks = chunks

    def __getattr__(self, name):
        return getattr(self._context, name)

    async def write(self, message) -> None:
        self._chunks += message.result_chunk.data
        await self._context.write(message)


@dataclass
class ThreadedNode:
    """``address`` is what a gRPC client dials."""

    node: Node
    address: str
    received: Received

    def peer_id(self, alias: str) -> str:
        return self.node.world.peer_id(alias) if node_in_use() else self.node.peers.named(alias).id

    def set_ready(self, alias: str, *, ready: bool) -> None:
        self.node.peers.named(alias).ready = ready

    def last_quote(self):
        return self.received.of("RequestQuote")[-1]

    def last_body(self) -> bytes:
        """The bytes of the last task, as the daemon got them."""
        task = self.last_quote().task
        return getattr(task, task.WhichOneof("spec")).request_json


def eventually(is_so: Callable[[], object], timeout_s: float = 120.0) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.01)


def _recording(received: Received) -> type[LcpdService]:
    def noting(name: str):
        async def method(self, request, context):
            received.calls.append((name, request))
            if name.endswith("Stream"):
                received.streams.append(bytearray())
                context = _Context(context, received.streams[-1])
            answer = await getattr(LcpdService, name)(self, request, context)
            received.answers.append((name, answer))
            return answer

        return method

    names = ["ListLCPPeers", "GetLocalInfo", "RequestQuote", "AcceptAndExecute", "AcceptAndExecuteStream", "CancelJob"]
    return type("RecordingService", (LcpdService,), {name: noting(name) for name in names})


@contextmanager
def threaded_node(config: NodeConfig) -> Iterator[ThreadedNode]:
    """Run a node for the block."""
    received = Received()
    if node_in_use():
        from tests.support.lcp_world import WorldServer

        node = WorldServer(config, received)
    else:
        node = Node(config)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="node", daemon=True)
    thread.start()

    def run(work):
        return asyncio.run_coroutine_threadsafe(work, loop).result(60)

    try:
        with mock.patch("lcp_gateway.node.server.LcpdService", _recording(received)):
            address = run(node.start())
        yield ThreadedNode(node, address, received)
    finally:
        run(node.stop())
        loop.call_soon_threadsafe(loop.stop)
        thread.join(60)
        loop.close()
