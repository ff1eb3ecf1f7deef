"""Requests that are wrong as HTTP: routes, methods, heads, false lengths, and bytes that are not HTTP."""

import json
import time

import pytest

from tests.support.gateway import gateway
from tests.support.wire import CHAT, RESPONSES, document, get, is_refused, post, request_bytes, send_raw, wire

HEAD_LIMIT = 32 * 1024
BODY = json.dumps(document()).encode()
HEAD = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n".encode()


@pytest.fixture(scope="module")
def served():
    with gateway() as running:
        yield running


@pytest.fixture
def port(served):
    return served.port


@pytest.mark.parametrize(
    "path", ["//", "/v2", "/v1/chat", "/v1/audio/speech", "/v1/chat/completions/", "/v1//models", "/%00"]
)
def test_an_unknown_route_is_404(port, path):
    is_refused(get(port, path), 404)
    is_refused(post(port, path, document()), 404)


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", RESPONSES, "POST"),
        ("PUT", CHAT, "POST"),
        ("DELETE", RESPONSES, "POST"),
        ("OPTIONS", CHAT, "POST"),
        ("POST", "/v1/models", "GET"),
        ("POST", "/healthz", "GET"),
        ("PATCH", "/readyz", "GET"),
    ],
)
def test_a_wrong_method_is_405_with_the_allowed_ones(port, method, path, allow):
    answer = get(port, path, method=method)
    is_refused(answer, 405)
    assert allow in answer.headers["allow"].split(", ")


def test_a_head_request_is_answered_without_a_body(port):
    with wire(port) as connection:
        connection.send(request_bytes("HEAD", "/healthz"))
        assert connection.answer(method="HEAD").status == 200
        connection.send(request_bytes("GET", "/healthz"))
        assert connection.answer().status == 200


def test_one_header_that_is_too_large_is_431(port):
    is_refused(get(port, "/v1/models", {"X-Big": "x" * (HEAD_LIMIT + 1)}), 431)


def test_a_header_of_a_megabyte_in_one_write_is_431(port):
    """Once the bytes after the refused part were parsed as a target, so the answer was 414."""
    with wire(port) as connection:
        connection.send(b"GET /v1/models HTTP/1.1\r\nX-Big: " + b"x" * 2**20 + b"\r\n\r\n")
        is_refused(connection.answer(), 431)
        assert connection.ended()


@pytest.mark.parametrize("version", ["HTTP/2.0", "HTTP/0.9", "HTTP/1.2", "HTTP/3.0"])
@pytest.mark.parametrize("path", ["/v1/models", CHAT, "/healthz", "/nowhere"])
def test_another_version_of_http_is_505(served, version, path):
    before = len(served.events("quote"))
    method, body = ("POST", BODY) if path == CHAT else ("GET", b"")
    head = f"{method} {path} {version}\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    with wire(served.port) as connection:
        connection.send(head.encode() + body)
        is_refused(connection.answer(), 400, 505)
        assert connection.ended()
    assert len(served.events("quote")) == before


def test_headers_that_are_too_large_together_are_431(port):
    headers = {f"X-Header-{n}": "x" * 1_000 for n in range(40)}
    is_refused(get(port, "/v1/models", headers), 431)


def test_headers_below_the_limit_are_taken(port):
    headers = {f"X-Header-{n}": "x" * 1_000 for n in range(30)}
    assert get(port, "/v1/models", headers).status == 200


def test_headers_without_end_are_431(port):
    with wire(port) as connection:
        connection.send(HEAD)
        for number in range(400):
            connection.send(f"X-{number}: {'x' * 1_000}\r\n".encode())
        is_refused(connection.answer(), 431)
        assert connection.ended()


def test_a_long_url_is_414(port):
    is_refused(get(port, "/v1/models?" + "x" * (HEAD_LIMIT + 1)), 414)


LYING_LENGTHS = {
    "negative": (b"Content-Length: -1\r\n", BODY),
    "no number": (b"Content-Length: ten\r\n", BODY),
    "a plus sign": (b"Content-Length: +10\r\n", BODY),
    "hexadecimal": (b"Content-Length: 0x10\r\n", BODY),
    "two that differ": (b"Content-Length: 10\r\nContent-Length: 11\r\n", BODY),
    "two in one": (b"Content-Length: 10, 11\r\n", BODY),
    "beside chunks": (
        b"Content-Length: %d\r\nTransfer-Encoding: chunked\r\n" % len(BODY),
        b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY),
    ),
    "an unknown encoding": (b"Transfer-Encoding: x-odd\r\n", BODY),
    "chunks that are not last": (b"Transfer-Encoding: chunked, gzip\r\n", BODY),
    "a chunk size that is none": (b"Transfer-Encoding: chunked\r\n", b"xyz\r\nabc\r\n0\r\n\r\n"),
    "a chunk longer than its size": (b"Transfer-Encoding: chunked\r\n", b"2\r\nabcdef\r\n0\r\n\r\n"),
}


@pytest.mark.parametrize(("head", "body"), LYING_LENGTHS.values(), ids=LYING_LENGTHS.keys())
def test_an_invalid_length_is_400_and_ends_the_connection(served, head, body):
    before = len(served.events("quote"))
    with wire(served.port) as connection:
        connection.send(HEAD + head + b"\r\n" + body)
        is_refused(connection.answer(), 400)
        assert connection.ended()
    assert len(served.events("quote")) == before


CUT_BODIES = {
    "shorter than its length": b"Content-Length: %d\r\n\r\n%b" % (len(BODY) + 10, BODY),
    "cut between chunks": b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n" % (len(BODY), BODY),
    "cut inside a chunk": b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b" % (len(BODY) + 9, BODY),
}


@pytest.mark.parametrize("raw", CUT_BODIES.values(), ids=CUT_BODIES.keys())
def test_a_body_that_is_cut_is_never_bought(served, raw):
    before = len(served.events("quote"))
    with wire(served.port) as connection:
        connection.send(HEAD + raw)
        connection.socket.shutdown(1)
        try:
            status = connection.answer().status
        except EOFError:
            status = None
        assert status in {None, 400, 408}
    assert get(served.port, "/healthz").status == 200
    assert len(served.events("quote")) == before


@pytest.mark.parametrize("pause_s", [0.0, 0.3])
def test_bytes_after_a_body_are_not_part_of_it(served, pause_s):
    before = len(served.events("accept"))
    with wire(served.port) as connection:
        connection.send(HEAD + b"Content-Length: %d\r\n\r\n%b" % (len(BODY), BODY))
        time.sleep(pause_s)
        connection.send(b"garbage\r\n\r\n")
        answer = connection.answer()
        if answer.status == 200:
            assert answer.json["object"] == "chat.completion"
            answer = connection.answer()
        is_refused(answer, 400)
        assert connection.ended()
    assert len(served.events("accept")) - before <= 1


def test_an_unknown_method_is_refused(port):
    is_refused(get(port, "/readyz", method="BREW"), 400, 405, 501)


NO_HTTP = {
    "a TLS hello": bytes.fromhex("16030100c8010000c40303") + bytes(200),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "another protocol": b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    "binary": bytes(range(1, 128)) + b"\r\n\r\n",
    "a version that is none": b"GET / HTTP/9.9.9\r\n\r\n",
    "a header without a name": b"GET / HTTP/1.1\r\nHost: localhost\r\n: y\r\n\r\n",
    "a header with a space before its colon": b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
    "a bare line feed in a value": b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\x00b\r\n\r\n",
}


@pytest.mark.parametrize("raw", NO_HTTP.values(), ids=NO_HTTP.keys())
def test_bytes_that_are_not_http_are_refused_and_the_connection_ends(port, raw):
    with wire(port) as connection:
        connection.send(raw)
        is_refused(connection.answer(), 400, 505)
        assert connection.ended()
    assert get(port, "/healthz").status == 200


def test_an_absolute_target_is_the_same_route(port):
    assert send_raw(port, request_bytes("GET", "http://elsewhere.invalid/healthz")).status == 200
