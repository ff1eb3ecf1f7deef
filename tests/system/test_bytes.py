"""Requests and results pass byte for byte."""

import gzip
import hashlib
import json
from contextlib import contextmanager
from dataclasses import replace
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lcp_gateway.node.config import FaultConfig, ModelConfig, NodeConfig, PeerConfig
from lcp_gateway.node.faults import FaultInjector
from tests.support.examples import examples
from tests.support.gateway import gateway
from tests.support.node_thread import threaded_node
from tests.support.wire import CHAT, RESPONSES, document, post

BOTH = pytest.mark.parametrize("path", [CHAT, RESPONSES])
STREAMED_OR_NOT = pytest.mark.parametrize("stream", [False, True])
MIB = 1 << 20
QUICKLY = settings(max_examples=examples(0.6), deadline=None)


@pytest.fixture(scope="module")
def node():
    config = NodeConfig(
        listen="127.0.0.1:0",
        peers=(PeerConfig("Alice", (ModelConfig("echo-1"),)),),
        faults=True,
        fault_settings=FaultConfig(slow_chunk_s=0.01, flood_bytes=8 * MIB),
    )
    with threaded_node(config) as running:
        yield running


@pytest.fixture(scope="module")
def port(node):
    with gateway(embedded=False, env={"LCP_GATEWAY_LCPD_GRPC_ADDR": node.address}) as running:
        yield running.port


def arrives_as_it_is(node, port, raw, path=CHAT):
    node.received.clear()
    answer = post(port, path, raw)
    assert answer.status == 200, answer.body
    assert node.last_body() == raw
    return answer


HOSTILE = {
    "odd white space": b'\r\n{\t"model" :\n\n"echo-1" ,"messages":[ {} ] ,"input" : "x"\r}\n \t',
    "escapes": rb'{"\u006dodel":"\u0065cho-1","messages":[{"content":"\/\b\u00e9\ud83d\ude00"}],"input":"\/"}',
    "key order": b'{"z":1,"input":"x","a":2,"messages":[{"role":"user"}],"M":3,"model":"echo-1","b":4}',
    "keys twice": b'{"a":1,"a":2,"model":"echo-1","messages":[{}],"messages":[{}],"input":"y","a":3}',
    "numbers": b'{"model":"echo-1","messages":[{}],"input":"x","n1":1.0,"n2":-0,"n3":1E+2,"n4":'
    b"123456789012345678901234567890,"
    b'"n5":0.1000000000000000055511151231257827,"n6":-0.0e-0}',
    "characters": '{"model":"echo-1","messages":[{"content":"\u2028\ufeff\U0001f600\u0301e\u0301\x7f"}],'
    '"input":"\u202e"}'.encode(),
    "unknown fields": b'{"model":"echo-1","messages":[{"x":null}],"input":"x","stored":{},"":"","\\u0000":0}',
}


@BOTH
@pytest.mark.parametrize("raw", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_bodies_arrive_as_they_are(node, port, path, raw):
    arrives_as_it_is(node, port, raw, path)


@BOTH
@STREAMED_OR_NOT
def test_a_body_of_900_kib_arrives_as_it_is(node, port, path, stream):
    text = "0123456789abcde\u00e9" * (900 * 1024 // 17)
    raw = json.dumps(document(path, text=text, stream=stream), ensure_ascii=False).encode()
    assert len(raw) > 899 * 1024
    assert arrives_as_it_is(node, port, raw, path).whole


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "x"]
)
def test_the_requests_content_type_does_not_matter(node, port, content_type):
    raw = json.dumps(document()).encode()
    assert post(port, CHAT, raw, {"Content-Type": content_type}).status == 200
    assert node.last_body() == raw


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
# Results that a relay that parses streams could change.
PIECES = [
    b"data: [DONE]\n\n",
    b"data: [DONE]",
    b"data: [DO",
    b"NE]\n\n",
    b"d",
    b"\n",
    b"\r\n",
    b"event: response.completed\n",
    b"event: response",
    b": heartbeat\n\n",
]
SPACE = st.text(" \t\r\n", max_size=4)


@QUICKLY
@given(
    more=st.dictionaries(st.text().map(lambda key: f"x-{key}"), ANY_JSON, max_size=4),
    content=st.text(),
    ascii_only=st.booleans(),
    indent=st.sampled_from([None, 0, 3, "\t"]),
    between=SPACE,
    around=st.tuples(SPACE, SPACE),
)
def test_any_json_arrives_as_it_is(node, port, more, content, ascii_only, indent, between, around):
    text = json.dumps(
        {**more, "messages": [{"role": "user", "content": content}], "model": "echo-1", **more},
        ensure_ascii=ascii_only,
        indent=indent,
        separators=("," + between, between + ":"),
    )
    arrives_as_it_is(node, port, (around[0] + text + around[1]).encode())


GOOD = {
    (CHAT, True): b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n',
    (CHAT, False): b'{"choices":[{"message":{"content":""}}]}',
}


@QUICKLY
@given(
    chunks=st.lists(st.binary(max_size=300) | st.sampled_from(PIECES), max_size=12),
    content_type=st.sampled_from(["text/event-stream", "application/octet-stream"]),
)
@BOTH
@STREAMED_OR_NOT
def test_any_result_comes_back_as_it_is(port, chunks, content_type, path, stream):
    # In a coding that the gateway cannot read, only hash and length show whether it is correct.
    with answering(chunks, content_type=content_type, content_encoding="x-odd"):
        answer = post(port, path, document(path, "fault/odd-content-type", stream=stream))
    assert answer.status == 200 and answer.whole
    assert answer.body == b"".join(chunks)
    assert answer.headers["content-type"] == content_type
    assert answer.headers["content-encoding"] == "x-odd"


@pytest.mark.parametrize("size", [1, 3, 7, 1_000])
@pytest.mark.parametrize(
    ("path", "end"),
    [
        (CHAT, b"data: [DONE]\n\n"),
        (CHAT, b"data:[DONE]\r\n\r\n"),
        (CHAT, b"data: [DONE]\r\r"),
        (RESPONSES, b'event: response.completed\ndata: {"type":"response.completed"}\n\n'),
        (RESPONSES, b'data: {"type":"response.completed","response":{}}\n\n'),
        (RESPONSES, b'data: {"response":{}, "type": "response.completed"}\r\r'),
    ],
)
def test_an_end_is_not_seen_before_the_hash_is_right_however_it_is_cut(port, path, end, size):
    """Once, in some of these spellings, a client got the end of a stream with a wrong hash."""
    first = GOOD[CHAT, True] if path == CHAT else b'data: {"type":"response.created"}\n\n'
    whole = first + end
    chunks = [whole[at : at + size] for at in range(0, len(whole), size)]
    with answering(chunks, content_type="text/event-stream"):
        right = post(port, path, document(path, "fault/odd-content-type", stream=True))
        wrong = post(port, path, document(path, "fault/wrong-hash", stream=True))
    assert right.whole and right.body == whole
    assert not wrong.whole and end.splitlines()[0] not in wrong.body
    assert json.loads(wrong.blocks[-1][1])["error"]["code"] == "undelivered"


@contextmanager
def answering(chunks, **changes):
    """Make the faulty daemon answer with these chunks."""

    async def given_chunks():
        for chunk in chunks:
            yield chunk

    def delivered(self, name, honest, *, stream):
        return given_chunks()

    def head(self, name, honest):
        return replace(honest, **changes)

    with mock.patch.object(FaultInjector, "delivered", delivered), mock.patch.object(FaultInjector, "head", head):
        yield


@BOTH
@STREAMED_OR_NOT
@pytest.mark.parametrize(
    "name",
    [
        "stream-slow",
        "stream-split-utf8",
        "empty-chunks",
        "big-result",
        "odd-content-type",
        "gzip-encoding",
        "stream-floods",
    ],
)
def test_odd_but_right_results_come_back_as_they_are(node, port, path, name, stream):
    node.received.clear()
    answer = post(port, path, document(path, f"fault/{name}", "\u00e9\U0001f600", stream=stream))
    assert answer.status == 200 and answer.whole
    assert answer.verdict == "settled"
    if stream:
        assert answer.body == bytes(node.received.streams[-1])
    else:
        result = node.received.last_answer("AcceptAndExecute").result
        assert answer.body == result.result
        assert hashlib.sha256(answer.body).digest() == result.result_hash
    if name == "big-result":
        assert len(answer.body) >= 4 * MIB
    if name == "stream-floods" and stream:
        assert len(answer.body) > 7 * MIB


@BOTH
def test_bytes_that_are_no_events_come_to_no_answer_with_a_right_hash_too(node, port, path):
    node.received.clear()
    streamed = post(port, path, document(path, "fault/stream-binary", stream=True))
    assert not streamed.whole and b'"code":"undelivered"' in streamed.body
    assert streamed.verdict == "settled"
    answer = post(port, path, document(path, "fault/stream-binary"))
    assert (answer.status, answer.error["code"]) == (502, "undelivered")
    assert answer.verdict == "settled"


@STREAMED_OR_NOT
def test_a_gzipped_result_says_so_and_can_be_unpacked(port, stream):
    answer = post(port, CHAT, document(model="fault/gzip-encoding", stream=stream))
    assert answer.headers["content-encoding"] == "gzip"
    assert b"echo" in gzip.decompress(answer.body)


@STREAMED_OR_NOT
def test_an_odd_content_type_is_passed_on(port, stream):
    answer = post(port, CHAT, document(model="fault/odd-content-type", stream=stream))
    assert answer.headers["content-type"] == 'application/x-odd; charset=koi8-r; q="a,b"'
    assert "content-encoding" not in answer.headers


@STREAMED_OR_NOT
@pytest.mark.parametrize("hostile", ["", " ", "text/plain\r\nX-Evil: 1", "a\x00b", "caf\u00e9", "x" * 5_000])
def test_a_content_type_that_is_no_header_is_replaced(port, stream, hostile):
    good = GOOD[CHAT, stream]
    with answering([good], content_type=hostile, content_encoding=hostile):
        answer = post(port, CHAT, document(model="fault/odd-content-type", stream=stream))
    assert answer.status == 200 and answer.whole
    assert answer.body == good
    wanted = "text/event-stream" if stream else "application/json"
    assert answer.headers["content-type"].startswith(wanted)
    assert "x-evil" not in answer.headers and "content-encoding" not in answer.headers
