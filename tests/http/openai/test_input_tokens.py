"""POST /v1/responses/input_tokens over a real application, with real offers and real nodes behind it."""

import json
from contextlib import asynccontextmanager
from types import SimpleNamespace

import openai
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from lcp_gateway.accounts.callers import Caller, KeyRules
from lcp_gateway.http.context import CONTEXT, RequestContext
from lcp_gateway.http.error_mapping import map_handler_error
from lcp_gateway.http.errors import ApiError
from lcp_gateway.http.openai.admission import Admission
from lcp_gateway.http.openai.input_tokens import InputTokenRoutes
from lcp_gateway.purchase.order import TaskKind
from lcp_gateway.responses.request_options import InvalidOption
from lcp_gateway.responses.token_estimate import estimate_input_tokens
from lcp_gateway.routing.catalog import Catalog
from lcp_gateway.routing.model_registry import ModelCard, ModelRegistry
from lcp_gateway.routing.offers import Offers
from lcp_gateway.upstreams.openai.connections import VirtualNode
from lcp_gateway.upstreams.openai.input_tokens import TokenCounter
from tests.routing.offering import provider
from tests.support.http_node import HttpNodeThread
from tests.support.token_node import CountingNode

RESPONSES = TaskKind.RESPONSES
PATH = "/v1/responses/input_tokens"


@pytest.fixture
def node():
    with CountingNode("alpha", ("m",)) as running:
        yield running


@asynccontextmanager
async def serving(*nodes, providers=(), models=("m",), kind=RESPONSES, earlier=None, rules=None, **options):
    """Serve the route; ``nodes`` are a, b, …, each of which offers the models. Return a client function and the observed calls."""
    http_nodes = [VirtualNode(name, n.base_url) for name, n in zip("abc", nodes, strict=False)]
    registry = ModelRegistry({"m": ModelCard(aliases=("nick",))})
    catalog = Catalog((*providers, *(provider(n.provider_id, *models, kind=kind) for n in http_nodes)), 0.0)
    counter = TokenCounter(http_nodes)
    contexts = []

    async def expand(owner, body, previous):
        if (owner, previous) != ("me", "resp_1"):
            raise ApiError(404, "not there", "previous_response_not_found", "previous_response_id")
        document = json.loads(body)
        del document["previous_response_id"]
        new = {"role": "user", "content": document["input"]}
        return json.dumps({**document, "input": [*(earlier or []), new]}).encode()

    handler = InputTokenRoutes(
        ask=counter.count_at,
        offers=lambda: Offers.of(catalog, registry, **options.pop("routing", {})),
        resolve=registry.resolve,
        admission=Admission(rates=None, jobs=None, resolve=registry.resolve),
        expand=expand,
        estimate=estimate_input_tokens,
        default_model=options.pop("default_model", ""),
        read_timeout_s=5,
        ask_timeout_s=options.pop("ask_timeout_s", 60),
    )

    @web.middleware
    async def middleware(request, handler):
        request[CONTEXT] = RequestContext("req_1", caller=Caller("me", None, rules or KeyRules()))
        contexts.append(request[CONTEXT])
        try:
            return await handler(request)
        except ApiError as error:
            return error.response()
        except InvalidOption as error:
            return map_handler_error(error).response()

    app = web.Application(middlewares=[middleware], client_max_size=2**20)
    app.router.add_post(PATH, handler.count)
    async with TestClient(TestServer(app)) as client:

        async def ask(body):
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            async with client.post(PATH, data=data) as response:
                return SimpleNamespace(
                    status=response.status,
                    document=await response.json(),
                    how=response.headers.get("X-Lcp-Token-Count"),
                    by=response.headers.get("X-Lcp-Peer-Id"),
                    headers=response.headers,
                )

        ask.contexts = contexts
        ask.base_url = str(client.make_url("/v1"))
        yield ask
    await counter.close()


def counted(tokens):
    return {"object": "response.input_tokens", "input_tokens": tokens}


async def test_a_node_that_offers_the_model_is_asked_with_the_very_bytes(node):
    async with serving(node) as ask:
        body = b'{ "model" : "m", "input":"hello you" }'
        answer = await ask(body)
    assert (answer.status, answer.document) == (200, counted(42))
    assert (answer.how, answer.by) == ("exact", "node:a")
    assert answer.headers["X-Lcp-Payment"] == "none"
    assert [seen.body for seen in node.counts] == [body]
    assert not node.calls()
    (context,) = ask.contexts
    assert (context.model, context.request_bytes) == ("m", len(body))


async def test_an_alias_goes_to_the_node_as_the_models_real_name(node):
    async with serving(node) as ask:
        answer = await ask(b'{"input":"hello you",  "model":"nick"}')
    assert answer.how == "exact"
    assert node.counts[0].body == b'{"input":"hello you",  "model":"m"}'


async def test_a_request_without_a_model_is_for_the_default_one(node):
    async with serving(node, default_model="nick") as ask:
        answer = await ask(b'{"input":"hello you"}')
    assert answer.how == "exact"
    assert json.loads(node.counts[0].body) == {"input": "hello you", "model": "m"}


async def test_without_any_model_it_is_an_estimate(node):
    async with serving(node) as ask:
        answer = await ask({"input": "hello you"})
        nothing = await ask({"model": None, "input": None})
    assert answer.document == counted(estimate_input_tokens({"input": "hello you"}))
    assert (answer.how, answer.by) == ("estimate", None)
    assert (nothing.status, nothing.how) == (200, "estimate")
    assert not node.counts


async def test_a_model_that_only_peers_offer_is_estimated_and_no_node_is_asked(node):
    peer = provider("02aa", "theirs", kind=RESPONSES)
    async with serving(node, providers=[peer]) as ask:
        for model in ("theirs", "unknown", "auto"):
            answer = await ask({"model": model, "input": "hello you"})
            assert (answer.status, answer.how, answer.by) == (200, "estimate", None)
            assert answer.headers["X-Lcp-Payment"] == "none"
    assert not node.counts


async def test_a_node_that_does_not_take_responses_is_not_asked(node):
    async with serving(node, kind=TaskKind.CHAT_COMPLETIONS) as ask:
        assert (await ask({"model": "m", "input": "hello you"})).how == "estimate"
    assert not node.counts


async def test_a_node_that_the_model_is_not_meant_for_does_not_see_the_prompt(node):
    for routing in ({"model_peers": {"m": "02aa"}}, {"allowlist": frozenset({"other"})}):
        async with serving(node, routing=routing) as ask:
            assert (await ask({"model": "m", "input": "hello you"})).how == "estimate"
    assert not node.counts


async def test_when_one_node_cannot_count_the_next_is_asked(node):
    with HttpNodeThread("plain") as plain:
        async with serving(plain, node) as ask:
            answer = await ask({"model": "m", "input": "hello you"})
    assert (answer.how, answer.by) == ("exact", "node:b")


async def test_nodes_that_are_slow_are_waited_for_so_long_in_all(node):
    with CountingNode("beta") as other:
        node.counting.delay_s = other.counting.delay_s = 5
        async with serving(node, other, ask_timeout_s=0.3) as ask:
            answer = await ask({"model": "m", "input": "hello you"})
    assert (answer.status, answer.how, answer.by) == (200, "estimate", None)


async def test_earlier_turns_count_exactly_and_estimated(node):
    earlier = [{"role": "user", "content": "a much longer text than before " * 20}]
    body = {"model": "m", "input": "hello you", "previous_response_id": "resp_1"}
    async with serving(node, earlier=earlier) as ask:
        assert (await ask(body)).how == "exact"
        estimated = await ask({**body, "model": "unknown"})
    (seen,) = node.counts
    assert [item["content"] for item in json.loads(seen.body)["input"]] == [earlier[0]["content"], "hello you"]
    assert estimated.document["input_tokens"] > 100


async def test_a_missing_earlier_response_is_a_404_and_no_node_is_asked(node):
    async with serving(node) as ask:
        answer = await ask({"model": "m", "input": "x", "previous_response_id": "resp_2"})
    assert (answer.status, answer.document["error"]["param"]) == (404, "previous_response_id")
    assert not node.counts


async def test_a_key_that_may_not_buy_the_model_is_refused(node):
    async with serving(node, rules=KeyRules(models=frozenset({"other"}))) as ask:
        answer = await ask({"model": "m", "input": "hello you"})
    assert (answer.status, answer.document["error"]["code"]) == (403, "model_not_allowed")
    assert not node.counts


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        (b"", None, "invalid_json"),
        (b"{", None, "invalid_json"),
        (b"[]", None, "invalid_json"),
        (b'"x"', None, "invalid_json"),
        (b'{"model":1}', "model", "invalid_type"),
        (b'{"model":""}', "model", "invalid_value"),
        (b'{"model":" m"}', "model", "invalid_value"),
        (b'{"model":"nick","model":"nick"}', "model", "duplicate_parameter"),
        (b'{"model":"m","input":5}', "input", "invalid_type"),
        (b'{"model":"m","input":{}}', "input", "invalid_type"),
        (b'{"previous_response_id":5}', "previous_response_id", "invalid_type"),
        (b'{"previous_response_id":"resp_1","conversation":"c"}', "previous_response_id", "invalid_value"),
    ],
)
async def test_an_invalid_page_query_is_refused_by_name(node, body, param, code):
    async with serving(node) as ask:
        answer = await ask(body)
    assert answer.status == 400
    error = answer.document["error"]
    assert (error["param"], error["code"]) == (param, code)
    assert not node.counts


async def test_openais_own_client_reads_it(node):
    async with serving(node) as ask:
        client = openai.AsyncOpenAI(base_url=ask.base_url, api_key="k", max_retries=0)
        counted = await client.responses.input_tokens.count(model="m", input="hello you")
        assert (counted.object, counted.input_tokens) == ("response.input_tokens", 42)
        raw = await client.responses.input_tokens.with_raw_response.count(
            input=[{"role": "user", "content": "hello you"}],
            instructions="Be brief.",
            tools=[{"type": "function", "name": "f", "parameters": {}, "strict": True}],
        )
        assert raw.headers["x-lcp-token-count"] == "estimate"
        assert raw.parse().input_tokens > 10
        with pytest.raises(openai.NotFoundError):
            await client.responses.input_tokens.count(input="x", previous_response_id="resp_2")
        await client.close()
