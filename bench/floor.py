"""The ruler: the shortest gateway that these libraries allow, with no checks, no journal and nothing else.

``python -m bench.floor PORT DAEMON``: aiohttp, grpc.aio and uvloop; the first peer gets every request.
"""

import asyncio
import contextlib
import json
import sys

import grpc.aio
import uvloop
from aiohttp import web

from lcp_gateway._gen.lcpd import lcpd_pb2 as pb
from lcp_gateway._gen.lcpd.lcpd_pb2_grpc import LCPDServiceStub


async def main(port: int, daemon: str) -> None:
    stub = LCPDServiceStub(grpc.aio.insecure_channel(daemon))
    peer = (await stub.ListLCPPeers(pb.ListLCPPeersRequest(), wait_for_ready=True)).peers[0].peer_id

    async def chat(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        wanted = json.loads(body)
        params = pb.OpenAIChatCompletionsV1Params(model=wanted["model"])
        spec = pb.OpenAIChatCompletionsV1TaskSpec(request_json=body, params=params)
        task = pb.Task(openai_chat_completions_v1=spec)
        quote = await stub.RequestQuote(pb.RequestQuoteRequest(peer_id=peer, task=task))
        job = {"peer_id": peer, "job_id": quote.terms.job_id, "pay_invoice": True}
        if not wanted.get("stream"):
            answer = await stub.AcceptAndExecute(pb.AcceptAndExecuteRequest(**job))
            return web.Response(body=answer.result.result, headers={"Content-Type": answer.result.content_type})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
        await response.prepare(request)
        async for message in stub.AcceptAndExecuteStream(pb.AcceptAndExecuteStreamRequest(**job)):
            if message.HasField("result_chunk"):
                await response.write(message.result_chunk.data)
        await response.write_eof()
        return response

    application = web.Application()
    application.router.add_post("/v1/chat/completions", chat)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(main(int(sys.argv[1]), sys.argv[2]))
