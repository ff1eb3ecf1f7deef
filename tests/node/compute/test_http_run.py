"""What a node sells: jobs of ``ports.Compute`` at an OpenAI-compatible server."""

import asyncio
import socket
from contextlib import aclosing

import pytest

from lcp_gateway.lightning.error_codes import ErrorCode
from lcp_gateway.node.compute.http import BackendLimits, HttpBackend
from lcp_gateway.node.lcp.messages import CHAT, RESPONSES
from lcp_gateway.node.ports import ComputeError

MIB = 1024 * 1024
BODY = b'{ "model":"llama", "messages":["SECRET"],\n "x" : "\\u00e9" }'


@pytest.fixture
async def make_backend(backend):
    made = []

    def make(url="", **limits):
        one = HttpBackend(url or backend.url, "key-of-the-operator", limits=BackendLimits(**limits))
        made.append(one)
        return one

    yield make
    for one in made:
        await one.close()


def run(backend, *, kind=CHAT, body=BODY, stream=False):
    return backend.run(job_id=bytes(32), task_kind=kind, model="llama", body=body, stream=stream)


async def result_of(backend, **job):
    return [chunk async for chunk in run(backend, **job)]


async def failure_of(backend, **job):
    async with asyncio.timeout(60):
        with pytest.raises(ComputeError) as caught:
            await result_of(backend, **job)
    assert "SECRET" not in caught.value.message
    assert len(caught.value.message) < 200
    return caught.value.code, caught.value.message


async def test_bytes_go_through_untouched_both_ways(make_backend, backend):
    assert b"".join(await result_of(make_backend())) == backend.body

    path, sent, headers = backend.seen[0]
    assert (path, sent) == ("/v1/chat/completions", BODY)
    assert headers["Authorization"] == "Bearer key-of-the-operator"


async def test_responses_go_to_their_own_path(make_backend, backend):
    await result_of(make_backend(), kind=RESPONSES)

    assert backend.seen[0][0] == "/v1/responses"


@pytest.mark.parametrize("size", [900 * 1024, 3 * MIB])
async def test_a_long_request_goes_through_untouched(make_backend, backend, size):
    body = b'{"model":"llama","messages":["' + b"x" * size + b'"]}'
    await result_of(make_backend(), body=body)

    assert backend.seen[0][1] == body
    assert backend.seen[0][2]["Content-Length"] == str(len(body))


async def test_a_stream_comes_as_it_is_made(make_backend, backend):
    backend.chunks, backend.gate = [b"data: 1\n\n", b"data: [DONE]\n\n"], asyncio.Event()
    async with aclosing(run(make_backend(), stream=True)) as chunks:
        assert await anext(chunks) == b"data: 1\n\n"
        backend.gate.set()
        assert await anext(chunks) == b"data: [DONE]\n\n"
        assert await anext(chunks, None) is None


async def test_connections_are_used_again(make_backend, backend):
    one = make_backend()
    await result_of(one)
    await result_of(one)

    assert len(set(backend.connections)) == 1


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (302, ErrorCode.RATE_LIMITED),
        (400, ErrorCode.UNSUPPORTED_PARAMS),
        (401, ErrorCode.PAYMENT_INVALID),
        (403, ErrorCode.PAYMENT_INVALID),
        (404, ErrorCode.RATE_LIMITED),
        (429, ErrorCode.RATE_LIMITED),
        (503, ErrorCode.RATE_LIMITED),
    ],
)
async def test_a_status_becomes_the_code_that_the_daemon_sends(make_backend, backend, status, code):
    backend.status, backend.body = status, b'{"error":{"message":"SECRET"}}'

    assert await failure_of(make_backend()) == (code, f"backend unavailable: status {status}")


async def test_a_server_that_is_away_is_a_failure_without_its_address(make_backend):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        code, message = await failure_of(make_backend(f"http://127.0.0.1:{port}/v1"))

    assert code is ErrorCode.RATE_LIMITED
    assert message.startswith("backend unavailable: Client")
    assert str(port) not in message


async def test_an_empty_result_is_a_failure(make_backend, backend):
    backend.body = b""

    assert await failure_of(make_backend()) == (ErrorCode.RATE_LIMITED, "backend unavailable: the result is empty")


async def test_a_compressed_result_is_a_failure(make_backend, backend):
    backend.headers = {"Content-Encoding": "br"}

    assert await failure_of(make_backend()) == (ErrorCode.RATE_LIMITED, "backend unavailable: the result is compressed")


async def test_a_stream_that_breaks_off_is_a_failure_after_its_bytes(make_backend, backend):
    backend.chunks, backend.cut = [b"data: 1\n\n"], True
    got = []
    with pytest.raises(ComputeError, match="broke off") as caught:
        async for chunk in run(make_backend(), stream=True):
            got.append(chunk)

    assert caught.value.code is ErrorCode.RATE_LIMITED
    assert got == [b"data: 1\n\n"]


@pytest.mark.parametrize("limits", [{"stream_begin_s": 1.0}, {"whole_begin_s": 1.0}])
async def test_a_result_that_does_not_begin_is_a_failure(make_backend, backend, limits):
    backend.head_gate = asyncio.Event()
    # Where the machine stands still, the time may be over before the server has the request.
    while not backend.seen:
        failure = await failure_of(make_backend(**limits), stream="stream_begin_s" in limits)
        assert failure == (ErrorCode.RATE_LIMITED, "backend unavailable: TimeoutError")

    await asyncio.wait_for(backend.left.wait(), 60)


async def test_a_stream_that_stops_is_a_failure(make_backend, backend):
    backend.chunks, backend.gate = [b"data: 1\n\n"], asyncio.Event()
    failure = await failure_of(make_backend(idle_s=0.05), stream=True)

    assert failure == (ErrorCode.RATE_LIMITED, "backend unavailable: broke off: TimeoutError")


async def test_a_result_without_an_end_is_cut_off_at_the_limit(make_backend, backend):
    backend.chunks = [bytes(64 * 1024)] * 64
    failure = await failure_of(make_backend(max_result_bytes=MIB), stream=True)

    assert failure == (ErrorCode.RATE_LIMITED, f"backend unavailable: the result is longer than {MIB} bytes")


@pytest.mark.parametrize("begun", [True, False])
async def test_a_job_that_is_stopped_closes_its_connection_at_once(make_backend, backend, begun):
    backend.chunks = [b"data: 1\n\n"]
    if begun:
        backend.gate = asyncio.Event()
    else:
        backend.head_gate = asyncio.Event()
    chunks = run(make_backend(), stream=True)
    reading = asyncio.create_task(anext(chunks))
    if begun:
        await reading
    else:
        while not backend.seen:
            await asyncio.sleep(0.01)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
    await chunks.aclose()

    await asyncio.wait_for(backend.left.wait(), 60)


async def test_a_peer_that_takes_nothing_stops_the_server(make_backend, backend):
    backend.chunks = [bytes(64 * 1024)] * 1_000
    async with aclosing(run(make_backend(max_result_bytes=100 * MIB), stream=True)) as chunks:
        largest = 0
        for _ in range(8):
            await asyncio.sleep(0.02)
            largest = max(largest, len(await anext(chunks)))

    assert largest <= 512 * 1024


async def test_models_that_are_listed_are_named(make_backend):
    assert await make_backend().models() == ("llama", "qwen")


async def test_a_list_that_cannot_be_read_is_a_failure(make_backend, backend):
    backend.models = b"<html>SECRET"
    with pytest.raises(ComputeError, match="not JSON"):
        await make_backend().models()
