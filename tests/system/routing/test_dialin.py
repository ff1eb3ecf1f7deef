"""Nodes that dial in at a real gateway: three that join with different backends, and one that lies in every way."""

import asyncio
import contextlib
import json
import signal
import subprocess

import aiohttp
import openai
import pytest

from lcp_gateway.node_protocol.frames import FrameKind
from tests.support.dialin_node import EVENTS, ScriptedNode, chat_document, chat_events, dial, hello, honest, model
from tests.support.forked import start_module
from tests.support.gateway import clean_environment
from tests.support.http_node import HttpNodeThread
from tests.support.node_thread import eventually
from tests.support.wire import CHAT, get, post
from tests.system.routing.providers import nodes_of, served_by
from tests.system.selling.seller import Office, selling

PRICE_MSAT = 1_000
FILLED_MSAT = 1_000_000
LIMITS_S = {"liar": 60, "silent": 1, "never_ending": 10}
JOIN = {"ollama": ("chat", "completions", "embeddings"), "vllm": ("chat", "responses"), "embedder": ("embeddings",)}
BACKENDS = {
    "ollama": {"models": ("llama3.2:3b",), "style": "ollama"},
    "vllm": {"models": ("qwen2.5-7b",), "api_key": "sk-of-the-backend"},
    "embedder": {"models": ("nomic-embed-text",)},
}


def dialin_rows(*names: str, **more) -> list[dict]:
    return [{"name": name, "token": f"tok-{name}", "price_per_request_msat": PRICE_MSAT, **more} for name in names]


@contextlib.contextmanager
def joined(port: int, name: str, backend: HttpNodeThread, folder, endpoints=("chat",)):
    """Run ``lcp-gateway join`` as its user would; yields the process."""
    key = backend.server.api_key
    row = {"base_url": backend.base_url, "endpoints": list(endpoints), **({"api_key": key} if key else {})}
    environment = {
        "LCP_GATEWAY_JOIN_TOKEN": f"tok-{name}",
        "LCP_GATEWAY_JOIN_BACKENDS": json.dumps([row]),
        "LCP_GATEWAY_STATE_DIR": str(folder),
        "XDG_CONFIG_HOME": str(folder),
        "XDG_STATE_HOME": str(folder),
    }
    process = start_module(
        "lcp_gateway",
        *("join", f"ws://127.0.0.1:{port}", "--name", name),
        env=clean_environment(environment),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def status_of(folder, name: str) -> dict:
    return json.loads((folder / f"node-{name}.status").read_text())


def test_three_nodes_with_different_backends_serve_the_sdk(tmp_path):
    with contextlib.ExitStack() as stack:
        backends = {name: stack.enter_context(HttpNodeThread(name, **options)) for name, options in BACKENDS.items()}
        running = stack.enter_context(served_by(dialin_nodes=dialin_rows(*JOIN)))
        for name, endpoints in JOIN.items():
            stack.enter_context(joined(running.port, name, backends[name], tmp_path, endpoints))
        eventually(lambda: sum(node["models"] for node in nodes_of(running).values()) == 3)
        client = stack.enter_context(openai.OpenAI(base_url=running.api_url, api_key="-", max_retries=0))
        asked = [{"role": "user", "content": "hello there"}]
        chat, responses, old, vectors = (
            client.chat.completions.with_raw_response,
            client.responses.with_raw_response,
            client.completions.with_raw_response,
            client.embeddings.with_raw_response,
        )
        bought: dict[str, int] = dict.fromkeys(JOIN, 0)

        def took(raw, node: str = "") -> None:
            name = raw.headers["x-lcp-peer-id"].removeprefix("node:")
            assert not node or name == node
            assert raw.headers["x-lcp-price-msat"] == str(PRICE_MSAT)
            bought[name] += 1

        for name, wanted in (("llama3.2:3b", "ollama"), ("qwen2.5-7b", "vllm"), ("auto", "")):
            raw = chat.create(model=name, messages=asked)
            took(raw, wanted)
            assert "hello there" in raw.parse().choices[0].message.content
            raw = chat.create(model=name, messages=asked, stream=True)
            text = "".join(event.choices[0].delta.content or "" for event in raw.parse() if event.choices)
            took(raw, wanted)
            assert "hello there" in text
            if name == "auto":
                assert json.loads(raw.headers["x-lcp-routing"])["source"] == "node"
        raw = responses.create(model="qwen2.5-7b", input="hello there")
        took(raw, "vllm")
        assert "hello there" in raw.parse().output_text
        raw = responses.create(model="qwen2.5-7b", input="hello there", stream=True)
        took(raw, "vllm")
        assert [event.type for event in raw.parse()][-1] == "response.completed"
        raw = old.create(model="llama3.2:3b", prompt="hello there")
        took(raw, "ollama")
        assert "hello there" in raw.parse().choices[0].text
        raw = vectors.create(model="nomic-embed-text", input=["one", "two"])
        took(raw, "embedder")
        assert len(raw.parse().data) == 2
        # Each node is told what it has earned, to the msat.
        for name, count in bought.items():
            eventually(lambda name=name, count=count: status_of(tmp_path, name)["delivered"] == count)
            assert status_of(tmp_path, name)["earned_msat"] == count * PRICE_MSAT
        # The bytes that a client sent are those that its backend got; nothing else is asked.
        assert {seen.path for backend in backends.values() for seen in backend.requests} <= {
            "/v1/models",
            "/v1/chat/completions",
            "/v1/responses",
            "/v1/completions",
            "/v1/embeddings",
        }
        listed = {one["id"]: one["owned_by"] for one in get(running.port, "/v1/models").json["data"]}
        assert listed["qwen2.5-7b"] == "vllm"


@pytest.fixture(scope="module")
def seller():
    """A gateway that sells from one honest virtual node and one that dials in, which is cheaper."""
    with HttpNodeThread("honest", ("m",)) as honest_node:
        settings = {k.removeprefix("LCP_GATEWAY_").lower(): v for k, v in selling(markup_percent=0).items()}
        row = {"name": "honest", "base_url": honest_node.base_url, "price_per_request_msat": 5 * PRICE_MSAT}
        # A busy machine may hold a liar up for seconds; one that is silent is given up soon.
        rows = [row for name, limit_s in LIMITS_S.items() for row in dialin_rows(name, timeout_s=limit_s)]
        with served_by(row, dialin_nodes=rows, timeout_execute_s="120", **settings) as running:
            yield running


async def flood(node, request_id, request, _body):
    await node.head(request_id, EVENTS)
    for _ in range(100):
        await node.raw(FrameKind.BODY, request_id, b"x" * 60_000)


async def wrong_hash(node, request_id, request, _body):
    pieces = chat_events(request.model, ["a", "b"]) if request.stream else [chat_document(request.model, "a")]
    await node.head(request_id, EVENTS if request.stream else "application/json")
    for piece in pieces:
        await node.body(request_id, piece)
    await node.finish(request_id, b"another result")


async def never_ending(node, request_id, request, _body):
    await node.head(request_id, EVENTS)
    while True:
        await node.body(request_id, chat_events(request.model, ["on and on "])[1])
        await asyncio.sleep(0.05)


async def cut(node, request_id, request, _body):
    await node.head(request_id, EVENTS)
    await node.body(request_id, chat_events(request.model, ["half"])[1])
    await asyncio.sleep(0.1)
    # The node's own loop ends with the connection, and cancels this behaviour.
    await asyncio.shield(node.end.socket.close())


async def no_result(node, request_id, request, _body):
    data = b'{"error":{"message":"no","type":"server_error","param":null,"code":"x"}}'
    await node.head(request_id)
    await node.body(request_id, data)
    await node.finish(request_id, data)


async def refuses(node, request_id, request, _body):
    await node.fail(request_id, 503)


async def silent(node, request_id, request, _body):
    await asyncio.sleep(60)


async def hostile(node, request_id, request, _body):
    await node.raw(FrameKind.HEAD, request_id, b'{"content_type":"a/b\\r\\nSet-Cookie: x"}')


async def greedy(node, request_id, request, _body):
    usage = {"prompt_tokens": 10**9, "completion_tokens": 10**9, "total_tokens": 2 * 10**9}
    data = chat_document(request.model, "dear", usage)
    await node.head(request_id)
    await node.body(request_id, data)
    await node.finish(request_id, data)


@contextlib.asynccontextmanager
async def dialled_in(port, behave):
    async with aiohttp.ClientSession() as session:
        name = behave.__name__ if behave.__name__ in LIMITS_S else "liar"
        node = ScriptedNode(await dial(session, port, f"tok-{name}"), behave, hello(model("m"), concurrent=8))
        running = asyncio.create_task(node.run())
        await node.until(lambda: node.offered)
        try:
            yield node
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await node.end.socket.close()


# Whether the client gets its answer all the same, from the honest node.
CASES = [
    (refuses, False, True),
    (refuses, True, True),
    (silent, False, True),
    (hostile, False, True),
    (flood, True, None),
    (wrong_hash, False, False),
    (wrong_hash, True, False),
    (never_ending, True, False),
    (cut, True, False),
    (no_result, False, False),
]


@pytest.mark.parametrize(("lie", "stream", "is_saved"), CASES)
async def test_a_lying_node_earns_nothing_and_its_customer_pays_nothing_for_it(seller, lie, stream, is_saved):
    customer = await asyncio.to_thread(Office(seller.port).customer, FILLED_MSAT)
    async with dialled_in(seller.port, lie) as node:
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": stream}
        answer = await asyncio.to_thread(post, seller.port, CHAT, body, customer.headers, 60)
        if is_saved is not None:
            is_good = answer.status == 200 and b'"error"' not in answer.body
            assert is_good is is_saved, answer.body[-500:]
        paid_msat = 5 * PRICE_MSAT if is_saved else 0
        await asyncio.to_thread(customer.eventually_has, balance_msat=FILLED_MSAT - paid_msat, held_msat=0)
        assert sum(receipt.earned_msat for receipt in node.receipts) == 0
    await asyncio.to_thread(Office(seller.port).is_in_order)


async def test_a_greedy_node_gets_no_more_than_was_quoted(seller):
    customer = await asyncio.to_thread(Office(seller.port).customer, FILLED_MSAT)
    async with dialled_in(seller.port, greedy) as node:
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
        answer = await asyncio.to_thread(post, seller.port, CHAT, body, customer.headers, 60)
        assert answer.status == 200
        await node.until(lambda: node.receipts)
        assert node.receipts[0].earned_msat == PRICE_MSAT
        await asyncio.to_thread(customer.eventually_has, balance_msat=FILLED_MSAT - PRICE_MSAT, held_msat=0)


async def test_which_tokens_may_dial_in(seller):
    async def status(**headers):
        async with aiohttp.ClientSession() as session:
            url = f"http://127.0.0.1:{seller.port}/api/nodes/connect"
            upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
            key = {"Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=="}
            async with session.get(url, headers={**upgrade, **key, **headers}) as response:
                return response.status

    customer = await asyncio.to_thread(Office(seller.port).customer)
    of_node = {"Authorization": "Bearer tok-liar"}
    assert await status() == 401
    assert await status(Authorization="Bearer wrong") == 401
    assert await status(**customer.headers) == 401
    assert await status(**of_node) == 400
    assert await status(**of_node, **{"Sec-WebSocket-Protocol": "lcp-node.v9"}) == 400
    async with dialled_in(seller.port, honest) as node:
        assert node.welcome.node_id == "liar"
