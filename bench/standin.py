"""A stand-in daemon with very little CPU: every quote is valid and signed, every result is prepared as bytes.

``python -m bench.standin ADDRESS [PAUSE_S [PAID]]`` serves until standard input ends. Its one peer sells ``MODEL``. A
stream is ``CHUNKS`` events of about 130 bytes, one at a time and without a pause; a request may ask for other numbers, with
``max_tokens`` (events) and ``seed`` (the pause in milliseconds). The preimage of each job that was paid, which is its id, is
written to the file ``PAID``, if one is named.
"""

import asyncio
import hashlib
import json
import os
import random
import secrets
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import uvloop
from coincurve import PrivateKey
from google.protobuf.timestamp_pb2 import Timestamp

from bench.http2_server import Reply, message, serving
from lcp_gateway._gen.lcpd import lcpd_pb2 as pb
from lcp_gateway.lightning import bolt11
from lcp_gateway.lightning.terms import terms_hash

MODEL = "bench"
CHUNKS = 100
_KEY = PrivateKey(hashlib.sha256(b"the bench's peer").digest())
PEER_ID = _KEY.public_key.format().hex()
PRICE_MSAT = 2_000
_TTL_S = 300
_VERSION = 2
_NOT_FOUND = 5
_SERVICE = "/lcpd.v1.LCPDService/"
_JSON = "application/json; charset=utf-8"
_EVENTS = "text/event-stream; charset=utf-8"
_ANSWER = (
    b'{"id":"chatcmpl-bench","object":"chat.completion","created":1700000000,"model":"bench","choices":[{"index":0,'
    b'"message":{"role":"assistant","content":"All is well."},"logprobs":null,"finish_reason":"stop"}],"usage":'
    b'{"prompt_tokens":9,"completion_tokens":4,"total_tokens":13}}'
)
EVENT = (
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


class Pace(NamedTuple):
    """A stream's events, the last of them its end mark, and the pause between them."""

    chunks: int
    pause_s: float


class _Job:
    """Job ids tell the stream that was asked for, so that nothing has to be remembered."""

    @staticmethod
    def make(pace: Pace) -> bytes:
        return secrets.token_bytes(26) + round(pace.pause_s * 1000).to_bytes(2, "big") + pace.chunks.to_bytes(4, "big")

    @staticmethod
    def pace(job_id: bytes) -> Pace:
        return Pace(int.from_bytes(job_id[28:], "big"), int.from_bytes(job_id[26:28], "big") / 1000)


class Stream:
    """One stream's messages, ready to be sent: these events, and the end mark."""

    def __init__(self, events: list[bytes]) -> None:
        events = [*events, b"data: [DONE]\n\n"]
        result = _result(b"".join(events), _EVENTS, carried=True)
        begin = pb.ResultStreamBegin(content_type=_EVENTS, content_encoding="identity")
        end = pb.ResultStreamEnd(result_hash=result.result_hash, result_len=result.result_len)
        event = pb.AcceptAndExecuteStreamResponse
        self.begin = message(event(result_begin=begin).SerializeToString())
        made = {e: message(event(result_chunk=pb.ResultStreamChunk(data=e)).SerializeToString()) for e in set(events)}
        self.events = [made[each] for each in events]
        self.end = b"".join(message(it.SerializeToString()) for it in (event(result_end=end), event(result=result)))


class StandIn:
    """The service, from bytes to bytes: only a quote's request is parsed."""

    def __init__(self, pause_s: float, paid: str = "") -> None:
        self._pace = Pace(CHUNKS, pause_s)
        self._paid = os.open(paid, os.O_WRONLY | os.O_CREAT | os.O_APPEND) if paid else None
        peers = [pb.LCPPeer(peer_id=PEER_ID, address="127.0.0.1:9735", remote_manifest=_manifest())]
        listed = pb.ListLCPPeersResponse(peers=peers).SerializeToString()
        info = pb.GetLocalInfoResponse(node_id=PEER_ID, manifest=_manifest()).SerializeToString()
        answer = pb.AcceptAndExecuteResponse(result=_result(_ANSWER, _JSON, carried=False)).SerializeToString()
        self._answer = answer
        self._made: dict[int, Stream] = {}
        self.unary: Mapping[str, Callable[[bytes], bytes]] = {
            _SERVICE + "ListLCPPeers": lambda _request: listed,
            _SERVICE + "GetLocalInfo": lambda _request: info,
            _SERVICE + "RequestQuote": self._quote,
            _SERVICE + "AcceptAndExecute": self._execute,
            _SERVICE + "CancelJob": lambda _request: pb.CancelJobResponse(success=True).SerializeToString(),
        }
        self.streams = {_SERVICE + "AcceptAndExecuteStream": self._stream}

    def _quote(self, request: bytes) -> bytes:
        body = pb.RequestQuoteRequest.FromString(request).task.openai_chat_completions_v1
        job_id, now = self.job_of(body.request_json), int(time.time())
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

    def job_of(self, body: bytes) -> bytes:
        """Return the id of a new job for a request's body."""
        return _Job.make(self._asked(body))

    def _asked(self, body: bytes) -> Pace:
        document = json.loads(body)
        chunks = document.get("max_tokens") or self._pace.chunks
        seed = document.get("seed")
        return Pace(chunks, self._pace.pause_s if seed is None else seed / 1000)

    def _pay(self, job_id: bytes) -> None:
        if self._paid is not None:
            os.write(self._paid, job_id)

    def _execute(self, request: bytes) -> bytes:
        self._pay(pb.AcceptAndExecuteRequest.FromString(request).job_id)
        return self._answer

    def _stream(self, request: bytes, reply: Reply) -> None:
        job_id = pb.AcceptAndExecuteStreamRequest.FromString(request).job_id
        self._pay(job_id)
        pace, stream = _Job.pace(job_id), self.stream_of(job_id)
        if stream is None:
            reply.finish(_NOT_FOUND)
            return
        reply.send(stream.begin)
        loop = asyncio.get_running_loop()
        # Streams that began together do not go on in step: the second event of each comes within a pause.
        began = loop.time() - random.random() * pace.pause_s
        self._go_on(loop, reply, stream, pace.pause_s, began, 0)

    def stream_of(self, job_id: bytes) -> Stream | None:
        """Return the messages of a job; None where it is not known."""
        chunks = _Job.pace(job_id).chunks
        if (made := self._made.get(chunks)) is None:
            made = self._made[chunks] = Stream([EVENT] * (chunks - 1))
        return made

    def _go_on(
        self, loop: asyncio.AbstractEventLoop, reply: Reply, stream: Stream, pause_s: float, began: float, position: int
    ) -> None:
        """Send an event, and plan the next."""
        if reply.is_over:
            return
        reply.send(stream.events[position])
        if (position := position + 1) == len(stream.events):
            reply.send(stream.end)
            reply.finish()
            return
        again = partial(self._go_on, loop, reply, stream, pause_s, began, position)
        if pause_s:
            loop.call_at(began + position * pause_s, again)
        else:
            loop.call_soon(again)


async def serve(address: str, pause_s: float, paid: str = "") -> None:
    """Serve until standard input ends."""
    async with serving(StandIn(pause_s, paid), address):
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    address, pause_s, paid = [*sys.argv[1:], *("", "0", "")[len(sys.argv) - 1 :]]
    uvloop.run(serve(address, float(pause_s), paid))
