import asyncio
import os

import psutil

from lcp_gateway._gen.lcpd import lcpd_pb2
from lcp_gateway.node.config import FaultConfig, ModelConfig, PeerConfig
from lcp_gateway.node.lcp.buying_events import PeerTimeouts
from lcp_gateway.node.runtime.bounds import Delays
from lcp_gateway.node.runtime.node import LcpNode
from tests.support.node_client import chat_task

MIB = 1024 * 1024
# Many quotes at once take a busy machine longer than a node waits for one.
PATIENT = Delays(timeouts=PeerTimeouts(quote_s=200))


async def test_a_reader_that_stops_holds_the_node_back(make_node):
    """The node runs in this process, so the test sees that it produces nothing that the reader does not take."""
    settings = FaultConfig(flood_bytes=256 * MIB)
    async with make_node(faults=True, fault_settings=settings) as client:
        terms = await client.quote(chat_task(model="fault/stream-floods", stream=True), "Mallory")
        call = client.open_stream(terms, "Mallory", timeout=200)
        for _ in range(20):
            await call.read()
        process = psutil.Process(os.getpid())
        before = process.memory_info().rss
        await asyncio.sleep(0.5)
        assert process.memory_info().rss - before < 16 * MIB
        assert (await call.read()).result_chunk.data
        call.cancel()


async def test_hundreds_of_slow_streams_run_side_by_side_and_stay_apart(make_node, monkeypatch):
    monkeypatch.setitem(LcpNode.__init__.__kwdefaults__, "delays", PATIENT)
    peer = PeerConfig("Crowd", (ModelConfig("m", tokens_per_second=10),))
    async with make_node(peers=(peer,)) as client:

        async def one(number):
            task = chat_task(model="m", say=f"number-{number}", stream=True, max_tokens=8)
            streamed = await client.ask_stream(task, "Crowd", timeout=200)
            texts = [event["choices"][0]["delta"].get("content") or "" for event in streamed.events]
            assert "".join(texts).endswith(f" number-{number}")

        # Sequentially they would take four minutes.
        async with asyncio.timeout(200):
            await asyncio.gather(*(one(number) for number in range(300)))
        assert client.node.wallet.payments == 300


async def test_a_result_larger_than_the_requester_takes_is_a_failed_result_after_payment(make_node):
    failed = lcpd_pb2.Result(status=lcpd_pb2.Result.STATUS_FAILED, message="result exceeds remote stream limits")
    async with make_node(faults=True, fault_settings=FaultConfig(big_result_bytes=(4 * MIB) + 1)) as client:
        task = chat_task(model="fault/big-result")
        assert (await client.accept(await client.quote(task, "Mallory"), "Mallory")).result == failed
        task = chat_task(model="fault/big-result", stream=True)
        streamed = await client.ask_stream(task, "Mallory", timeout=60)

        assert streamed.end is None
        assert streamed.result == failed
        assert client.node.wallet.payments == 2


async def test_a_burst_of_calls_is_served_to_the_last(make_node, monkeypatch):
    """By default gRPC's C core would cancel some calls of a queue longer than a thousand."""
    monkeypatch.setitem(LcpNode.__init__.__kwdefaults__, "delays", PATIENT)
    async with make_node() as client:
        quotes = await asyncio.gather(*(client.quote(chat_task(), timeout=200) for _ in range(1_500)))

    assert len({terms.job_id for terms in quotes}) == 1_500
