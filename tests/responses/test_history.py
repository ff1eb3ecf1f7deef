"""Writing earlier turns into requests of any form: the rest of the request keeps its bytes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcp_gateway.adapters.json_bytes import array_elements, members
from lcp_gateway.responses.history import (
    array_segment,
    input_segment,
    join_segments,
    messages_segment,
    request_for_provider,
)
from tests.adapters.raw_json import SPACE, VALUES, deep, tokens
from tests.adapters.raw_json import joined as raw_joined
from tests.adapters.raw_json import member as raw_member

OURS = ("input", "previous_response_id", "background")
FIRST = b'{"type":"message","role":"user","content":"one" }'
SECOND = b'{ "type":"message","role":"assistant","content":[]}'


@st.composite
def bodies(draw, subject="input", inputs=None):
    """Return the raw text of a request: members that the gateway handles, each at most twice, among any others."""
    values = VALUES | deep()
    if inputs is None:
        inputs = tokens() | st.lists(values, max_size=3).flatmap(lambda items: raw_joined("[", items, "]"))
    parts = draw(st.lists(raw_member(tokens(), values), max_size=4))
    for name, drawn in ((subject, inputs), ("previous_response_id", tokens()), ("background", values)):
        for _ in range(draw(st.integers(0, 2))):
            place = draw(st.integers(0, len(parts)))
            parts.insert(place, draw(raw_member(tokens(st.just(name)), drawn)))
    return (draw(SPACE) + draw(raw_joined("{", parts, "}")) + draw(SPACE)).encode()


def spans(body, without=OURS):
    """Return the members of a body, except some, as they are written."""
    found = [(m.key, body[m.key_start : m.value_end]) for m in members(body)]
    return [raw for key, raw in found if key not in without]


def value_of(body, key):
    values = [body[m.value_start : m.value_end] for m in members(body) if m.key == key]
    return values[-1] if values else None


@given(bodies(), st.lists(st.sampled_from([FIRST, SECOND, b"", b"1 , 2"]), max_size=3), st.booleans())
def test_all_but_what_the_gateway_answers_for_keeps_its_bytes(body, context, in_background):
    sent = request_for_provider(body, context, without_background=in_background)
    kept = OURS if in_background else OURS[:2]
    assert spans(sent, kept) == spans(body, kept)
    keys = [m.key for m in members(sent)]
    assert "previous_response_id" not in keys
    assert keys.count("input") == 1
    assert not in_background or "background" not in keys


@given(bodies(), st.lists(st.sampled_from([FIRST, SECOND, b"", b"1 , 2"]), max_size=3))
def test_what_is_sent_is_the_earlier_items_and_then_the_new_ones(body, context):
    sent = json.loads(request_for_provider(body, context))
    before = json.loads(body)
    new = before.get("input", [])
    if isinstance(new, str):
        new = [{"type": "message", "role": "user", "content": new}]
    earlier = json.loads(b"[" + b",".join(filter(None, context)) + b"]")
    expected = {key: value for key, value in before.items() if key != "previous_response_id"}
    assert sent == {**expected, "input": [*earlier, *new]}


@given(bodies())
def test_new_items_stand_there_as_they_were_written(body):
    given_input = value_of(body, "input")
    sent = value_of(request_for_provider(body, [FIRST]), "input")
    if given_input is None:
        assert array_elements(sent) == [FIRST]
    elif given_input.startswith(b'"'):
        assert array_elements(sent)[1:] == [b'{"type":"message","role":"user","content":' + given_input + b"}"]
    else:
        assert array_elements(sent) == [FIRST, *array_elements(given_input)]


@given(bodies())
def test_a_chain_of_segments_is_what_the_whole_conversation_would_be(body):
    first, second = input_segment(body), b'{"n":2}'
    whole = array_elements(join_segments([first, second]))
    assert whole == [*array_elements(join_segments([first])), second]


@given(bodies())
def test_a_request_that_asks_for_nothing_is_the_same_object(body):
    assert request_for_provider(body, None) is body


@given(bodies("messages"))
def test_messages_are_kept_as_they_were_written(body):
    given_messages = value_of(body, "messages")
    expected = [] if given_messages is None or given_messages.startswith(b'"') else array_elements(given_messages)
    assert array_elements(join_segments([messages_segment(body)])) == expected


@given(bodies())
def test_only_the_background_is_taken_out_where_nothing_is_chained(body):
    sent = request_for_provider(body, None, without_background=True)
    assert spans(sent, ("background",)) == spans(body, ("background",))
    assert value_of(sent, "background") is None


def test_of_an_input_that_stands_twice_the_last_counts_and_stands_once():
    body = b'{"input":["a"],"model":"m","input":["b"]}'
    assert request_for_provider(body, [b"0"]) == b'{"input":[0,"b"],"model":"m"}'


def test_keys_written_with_escapes_are_known():
    body = b'{"inp\\u0075t":"x","previous_response_\\u0069d":"r","backgroun\\u0064":true}'
    sent = request_for_provider(body, [], without_background=True)
    assert json.loads(sent) == {"input": [{"type": "message", "role": "user", "content": "x"}]}


def test_half_an_emoji_stays_as_it_was_cut():
    body = rb'{"input":"\ud83d","previous_response_id":"r"}'
    assert rb'"content":"\ud83d"' in request_for_provider(body, [])


def test_what_only_looks_like_a_member_inside_a_text_or_an_object_is_left_alone():
    body = rb'{"user":"\"input\":1,\"background\":true","metadata":{"background":"x","input":"y"},"input":"z"}'
    sent = request_for_provider(body, [FIRST], without_background=True)
    assert spans(sent) == spans(body)


@pytest.mark.parametrize(
    ("array", "segment"),
    [
        (b"[]", b""),
        (b"[ \n ]", b""),
        (b' [ {"a":1} , 2 ]\n', b'{"a":1} , 2'),
        (b"null", b""),
        (b"", b""),
        (b"{}", b""),
        (b'"text"', b""),
    ],
)
def test_the_segment_of_an_array_is_what_stands_between_its_brackets(array, segment):
    assert array_segment(array) == segment


def test_empty_turns_leave_no_commas():
    assert join_segments([b"", b"1", b"", b"2,3", b""]) == b"[1,2,3]"
    assert join_segments([]) == b"[]"


@pytest.mark.parametrize("body", [b"[]", b"", b'{"input":', b'{"input":[1'])
def test_what_is_no_object_is_an_error(body):
    with pytest.raises(ValueError, match=r"."):
        request_for_provider(body, [])
    with pytest.raises(ValueError, match=r"."):
        messages_segment(body)
