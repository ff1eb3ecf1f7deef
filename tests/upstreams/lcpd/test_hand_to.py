"""Chunks that the direct transport hands over the moment they come."""

import asyncio
import hashlib

import pytest

from lcp_gateway._gen.lcpd import lcpd_pb2 as pb
from lcp_gateway.purchase.errors import UpstreamError
from lcp_gateway.purchase.ports import Result, StreamBegin, StreamEnd
from lcp_gateway.upstreams.lcpd.adapter import LcpdUpstream
from lcp_gateway.upstreams.lcpd.grpc_call import GrpcCall
from lcp_gateway.upstreams.lcpd.http2_protocol import WINDOW_BYTES
from lcp_gateway.upstreams.lcpd.transport import LcpdAddress, TransportKind
from tests.support import raw_http2 as raw
from tests.support.purchases import TASK, quote
from tests.support.raw_http2 import raw_server

BEGIN = pb.AcceptAndExecuteStreamResponse(result_begin=pb.ResultStreamBegin(content_type="text/event-stream"))

INFO = pb.GetLocalInfoResponse(manifest={"protocol_version": 2})


def chunk(data):
    return pb.AcceptAndExecuteStreamResponse(result_chunk=pb.ResultStreamChunk(data=data)).SerializeToString()


def ends(body):
    digest, length = hashlib.sha256(body).digest(), len(body)
    end = pb.ResultStreamEnd(result_hash=digest, result_len=length)
    result = pb.Result(status=pb.Result.STATUS_OK, result_hash=digest, result_len=length)
    event = pb.AcceptAndExecuteStreamResponse
    return event(result_end=end).SerializeToString(), event(result=result).SerializeToString()


class Carrier:
    """The connection's side of a call."""

    def __init__(self):
        self.acknowledged = []

    def forget(self, stream_id):
        pass

    def acknowledge(self, stream_id, count):
        self.acknowledged.append(count)


@pytest.fixture
async def call():
    made = GrpcCall(asyncio.get_running_loop())
    made.start(Carrier(), 1)
    return made


async def waiting(call):
    reading = asyncio.create_task(call.read())
    await asyncio.sleep(0)
    return reading


async def test_messages_of_one_read_are_one_block_for_the_sink_while_a_reader_waits(call):
    taken = []
    call.hand_to(lambda messages: taken.append(messages) or True)
    assert call.on_data(raw.message(b"early"))
    call.deliver()
    assert taken == [], "no reader waits: the message is for the next read"
    assert await call.read() == [b"early"]
    reading = await waiting(call)
    assert [call.on_data(raw.message(data)) for data in (b"one", b"two")] == [True, False], "to be delivered once"
    call.deliver()
    assert taken == [[b"one", b"two"]]
    await asyncio.sleep(0)
    assert not reading.done()
    call.cancel()
    await asyncio.gather(reading, return_exceptions=True)


async def test_messages_that_are_refused_and_all_after_them_are_for_the_reader(call):
    offered = []
    call.hand_to(lambda messages: bool(offered.append(list(messages))))
    reading = await waiting(call)
    for data in (b"one", b"two"):
        call.on_data(raw.message(data))
        call.deliver()
    assert offered == [[b"one"]], "the reader is on its way"
    assert await reading == [b"one", b"two"]


async def test_what_the_sink_takes_opens_the_window(call):
    carrier, size = call._connection, 1_000
    call.hand_to(lambda _messages: True)
    reading = await waiting(call)
    for _ in range(100):
        call.on_data(raw.message(b"x" * (size - 5)))
        call.deliver()
    assert sum(carrier.acknowledged) > 100 * size - WINDOW_BYTES // 4
    assert len(carrier.acknowledged) < 10, "in portions"
    call.cancel()
    await asyncio.gather(reading, return_exceptions=True)


async def test_what_the_sink_refuses_and_no_reader_takes_leaves_the_window_closed(call):
    call.hand_to(lambda _messages: False)
    for _ in range(60):
        call.on_data(raw.message(b"x" * 995))
        call.deliver()
    assert call._connection.acknowledged == []


async def bought(script, *, limit=0):
    """Buy one stream of the scripted daemon; return its bytes as they came, to the sink or the reader, and the other events."""
    came, events = [], []
    async with raw_server(script) as server:
        upstream = LcpdUpstream(LcpdAddress(server.address, transport=TransportKind.DIRECT))
        if limit:
            upstream._result_limits = {quote().peer_id: limit}
        stream = upstream.execute_stream(quote(), TASK, 60)
        try:
            async for event in stream:
                (came if isinstance(event, bytes) else events).append(event)
                if isinstance(event, StreamBegin):
                    event.hand_to(lambda data: came.append(data) or True)
        finally:
            await stream.aclose()
            await upstream.close()
    return b"".join(came), events


def in_parts(*parts):
    """A script that sends each part by itself."""

    def script(stream_id):
        yield raw.head(stream_id)
        if stream_id == 1:
            # The first call asks for the daemon's version.
            yield raw.data(stream_id, INFO.SerializeToString())
            yield raw.trailers(stream_id)
            return
        yield raw.data(stream_id, BEGIN.SerializeToString())
        yield from (raw.data(stream_id, *part) for part in parts)
        yield raw.trailers(stream_id)

    return script


async def test_the_bytes_come_in_order_by_the_sink_and_the_reader_and_other_events_by_the_reader():
    body = b"a" * 100 + b"b" * 100
    came, events = await bought(in_parts([chunk(b"a" * 100)], [chunk(b"b" * 100)], ends(body)))
    assert came == body
    assert [type(event) for event in events] == [StreamBegin, StreamEnd, Result]


async def test_a_result_that_is_longer_than_its_peer_may_send_fails_wherever_its_chunks_go():
    parts = [[chunk(b"x" * 60)] for _ in range(5)]
    with pytest.raises(UpstreamError, match="longer than its peer may send"):
        await bought(in_parts(*parts), limit=100)
