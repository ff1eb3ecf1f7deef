"""A daemon that is killed and restarted: the gateway's answers are correct meanwhile, and it reconnects by itself."""

import json
import signal

import pytest

from tests.support.daemon import daemon
from tests.support.gateway import gateway
from tests.support.node_thread import eventually
from tests.support.wire import CHAT, RESPONSES, document, get, post, request_bytes, wire


def names_no_address(message, node):
    """gRPC's text about a connection ("ipv4:127.0.0.1:50051: …") must not reach a client."""
    host, _, its_port = node.address.rpartition(":")
    raw = [host, its_port, "ipv4:", "errno", "last error", "recvmsg", "Socket closed"]
    return bool(message) and not [part for part in raw if part in message]


@pytest.fixture(scope="module")
def events_file(tmp_path_factory):
    return tmp_path_factory.mktemp("node") / "events.jsonl"


@pytest.fixture(scope="module")
def node(events_file):
    with daemon("--faults", "--events", str(events_file)) as running:
        yield running


def serving(node, timeout_quote_s):
    settings = {
        "LCP_GATEWAY_LCPD_GRPC_ADDR": node.address,
        "LCP_GATEWAY_PEERS_REFRESH_S": "0.5",
        "LCP_GATEWAY_TIMEOUT_QUOTE_S": timeout_quote_s,
    }
    return gateway(embedded=False, env=settings)


@pytest.fixture(scope="module")
def port(node):
    with serving(node, "60") as running:
        yield running.port


@pytest.fixture
def paid(events_file):
    """Count the node's payments."""
    return lambda: events_file.read_text().count('"kind":"paid"')


@pytest.fixture(autouse=True)
def alive(node, port):
    if node.process is None:
        node.start()
        # /readyz may still have the state before the kill: only an answer proves that the new daemon is found.
        eventually(lambda: post(port, CHAT, document()).status == 200)
    eventually(lambda: get(port, "/readyz").status == 200)


def test_an_unreachable_daemon_is_reported_and_found_again(node, port):
    assert post(port, CHAT, document()).status == 200
    node.kill()
    for path in (CHAT, RESPONSES):
        answer = post(port, path, document(path))
        assert (answer.status, answer.error["code"]) == (503, "no_provider")
        assert answer.error["type"] == "server_error"
        assert names_no_address(answer.error["message"], node)
        assert answer.verdict == "none" and answer.headers["x-should-retry"] == "true"
    eventually(lambda: get(port, "/readyz").status == 503)
    report = get(port, "/readyz").json
    assert names_no_address(" ".join(report["reasons"]), node)
    assert report["status"] == "unavailable"
    assert report["daemon"]["reachable"] is False
    assert any("daemon" in reason for reason in report["reasons"])
    assert get(port, "/healthz").status == 200
    assert get(port, "/v1/models").status == 200
    node.start()
    eventually(lambda: get(port, "/readyz").status == 200)
    answers = [post(port, path, document(path)).status for path in (CHAT, RESPONSES)]
    assert answers == [200, 200]


@pytest.mark.parametrize("path", [CHAT, RESPONSES])
def test_a_stream_whose_daemon_dies_breaks_off_and_says_that_it_was_paid(node, port, path):
    with wire(port) as connection:
        body = json.dumps(document(path, "fault/stream-stalls", stream=True)).encode()
        connection.send(request_bytes("POST", path, body))
        connection.await_bytes(b"data: ")
        node.kill()
        answer = connection.answer()
    assert answer.verdict == "settled" and not answer.whole
    error = json.loads(answer.blocks[-1][1])["error"]
    assert names_no_address(error["message"], node)
    assert error["lcp"]["payment"] == "settled"


@pytest.mark.parametrize("stream", [False, True])
def test_a_job_whose_daemon_dies_may_have_been_paid(node, port, paid, stream):
    before = paid()
    with wire(port) as connection:
        body = json.dumps(document(model="fault/execute-hangs", stream=stream)).encode()
        connection.send(request_bytes("POST", CHAT, body))
        eventually(lambda: paid() > before)
        node.kill()
        answer = connection.answer()
    assert answer.status == 502
    assert names_no_address(answer.error["message"], node)
    assert answer.verdict == answer.error["lcp"]["payment"] == "unknown"
    assert answer.headers["x-should-retry"] == "false"


def test_a_hanging_daemon_is_reported_and_found_again(node):
    with serving(node, "1.5") as running:
        node.process.send_signal(signal.SIGSTOP)
        try:
            answer = post(running.port, CHAT, document())
            assert answer.status == 504 and answer.verdict == "none"
            eventually(lambda: get(running.port, "/readyz").status == 503)
            assert get(running.port, "/readyz").json["daemon"]["reachable"] is False
        finally:
            node.process.send_signal(signal.SIGCONT)
        eventually(lambda: get(running.port, "/readyz").status == 200)
        # On a busy machine a quote may take longer than this gateway waits.
        eventually(lambda: post(running.port, CHAT, document()).status == 200)


def test_a_daemon_that_comes_back_with_an_unknown_version_is_not_paid(node, port, paid):
    flags, before = node.flags, paid()
    node.kill()
    node.flags = (*flags, "--protocol-version", "9")
    node.start()
    try:
        eventually(lambda: "version 9" in " ".join(get(port, "/readyz").json["reasons"]))
        for stream in (False, True):
            answer = post(port, CHAT, document(stream=stream))
            assert answer.status in {500, 502, 503}
            assert answer.verdict == "none"
        assert paid() == before
    finally:
        node.kill()
        node.flags = flags
