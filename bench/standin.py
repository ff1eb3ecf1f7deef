"""A stand-in daemon with very little CPU: every quote is valid and signed, every result is prepared as bytes.

``python -m bench.standin ADDRESS [PAUSE_S [PAID]]`` serves until standard input ends. Its one peer sells ``MODEL``; a
stream is ``CHUNKS`` events of about 130 bytes, sent without a pause unless ``PAUSE_S`` sets one between them. The preimage
of each job that was paid, which is its id, is written to the file ``PAID``, if one is named.
"""

import asyncio
import hashlib
import os
import secrets
import sys
import time

import grpc.aio
import uvloop
from coincurve import PrivateKey
from google.protobuf.timestamp_pb2 import Timestamp

from lcp_gateway._gen.lcpd import lcpd_pb2 as pb
from lcp_gateway.lightning import bolt11
from lcp_gateway.lightning.terms import terms_hash

MODEL = "bench"
CHUNKS = 100
# grpc would drop calls at random when more than 1,000 wait.
_OPTIONS = [
    ("grpc.so_reuseport", 0),
    ("grpc.server.max_pending_requests", 100_000),
    ("grpc.server.max_pending_requests_hard_limit", 200_000),
]
_KEY = PrivateKey(hashlib.sha256(b"the bench's peer").digest())
PEER_ID = _KEY.public_key.format().hex()
PRICE_MSAT = 2_000
_TTL_S = 300
_VERSION = 2
_JSON = "application/json; charset=utf-8"
_EVENTS = "text/event-stream; charset=utf-8"
_ANSWER = (
    b'{"id":"chatcmpl-bench","object":"chat.completion","created":1700000000,"model":"bench","choices":[{"index":0,'
    b'"message":{"role":"assistant","content":"All is well."},"logprobs":null,"finish_reason":"stop"}],"usage":'
    b'{"prompt_tokens":9,"completion_tokens":4,"total_tokens":13}}'
)
_EVENT = (
    b'data: {"id":"c","object":"chat.completion.chunk","model":"bench","choices":[{"index":0,"delta":{"content":'
    b'" word"},"finish_reason":null}]}\n\n'
)


def _manifest() -> pb.LCPManifest:
    params = pb.OpenAIChatCompletionsV1Params(model=MODEL)
    return pb.LCPManifest(
        protocol_version=_VERSION,
        max_payload_bytes=16_384,
        max_stream_bytes=1 << 22,
        max_job_bytes=1 << 23,
        max_inflight_jobs=65_536,
        supported_tasks=[
            pb.LCPTaskTemplate(kind=pb.LCP_TASK_KIND_OPENAI_CHAT_COMPLETIONS_V1, openai_chat_completions_v1=params)
        ],
    )


def _result(body: bytes, content_type: str, *, carried: bool) -> pb.Result:
    """The terminal message of ``body``, which a stream has carried already."""
    return pb.Result(
        status=pb.Result.STATUS_OK,
        result=b"" if carried else body,
        result_hash=hashlib.sha256(body).digest(),
        result_len=len(body),
        content_type=content_type,
        content_encoding="identity",
    )


def _stream_messages() -> list[bytes]:
    chunks = [_EVENT] * (CHUNKS - 1) + [b"data: [DONE]\n\n"]
    result = _result(b"".join(chunks), _EVENTS, carried=True)
    begin = pb.ResultStreamBegin(content_type=_EVENTS, content_encoding="identity")
    end = pb.ResultStreamEnd(result_hash=result.result_hash, result_len=result.result_len)
    message = pb.AcceptAndExecuteStreamResponse
    return [
        message(result_begin=begin).SerializeToString(),
        *(message(result_chunk=pb.ResultStreamChunk(data=c)).SerializeToString() for c in chunks),
        message(result_end=end).SerializeToString(),
        message(result=result).SerializeToString(),
    ]


class StandIn:
    """The service, from bytes to bytes: only a quote's request is parsed."""

    def __init__(self, pause_s: float, paid: str = "") -> None:
        self._pause_s = pause_s
        self._paid = os.open(paid, os.O_WRONLY | os.O_CREAT | os.O_APPEND) if paid else None
        self._peers = pb.ListLCPPeersResponse(
            peers=[pb.LCPPeer(peer_id=PEER_ID, address="127.0.0.1:9735", remote_manifest=_manifest())]
        ).SerializeToString()
        self._info = pb.GetLocalInfoResponse(node_id=PEER_ID, manifest=_manifest()).SerializeToString()
        self._answer = pb.AcceptAndExecuteResponse(result=_result(_ANSWER, _JSON, carried=False)).SerializeToString()
        self._stream = _stream_messages()

    async def list_peers(self, _request, _context) -> bytes:
        return self._peers

    async def local_info(self, _request, _context) -> bytes:
        return self._info

    async def quote(self, request, _context) -> bytes:
        body = pb.RequestQuoteRequest.FromString(request).task.openai_chat_completions_v1
        job_id, now = secrets.token_bytes(32), int(time.time())
        digest = terms_hash(
            protocol_version=_VERSION,
            job_id=job_id,
            price_msat=PRICE_MSAT,
            quote_expiry=now + _TTL_S,
            task_kind="openai.chat_completions.v1",
            model=MODEL,
            request=body.request_json,
        )
        invoice = bolt11.encode(
            _KEY,
            network="bcrt",
            timestamp=now,
            payment_hash=hashlib.sha256(job_id).digest(),
            payment_secret=secrets.token_bytes(32),
            amount_msat=PRICE_MSAT,
            description_hash=digest,
            expiry_s=_TTL_S,
        )
        terms = pb.Terms(
            protocol_version=_VERSION,
            job_id=job_id,
            price_msat=PRICE_MSAT,
            quote_expiry=Timestamp(seconds=now + _TTL_S),
            terms_hash=digest,
            payment_request=invoice,
        )
        return pb.RequestQuoteResponse(peer_id=PEER_ID, terms=terms).SerializeToString()

    def _pay(self, request: bytes) -> None:
        if self._paid is not None:
            os.write(self._paid, pb.AcceptAndExecuteRequest.FromString(request).job_id)

    async def execute(self, request, _context) -> bytes:
        self._pay(request)
        return self._answer

    async def stream(self, request, context) -> None:
        self._pay(request)
        for message in self._stream:
            await context.write(message)
            if self._pause_s:
                await asyncio.sleep(self._pause_s)

    async def cancel(self, _request, _context) -> bytes:
        return pb.CancelJobResponse(success=True).SerializeToString()


async def serve(address: str, pause_s: float, paid: str = "") -> None:
    """Serve until standard input ends."""
    service = StandIn(pause_s, paid)
    unary = grpc.unary_unary_rpc_method_handler
    handlers = {
        "ListLCPPeers": unary(service.list_peers),
        "GetLocalInfo": unary(service.local_info),
        "RequestQuote": unary(service.quote),
        "AcceptAndExecute": unary(service.execute),
        "AcceptAndExecuteStream": grpc.unary_stream_rpc_method_handler(service.stream),
        "CancelJob": unary(service.cancel),
    }
    server = grpc.aio.server(options=_OPTIONS)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("lcpd.v1.LCPDService", handlers),))
    server.add_insecure_port(address)
    await server.start()
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await server.stop(None)


if __name__ == "__main__":
    address, pause_s, paid = [*sys.argv[1:], *("", "0", "")[len(sys.argv) - 1 :]]
    uvloop.run(serve(address, float(pause_s), paid))
