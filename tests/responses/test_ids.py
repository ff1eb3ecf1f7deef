"""An id for a stream without one: it is added to every event that can hold it, and to no stream that has its own."""

import json

from hypothesis import given
from hypothesis import strategies as st

from lcp_gateway.responses.documents import find_id
from lcp_gateway.responses.ids import IdInjector
from tests.support.cases import each_case

OURS = "resp_ours"


def event(value, *, end=b"\n\n") -> bytes:
    return b"data: " + json.dumps(value).encode() + end


def response(**more) -> bytes:
    return event({"type": "response.created", "response": more})


def chunk(**more) -> bytes:
    return event({"choices": [{"delta": {"content": "a"}}], **more})


def passed(raw: bytes, size: int = 1 << 20) -> bytes:
    step = IdInjector(OURS)
    pieces = [step.feed(raw[at : at + size]) for at in range(0, len(raw), size)]
    return b"".join([*pieces, step.rest()])


@each_case(
    "raw",
    [
        response(id="resp_own") + response(),
        chunk(id="own") + chunk(),
        b": a comment\n\n" + response(id="resp_own"),
        event({"type": "ping"}) + b"data: [DONE]\n\n",
        b"no events at all",
        b'data: {"response":{"id":"resp_own"}}\r\n\r\ndata: {"resp',
        b"",
    ],
)
@each_case("size", [1, 7, 1 << 20])
def test_what_has_an_id_or_no_place_for_one_passes_as_it_came(raw, size):
    assert passed(raw, size) == raw


@each_case("own", [{}, {"id": None}, {"id": ""}, {"id": 7}, {"id": "a/b"}])
@each_case("size", [1, 7, 1 << 20])
def test_every_response_and_chunk_of_a_stream_without_one_gets_it(own, size):
    raw = response(**own, n=1) + event({"type": "ping"}) + response(**own, n=2)
    told = [json.loads(line[6:]) for line in passed(raw, size).splitlines() if line]
    assert [one.get("response") for one in told] == [{"id": OURS, "n": 1}, None, {"id": OURS, "n": 2}]
    raw = chunk(**own) + chunk(**own) + b"data: [DONE]\n\n"
    *told, done = [line for line in passed(raw, size).splitlines() if line]
    assert [json.loads(line[6:])["id"] for line in told] == [OURS, OURS]
    assert done == b"data: [DONE]"


def test_everything_else_keeps_its_bytes():
    raw = b'event: x\r\ndata: { "response" : {"a" : "\\ud83d" , "n":1.0} , "b":[ ]}\r\n\r\n: hello\n\n'
    assert passed(raw) == (
        b'event: x\r\ndata: {"response" : {"a" : "\\ud83d","n":1.0,"id":"resp_ours"},"b":[ ]}\r\n\r\n: hello\n\n'
    )


def test_nothing_is_held_back_once_a_stream_has_its_own():
    step = IdInjector(OURS)
    step.feed(response(id="resp_own"))
    assert step.feed(b'data: {"half') == b'data: {"half'


@given(
    st.lists(
        st.sampled_from([response(id="resp_own"), response(), chunk(), chunk(id="a"), b": c\n\n", b"data: x\n\n"]),
        max_size=6,
    ),
    st.integers(1, 40),
)
def test_it_agrees_with_the_id_by_which_a_stream_is_stored(events, size):
    """A stream is stored under the id that its client sees, whether that is the provider's or the gateway's."""
    raw = b"".join(events)
    told = passed(raw, size)
    assert told == passed(raw)
    first = next((one for one in events if b"{" in one), b"")
    if find_id((first,), stream=True) is not None:
        assert told == raw
    elif first:
        assert find_id((told,), stream=True) == OURS
