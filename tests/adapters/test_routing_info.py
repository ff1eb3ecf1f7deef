import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcp_gateway.adapters.routing_info import RoutingInfoStream, add_to_result, header_value
from tests.adapters.cuts import SIZES, cut, passed
from tests.adapters.raw_json import VALUES
from tests.support.cases import each_case

INFO = {"source": "node", "node": "node:é", "score": 0.5, "candidates": 3}
FIELD = b'"routing_info":' + json.dumps(INFO, separators=(",", ":")).encode()
MIB = 1024 * 1024


def test_a_result_says_how_it_was_routed_at_its_end():
    assert add_to_result(b' {"id":"x" }\n', INFO) == b' {"id":"x" ,' + FIELD + b"}\n"
    assert json.loads(add_to_result(b'{"routing_info":"theirs"}', INFO))["routing_info"] == INFO


@pytest.mark.parametrize("body", [b"", b"  ", b"[{}]", b'"{}"', b"\x00\xff", b'{"cut":', b"}", b"{"])
def test_what_is_no_object_stays_as_it_is(body):
    assert add_to_result(body, INFO) == body


@each_case("end", [b"\n", b"\r\n", b"\r"])
@each_case("data", [b"data: ", b"data:"])
@each_case("before", [b"", b": hello\n\n", b"event: response.created\r\n", b"\n\nid: 1\r"])
def test_the_first_event_of_a_stream_says_how_it_was_routed(end, data, before):
    stream = before + data + '{"a":"é"}'.encode() + end + end + b"data: {}" + end + end
    at = stream.index(b"}")
    expected = stream[:at] + b"," + FIELD + stream[at:]
    assert passed(RoutingInfoStream(INFO), [stream]) == expected
    assert passed(RoutingInfoStream(INFO), [stream[i : i + 1] for i in range(len(stream))]) == expected


@pytest.mark.parametrize(
    "stream",
    [
        b"data: [DONE]\n\ndata: {}\n\n",
        b"data:\n\ndata: {}\n\n",
        b"data: {}",
        b"data: {oops}\n\ndata: {}\n\n",
        b": only a comment\n\n",
        b"datas: {}\n\n",
        b"",
        b'{"not":"sse"}',
        b"data: \xff{}\n\n",
    ],
)
def test_a_stream_that_begins_otherwise_stays_as_it_is(stream):
    assert passed(RoutingInfoStream(INFO), [stream] if stream else []) == stream
    assert passed(RoutingInfoStream(INFO), [stream[i : i + 1] for i in range(len(stream))]) == stream


def test_an_object_on_several_lines_gets_it_too():
    stream = b'data: {"a":{}\ndata: }\nid: 1\n\ndata: {}\n\n'
    expected = b'data: {"a":{}\ndata: ,' + FIELD + b"}\nid: 1\n\ndata: {}\n\n"
    assert passed(RoutingInfoStream(INFO), [stream]) == expected


def test_nothing_is_held_back_but_an_unfinished_event():
    into = RoutingInfoStream(INFO)
    assert into.feed(b": one\n\ndat") == b": one\n\n"
    assert into.feed(b"a: {}\n") == b""
    assert into.feed(b"\ndata") == b"data: {" + FIELD + b"}\n\ndata"
    assert into.feed(b": {") == b": {"
    assert into.rest() == b""


@pytest.mark.parametrize("start", [b"data: ", b": "])
def test_a_line_longer_than_a_mebibyte_passes_unchanged(start):
    line = start + b'{"a":"' + b"x" * MIB + b'"}\n\n'
    stream = line + b"data: {}\n\n"
    assert passed(RoutingInfoStream(INFO), [stream]) == stream
    into = RoutingInfoStream(INFO)
    assert into.feed(line[:MIB]) == b""
    assert into.feed(line[MIB : MIB + 9]) == line[: MIB + 9]
    assert into.feed(line[MIB + 9 :]) == line[MIB + 9 :]


PIECES = st.sampled_from(
    [b"data: ", b"data:", b"{}", b'{"a":1}', b"[DONE]", b"\n", b"\r\n", b"\r", b"\n\n", b": x", b"{", b"}",
     b"event: y", "é".encode(), b"dat"]
)  # fmt: skip


@given(st.lists(PIECES, max_size=20).map(b"".join), SIZES)
def test_how_a_stream_is_cut_changes_nothing(stream, sizes):
    whole = passed(RoutingInfoStream(INFO), [stream])
    assert passed(RoutingInfoStream(INFO), cut(stream, sizes)) == whole
    assert whole.count(FIELD) <= 1
    assert whole.replace(b"," + FIELD, b"").replace(FIELD, b"") == stream


@given(VALUES.filter(lambda text: text.startswith("{")), SIZES)
def test_any_object_in_the_first_event_gets_the_field(text, sizes):
    line = text.replace("\n", " ").replace("\r", " ")
    stream = f": x\n\ndata: {line}\n\ndata: {{}}\n\n".encode()
    out = passed(RoutingInfoStream(INFO), cut(stream, sizes))
    first = out.split(b"\n\n")[1].removeprefix(b"data: ")
    assert json.loads(first) == json.loads(line) | {"routing_info": INFO}
    assert out.replace(b"," + FIELD, b"").replace(FIELD, b"") == stream


def test_a_header_is_compact_and_printable():
    value = header_value({"model": "é\x7f\n", "score": 1.5})
    assert value == '{"model":"\\u00e9\\u007f\\n","score":1.5}'


def test_a_long_header_leaves_out_the_reason_first_and_then_the_longest():
    info = {"source": "lcp", "reason": "r" * 100, "model": "m" * 900, "price_msat": 5}
    assert json.loads(header_value(info)) == {key: info[key] for key in info if key != "reason"}
    info["model"] = "é" * 300
    assert json.loads(header_value(info)) == {"source": "lcp", "price_msat": 5}


@given(st.dictionaries(st.text(), st.text(max_size=400) | st.integers() | st.lists(st.text())))
def test_any_header_fits(info):
    value = header_value(info)
    assert len(value) <= 1024
    assert all(0x20 <= ord(letter) < 0x7F for letter in value)
    assert json.loads(value).items() <= info.items()
