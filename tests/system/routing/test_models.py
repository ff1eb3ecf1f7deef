"""The list of models, one model by its name, POST /api/models/route, and OpenClaw's own settings."""

import json
import math
import socket
import time
from urllib.parse import quote

import pytest

from tests.support.gateway import gateway
from tests.support.http_node import HttpNodeThread, http_nodes
from tests.support.wire import get, post, request_bytes, send_raw
from tests.system.routing.providers import ROUTE, agrees, ask, info_of, models_of, nodes_of, row, served_by, until

SLASHED = "org/Qwen2.5-Coder-14B"
PLAIN = "llama3.2:latest"
BIG = "Llama-3.3-70B-Instruct"
EMBEDS = "nomic-embed-text"
MODELS = {
    SLASHED: {"aliases": ["coder", "alias/with/slash"], "context_length": 32_768, "owned_by": "me"},
    PLAIN: {"capabilities": ["tools", "odd-one"], "params_b": 3.2},
    EMBEDS: {"dimensions": 8},
    "auto": {"aliases": ["gpt-4o"]},
}
KEY = "sk-of-the-models-test"
BEARER = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def nodes():
    pair = [
        HttpNodeThread(name="left", models=(SLASHED, PLAIN, EMBEDS)),
        HttpNodeThread(name="right", models=(PLAIN, BIG)),
    ]
    with http_nodes(*pair):
        yield pair


@pytest.fixture(scope="module")
def served(nodes):
    rows = [
        row(nodes[0], endpoints=["chat", "completions", "embeddings"], price_per_request_msat=900),
        row(nodes[1], owned_by="another"),
    ]
    with served_by(*rows, embedded=True, models=MODELS) as process:
        until(lambda: "echo-slow" in models_of(process))
        yield process


@pytest.fixture(scope="module")
def model(served):
    def model(name, *, encoded=True):
        answer = get(served.port, f"/v1/models/{quote(name, safe='') if encoded else name}")
        assert answer.status == 200, answer.body
        return answer.json

    return model


# GET /v1/models.


def test_each_model_is_listed_once_however_many_offer_it(served):
    listed = models_of(served)
    assert list(listed) == sorted(listed)
    peers = {"echo-1", "echo-mini", "echo-slow"}
    assert set(listed) == {SLASHED, PLAIN, BIG, EMBEDS, "auto"} | peers
    assert listed[PLAIN]["lcp"]["providers"] == ["node:left", "node:right"]
    assert len(listed["echo-1"]["lcp"]["providers"]) == 2
    for name, one in listed.items():
        assert set(one) == {"id", "object", "created", "owned_by", "lcp"}
        assert (one["id"], one["object"]) == (name, "model")
        assert isinstance(one["created"], int)
        assert set(one["lcp"]) - {"dimensions", "alias_of"} == {
            *("providers", "endpoints", "context_length", "capabilities", "params_b"),
            *("price_msat", "ready"),
        }


def test_what_is_known_of_a_model_comes_from_the_operator_and_else_from_its_name(served):
    listed = models_of(served)
    coder, plain, big, embeds = (listed[name] for name in (SLASHED, PLAIN, BIG, EMBEDS))
    assert coder["owned_by"] == "me" and big["owned_by"] == "another"
    assert coder["lcp"] == {
        "providers": ["node:left"],
        "endpoints": ["chat", "completions"],
        "context_length": 32_768,
        "capabilities": ["code"],
        "params_b": 14,
        "price_msat": 900,
        "ready": True,
    }
    assert plain["lcp"]["capabilities"] == ["odd-one", "tools"]
    assert plain["lcp"]["params_b"] == 3.2 and plain["lcp"]["price_msat"] == 0
    assert big["lcp"]["params_b"] == 70 and big["lcp"]["context_length"] is None
    assert embeds["lcp"]["dimensions"] == 8 and embeds["lcp"]["endpoints"] == ["embeddings"]


def test_the_price_of_peers_is_what_they_asked_lately(served):
    answer = ask(served, "echo-1")
    until(lambda: models_of(served)["echo-1"]["lcp"]["price_msat"])
    reported = models_of(served)["echo-1"]["lcp"]["price_msat"]
    # An average of logarithms, rounded.
    assert reported == pytest.approx(int(answer.headers["x-lcp-price-msat"]), rel=0.01)


# GET /v1/models/{id}.


@pytest.mark.parametrize("encoded", [True, False])
@pytest.mark.parametrize("name", [SLASHED, PLAIN, BIG, EMBEDS, "echo-1"])
def test_a_model_is_found_by_its_name_with_slashes_encoded_or_not(served, model, name, encoded):
    found = model(name, encoded=encoded)
    assert found == models_of(served)[name]


@pytest.mark.parametrize("alias", ["coder", "alias/with/slash"])
@pytest.mark.parametrize("encoded", [True, False])
def test_an_alias_is_a_model_that_says_what_it_stands_for(model, alias, encoded):
    found = model(alias, encoded=encoded)
    real = model(SLASHED)
    assert found["id"] == alias and found["lcp"].pop("alias_of") == SLASHED
    assert found["lcp"] == real["lcp"] and found["owned_by"] == real["owned_by"]


@pytest.mark.parametrize("name", ["auto", "auto:fast", "gpt-4o"])
def test_auto_is_a_model_for_every_client(model, name):
    found = model(name)
    assert found["id"] == name and found["lcp"]["alias_of"] == "auto"
    assert found["lcp"]["ready"] is True and len(found["lcp"]["providers"]) == 5


@pytest.mark.parametrize("name", ["unknown-model", "org%2Fnothing", "org/nothing", "%00", "a%0d%0ab"])
def test_an_unknown_model_is_not_found(served, name):
    answer = get(served.port, f"/v1/models/{name}")
    assert answer.status == 404 and answer.error["type"] == "invalid_request_error"


def test_an_alias_buys_what_it_stands_for(served, nodes):
    answer = ask(served, "coder")
    assert answer.json["model"] == SLASHED and "routing_info" not in answer.json
    assert info_of(ask(served, "gpt-4o"))["model"]


def test_an_unknown_model_is_refused_at_once_though_a_node_hangs(nodes):
    """A server that accepts connections and does not answer must not delay the error for a mistyped model."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        base_url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        rows = [row(nodes[0]), {"name": "silent", "base_url": base_url, "models": ["x"]}]
        # The time-out is also that of the first look, before it starts.
        env = {"LCP_GATEWAY_NODES": json.dumps(rows), "LCP_GATEWAY_TIMEOUT_QUOTE_S": "2"}
        with gateway(env=env) as process:
            until(lambda: nodes_of(process)["left"]["up"])
            # One that waited would take two seconds each time, however quick the machine; one of ten is quicker on any.
            quickest_s = 60.0
            for _ in range(10):
                started = time.monotonic()
                assert ask(process, "unknown-model").status == 404
                quickest_s = min(quickest_s, time.monotonic() - started)
                if quickest_s < 1.5:
                    break
            assert quickest_s < 1.5


# POST /api/models/route.


@pytest.fixture(scope="module")
def ranked(served):
    def ranked(**query):
        answer = post(served.port, ROUTE, query)
        assert answer.status == 200, answer.body
        assert answer.json["object"] == "list"
        return answer.json["data"]

    return ranked


def names(data):
    return [one["model"] for one in data]


def test_an_empty_request_returns_the_best_five(ranked, served):
    data = ranked()
    assert len(data) == 5 and len(set(names(data))) == 5
    assert EMBEDS not in names(data)
    scores = [one["score"] for one in data]
    assert scores == sorted(scores, reverse=True) and all(0 < score <= 1 for score in scores)
    assert post(served.port, ROUTE, b"").json["data"]
    for one in data:
        assert set(one) == {
            *("model", "score", "why", "features", "source", "provider", "providers"),
            *("endpoints", "params_b", "context_length", "capabilities", "vendor", "price_msat"),
            *("scores", "first_byte_s", "tokens_per_s"),
        }
        assert list(one["scores"]) == one["providers"]
        assert one["scores"][one["provider"]] == one["score"] == max(one["scores"].values())
        assert set(one["features"]) == {"availability", "speed", "delivery", "price", "fit"}
        assert one["provider"] in one["providers"] and one["why"]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({"providers": ["left"]}, {SLASHED, PLAIN}),
        ({"providers": ["node:left"]}, {SLASHED, PLAIN}),
        ({"providers": ["qwen"]}, {SLASHED}),
        ({"providers": ["Meta"]}, {PLAIN, BIG}),
        ({"providers": ["another", "me"]}, {PLAIN, BIG, SLASHED}),
        ({"providers": ["lcp"]}, {"echo-1", "echo-mini", "echo-slow"}),
        ({"providers": ["unknown"]}, set()),
        ({"min_params_b": 14}, {SLASHED, BIG}),
        ({"max_params_b": 14}, {SLASHED, PLAIN}),
        ({"min_params_b": 3.2, "max_params_b": 3.2}, {PLAIN}),
        ({"min_params_b": 71}, set()),
        ({"capabilities": ["code"]}, {SLASHED}),
        ({"capabilities": ["tools", "odd-one"]}, {PLAIN}),
        ({"capabilities": ["embedding"]}, {EMBEDS}),
        ({"capabilities": ["flying"]}, set()),
        ({"providers": ["meta"], "min_params_b": 7, "capabilities": []}, {BIG}),
        ({"providers": None, "min_params_b": None, "limit": 100}, None),
    ],
)
def test_each_field_filters_the_result(ranked, query, found):
    data = ranked(**query)
    everything = {SLASHED, PLAIN, BIG, "echo-1", "echo-mini", "echo-slow"}
    assert set(names(data)) == (everything if found is None else found)


def fits_best(data):
    return max(data, key=lambda one: one["features"]["fit"])["model"]


def test_the_size_that_is_preferred_fits_best(ranked):
    """How slow a node was counts as well: on a busy machine another one may come first."""
    sized = {"min_params_b": 1}
    assert fits_best(ranked(prefer_size="small", **sized)) == PLAIN
    assert fits_best(ranked(prefer_size="large", **sized)) == BIG
    assert "14B against balanced" in next(
        one["why"] for one in ranked(prefer_size="balanced", **sized) if one["model"] == SLASHED
    )


def test_the_limit_is_kept(ranked):
    everything = names(ranked(limit=1_000))
    assert names(ranked(limit=2)) == everything[:2]


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"colour": "red"}, "colour"),
        ({"model": "auto"}, "model"),
        ({"providers": "left"}, "providers"),
        ({"providers": [1]}, "providers"),
        ({"providers": ["x"] * 51}, "providers"),
        ({"min_params_b": "7"}, "min_params_b"),
        ({"min_params_b": True}, "min_params_b"),
        ({"min_params_b": -1}, "min_params_b"),
        ({"min_params_b": 8, "max_params_b": 7}, "min_params_b"),
        ({"max_params_b": []}, "max_params_b"),
        ({"capabilities": {"code": True}}, "capabilities"),
        ({"prefer_size": "huge"}, "prefer_size"),
        ({"prefer_size": 1}, "prefer_size"),
        ({"prefer_size": []}, "prefer_size"),
        ({"limit": 0}, "limit"),
        ({"limit": 1.5}, "limit"),
        ({"limit": "5"}, "limit"),
        ({"limit": True}, "limit"),
        ({"limit": 1_001}, "limit"),
    ],
)
def test_unknown_fields_and_wrong_types_are_refused_by_name(served, query, param):
    answer = post(served.port, ROUTE, query)
    assert answer.status == 400 and answer.error["param"] == param
    assert answer.error["type"] == "invalid_request_error" and answer.verdict == "none"


@pytest.mark.parametrize("raw", [b"[]", b"1", b"null", b"{", b'{"limit":}', b"\xff"])
def test_a_body_that_is_no_object_is_refused(served, raw):
    assert post(served.port, ROUTE, raw).status == 400


def test_a_route_request_spends_nothing_and_asks_no_peer(served, nodes, ranked):
    before = len(served.events())
    for node in nodes:
        node.requests.clear()
    for size in ("small", "balanced", "large"):
        ranked(prefer_size=size, limit=10)
    looked = ask(served, "auto", headers={"X-Lcp-Route-Only": "true"})
    assert looked.status == 200 and looked.json["object"] == "lcp.route"
    assert len(served.events()) == before
    assert not any(node.calls() for node in nodes)


def test_a_route_request_needs_a_key_too(nodes):
    with served_by(row(nodes[0]), api_keys=KEY) as process:
        for method, path in (("POST", ROUTE), ("GET", "/v1/models"), ("POST", "/v1/embeddings")):
            raw = request_bytes(method, path, b"{}" if method == "POST" else None)
            answer = send_raw(process.port, raw)
            assert answer.status == 401 and answer.error["code"] == "invalid_api_key"
            assert answer.error["type"] == "authentication_error"
        assert post(process.port, ROUTE, {}, BEARER).json["data"]


# OpenClaw, from the variables that its users have.


@pytest.mark.parametrize("price", ["0", "3"])
def test_openclaw_is_a_node_from_its_own_variables(price):
    with HttpNodeThread(name="OpenClaw", models=("claw-1", "claw/2"), api_key="sk-claw") as claw:
        env = {
            "OPENCLAW_ENABLED": "true",
            "OPENCLAW_BASE_URL": claw.base_url.removesuffix("/v1"),
            "OPENCLAW_API_KEY": "sk-claw",
            "OPENCLAW_NODE_NAME": "OpenClaw",
            "OPENCLAW_PRICE": price,
            "OPENCLAW_TIMEOUT": "60",
            # No server listens there.
            "LCP_GATEWAY_LCPD_GRPC_ADDR": "127.0.0.1:1",
        }
        with gateway(embedded=False, env=env, args=["--no-preflight"]) as process:
            until(lambda: nodes_of(process)["OpenClaw"] == {"up": True, "models": 2})
            listed = models_of(process)
            assert set(listed) == {"claw-1", "claw/2", "auto"}
            assert listed["claw-1"]["owned_by"] == "OpenClaw"
            assert listed["claw-1"]["lcp"]["providers"] == ["node:OpenClaw"]
            quoted = ask(process, "claw-1", headers={"X-Lcp-Quote-Only": "true"}).json
            # For as long as it may take: a minute.
            assert quoted["price_msat"] == int(price) * 1_000
            claw.behave(delay_s=0.2)
            started = time.monotonic()
            answer = ask(process, "claw-1", "hi")
            took_s = time.monotonic() - started
            assert answer.json["choices"][0]["message"]["content"] == "OpenClaw says: hi"
            charged = int(answer.headers["x-lcp-price-msat"])
            if price == "0":
                assert charged == 0 and answer.verdict == "none"
            else:
                # 3 sat a minute are 50 msat a second.
                assert 10 <= charged <= math.ceil(50 * took_s) and answer.verdict == "settled"
            whole = ask(process, "auto")
            text = whole.json["choices"][0]["message"]["content"]
            assert agrees(info_of(whole), whole.headers, text) == "node:OpenClaw"
        for seen in claw.requests:
            assert seen.headers["Authorization"] == "Bearer sk-claw"


def test_openclaw_without_its_switch_is_no_node():
    with gateway(env={"OPENCLAW_BASE_URL": "http://127.0.0.1:1"}) as process:
        assert nodes_of(process) == {}
