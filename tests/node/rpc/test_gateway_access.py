"""The gateway's own settings of a daemon lead to a node's port with TLS and a token, over both transports."""

import asyncio

import grpc
import pytest

from lcp_gateway._gen.lcpd import lcpd_pb2 as pb
from lcp_gateway._gen.lcpd import lcpd_pb2_grpc
from lcp_gateway.app.wiring.routing import lcpd_address
from lcp_gateway.config import Settings
from lcp_gateway.node.rpc.server import RpcServer, ServerOptions
from lcp_gateway.purchase.errors import UpstreamError
from lcp_gateway.upstreams.lcpd.adapter import LcpdUpstream
from tests.support.certificates import certificate
from tests.support.fake_node_calls import JOB, NODE, PEER, FakeNodeCalls, whole


@pytest.mark.parametrize("transport", ["direct", "grpcio"])
@pytest.mark.parametrize(
    ("token", "status"), [("Bearer s3cret", ""), ("Bearer other", "UNAUTHENTICATED"), ("", "UNAUTHENTICATED")]
)
async def test_the_gateway_reaches_a_port_with_tls_and_a_token(tmp_path, transport, token, status):
    pair = certificate(tmp_path)
    options = ServerOptions(
        listen="127.0.0.1:0", certificate=pair.certificate.read_bytes(), key=pair.key.read_bytes(), token="s3cret"
    )
    server = RpcServer(FakeNodeCalls(), options, on_bug=lambda *_: None)
    settings = Settings(
        lcpd_grpc_addr=await server.start(),
        lcpd_tls=True,
        lcpd_tls_ca=pair.certificate,
        lcpd_metadata={"authorization": token} if token else {},
        lcpd_transport=transport,
    )
    upstream = LcpdUpstream(lcpd_address(settings))
    try:
        if not status:
            assert (await upstream.local_info(60)).node_id == NODE
            return
        with pytest.raises(UpstreamError) as caught:
            await upstream.local_info(60)
        assert caught.value.status == status and "s3cret" not in caught.value.message
    finally:
        await upstream.close()
        await server.stop(0)


async def test_calls_under_way_end_before_a_port_is_closed():
    """A node that is told to stop takes no more calls, and finishes those that it has."""
    gate = asyncio.Event()
    calls = FakeNodeCalls(items=[gate, *whole(b"x")])
    server = RpcServer(calls, ServerOptions(listen="127.0.0.1:0"), on_bug=lambda *_: None)
    async with grpc.aio.insecure_channel(await server.start()) as channel:
        stub = lcpd_pb2_grpc.LCPDServiceStub(channel)
        request = pb.AcceptAndExecuteRequest(peer_id=PEER, job_id=JOB, pay_invoice=True)
        paying = asyncio.create_task(_answer(stub, request))
        async with asyncio.timeout(60):
            while not calls.accepted:
                await asyncio.sleep(0.01)
            stopping = asyncio.create_task(server.stop(60))
            await asyncio.sleep(0)
            gate.set()
            assert (await paying).result.result == b"x"
            await stopping


async def _answer(stub, request):
    return await stub.AcceptAndExecute(request)
