"""Invalid or ambiguous bodies: refused with an OpenAI error before a peer is asked."""

import json

import pytest

from tests.support.gateway import gateway
from tests.support.wire import CHAT, RESPONSES, document, post, request_bytes, send_raw, wire

BOTH = pytest.mark.parametrize("path", [CHAT, RESPONSES])
MIB = 1 << 20
MANY = b'[{"role":"user","content":"x"}]'


@pytest.fixture(scope="module")
def served():
    with gateway() as running:
        yield running


@pytest.fixture
def port(served):
    """The port; at the end no peer was asked for a quote, unless the request was valid."""
    served.quotes_before = len(served.events("quote"))
    return served.port


@pytest.fixture
def asks_no_peer(served, port):
    yield
    assert len(served.events("quote")) == served.quotes_before


def body(model=b'"model":"echo-1"', subject=b'"messages":' + MANY + b',"input":"x"', more=b""):
    return b"{" + b",".join(part for part in (model, subject, more) if part) + b"}"


def is_refused(answer, status=400, param=None):
    assert answer.status == status and answer.whole
    assert answer.headers["content-type"].startswith("application/json")
    assert answer.error["type"] == "invalid_request_error"
    assert answer.verdict == "none"
    assert answer.headers["x-should-retry"] == "false"
    assert answer.headers["x-request-id"]
    if param is not None:
        assert answer.error["param"] == param


UNREADABLE = {
    "not UTF-8": body(more=b'"user":"\xff\xfe"'),
    "a cut character": body(more=b'"user":"\xe2\x82"'),
    "an overlong character": body(more=b'"user":"\xc0\xaf"'),
    "a raw surrogate": body(more=b'"user":"\xed\xa0\x80"'),
    "UTF-16": body().decode().encode("utf-16"),
    "a byte order mark": b"\xef\xbb\xbf" + body(),
    "two documents": body() + body(),
    "garbage behind": body() + b"x",
    "a trailing comma": body()[:-1] + b",}",
    "a comment": b"/* */" + body(),
    "single quotes": body().replace(b'"', b"'"),
    "NaN": body(more=b'"temperature":NaN'),
    "Infinity": body(more=b'"temperature":-Infinity'),
    "NaN beside a lone surrogate": body(more=b'"user":"\\ud800","temperature":NaN'),
    "a leading zero": body(more=b'"n":01'),
    "a raw control character": body(more=b'"user":"a\x00b"'),
    "a bad escape": body(more=b'"user":"\\x41"'),
    "60,000 arrays": body(more=b'"deep":' + b"[" * 60_000 + b"]" * 60_000),
    "60,000 objects": body(more=b'"deep":' + b'{"a":' * 60_000 + b"1" + b"}" * 60_000),
    "60,000 arrays, never closed": b"[" * 60_000,
    "60,000 arrays beside a lone surrogate": body(more=b'"user":"\\ud800","deep":' + b"[" * 60_000 + b"]" * 60_000),
    "nothing": b"",
    "white space": b" \n\t ",
    "null": b"null",
    "a number": b"1",
    "a string": b'"echo-1"',
    "an array": b"[" + body() + b"]",
}


@BOTH
@pytest.mark.parametrize("raw", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_a_body_that_is_no_json_object_is_refused(port, asks_no_peer, path, raw):
    is_refused(post(port, path, raw))


BAD_MODELS = {
    "missing": b"",
    "null": b'"model":null',
    "empty": b'"model":""',
    "blank": b'"model":"  "',
    "padded": b'"model":" echo-1"',
    "padded behind": b'"model":"echo-1\\t"',
    "padded with a no-break space": '"model":"echo-1\u00a0"'.encode(),
    "a number": b'"model":1',
    "true": b'"model":true',
    "an array": b'"model":["echo-1"]',
    "an object": b'"model":{"id":"echo-1"}',
    "a line break inside": b'"model":"echo\\n-1"',
    "a lone surrogate": b'"model":"echo\\ud800"',
    "twice": b'"model":"echo-1","model":"echo-mini"',
    "twice the same": b'"model":"echo-1","model":"echo-1"',
    "twice, spelled with an escape": b'"mod\\u0065l":"echo-mini","model":"echo-1"',
    "twice, spelled with another escape": b'"model":"echo-1","\\u006dodel":"echo-mini"',
    "twice, all in escapes": b'"model":"echo-1","\\u006D\\u006F\\u0064\\u0065\\u006C":"echo-1"',
    "twice, far apart": b'"model":"echo-1","a":{"b":[{"c":1}]},"model":"echo-mini"',
    "twice, beside a lone surrogate": b'"model":"echo-1","x":"\\udead","model":"echo-mini"',
    "in another case": b'"Model":"echo-mini","model":"echo-1"',
    "in capitals": b'"model":"echo-1","MODEL":"echo-mini"',
    "in another case only": b'"Model":"echo-1"',
    "in another case by escape": b'"model":"echo-1","\\u004dodel":"echo-mini"',
}


@BOTH
@pytest.mark.parametrize("model", BAD_MODELS.values(), ids=BAD_MODELS.keys())
def test_a_model_that_is_not_one_plain_name_is_refused(port, asks_no_peer, path, model):
    is_refused(post(port, path, body(model)), param="model")


@BOTH
def test_a_model_named_inside_something_else_is_ignored(port, path):
    inner = b'"metadata":{"model":"x","Model":"y","m\\u006fdel":"z"}'
    assert post(port, path, body(more=inner)).status == 200


@BOTH
def test_the_models_key_may_be_spelled_with_an_escape(port, path):
    assert post(port, path, body(b'"mod\\u0065l":"echo-1"')).status == 200


BAD_SUBJECTS = {
    "missing": (b"", b""),
    "null": (b'"messages":null', b'"input":null'),
    "empty": (b'"messages":[]', b'"input":[]'),
    "an object": (b'"messages":{"role":"user"}', b'"input":{"role":"user"}'),
    "a number": (b'"messages":7', b'"input":7'),
    "a boolean": (b'"messages":true', b'"input":false'),
    "a string, or an empty one": (b'"messages":"x"', b'"input":""'),
    "the other route's": (b'"input":"x"', b'"messages":' + MANY),
}


@pytest.mark.parametrize(("chat", "responses"), BAD_SUBJECTS.values(), ids=BAD_SUBJECTS.keys())
def test_a_request_without_anything_to_answer_is_refused(port, asks_no_peer, chat, responses):
    is_refused(post(port, CHAT, body(subject=chat)), param="messages")
    is_refused(post(port, RESPONSES, body(subject=responses)), param="input")


@BOTH
@pytest.mark.parametrize("stream", [b'"true"', b"1", b"0", b"[]", b"{}", b'""'])
def test_stream_is_true_or_false(port, asks_no_peer, path, stream):
    is_refused(post(port, path, body(more=b'"stream":' + stream)), param="stream")


SOUND = {
    "stream null": b'"stream":null',
    "a lone surrogate": b'"user":"\\ud83d"',
    "a lone surrogate the other way": b'"user":"\\uDE00 \\uD83d"',
    "a surrogate pair": b'"user":"\\ud83d\\ude00"',
    "a big number": b'"seed":123456789012345678901234567890',
    "a deep but sane nesting": b'"deep":' + b"[" * 200 + b"]" * 200,
    "a key twice that is not the model": b'"user":"a","user":"b"',
    "a null character": b'"user":"\\u0000"',
}


@BOTH
@pytest.mark.parametrize("more", SOUND.values(), ids=SOUND.keys())
def test_unusual_valid_bodies_are_served(port, path, more):
    answer = post(port, path, body(more=more))
    assert answer.status == 200, answer.body


def sized(size):
    short = json.dumps(document(text="")).encode()
    return json.dumps(document(text="x" * (size - len(short)))).encode()


def chunked(raw, size=65_536):
    head = request_bytes("POST", CHAT, headers={"Transfer-Encoding": "chunked"})
    parts = [raw[at : at + size] for at in range(0, len(raw), size)]
    return head + b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def test_a_body_of_exactly_one_mebibyte_is_taken(port):
    assert len(sized(MIB)) == MIB
    assert post(port, CHAT, sized(MIB)).status == 200
    assert send_raw(port, chunked(sized(MIB))).status == 200


def test_a_body_of_one_byte_more_is_not(port, asks_no_peer):
    is_refused(post(port, CHAT, sized(MIB + 1)), 413)


def test_a_chunked_body_of_one_byte_more_is_not(port, asks_no_peer):
    is_refused(send_raw(port, chunked(sized(MIB + 1))), 413)


def test_a_body_that_only_says_that_it_is_too_large_is_refused_before_it_is_sent(port, asks_no_peer):
    with wire(port) as connection:
        connection.send(request_bytes("POST", CHAT, headers={"Content-Length": str(MIB + 1)}))
        is_refused(connection.answer(), 413)


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "deflate", "br", "zstd", "x-unheard-of"])
def test_compressed_bodies_are_415(port, asks_no_peer, encoding):
    is_refused(post(port, CHAT, body(), {"Content-Encoding": encoding}), 415)
