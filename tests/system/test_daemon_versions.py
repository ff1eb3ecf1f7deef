"""Daemons of version 3: what clients rely on is as with version 2; and a daemon that is exchanged while the gateway runs."""

import hashlib
import json
from contextlib import contextmanager
from functools import partial

import pytest

from lcp_gateway.node.config import NodeConfig
from tests.support.daemon import daemon
from tests.support.gateway import gateway, run_command
from tests.support.node_thread import eventually, threaded_node
from tests.support.wire import CHAT, RESPONSES, document, get, post

BOTH = pytest.mark.parametrize("path", [CHAT, RESPONSES])
STREAMED = pytest.mark.parametrize("stream", [False, True])


@pytest.fixture(scope="module")
def node():
    with threaded_node(NodeConfig(listen="127.0.0.1:0", protocol_version=3)) as running:
        yield running


@contextmanager
def serving(node, journal, **settings):
    env = {
        "OPENAI_SERVE_HTTP_ADDR": "127.0.0.1:0",
        "OPENAI_SERVE_LCPD_GRPC_ADDR": node.address,
        "LCP_GATEWAY_JOURNAL_URL": str(journal),
        "LCP_GATEWAY_PEERS_REFRESH_S": "0.2",
        **settings,
    }
    with gateway(embedded=False, env=env) as running:
        yield running


@pytest.fixture(scope="module")
def served(node, tmp_path_factory):
    with serving(node, tmp_path_factory.mktemp("journal") / "journal.db") as running:
        yield running


@pytest.fixture
def port(served, node):
    node.received.clear()
    return served.port


@BOTH
@STREAMED
def test_bytes_go_through_unchanged_both_ways(port, node, path, stream):
    body = b"  " + json.dumps(document(path, text="caf\u00e9", stream=stream, odd={"b": 1}), indent=3).encode() + b"\n"
    answer = post(port, path, body)
    assert answer.status == 200 and answer.whole
    assert node.last_body() == body
    if stream:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.body == bytes(node.received.streams[-1])
    else:
        result = node.received.last_answer("AcceptAndExecute").result
        assert answer.headers["content-type"] == result.content_type
        assert answer.body == result.result and hashlib.sha256(answer.body).digest() == result.result_hash
        assert answer.json["object"] == ("chat.completion" if path == CHAT else "response")


@BOTH
@STREAMED
def test_headers_name_the_call_beside_the_job(port, node, path, stream):
    headers = post(port, path, document(path, stream=stream)).headers
    terms = node.received.last_answer("RequestQuote").terms
    assert headers["x-lcp-call-id"] == headers["x-lcp-job-id"] == terms.job_id.hex()
    assert headers["x-lcp-peer-id"] == node.peer_id("Alice")
    assert headers["x-lcp-price-msat"] == str(terms.price_msat)
    assert headers["x-lcp-terms-hash"] == terms.terms_hash.hex()
    assert headers["x-lcp-payment"] == "settled"


def test_a_model_that_the_peer_does_not_have_is_refused_without_a_payment(port, node):
    answer = post(port, CHAT, document(model="no-such-model"))
    assert answer.status == 400 and answer.verdict == "none"
    assert "lcp_error code=3" in answer.error["message"]
    assert not node.received.of("AcceptAndExecute")


def test_readyz_metrics_and_doctor_name_the_version(node, port):
    assert get(port, "/readyz").json["daemon"]["protocol_version"] == 3
    assert "\nlcpgateway_lcpd_protocol_version 3.0\n" in get(port, "/metrics").body.decode()
    flags = ("doctor", "--lcpd-grpc-addr", node.address, "--journal-url", "off")
    silent = run_command(*flags)
    assert "LCP protocol version 3" in silent.stdout and "list none (see peer_models)" in silent.stdout
    assert "the peers list no models" in silent.stdout
    named = run_command(*flags, env={"LCP_GATEWAY_PEER_MODELS": "*=echo-1"})
    assert "ok    quote" in named.stdout and "echo-1 at" in named.stdout
    assert "terms and invoice hold" in named.stdout


def listed(port):
    return {model["id"] for model in get(port, "/v1/models").json["data"]} - {"auto"}


def test_models_are_those_that_were_bought_or_named_also_after_a_restart(node, tmp_path):
    journal = tmp_path / "journal.db"
    with serving(node, journal) as running:
        assert listed(running.port) == set()
        assert post(running.port, CHAT, document(model="echo-mini")).verdict == "settled"
        eventually(lambda: listed(running.port) == {"echo-mini"})
        assert get(running.port, "/v1/models/echo-mini").json["lcp"]["endpoints"] == ["chat", "completions"]
        assert post(running.port, CHAT, document(model="nope")).status == 400
        # The peer has named all of its models.
        eventually(lambda: {"echo-mini", "echo-1", "echo-slow"} <= listed(running.port))
    with serving(node, journal) as again:
        eventually(lambda: "echo-mini" in listed(again.port))
        assert "echo-slow" not in listed(again.port), "what a peer named is a hint, and was not recorded"


def test_the_operators_list_is_all_that_peers_are_asked_for(node, tmp_path):
    node.received.clear()
    with serving(node, tmp_path / "journal.db", LCP_GATEWAY_PEER_MODELS="*=echo-1") as running:
        assert listed(running.port) == {"echo-1"}
        refused = post(running.port, CHAT, document(model="echo-mini"))
        assert (refused.status, refused.error["code"]) == (404, "model_not_available")
        assert not node.received.of("RequestQuote")
        assert post(running.port, RESPONSES, document(RESPONSES)).verdict == "settled"
        automatic = post(running.port, CHAT, document(model="auto"))
        assert automatic.status == 200 and automatic.verdict == "settled"
        assert automatic.json["model"] == "echo-1"


@BOTH
def test_the_receipt_of_a_purchase_names_its_version_and_verifies(served, port, tmp_path, path):
    asked = json.dumps(document(path)).encode()
    job_id = post(port, path, asked).headers["x-lcp-job-id"]
    eventually(lambda: "delivered" in get(port, f"/v1/receipts/{job_id}").body.decode())
    receipt = get(port, f"/v1/receipts/{job_id}")
    assert receipt.json["terms"]["protocol_version"] == 3
    file, request = tmp_path / "receipt.json", tmp_path / "request"
    file.write_bytes(receipt.body)
    request.write_bytes(asked)
    done = run_command("receipt", "verify", str(file), "--request", str(request))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def events_file(tmp_path_factory):
    return tmp_path_factory.mktemp("node") / "events.jsonl"


@pytest.fixture(scope="module")
def swapped(events_file):
    with daemon("--events", str(events_file)) as running:
        yield running


@pytest.fixture(scope="module")
def swapping(swapped):
    settings = {"LCP_GATEWAY_LCPD_GRPC_ADDR": swapped.address, "LCP_GATEWAY_PEERS_REFRESH_S": "0.5"}
    with gateway(embedded=False, env=settings) as running:
        yield running


def swap(swapped, version):
    swapped.kill()
    swapped.flags = (*swapped.flags[:2], *(("--protocol-version", "3") if version == 3 else ()))
    swapped.start()


def is_found(port, version):
    found = get(port, "/readyz").json["daemon"]
    return found["reachable"] and found["protocol_version"] == version


@STREAMED
def test_a_daemon_is_exchanged_and_back_with_quotes_outstanding(swapped, swapping, events_file, stream):
    """Each quote is taken on a daemon of the other version, which is not paid; a new request is bought in its version."""
    port, asked = swapping.port, document(stream=stream)

    def events(kind, job_id=""):
        return [line for line in events_file.read_text().splitlines() if f'"kind":"{kind}"' in line and job_id in line]

    for before, after in ((2, 3), (3, 2)):
        quote = post(port, CHAT, asked, {"X-Lcp-Quote-Only": "true"}).json
        swap(swapped, after)
        # A quote can be taken once: not while the gateway still waits to connect again.
        eventually(partial(is_found, port, after))
        paid = len(events("paid"))
        taken = post(port, CHAT, asked, {"X-Lcp-Quote-Id": quote["id"]})
        assert (taken.status, taken.verdict) == (409, "none")
        assert f"version {before}" in taken.error["message"] and f"version {after}" in taken.error["message"]
        assert not events("accept", quote["job_id"]) and len(events("paid")) == paid
        fresh = post(port, CHAT, asked)
        assert fresh.status == 200 and fresh.whole and fresh.verdict == "settled"
        assert ("x-lcp-call-id" in fresh.headers) is (after == 3)
        assert len(events("paid")) == paid + 1
