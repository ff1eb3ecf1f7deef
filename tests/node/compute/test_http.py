import asyncio
import contextlib

import grpc
import pytest

from lcp_gateway.node.config import NodeConfig
from lcp_gateway.node.ports import ComputeError
from lcp_gateway.node.server import Node
from lcp_gateway.node.toml import ConfigError
from tests.support.node_client import chat_task, raw_chat_task, responses_task


async def test_its_models_are_found_and_offered(make_node, backend):
    async with make_node(backend=backend.url) as client:
        (peer,) = await client.list_peers()
        offered = {task.openai_responses_v1.model for task in peer.remote_manifest.supported_tasks} - {""}

    assert offered == {"llama", "qwen"}


async def test_bytes_go_through_untouched_both_ways(make_node, backend):
    body = b'{ "model":"llama", "messages":[1],\n "x" : "\\u00e9" }'
    async with make_node(backend=backend.url + "/", backend_api_key="k") as client:
        terms = await client.quote(raw_chat_task(body, "llama"), "Backend")
        result = (await client.accept(terms, "Backend")).result

    path, sent, headers = backend.seen[0]
    assert (path, sent) == ("/v1/chat/completions", body)
    assert headers["Authorization"] == "Bearer k"
    assert headers["Accept-Encoding"] == "identity"
    assert result.result == backend.body
    assert result.content_type.startswith("application/json")


async def test_responses_go_to_their_own_path(make_node, backend):
    async with make_node(backend=backend.url) as client:
        terms = await client.quote(responses_task(model="qwen"), "Backend")
        await client.accept(terms, "Backend")

    assert backend.seen[0][0] == "/v1/responses"


async def test_a_stream_comes_as_it_is_made(make_node, backend):
    backend.chunks = [b"data: 1\n\n", b"data: [DONE]\n\n"]
    backend.gate = asyncio.Event()
    async with make_node(backend=backend.url) as client:
        terms = await client.quote(chat_task(model="llama", stream=True), "Backend")
        call = client.open_stream(terms, "Backend")
        assert (await call.read()).result_begin.content_type == "text/event-stream; charset=utf-8"
        assert (await call.read()).result_chunk.data == b"data: 1\n\n"
        backend.gate.set()
        assert (await call.read()).result_chunk.data == b"data: [DONE]\n\n"
        assert (await call.read()).result_end.result_len == 23
        assert (await call.read()).result.status == 1


@pytest.mark.parametrize(
    ("status", "code", "grpc_status"),
    [
        (301, 7, grpc.StatusCode.RESOURCE_EXHAUSTED),
        (400, 8, grpc.StatusCode.FAILED_PRECONDITION),
        (401, 5, grpc.StatusCode.FAILED_PRECONDITION),
        (403, 5, grpc.StatusCode.FAILED_PRECONDITION),
        (429, 7, grpc.StatusCode.RESOURCE_EXHAUSTED),
        (500, 7, grpc.StatusCode.RESOURCE_EXHAUSTED),
        (503, 7, grpc.StatusCode.RESOURCE_EXHAUSTED),
    ],
)
async def test_a_refusal_is_a_failure_after_payment_without_its_text(make_node, backend, status, code, grpc_status):
    backend.status, backend.body = status, b"SECRET"
    async with make_node(backend=backend.url) as client:
        terms = await client.quote(chat_task(model="llama"), "Backend")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.accept(terms, "Backend")

        assert caught.value.code() is grpc_status
        assert caught.value.details() == f"lcp_error code={code}: backend unavailable: status {status}"
        assert client.node.wallet.payments == 1


async def test_a_backend_that_is_gone_is_a_failure_after_payment(make_node, backend):
    async with make_node(backend="http://127.0.0.1:9/v1", backend_models=("llama",)) as client:
        terms = await client.quote(chat_task(model="llama"), "Backend")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.accept(terms, "Backend")

        assert caught.value.details().startswith("lcp_error code=7: backend unavailable: ")
        assert client.node.wallet.payments == 1


async def test_a_stream_that_the_backend_breaks_off_does_not_end_well(make_node, backend):
    backend.chunks, backend.cut = [b"data: 1\n\n"], True
    async with make_node(backend=backend.url) as client:
        terms = await client.quote(chat_task(model="llama", stream=True), "Backend")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.stream(terms, "Backend")

        assert "backend unavailable: broke off" in caught.value.details()


async def test_a_caller_that_leaves_frees_the_connection(make_node, backend):
    backend.chunks = [b"data: 1\n\n"]
    backend.gate = asyncio.Event()
    async with make_node(backend=backend.url) as client:
        terms = await client.quote(chat_task(model="llama", stream=True), "Backend")
        call = client.open_stream(terms, "Backend")
        await call.read()
        connector = client.node._backend._session.connector
        assert len(connector._acquired) == 1
        call.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(60):
                while connector._acquired:
                    await asyncio.sleep(0.01)
        assert not connector._acquired


@pytest.mark.parametrize("models", [b"{}", b"[]", b'{"data":[]}'])
async def test_a_backend_without_models_is_a_clear_error(backend, models):
    backend.models = models
    node = Node(NodeConfig(listen="127.0.0.1:0", backend=backend.url))
    with pytest.raises(ConfigError, match="no models"):
        await node.start()
    await node.stop()


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/v1"])
async def test_a_backend_that_does_not_answer_at_the_start_is_a_clear_error(url):
    node = Node(NodeConfig(listen="127.0.0.1:0", backend=url))
    with pytest.raises(ComputeError):
        await node.start()
    await node.stop()


async def test_a_backend_that_lists_no_json_is_a_clear_error(backend):
    backend.models = b"<html>"
    node = Node(NodeConfig(listen="127.0.0.1:0", backend=backend.url))
    with pytest.raises(ComputeError, match="not JSON"):
        await node.start()
    await node.stop()
