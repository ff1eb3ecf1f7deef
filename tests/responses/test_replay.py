import json
import time

import httpx
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.lib.streaming.responses import ResponseStreamState
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from lcp_gateway.adapters.sse import EventReader
from lcp_gateway.responses.documents import response_document
from lcp_gateway.responses.replay import ReplayedStream, opening_event, to_events, with_changes
from tests.adapters.cuts import SIZES, cut, passed
from tests.adapters.raw_json import VALUES
from tests.support.cases import each_case

# Far more than any machine needs, and far less than quadratic time would take.
QUADRATIC_S = 60.0

MIB = 1024 * 1024
OURS = {"id": "resp_bg_1", "background": True, "previous_response_id": None}
ANY_EVENT = TypeAdapter(ResponseStreamEvent)


def sse(kind, body, end=b"\n"):
    data = body if isinstance(body, bytes) else json.dumps({"type": kind} | body).encode()
    return b"event: %b%bdata: %b%b%b" % (kind.encode(), end, data, end, end)


def read(stream):
    reader = EventReader()
    events = reader.feed(stream) + reader.rest()
    return [json.loads(event.data) for event in events if event.data.startswith(b"{")]


def changed(stream, changes=OURS, **after):
    return ReplayedStream(changes, **after).feed(stream)


def response(*items, status="completed", **fields):
    return {
        "id": "resp_1", "object": "response", "created_at": 7, "status": status, "model": "m", "output": list(items),
        "parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "error": None, "incomplete_details": None,
        "usage": {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3,
                  "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
                  "output_tokens_details": {"reasoning_tokens": 0}},
    } | fields  # fmt: skip


def text_part(text, **fields):
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []} | fields


def message(*parts, **fields):
    return {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": list(parts)} | fields  # fmt: skip


# Changes to a recorded stream

CREATED = b'{"type":"response.created","response":{ "id":"resp_1", "n" : 1.0E0,"previous_response_id":"x"},"sequence_number": 0}'
DELTA = b'{"type":"response.output_text.delta","delta":"\\u0061" ,"sequence_number":1}'
END = b'{"sequence_number":2,"type":"response.completed","response":{"id":"resp_1","output":[1.50]} }'
STREAM = (
    b": note\n\n"
    + sse("response.created", CREATED)
    + sse("response.output_text.delta", DELTA, b"\r\n")
    + sse("response.completed", END)
)


def test_responses_in_a_stream_get_other_members_and_nothing_else_changes():
    assert changed(STREAM) == (
        STREAM.replace(b'{ "id":"resp_1", "n" : 1.0E0,"previous_response_id":"x"}',
                       b'{"id":"resp_bg_1","n" : 1.0E0,"previous_response_id":null,"background":true}')
        .replace(b'"sequence_number": 0}', b'"sequence_number": 0}')
        .replace(b'{"id":"resp_1","output":[1.50]} }', b'{"id":"resp_bg_1","output":[1.50],"background":true,"previous_response_id":null}}')
    )  # fmt: skip


def test_without_changes_a_numbered_stream_passes_as_it_is():
    assert changed(STREAM, {}) == STREAM


@given(SIZES, st.integers(-1, 3))
def test_no_cut_changes_what_is_passed_on(sizes, after):
    step = ReplayedStream(OURS, starting_after=after)
    assert passed(step, cut(STREAM, sizes)) == changed(STREAM, starting_after=after)


@pytest.mark.parametrize(("after", "left"), [(-1, [0, 1, 2]), (0, [1, 2]), (1, [2]), (2, []), (99, [])])  # fmt: skip
def test_events_up_to_a_number_are_left_out(after, left):
    found = changed(STREAM, starting_after=after)
    assert [event["sequence_number"] for event in read(found)] == left
    # The output is the end of the full output.
    whole = changed(STREAM).removeprefix(b": note\n\n")
    assert whole.endswith(found.removeprefix(b": note\n\n"))


def test_events_without_numbers_get_them_and_get_the_same_ones_each_time():
    stream = b": note\n\n" + b"".join(sse("x", {"n": n}) for n in range(4)) + b"data: [DONE]\n\n"
    numbered = changed(stream)
    assert [(event["n"], event["sequence_number"]) for event in read(numbered)] == [(n, n) for n in range(4)]  # fmt: skip
    assert numbered.endswith(b'event: x\ndata: {"type": "x","n": 3,"sequence_number":3}\n\ndata: [DONE]\n\n')
    assert read(changed(stream, starting_after=1)) == read(numbered)[2:]


# A stream whose client got an event of the gateway before the provider's


def opened(stream, after=-1):
    """Return what a client gets that resumes after an event."""
    first = opening_event(json.dumps(response(status="queued")).encode()) if after < 0 else b""
    return read(first + changed(stream, starting_after=after, is_open=True))


def test_the_event_that_opens_a_stream_takes_the_place_of_its_first():
    found = opened(STREAM)
    assert [event["sequence_number"] for event in found] == [0, 1, 2]
    assert [event["type"] for event in found] == [
        "response.created",
        "response.output_text.delta",
        "response.completed",
    ]
    assert found[0]["response"]["status"] == "queued"


@pytest.mark.parametrize(
    "stream",
    [
        STREAM,
        sse("response.in_progress", {"sequence_number": 0}) + sse("x", {"sequence_number": 1}),
        sse("response.created", {}) + sse("x", {}) + sse("y", {}),
        sse("x", {}) + sse("y", {}),
        sse("response.created", {"sequence_number": 7}) + sse("x", {"sequence_number": 8}),
    ],
    ids=["its own", "without its beginning", "without numbers", "with neither", "odd numbers"],
)
def test_an_opened_streams_numbers_grow_and_are_the_same_each_time(stream):
    whole = opened(stream)
    numbers = [event["sequence_number"] for event in whole]
    assert numbers == sorted(set(numbers)) and numbers[0] == 0
    for place, number in enumerate(numbers):
        assert opened(stream, number) == whole[place + 1 :]


def test_numbers_go_on_from_those_that_came():
    stream = b"".join(sse("x", fields) for fields in ({"sequence_number": 5}, {}, {"sequence_number": None},
                                                      {"sequence_number": "9"}, {"sequence_number": 3}, {"sequence_number": True}))  # fmt: skip
    assert [event["sequence_number"] for event in read(changed(stream))] == [5, 6, 7, 8, 3, 9]
    assert changed(stream).count(b"sequence_number") == 6


@pytest.mark.parametrize(
    "odd",
    [
        b"data: [DONE]\n\n",
        b'data: {"response":{"id":"cut\n\n',
        b'data: [{"response":{}}]\n\n',
        b'data: {"response":"text {","sequence_number":7}\n\n',
        b'data: {"response":null,"sequence_number":7}\n\n',
        b"event: {\nid: 1\n\n",
        b"data: {\xff}\n\n",
        b": {}\n\n",
    ],
)  # fmt: skip
def test_what_is_no_response_passes_as_it_came(odd):
    assert changed(odd) == odd


def test_a_response_on_several_lines_is_changed_on_them():
    odd = b'data: {"response":{"id":\ndata: "a"},"sequence_number":7}\n\n'
    (value,) = read(changed(odd))
    assert value == {"response": OURS, "sequence_number": 7}


def test_what_is_no_whole_event_at_the_end_passes_as_it_came():
    step = ReplayedStream(OURS)
    rest = STREAM[STREAM.rindex(b"\n\n", 0, -2) + 2 : -2]
    assert step.feed(STREAM[:-2]) + step.rest() == changed(STREAM[: -len(rest) - 2]) + rest


@given(
    st.binary(max_size=100) | st.text('{}":,[]dataresponsequence_number0123\n\r ', max_size=100).map(str.encode), SIZES
)
def test_whatever_comes_is_passed_on(stream, sizes):
    step = ReplayedStream({}, starting_after=-(2**60))
    found = passed(step, cut(stream, sizes))
    assert len(found) >= len(stream) or b"{" in stream
    if b"{" not in stream:
        assert found == stream


@given(VALUES)
def test_any_value_in_a_response_keeps_its_bytes(value):
    data = b'{"sequence_number":0,"response":{"x":%b,"id":"a"}}' % value.encode()
    if b"\n" in data or b"\r" in data:
        return
    assert changed(b"data: " + data + b"\n\n", {"id": "b"}) == b"data: " + data[:-5] + b'"b"}}\n\n'


def test_openais_client_takes_a_changed_stream():
    whole = response(message(text_part("Hello")))
    stream = to_events(json.dumps(whole).encode())
    seen = list(accumulated(changed(stream)))
    assert seen[-1].response.output_text == "Hello"
    assert {event.response.id for event in seen if hasattr(event, "response")} == {"resp_bg_1"}


def test_a_step_shows_nothing_of_what_it_holds():
    step = ReplayedStream({"id": "secret"})
    step.feed(b"data: secret")
    assert "secret" not in repr(step)


def test_a_document_gets_other_members_and_keeps_its_bytes():
    assert with_changes(b' { "id" : "a","n":1.0E0 }', {"id": "b", "x": None}) == b'{"id" : "b","n":1.0E0,"x":null}'
    assert with_changes(b' { "id" : "a" }', {}) == b' { "id" : "a" }'
    with pytest.raises(ValueError, match="not a JSON object"):
        with_changes(b"[]", {"id": "b"})


# Events of a response that was not streamed

NOTE = {"type": "url_citation", "start_index": 0, "end_index": 1, "title": "t", "url": "u"}
LOGPROB = {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}
CALL = {"id": "fc_1", "type": "function_call", "status": "completed", "call_id": "call_1", "name": "f", "arguments": '{"a": 1}'}  # fmt: skip
CUSTOM = {"id": "ct_1", "type": "custom_tool_call", "status": "completed", "call_id": "call_2", "name": "t", "input": "x y"}  # fmt: skip
REASONING = {
    "id": "rs_1", "type": "reasoning", "status": "completed", "encrypted_content": "zz",
    "summary": [{"type": "summary_text", "text": "First"}, {"type": "summary_text", "text": "Second"}],
    "content": [{"type": "reasoning_text", "text": "thought"}],
}  # fmt: skip
SEARCH = {"id": "ws_1", "type": "web_search_call", "status": "completed", "action": {"type": "search", "query": "q"}}  # fmt: skip
FULL = response(
    REASONING,
    message(text_part("Hello é😀", annotations=[NOTE], logprobs=[LOGPROB]), {"type": "refusal", "refusal": "I cannot"},
            text_part("")),
    CALL, CUSTOM, SEARCH,
)  # fmt: skip


def unrolled(document, indent=None):
    return to_events(json.dumps(document, indent=indent).encode())


def accumulated(stream):
    """Return the events as openai-python's accumulating helper yields them."""
    state = ResponseStreamState(input_tools=openai.omit, text_format=openai.omit)
    for event in read(stream):
        yield from state.handle_event(ANY_EVENT.validate_python(event))


def test_a_messages_events_come_in_openais_order():
    found = read(unrolled(response(message(text_part("Hello", annotations=[NOTE], logprobs=[LOGPROB])))))
    assert [event["sequence_number"] for event in found] == list(range(10))
    place = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    begun = response(status="in_progress", usage=None)
    done = text_part("Hello", annotations=[NOTE], logprobs=[LOGPROB])
    for event in found:
        del event["sequence_number"]
    assert found == [
        {"type": "response.created", "response": begun},
        {"type": "response.in_progress", "response": begun},
        {"type": "response.output_item.added", "output_index": 0, "item": message(status="in_progress")},
        {"type": "response.content_part.added", **place, "part": text_part("")},
        {"type": "response.output_text.delta", **place, "delta": "Hello", "logprobs": [LOGPROB]},
        {"type": "response.output_text.annotation.added", **place, "annotation_index": 0, "annotation": NOTE},
        {"type": "response.output_text.done", **place, "text": "Hello", "logprobs": [LOGPROB]},
        {"type": "response.content_part.done", **place, "part": done},
        {"type": "response.output_item.done", "output_index": 0, "item": message(done)},
        {"type": "response.completed", "response": response(message(done))},
    ]  # fmt: skip


def kinds(stream):
    return [event["type"].removeprefix("response.") for event in read(stream)][2:-1]


def test_other_items_have_their_own_events():
    assert kinds(unrolled(response(CALL))) == [
        "output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done",
    ]  # fmt: skip
    assert kinds(unrolled(response(CUSTOM))) == [
        "output_item.added", "custom_tool_call_input.delta", "custom_tool_call_input.done", "output_item.done",
    ]  # fmt: skip
    part = ["reasoning_summary_part.added", "reasoning_summary_text.delta", "reasoning_summary_text.done", "reasoning_summary_part.done"]  # fmt: skip
    thought = ["content_part.added", "reasoning_text.delta", "reasoning_text.done", "content_part.done"]
    assert kinds(unrolled(response(REASONING))) == ["output_item.added", *part, *part, *thought, "output_item.done"]
    refusal = message({"type": "refusal", "refusal": "no"})
    assert kinds(unrolled(response(refusal))) == [
        "output_item.added", "content_part.added", "refusal.delta", "refusal.done", "content_part.done", "output_item.done",
    ]  # fmt: skip
    assert kinds(unrolled(response(SEARCH))) == ["output_item.added", "output_item.done"]


def test_an_empty_text_has_no_delta():
    assert kinds(unrolled(response(message(text_part(""))))) == [
        "output_item.added", "content_part.added", "output_text.done", "content_part.done", "output_item.done",
    ]  # fmt: skip


@pytest.mark.parametrize("indent", [None, 2])
def test_each_event_is_one_that_openai_knows(indent):
    for event in read(unrolled(FULL, indent)):
        ANY_EVENT.validate_python(event, strict=True)


@pytest.mark.parametrize("indent", [None, 2])
def test_the_stream_stands_for_the_response_it_was_made_of(indent):
    stream = unrolled(FULL, indent)
    assert json.loads(response_document((stream,), True)) == FULL
    assert stream.count(b"\n\n") == len(read(stream))
    # The events add only numbers and names to the response.
    done = [event["item"] for event in read(stream) if event["type"] == "response.output_item.done"]
    assert done == FULL["output"]


def test_openais_helper_builds_the_same_response_of_the_events():
    *_, last = accumulated(unrolled(FULL))
    assert last.response.output_text == Response.model_validate(FULL).output_text == "Hello é😀"
    assert [item.type for item in last.response.output] == [item["type"] for item in FULL["output"]]


def test_deltas_make_up_the_text():
    snapshots = [event.snapshot for event in accumulated(unrolled(FULL)) if event.type == "response.output_text.delta"]  # fmt: skip
    assert snapshots == ["Hello é😀"]


@pytest.mark.parametrize(
    ("status", "ends"),
    [("completed", "completed"), ("incomplete", "incomplete"), ("failed", "failed"), ("cancelled", "failed"),
     (None, "completed"), ("odd", "completed"), (["odd"], "completed")],
)  # fmt: skip
def test_the_end_says_how_it_ended(status, ends):
    *_, last = read(unrolled(response(status=status)))
    assert last["type"] == f"response.{ends}"
    assert last["response"]["status"] == status


@pytest.mark.parametrize("status", ["queued", "in_progress"])
def test_a_response_that_has_not_ended_has_no_end(status):
    found = read(unrolled(response(status=status, usage=None)))
    assert [event["type"] for event in found] == ["response.created", f"response.{status}"]
    assert [event["response"]["status"] for event in found] == [status, status]


def test_members_keep_their_bytes():
    document = b'{ "id":"r","n" : 1.0E0,"output":[{"type":"message","id":"m","content":[{"type":"output_text","text":"\\u0061\\ud83d"}]}]}'
    stream = to_events(document)
    assert b'"delta":"\\u0061\\ud83d",' in stream
    assert stream.endswith(b'"response":' + document + b"}\n\n")
    assert b'"response":{"id":"r","n" : 1.0E0,"output":[],"status":"in_progress"}' in stream


def test_an_item_without_an_id_has_an_empty_one_in_its_events():
    bare = {key: value for key, value in CALL.items() if key != "id"}
    for item in (bare, CALL | {"id": 5}, CALL | {"id": "x" * 1000}):
        found = read(unrolled(response(item)))
        assert [event["item_id"] for event in found if "item_id" in event] == ["", ""]


def test_a_response_of_very_many_pieces_is_told_by_its_end_alone():
    for many in ([{}] * 5000, [message(*[text_part("x")] * 5000)], [message(text_part("x", annotations=[{}] * 5000))]):  # fmt: skip
        stream = unrolled(response(*many))
        assert len(read(stream)) == 3
        assert json.loads(response_document((stream,), True))["output"] == many


@each_case("depth", [200, 900, *range(940, 1019)])
def test_an_output_nested_very_deeply_is_told_as_far_as_can_be(depth):
    deep = b'{"output":[{"type":"message","content":[{"type":"output_text","text":"x","y":%b}]}]}'
    document = deep % (b"[" * depth + b"]" * depth)
    assert to_events(document).endswith(document + b"}\n\n")


@pytest.mark.parametrize("document", [b"", b"[]", b"{", b"\xff", b"[" * 99_999])
def test_what_is_no_object_is_refused(document):
    with pytest.raises(ValueError, match="not a JSON object"):
        to_events(document)


ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["content", "summary", "text", "type", "id", "annotations", "refusal", "arguments"]), inner, max_size=3),
    max_leaves=10,
)  # fmt: skip
ITEMS = st.builds(
    lambda kind, fields: fields | {"type": kind},
    st.sampled_from(["message", "reasoning", "function_call", "custom_tool_call", "x", None, []]),
    st.dictionaries(st.sampled_from(["content", "summary", "arguments", "input", "id", "status", "name"]), ODD),
)  # fmt: skip


@given(st.lists(ITEMS | ODD, max_size=4) | ODD, ODD, st.sampled_from([None, 1]))
def test_any_object_has_events(output, status, indent):
    document = {"id": "r", "status": status, "output": output}
    found = read(unrolled(document, indent))
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    assert found[-1]["response"] == document


def test_two_mebibytes_take_a_time_that_grows_with_the_length():
    delta = sse("response.output_text.delta", DELTA)
    stream = delta * (2 * MIB // len(delta))
    begun = time.perf_counter()
    changed(stream)
    assert time.perf_counter() - begun < QUADRATIC_S
    begun = time.perf_counter()
    unrolled(response(message(text_part("x" * 2 * MIB))))
    assert time.perf_counter() - begun < QUADRATIC_S


# OpenAI's own client


class Stored(httpx.BaseTransport):
    """A server that has one response and streams it as events."""

    def handle_request(self, request):
        assert request.url.path == "/v1/responses/resp_1"
        assert request.url.params["stream"] == "true"
        after = int(request.url.params.get("starting_after", -1))
        out = passed(ReplayedStream({}, starting_after=after), cut(unrolled(FULL), [50] * 100))
        return httpx.Response(200, content=out, headers={"content-type": "text/event-stream"})


@pytest.fixture
def client():
    with httpx.Client(transport=Stored()) as http:
        yield openai.OpenAI(api_key="k", base_url="http://gateway.invalid/v1", http_client=http)


def test_openais_client_retrieves_a_response_as_events(client):
    events = list(client.responses.retrieve("resp_1", stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[-1].response.output_text == "Hello é😀"
    resumed = list(client.responses.retrieve("resp_1", stream=True, starting_after=7))
    assert resumed == events[8:]


def test_openais_streaming_helper_takes_up_a_response(client):
    with client.responses.stream(response_id="resp_1") as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        assert stream.get_final_response().output_text == text == "Hello é😀"
