"""``models``: the models that peers and nodes offer, as measured by a running gateway or as advertised."""

import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from lcp_gateway.cli.market.models import rows_of_gateway
from tests.cli.node_tables import config_file, table
from tests.support.gateway import gateway
from tests.support.http_node import HttpNodeThread, http_nodes

ABSENT = "02" + "ab" * 32
KEY = "sk-do-not-print"
NO_GATEWAY = ("--http-addr", "127.0.0.1:0")
HEADINGS = [
    "model", "kinds", "provider", "source", "params", "context", "capabilities", "price_msat",
    "score", "ready",
]  # fmt: skip


@pytest.fixture
def at(node):
    return ("--lcpd-grpc-addr", node.address, *NO_GATEWAY)


@pytest.fixture
def nowhere():
    """An address where no server listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture(scope="module")
def box():
    with http_nodes(HttpNodeThread("box", ("Qwen2.5-Coder-14B", "all-minilm"))) as (node,):
        yield node


def listed(outcome):
    assert outcome.code == 0, outcome.err
    return json.loads(outcome.out)


def test_models_are_listed_one_to_a_line(run, at):
    outcome = run("models", *at)
    assert outcome.code == 0
    heading, *rows = outcome.out.splitlines()
    assert heading.split() == HEADINGS
    assert [row.split()[0] for row in rows] == ["echo-1", "echo-1", "echo-mini", "echo-slow"]
    assert all(row.split()[-1] == "yes" for row in rows)
    assert "nothing measured yet" in outcome.err


def test_models_as_json_keep_their_keys_and_have_more(run, at):
    found = listed(run("models", "--json", *at))
    assert {entry["model"] for entry in found} == {"echo-1", "echo-mini", "echo-slow"}
    assert all(len(entry["peer_id"]) == 66 and entry["ready"] is True for entry in found)
    assert found[0]["kinds"] == ["chat", "responses", "completions"]
    assert all(e["source"] == "lcp" and e["price_msat"] is None for e in found)
    assert all(0 < entry["score"] <= 1 for entry in found)


def test_a_model_that_is_mapped_to_a_missing_peer_is_not_ready(run, at):
    rows = run("models", *at, "--model-map", f"gpt-5={ABSENT}").out.splitlines()
    assert [row.split() for row in rows if row.startswith("gpt-5")] == [
        ["gpt-5", "?", ABSENT, "lcp", "?", "?", "-", "?", "?", "no"]
    ]


def test_a_model_that_is_mapped_elsewhere_has_no_score_where_no_request_goes(run, at):
    (first, second, *_) = listed(run("models", "--json", *at))
    mapped = f"echo-1={second['peer_id']}"
    found = listed(run("models", "--json", *at, "--model-map", mapped))
    scores = {e["peer_id"]: e["score"] for e in found if e["model"] == "echo-1"}
    assert scores[first["peer_id"]] is None
    assert scores[second["peer_id"]] is not None


def test_models_without_a_daemon_fail_in_one_line(run, nowhere):
    outcome = run("models", "--lcpd-grpc-addr", nowhere, *NO_GATEWAY)
    assert outcome.code == 1
    assert outcome.err.count("\n") == 1
    assert f"the daemon at {nowhere} does not answer (UNAVAILABLE)" in outcome.err
    assert "--embedded" in outcome.err


def test_nodes_stand_beside_peers_with_the_traits_of_their_names(run, at, box, tmp_path):
    config = config_file(tmp_path, table("box", box.base_url, price_per_request_msat=500))
    found = {e["model"]: e for e in listed(run("models", "--json", *at, "--config", config))}
    assert {"echo-1", "Qwen2.5-Coder-14B", "all-minilm"} < set(found)
    coder = found["Qwen2.5-Coder-14B"]
    assert coder | {"score": 0} == {
        "model": "Qwen2.5-Coder-14B", "kinds": ["chat", "completions"], "peer_id": "node:box",
        "ready": True, "source": "node", "params_b": 14.0, "context_length": None,
        "capabilities": ["code"], "price_msat": 500, "score": 0,
    }  # fmt: skip
    assert found["all-minilm"]["kinds"] == ["embeddings"]
    assert coder["score"] > found["echo-1"]["score"]


def test_a_node_that_is_down_is_a_line_and_its_models_are_not_ready(run, at, nowhere, tmp_path):
    config = config_file(tmp_path, table("away", f"http://{nowhere}", models=["llama3.1:8b"]))
    outcome = run("models", *at, "--config", config)
    assert outcome.code == 0
    assert "node away: no connection to the node can be made" in outcome.err
    (row,) = [line.split() for line in outcome.out.splitlines() if line.startswith("llama3.1:8b")]
    assert row[3:] == ["node:away", "node", "8B", "?", "-", "0", "?", "no"]


def test_nodes_alone_are_shown_where_the_daemon_is_away(run, nowhere, box, tmp_path):
    config = config_file(tmp_path, table("box", box.base_url))
    arguments = ("--lcpd-grpc-addr", nowhere, "--preflight-timeout-s", "1s", *NO_GATEWAY)
    outcome = run("models", "--json", *arguments, "--config", config)
    assert {entry["peer_id"] for entry in listed(outcome)} == {"node:box"}
    assert f"the daemon at {nowhere} does not answer" in outcome.err


def test_a_running_gateway_is_asked_and_its_key_is_not_shown(run, box, nowhere, tmp_path):
    config = config_file(
        tmp_path,
        f'api_keys = ["{KEY}"]',
        table("box", box.base_url, price_per_request_msat=500),
        table("away", f"http://{nowhere}", models=["llama3.1:8b"]),
    )
    with gateway(args=["--config", config]) as running:
        where = ("--http-addr", f"127.0.0.1:{running.port}", "--config", config)
        outcome = run("models", "--json", *where, "--lcpd-grpc-addr", nowhere)
        found = listed(outcome)
        refused = run("models", *where[:2])
    assert f"as measured by the gateway at {running.base_url}" in outcome.err
    assert "node away: down" in outcome.err
    assert KEY not in outcome.out + outcome.err
    by_model = {}
    for entry in found:
        by_model.setdefault(entry["model"], []).append(entry)
    (coder,), (embedder,) = by_model["Qwen2.5-Coder-14B"], by_model["all-minilm"]
    assert (coder["params_b"], coder["price_msat"], coder["ready"]) == (14.0, 500, True)
    assert coder["score"] and embedder["score"]
    assert all(entry["score"] for entry in by_model["echo-1"])
    (absent,) = by_model["llama3.1:8b"]
    assert (absent["peer_id"], absent["ready"], absent["score"]) == ("node:away", False, None)
    assert (refused.code, refused.out) == (1, "")
    assert "401 invalid_api_key" in refused.err
    assert refused.err.count("\n") == 1


def test_a_daemon_that_a_flag_names_is_asked_though_a_gateway_runs_on_the_usual_address(run, nowhere, monkeypatch):
    """Regression: the flag was ignored."""
    with gateway() as running:
        monkeypatch.setenv("LCP_GATEWAY_HTTP_ADDR", f"127.0.0.1:{running.port}")
        assert "as measured by the gateway" in run("models").err
        outcome = run("models", "--lcpd-grpc-addr", nowhere)
        assert f"the daemon at {nowhere} does not answer" in outcome.err
        named = run("models", "--port", str(running.port), "--lcpd-grpc-addr", nowhere)
        assert "not used here: --lcpd-grpc-addr" in named.err and named.code == 0


@pytest.mark.parametrize("command", ["models", "route"])
def test_with_accounts_the_administrators_key_is_enough_to_look(run, command, monkeypatch):
    """Regression: it was refused, and the hint named another key."""
    accounts = {"LCP_GATEWAY_AUTH": "accounts", "LCP_GATEWAY_ADMIN_KEY": "boss-of-it-all"}
    with gateway(env=accounts) as running:
        where = ("--port", str(running.port))
        refused = run(command, *where)
        assert refused.code == 1 and "this command sent no key: pass" in refused.err
        assert "LCP_GATEWAY_ADMIN_KEY" in refused.err
        monkeypatch.setenv("LCP_GATEWAY_AUTH", "accounts")
        monkeypatch.setenv("LCP_GATEWAY_ADMIN_KEY", "another-boss-than-that")
        assert "this command sent admin_key" in run(command, *where).err
        monkeypatch.setenv("LCP_GATEWAY_ADMIN_KEY", accounts["LCP_GATEWAY_ADMIN_KEY"])
        outcome = run(command, *where)
        assert outcome.code == 0, outcome.err
        assert "echo-1" in outcome.out
        assert running.events() == []


def test_measurements_show_in_the_rows_of_the_best_provider():
    model = {
        "id": "m",
        "lcp": {
            "providers": ["a", "b"], "endpoints": ["chat"], "context_length": 8192,
            "capabilities": ["code"], "params_b": 7.0, "price_msat": 5, "ready": True,
        },
    }  # fmt: skip
    best = {
        "model": "m", "provider": "b", "providers": ["b", "a"], "score": 0.8, "price_msat": 9,
        "scores": {"b": 0.8, "a": 0.3}, "features": {"availability": 0.0},
    }  # fmt: skip
    rows = rows_of_gateway([model, {**model, "id": "unranked"}], [best])
    assert [(r.model, r.provider_id, r.score, r.price_msat, r.ready) for r in rows] == [
        ("m", "b", 0.8, 9, False),
        ("m", "a", 0.3, None, True),
        ("unranked", "a", None, None, True),
        ("unranked", "b", None, None, True),
    ]


@pytest.fixture
def stranger():
    """A server on the gateway's address that is not a gateway; ``seen`` are the requests it got."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append((self.path, self.headers.get("Authorization")))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"jobs_in_flight": 0}')

        def log_message(self, *_arguments):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        server.seen = seen
        yield server
        server.shutdown()
        thread.join(5)


def test_another_server_on_the_gateways_address_gets_no_key(run, at, stranger, monkeypatch):
    monkeypatch.setenv("LCP_GATEWAY_API_KEYS", KEY)
    where = f"127.0.0.1:{stranger.server_port}"
    outcome = run("models", *at, "--http-addr", where)
    assert outcome.code == 0
    assert "nothing measured yet" in outcome.err
    assert stranger.seen == [("/readyz", None)]
