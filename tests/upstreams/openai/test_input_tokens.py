import asyncio
import json
import logging

import pytest

from lcp_gateway.upstreams.openai.connections import VirtualNode
from lcp_gateway.upstreams.openai.input_tokens import TokenCounter
from tests.support.http_node import HttpNodeThread
from tests.support.token_node import CountingNode

KEY = "sk-node-key-0123456789"
BODY = b'{ "model":"m",  "input":"a secret prompt" }'


class Clock:
    now = 50.0

    def __call__(self):
        return self.now


@pytest.fixture
def server():
    with CountingNode("alpha", ("m",), api_key=KEY) as running:
        yield running


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
async def counter(clock):
    made = TokenCounter(clock=clock)
    yield made
    await made.close()


@pytest.fixture
def node(server):
    return VirtualNode("a", server.base_url, api_key=KEY)


async def test_the_count_of_a_node_is_used_and_it_gets_the_exact_bytes(counter, node, server):
    assert await counter.count(node, BODY, 60) == 42
    (asked,) = server.counts
    assert asked.body == BODY
    assert asked.headers["Authorization"] == f"Bearer {KEY}"
    assert asked.headers["Content-Type"] == "application/json"
    assert "Cookie" not in asked.headers
    assert not server.calls()


async def test_a_body_of_many_megabytes_goes_through(counter, node, server):
    body = json.dumps({"input": "x" * 5_000_000}).encode()
    assert await counter.count(node, body, 60) == 42
    assert server.counts[0].body == body


async def test_a_node_without_a_key_is_sent_none(counter):
    with CountingNode() as open_node:
        assert await counter.count(VirtualNode("a", open_node.base_url), BODY, 60) == 42
        assert "Authorization" not in open_node.counts[0].headers


@pytest.mark.parametrize("status", [404, 405, 501])
async def test_a_node_that_cannot_count_is_left_alone_for_ten_minutes(counter, node, server, clock, status):
    server.counting.status, server.counting.text = status, "404 page not found"
    for _ in range(3):
        assert await counter.count(node, BODY, 60) is None
    assert len(server.counts) == 1
    server.counting.status, server.counting.text = 200, None
    clock.now += 599
    assert await counter.count(node, BODY, 60) is None
    clock.now += 2
    assert await counter.count(node, BODY, 60) == 42


async def test_one_node_that_cannot_count_does_not_disqualify_another(counter, node, server):
    with HttpNodeThread("plain") as plain:
        other = VirtualNode("b", plain.base_url)
        assert await counter.count(other, BODY, 60) is None
        assert await counter.count(other, BODY, 60) is None
        assert [seen.path for seen in plain.requests] == []
    assert await counter.count(node, BODY, 60) == 42


async def test_a_missing_model_does_not_disqualify_the_node(counter, node, server):
    server.counting.status = 404
    error = {"message": "no such model", "type": "invalid_request_error", "code": "model_not_found"}
    server.counting.text = json.dumps({"error": error})
    assert await counter.count(node, BODY, 60) is None
    server.counting.status, server.counting.text = 200, None
    assert await counter.count(node, BODY, 60) == 42


@pytest.mark.parametrize("status", [204, 302, 400, 401, 403, 429, 500, 503])
async def test_other_refusals_are_not_remembered(counter, node, server, status):
    server.counting.status = status
    assert await counter.count(node, BODY, 60) is None
    server.counting.status = 200
    assert await counter.count(node, BODY, 60) == 42


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "42",
        "{}",
        "<html>",
        '{"input_tokens":"42"}',
        '{"input_tokens":-1}',
        '{"input_tokens":true}',
        '{"input_tokens":1.5}',
        '{"input_tokens":null}',
        '{"input_tokens":9007199254740993}',
        '{"input_tokens":' + "9" * 400 + "}",
        '{"object":"response","input_tokens":42}',
        '{"input_tokens":42,"more":"' + "x" * 100_000 + '"}',
    ],
)
async def test_what_is_no_count_is_none(counter, node, server, text):
    server.counting.text = text
    assert await counter.count(node, BODY, 60) is None


@pytest.mark.parametrize("text", ['{"input_tokens":7}', '{"object":"response.input_tokens","input_tokens":7}'])
async def test_a_count_needs_no_more_than_its_number(counter, node, server, text):
    server.counting.text = text
    assert await counter.count(node, BODY, 60) == 7


async def test_an_endless_answer_is_not_read_to_its_end(counter, node, server):
    server.counting.text = "[" + "1," * 20_000_000 + "1]"
    async with asyncio.timeout(60):
        assert await counter.count(node, BODY, 120) is None


async def test_a_node_that_takes_too_long_is_not_waited_for(counter, node, server):
    server.counting.delay_s = 60
    async with asyncio.timeout(60):
        assert await counter.count(node, BODY, 0.2) is None


async def test_a_redirect_is_not_followed(counter, node, server):
    with CountingNode() as elsewhere:
        server.counting.status = 307
        server.counting.headers["Location"] = elsewhere.base_url + "/responses/input_tokens"
        assert await counter.count(node, BODY, 60) is None
        assert not elsewhere.counts


async def test_a_node_that_hangs_up_or_is_gone_returns_none(counter, node, server):
    server.counting.cut = True
    assert await counter.count(node, BODY, 60) is None
    server.stop()
    assert await counter.count(node, BODY, 60) is None
    server.counting.cut = False
    server.start()
    assert await counter.count(node, BODY, 60) == 42


async def test_a_wrong_address_gives_none(counter):
    for url in ("http://127.0.0.1:1/v1", "http://no-such-host.invalid/v1", "http://[::zz]/v1", "x:"):
        assert await counter.count(VirtualNode("a", url), BODY, 60) is None


async def test_many_questions_at_once_share_few_connections(counter, node, server):
    server.counting.delay_s = 0.02
    counts = await asyncio.gather(*(counter.count(node, BODY, 60) for _ in range(60)))
    assert counts == [42] * 60
    assert server.server.most_at_once <= 4


async def test_nodes_are_known_by_their_id_until_others_take_their_place(counter, node, server):
    assert await counter.count_at("node:a", BODY, 60) is None
    counter.use([node])
    server.counting.status = 404
    assert await counter.count_at("node:a", BODY, 60) is None
    server.counting.status = 200
    assert await counter.count_at("node:a", BODY, 60) is None
    counter.use([node])
    assert await counter.count_at("node:a", BODY, 60) == 42
    counter.use([])
    assert await counter.count_at("node:a", BODY, 60) is None


async def test_after_the_end_no_node_is_asked(counter, node, server):
    assert await counter.count(node, BODY, 60) == 42
    await counter.close()
    assert await counter.count(node, BODY, 60) is None
    assert len(server.counts) == 1


async def test_neither_key_nor_prompt_is_logged(counter, node, server, caplog):
    caplog.set_level(logging.DEBUG)
    await counter.count(node, BODY, 60)
    server.counting.cut = True
    await counter.count(node, BODY, 60)
    assert KEY not in caplog.text + repr(counter) + repr(node)
    assert "secret" not in caplog.text
