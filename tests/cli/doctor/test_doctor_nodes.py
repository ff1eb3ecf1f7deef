"""``doctor`` on nodes: which are up, why others are not, and models mapped to a missing node."""

import pytest

from tests.cli.node_tables import config_file, table
from tests.support.http_node import HttpNodeThread, http_nodes

KEY = "sk-do-not-print"


@pytest.fixture(scope="module")
def nodes():
    found = {
        "box": HttpNodeThread("box", ("llama3.1:8b", "all-minilm")),
        "locked": HttpNodeThread("locked", ("m",), api_key="another"),
        "listless": HttpNodeThread("listless", ("m",)),
        "empty": HttpNodeThread("empty", ("m",)),
    }
    found["listless"].behave(models_status=404)
    found["empty"].behave(models_raw='{"data": []}')
    with http_nodes(*found.values()):
        yield found


@pytest.fixture
def at(node):
    return ("--lcpd-grpc-addr", node.address)


def test_a_node_that_is_up_is_well(run, at, nodes, tmp_path):
    config = config_file(tmp_path, table("box", nodes["box"].base_url))
    outcome = run("doctor", *at, "--config", config, "--model-map", "x=node:box")
    assert outcome.code == 0, outcome.out
    assert "ok    node           box: up, 2 models" in outcome.out
    assert "fail  routing" not in outcome.out
    assert "ok    quote" in outcome.out
    assert not nodes["box"].calls()


def test_each_problem_of_a_node_is_reported_with_advice(run, at, nodes, tmp_path):
    config = config_file(
        tmp_path,
        table("locked", nodes["locked"].base_url, api_key=KEY),
        table("listless", nodes["listless"].base_url),
        table("empty", nodes["empty"].base_url),
        table("away", "http://127.0.0.1:1"),
    )
    outcome = run("doctor", *at, "--config", config, "--default-peer-id", "node:away")
    assert outcome.code == 1
    assert KEY not in outcome.out + outcome.err
    lines = [line.strip() for line in outcome.out.splitlines()]
    found = {
        line.removeprefix("fail  node").strip(): lines[number + 1]
        for number, line in enumerate(lines)
        if line.startswith("fail  node")
    }
    assert found == {
        "locked: the node refused the gateway's credentials": ("set its api_key to the one that it asks for"),
        "listless: the node has no list of models; its models must be named in the configuration": (
            "name its models in the configuration, or check its base_url"
        ),
        "empty: up, and offers no models": "load a model there, or name some in its models",
        "away: no connection to the node can be made": "is it running at http://127.0.0.1:1/v1?",
    }
    assert "not ready: node:away as the default peer" in outcome.out


def test_a_node_that_is_the_default_is_no_missing_peer_and_tells_its_prices(run, at, nodes, tmp_path):
    config = config_file(tmp_path, table("box", nodes["box"].base_url, price_per_request_msat=1500))
    outcome = run(
        "doctor", *at, "--config", config, "--default-peer-id", "node:box",
        "--model-allowlist", "llama3.1:8b",
    )  # fmt: skip
    assert outcome.code == 0, outcome.out
    assert "fail  routing" not in outcome.out
    assert "ok    price list     llama3.1:8b at node:box asks 1.500 sat (1500 msat) for an ordinary" in outcome.out


def test_nodes_are_looked_at_where_the_daemon_is_away(run, nodes, tmp_path):
    config = config_file(tmp_path, table("box", nodes["box"].base_url))
    away = ("--lcpd-grpc-addr", "127.0.0.1:1", "--preflight-timeout-s", "1")
    outcome = run("doctor", *away, "--config", config)
    assert outcome.code == 1
    assert "ok    node           box: up, 2 models" in outcome.out
    assert "fail  daemon" in outcome.out


def test_a_quote_of_a_node_is_the_most_that_it_can_come_to(run, at, nodes, tmp_path):
    config = config_file(tmp_path, table("box", nodes["box"].base_url, price_per_1k_output_msat=1000))
    arguments = ("--model", "llama3.1:8b", "--prompt", "Hello", *at, "--config", config)
    outcome = run("quote", "--max-tokens", "2000", *arguments)
    assert outcome.code == 0, outcome.err
    lines = dict(line.split(None, 1) for line in outcome.out.splitlines())
    assert lines["node"] == "node:box"
    assert lines["price"] == "2000 msat at most (2.000 sat)"
    assert "list price  500 msat for an ordinary request" in outcome.out
    over = run("quote", "--max-price-msat", "5", *arguments)
    assert over.code == 1
    assert "it would NOT be bought" in over.out
    assert not nodes["box"].calls()


def test_auto_is_quoted_by_the_provider_that_would_be_asked_first(run, at, nodes, tmp_path):
    config = config_file(tmp_path, table("box", nodes["box"].base_url))
    outcome = run("quote", "--model", "auto:free", "--prompt", "x", *at, "--config", config)
    assert outcome.code == 0, outcome.err
    lines = dict(line.split(None, 1) for line in outcome.out.splitlines())
    assert (lines["model"], lines["price"]) == ("llama3.1:8b", "free")
