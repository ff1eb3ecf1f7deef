"""A node in a thread of the test, behind a real port; it records the received messages."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from unittest import mock

from lcp_gateway._gen.lcpd import lcpd_pb2, lcpd_v03_pb2
from lcp_gateway.node.config import NodeConfig
from lcp_gateway.node.lcp.messages import CHAT, Protocol
from lcp_gateway.node.lcp.table import read_params
from lcp_gateway.node.rpc.service import SERVICE, RpcService
from lcp_gateway.node.server import Node


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


@dataclass
class ThreadedNode:
    """``address`` is what a gRPC client dials."""

    node: Node
    address: str
    received: Received
    loop: asyncio.AbstractEventLoop

    def peer_id(self, alias: str) -> str:
        return self.node.peers.named(alias).id

    def set_ready(self, alias: str, *, ready: bool) -> None:
        async def change() -> None:
            self.node.peers.named(alias).ready = ready

        asyncio.run_coroutine_threadsafe(change(), self.loop).result(60)

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


def _quote_request(message):
    call = message.call
    params = {"model": read_params(call.params)[0]}
    kind = "openai_chat_completions_v1" if call.method == CHAT else "openai_responses_v1"
    task = lcpd_pb2.Task(**{kind: {"request_json": call.request_bytes, "params": params}})
    return lcpd_pb2.RequestQuoteRequest(peer_id=message.peer_id, task=task)


def _quote_response(message):
    quote = message.quote
    terms = lcpd_pb2.Terms(
        protocol_version=quote.protocol_version,
        job_id=quote.call_id,
        price_msat=quote.price_msat,
        quote_expiry=quote.quote_expiry,
        terms_hash=quote.terms_hash,
        payment_request=quote.payment_request,
    )
    return lcpd_pb2.RequestQuoteResponse(peer_id=message.peer_id, terms=terms)


def _whole(message):
    complete = message.complete
    result = lcpd_pb2.Result(
        status=int(complete.status),
        result=complete.response_bytes,
        result_hash=complete.response_hash,
        result_len=complete.response_len,
        content_type=complete.response_content_type,
        content_encoding=complete.response_content_encoding,
        message=complete.message,
    )
    return lcpd_pb2.AcceptAndExecuteResponse(result=result)


_AS_V02 = {
    "RequestQuoteRequest": _quote_request,
    "RequestQuoteResponse": _quote_response,
    "AcceptAndExecuteResponse": _whole,
    "ListLCPPeersResponse": lambda message: message,
    "GetLocalInfoResponse": lambda message: message,
}
"""What tests see of version 3: its messages as those of version 2."""


def _read(is_v03, kind, message):
    if not is_v03 or kind not in _AS_V02:
        # The other messages are the same in both versions.
        return getattr(lcpd_pb2, kind).FromString(message)
    return _AS_V02[kind](getattr(lcpd_v03_pb2, kind).FromString(message))


def _recording(received: Received) -> type[RpcService]:
    class RecordingService(RpcService):
        """Records the messages of each call, which the service reads and writes as bytes."""

        def __init__(self, calls, protocol) -> None:
            super().__init__(calls, protocol)
            self._read = partial(_read, protocol is Protocol.V03)
            self.unary = {path: self._recorded(path, call) for path, call in self.unary.items()}
            self.streams = {path: self._recorded_stream(path, call) for path, call in self.streams.items()}

        def _recorded(self, path, call):
            name = path.removeprefix(SERVICE)

            async def recorded(request, metadata):
                received.calls.append((name, self._read(f"{name}Request", request)))
                answer = await call(request, metadata)
                received.answers.append((name, self._read(f"{name}Response", answer)))
                return answer

            return recorded

        def _recorded_stream(self, path, call):
            name = path.removeprefix(SERVICE)

            async def recorded(request, metadata):
                received.calls.append((name, self._read(f"{name}Request", request)))
                chunks = bytearray()
                received.streams.append(chunks)
                async with aclosing(call(request, metadata)) as answers:
                    async for answer in answers:
                        # The events of both versions are the same here.
                        chunks += lcpd_pb2.AcceptAndExecuteStreamResponse.FromString(answer).result_chunk.data
                        yield answer
                received.answers.append((name, None))

            return recorded

    return RecordingService


@contextmanager
def threaded_node(config: NodeConfig) -> Iterator[ThreadedNode]:
    """Run a node for the block."""
    received = Received()
    node = Node(config)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="node", daemon=True)
    thread.start()

    def run(work):
        return asyncio.run_coroutine_threadsafe(work, loop).result(60)

    try:
        with mock.patch("lcp_gateway.node.rpc.server.RpcService", _recording(received)):
            address = run(node.start())
        yield ThreadedNode(node, address, received, loop)
    finally:
        run(node.stop())
        loop.call_soon_threadsafe(loop.stop)
        thread.join(60)
        loop.close()
