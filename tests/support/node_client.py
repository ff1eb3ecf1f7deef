"""A small client of an LCPDService, and a node in process for tests to talk to."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
import orjson

from lcp_gateway._gen.lcpd import lcpd_pb2, lcpd_pb2_grpc
from lcp_gateway.node.config import NodeConfig
from lcp_gateway.node.server import Node

RECEIVE_LIMIT = 64 * 1024 * 1024


@dataclass
class Streamed:
    begin: lcpd_pb2.ResultStreamBegin | None = None
    chunks: list[bytes] = field(default_factory=list)
    end: lcpd_pb2.ResultStreamEnd | None = None
    result: lcpd_pb2.Result | None = None

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    @property
    def events(self) -> list[dict]:
        """The data of each server-sent event, ``[DONE]`` and comments left out."""
        found = []
        for block in self.body.split(b"\n\n"):
            for line in block.split(b"\n"):
                if line.startswith(b"data: ") and line != b"data: [DONE]":
                    found.append(orjson.loads(line[6:]))
        return found


def chat_task(model="echo-1", say="hello", **fields):
    document = {"model": model, "messages": [{"role": "user", "content": say}], **fields}
    return raw_chat_task(orjson.dumps(document), document["model"])


def raw_chat_task(body: bytes, model: str):
    return lcpd_pb2.Task(
        openai_chat_completions_v1=lcpd_pb2.OpenAIChatCompletionsV1TaskSpec(
            request_json=body, params=lcpd_pb2.OpenAIChatCompletionsV1Params(model=model)
        )
    )


def responses_task(model="echo-1", say="hello", **fields):
    document = {"model": model, "input": say, **fields}
    return raw_responses_task(orjson.dumps(document), document["model"])


def raw_responses_task(body: bytes, model: str):
    return lcpd_pb2.Task(
        openai_responses_v1=lcpd_pb2.OpenAIResponsesV1TaskSpec(
            request_json=body, params=lcpd_pb2.OpenAIResponsesV1Params(model=model)
        )
    )


class NodeClient:
    def __init__(self, channel: grpc.aio.Channel, node: Node) -> None:
        self.channel = channel
        self.stub = lcpd_pb2_grpc.LCPDServiceStub(channel)
        self.node = node

    def peer_id(self, alias="Alice"):
        return self.node.peers.named(alias).id

    async def list_peers(self):
        return list((await self.stub.ListLCPPeers(lcpd_pb2.ListLCPPeersRequest())).peers)

    async def quote(self, task, alias="Alice", *, peer_id=None, timeout=60.0):
        request = lcpd_pb2.RequestQuoteRequest(peer_id=peer_id or self.peer_id(alias), task=task)
        return (await self.stub.RequestQuote(request, timeout=timeout)).terms

    async def accept(self, terms, alias="Alice", *, timeout=60.0, pay=True):
        request = lcpd_pb2.AcceptAndExecuteRequest(peer_id=self.peer_id(alias), job_id=terms.job_id, pay_invoice=pay)
        return await self.stub.AcceptAndExecute(request, timeout=timeout)

    def open_stream(self, terms, alias="Alice", *, timeout=60.0):
        request = lcpd_pb2.AcceptAndExecuteStreamRequest(
            peer_id=self.peer_id(alias), job_id=terms.job_id, pay_invoice=True
        )
        return self.stub.AcceptAndExecuteStream(request, timeout=timeout)

    async def stream(self, terms, alias="Alice", *, timeout=60.0, into=None):
        streamed = into if into is not None else Streamed()
        async for event in self.open_stream(terms, alias, timeout=timeout):
            match event.WhichOneof("event"):
                case "result_begin":
                    streamed.begin = event.result_begin
                case "result_chunk":
                    streamed.chunks.append(event.result_chunk.data)
                case "result_end":
                    streamed.end = event.result_end
                case "result":
                    streamed.result = event.result
        return streamed

    async def cancel(self, terms, alias="Alice", reason="request canceled"):
        request = lcpd_pb2.CancelJobRequest(peer_id=self.peer_id(alias), job_id=terms.job_id, reason=reason)
        return await self.stub.CancelJob(request, timeout=60.0)

    async def ask(self, task, alias="Alice", **how):
        """Quote, pay and return the JSON answer."""
        terms = await self.quote(task, alias)
        return orjson.loads((await self.accept(terms, alias, **how)).result.result)

    async def ask_stream(self, task, alias="Alice", **how):
        return await self.stream(await self.quote(task, alias), alias, **how)


async def until(is_so: Callable[[], object]) -> None:
    """Wait until a condition holds; it still does when this returns."""
    async with asyncio.timeout(60):
        while not is_so():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def running_node(config: NodeConfig) -> AsyncIterator[NodeClient]:
    node = Node(config)
    address = await node.start()
    options = [("grpc.max_receive_message_length", RECEIVE_LIMIT)]
    try:
        async with grpc.aio.insecure_channel(address, options=options) as channel:
            yield NodeClient(channel, node)
    finally:
        await node.stop()
