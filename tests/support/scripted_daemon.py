"""A daemon in the test's own loop: an LCPDService with scripted answers."""

import asyncio
import contextlib
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

import grpc.aio

from lcp_gateway._gen.lcpd import lcpd_pb2 as pb
from lcp_gateway._gen.lcpd import lcpd_v03_pb2 as v03

PEER = "02" + "ab" * 32


def terms(**changes) -> pb.Terms:
    made = pb.Terms(
        protocol_version=2, job_id=b"\x11" * 32, price_msat=5_000, terms_hash=b"\x22" * 32, payment_request="lnbcrt1"
    )
    made.quote_expiry.FromJsonString("2100-01-01T00:00:00Z")
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def quote_v03(**changes) -> v03.Quote:
    made = v03.Quote(
        protocol_version=3, call_id=b"\x11" * 32, price_msat=5_000, terms_hash=b"\x22" * 32, payment_request="lnbcrt1"
    )
    made.quote_expiry.FromJsonString("2100-01-01T00:00:00Z")
    for name, value in changes.items():
        setattr(made, name, value)
    return made


@dataclass
class Daemon:
    """Answers from ``answers[method]``: messages or (code, text) failures in order, the last one for ever."""

    answers: dict[str, list] = field(default_factory=dict)
    requests: defaultdict[str, list] = field(default_factory=lambda: defaultdict(list))
    metadata: dict[str, str] = field(default_factory=dict)
    version: int = 2
    address: str = ""

    async def _answer(self, method, request, context, otherwise):
        self.requests[method].append(request)
        self.metadata = dict(context.invocation_metadata())
        planned = self.answers.get(method, [otherwise])
        answer = planned.pop(0) if len(planned) > 1 else planned[0]
        if isinstance(answer, tuple):
            await context.abort(*answer)
        return answer

    async def GetLocalInfo(self, request, context):  # noqa: N802 - gRPC's name
        info = pb.GetLocalInfoResponse(node_id=PEER, manifest={"protocol_version": self.version})
        return await self._answer("GetLocalInfo", request, context, info)

    async def ListLCPPeers(self, request, context):  # noqa: N802 - gRPC's name
        return await self._answer("ListLCPPeers", request, context, pb.ListLCPPeersResponse())

    async def RequestQuote(self, request, context):  # noqa: N802 - gRPC's name
        if self.version == 3:
            quote = v03.RequestQuoteResponse(peer_id=request.peer_id, quote=quote_v03())
        else:
            quote = pb.RequestQuoteResponse(peer_id=request.peer_id, terms=terms())
        return await self._answer("RequestQuote", request, context, quote)

    async def AcceptAndExecute(self, request, context):  # noqa: N802 - gRPC's name
        if self.version == 3:
            done = v03.AcceptAndExecuteResponse(complete={"status": v03.Complete.STATUS_OK, "response_bytes": b"x"})
        else:
            done = pb.AcceptAndExecuteResponse(result={"status": pb.Result.STATUS_OK, "result": b"x"})
        return await self._answer("AcceptAndExecute", request, context, done)

    async def AcceptAndExecuteStream(self, request, context):  # noqa: N802 - gRPC's name
        self.requests["AcceptAndExecuteStream"].append(request)
        for event in self.answers["AcceptAndExecuteStream"]:
            if isinstance(event, tuple):
                await context.abort(*event)
            elif isinstance(event, float):
                await asyncio.sleep(event)
            else:
                yield event

    async def CancelJob(self, request, context):  # noqa: N802 - gRPC's name
        return await self._answer("CancelJob", request, context, pb.CancelJobResponse(success=True))


def _handler(daemon: Daemon) -> grpc.GenericRpcHandler:
    messages = v03 if daemon.version == 3 else pb

    def method(name, make):
        request = getattr(messages, name + "Request")
        return make(getattr(daemon, name), request.FromString, lambda message: message.SerializeToString())

    names = ["ListLCPPeers", "GetLocalInfo", "RequestQuote", "AcceptAndExecute", "CancelJob"]
    methods = {name: method(name, grpc.unary_unary_rpc_method_handler) for name in names}
    stream = "AcceptAndExecuteStream"
    methods[stream] = method(stream, grpc.unary_stream_rpc_method_handler)
    return grpc.method_handlers_generic_handler("lcpd.v1.LCPDService", methods)


@contextlib.asynccontextmanager
async def serving(daemon: Daemon, address="127.0.0.1:0", credentials=None) -> AsyncIterator[Daemon]:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((_handler(daemon),))
    if credentials is None:
        port = server.add_insecure_port(address)
    else:
        port = server.add_secure_port(address, credentials)
    daemon.address = address if address.startswith("unix:") else f"127.0.0.1:{port}"
    await server.start()
    try:
        yield daemon
    finally:
        await server.stop(0)


@contextlib.contextmanager
def in_a_thread(daemon: Daemon) -> Iterator[Daemon]:
    """Run a daemon for tests without an event loop of their own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="daemon", daemon=True)
    thread.start()
    served = serving(daemon)

    def run(work):
        return asyncio.run_coroutine_threadsafe(work, loop).result(60)

    try:
        run(served.__aenter__())
        try:
            yield daemon
        finally:
            run(served.__aexit__(None, None, None))
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(60)


def chunk(data: bytes) -> pb.AcceptAndExecuteStreamResponse:
    return pb.AcceptAndExecuteStreamResponse(result_chunk={"data": data})


def begin() -> pb.AcceptAndExecuteStreamResponse:
    return pb.AcceptAndExecuteStreamResponse(
        result_begin={"content_type": "text/event-stream", "content_encoding": "identity"}
    )
