"""Slow, HTTP/1.0, aborted and idle connections: each request is answered, and none is held for ever."""

import json
import time
from contextlib import ExitStack

import pytest

from tests.support.gateway import gateway
from tests.support.minutes import within
from tests.support.node_thread import eventually
from tests.support.wire import CHAT, document, get, is_refused, post, request_bytes, send_raw, wire

TIMEOUT_S = 1.0
BODY = json.dumps(document()).encode()
HEAD = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n".encode()


def serving(**settings):
    own = {"NODE_FAULTS": "true", **settings}
    return gateway(env={f"LCP_GATEWAY_{name}": value for name, value in own.items()})


@pytest.fixture(scope="module")
def served():
    with serving() as running:
        yield running


@pytest.fixture
def port(served):
    return served.port


@pytest.fixture(scope="module")
def impatient():
    """The port of a gateway that soon closes connections of clients that send nothing."""
    with serving(REQUEST_READ_TIMEOUT_S=str(TIMEOUT_S), KEEPALIVE_TIMEOUT_S="2.5") as running:
        yield running.port


def jobs(port):
    return get(port, "/readyz").json["jobs_in_flight"]


def test_a_slow_head_is_408(impatient):
    with wire(impatient) as connection:
        connection.send(HEAD)
        is_refused(connection.answer(), 408)
        assert connection.ended()


def test_a_head_that_drips_is_408(impatient):
    with wire(impatient) as connection:
        started = time.monotonic()
        connection.send(b"POST ")
        while time.monotonic() - started < TIMEOUT_S + 0.3:
            connection.send(b"/")
            time.sleep(0.05)
        is_refused(connection.answer(), 408)


@pytest.mark.parametrize("framing", [b"Content-Length: 500\r\n", b"Transfer-Encoding: chunked\r\n"])
def test_a_slow_body_is_408(impatient, framing):
    with wire(impatient) as connection:
        connection.send(HEAD + framing + b"\r\n")
        answer = connection.answer()
        is_refused(answer, 408)
        assert answer.headers["connection"] == "close"


def test_a_second_slow_head_on_a_kept_connection_is_408_too(impatient):
    with wire(impatient) as connection:
        connection.send(request_bytes("GET", "/healthz"))
        assert connection.answer().status == 200
        connection.send(b"GET /health")
        is_refused(connection.answer(), 408)


def test_an_idle_connection_is_closed(impatient):
    with wire(impatient) as connection:
        connection.send(request_bytes("GET", "/healthz"))
        assert connection.answer().status == 200
        assert connection.ended()


def test_a_connection_that_never_speaks_is_closed(impatient):
    with wire(impatient) as connection:
        assert connection.ended() or connection._held


def test_100_continue_is_sent_before_the_body(port):
    with wire(port) as connection:
        connection.send(HEAD + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(BODY))
        assert connection.answer().status == 100
        connection.send(BODY)
        assert connection.answer().status == 200


def test_100_continue_is_not_sent_for_a_body_that_is_too_large(port):
    with wire(port) as connection:
        connection.send(HEAD + b"Expect: 100-continue\r\nContent-Length: 9999999\r\n\r\n")
        is_refused(connection.answer(), 413)


@pytest.mark.parametrize("path", [CHAT, "/v1/models", "/nowhere"])
def test_no_other_expectation_is_met(port, path):
    method = "POST" if path == CHAT else "GET"
    raw = request_bytes(method, path, BODY if path == CHAT else None, {"Expect": "a-miracle"})
    is_refused(send_raw(port, raw), 417)


@pytest.mark.parametrize("stream", [False, True])
def test_http_1_0_is_answered_and_closed(port, stream):
    raw = json.dumps(document(stream=stream)).encode()
    with wire(port) as connection:
        connection.send(f"POST {CHAT} HTTP/1.0\r\nContent-Length: {len(raw)}\r\n\r\n".encode() + raw)
        answer = connection.answer()
        assert answer.status == 200
        assert "transfer-encoding" not in answer.headers
        assert (b"[DONE]" in answer.body) is stream
        assert connection.ended()


def test_a_stream_that_fails_over_http_1_0_says_so_last_and_is_reset(served):
    raw = json.dumps(document(model="fault/stream-cut", stream=True)).encode()
    with wire(served.port) as connection:
        connection.send(f"POST {CHAT} HTTP/1.0\r\nContent-Length: {len(raw)}\r\n\r\n".encode() + raw)
        answer = connection.answer()
        assert connection.was_reset, "without chunks, only a reset is not a clean end"
    assert answer.status == 200 and b"[DONE]" not in answer.body
    assert json.loads(answer.blocks[-1][1])["error"]["lcp"]["payment"] == "settled"


@pytest.mark.parametrize("protocol", ["h2c", "websocket", "TLS/1.3"])
def test_an_offer_to_upgrade_is_ignored(port, protocol):
    headers = {
        "Connection": "Upgrade, HTTP2-Settings",
        "Upgrade": protocol,
        "HTTP2-Settings": "AAMAAABkAAQCAAAAAAIAAAAA",
    }
    assert post(port, CHAT, BODY, headers).json["object"] == "chat.completion"
    assert get(port, "/v1/models", headers).json["object"] == "list"


def test_a_query_changes_nothing(port):
    assert post(port, CHAT + "?api-version=2026-01-01&stream=true", BODY).status == 200


def test_a_client_that_leaves_during_the_quote_buys_nothing(served):
    body = json.dumps(document(model="fault/quote-slow")).encode()
    accepted = len(served.events("accept"))
    with wire(served.port) as connection:
        connection.send(request_bytes("POST", CHAT, body))
        eventually(lambda: jobs(served.port) == 1)
    eventually(lambda: jobs(served.port) == 0)
    assert len(served.events("accept")) == accepted


def test_a_body_may_come_byte_by_byte(port):
    body = json.dumps(document(text="\u00e9\u20ac"), ensure_ascii=False).encode()
    with wire(port) as connection:
        connection.send(HEAD + b"Content-Length: %d\r\n\r\n" % len(body))
        for at in range(len(body)):
            connection.send(body[at : at + 1])
            time.sleep(0.001)
        answer = connection.answer()
    assert answer.status == 200 and "\u00e9\u20ac" in answer.body.decode()


def test_a_connection_goes_on_after_errors(port):
    with wire(port) as connection:
        for body, status in ((b"{", 400), (b'{"model":"x","messages":[1]}', 404), (BODY, 200)):
            connection.send(request_bytes("POST", CHAT, body))
            assert connection.answer().status == status
        connection.send(request_bytes("GET", "/nowhere"))
        assert connection.answer().status == 404
        connection.send(request_bytes("POST", CHAT, BODY))
        assert connection.answer().status == 200


@pytest.mark.parametrize(
    "raw",
    [
        request_bytes("GET", "/healthz"),
        request_bytes("GET", "/nowhere"),
        request_bytes("GET", "/healthz", headers={"Expect": "a-miracle"}),
        b"garbage\r\n\r\n",
        b"GET /a-head-that-does-not-end",
    ],
)
def test_no_answer_discloses_the_server_software(impatient, raw):
    answer = send_raw(impatient, raw)
    assert answer.headers["server"] == "lcp-gateway"
    assert b"aiohttp" not in answer.body and b"Python" not in answer.body


def test_pipelined_requests_are_answered_in_order(port):
    requests = [
        request_bytes("POST", CHAT, json.dumps(document(text=f"n{n}", stream=n % 2 == 1)).encode()) for n in range(6)
    ]
    with wire(port) as connection:
        connection.send(b"".join([*requests, request_bytes("GET", "/v1/models")]))
        for number in range(6):
            answer = connection.answer()
            assert answer.status == 200 and answer.whole
            assert f"n{number}".encode() in answer.body
        assert connection.answer().json["object"] == "list"


def test_a_reader_that_never_reads_on_does_not_hold_its_job_for_ever():
    body = json.dumps(document(model="fault/stream-floods", stream=True)).encode()
    limit_s = 3
    with serving(TIMEOUT_EXECUTE_S=str(limit_s)) as served:
        with ExitStack() as readers:

            def begin():
                connection = readers.enter_context(wire(served.port))
                connection.send(request_bytes("POST", CHAT, body))
                assert connection.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 200 ")
                assert jobs(served.port) == 1

            # On a busy machine its time may be over before it is seen.
            within(limit_s, begin)
            eventually(lambda: jobs(served.port) == 0)
        eventually(lambda: served.events("cancel"))
