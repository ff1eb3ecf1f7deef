"""The same requests to the daemon itself, over gRPC: the baseline of the gateway's figures."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc.aio

from bench.workload import Tally, Workload
from lcp_gateway._gen.lcpd import lcpd_pb2 as pb
from lcp_gateway._gen.lcpd.lcpd_pb2_grpc import LCPDServiceStub


class Client:
    """Takes a quote, accepts it, reads the result, and starts again."""

    def __init__(self, stub: Any, peer_id: str, workload: Workload, tally: Tally, number: int) -> None:
        self._stub = stub
        self._peer_id = peer_id
        self._tally = tally
        self._every_s = workload.every_s
        self._ask = self._stream if workload.stream else self._whole
        self._first, self._request = (
            pb.RequestQuoteRequest(
                peer_id=peer_id,
                task=pb.Task(
                    openai_chat_completions_v1=pb.OpenAIChatCompletionsV1TaskSpec(
                        request_json=body, params=pb.OpenAIChatCompletionsV1Params(model=workload.model)
                    )
                ),
            )
            for body in (workload.first_body(number), workload.body)
        )

    async def run(self) -> None:
        request = self._first
        try:
            while True:
                started = time.perf_counter()
                quote = await self._stub.RequestQuote(request, timeout=30)
                request = self._request
                await self._ask(started, quote.terms.job_id)
                now = time.perf_counter()
                self._tally.done(started, now)
                await asyncio.sleep(max(started + self._every_s - now, 0.0))
        except grpc.aio.AioRpcError:
            self._tally.failed()

    async def _whole(self, started: float, job_id: bytes) -> None:
        await self._stub.AcceptAndExecute(
            pb.AcceptAndExecuteRequest(peer_id=self._peer_id, job_id=job_id, pay_invoice=True), timeout=60
        )
        self._tally.began(started, time.perf_counter())

    async def _stream(self, started: float, job_id: bytes) -> None:
        call = self._stub.AcceptAndExecuteStream(
            pb.AcceptAndExecuteStreamRequest(peer_id=self._peer_id, job_id=job_id, pay_invoice=True), timeout=600
        )
        last = 0.0
        while (message := await call.read()) is not grpc.aio.EOF:
            if message.HasField("result_chunk"):
                now = time.perf_counter()
                if not last:
                    self._tally.began(started, now)
                self._tally.came(message.result_chunk.data, last, now)
                last = now


async def start_clients(where: str, workload: Workload, tally: Tally) -> Callable[[], Awaitable[None]]:
    """Start all clients of the daemon at ``where`` (a gRPC target), over one channel; return a function that stops them."""
    channel = grpc.aio.insecure_channel(where)
    stub: Any = LCPDServiceStub(channel)
    peer_id = await _seller(stub, workload.model)
    clients = [Client(stub, peer_id, workload, tally, number) for number in range(workload.clients)]
    tasks = [asyncio.create_task(client.run()) for client in clients]

    async def stop() -> None:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await channel.close()

    return stop


async def _seller(stub: Any, model: str) -> str:
    """The first peer that sells a model, which is the one that the gateway takes."""
    answer = await stub.ListLCPPeers(pb.ListLCPPeersRequest(), timeout=60, wait_for_ready=True)
    for peer in answer.peers:
        for task in peer.remote_manifest.supported_tasks:
            if task.openai_chat_completions_v1.model == model:
                return peer.peer_id
    raise SystemExit(f"no peer sells {model}")
