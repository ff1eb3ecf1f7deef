import json
import time
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response

from lcp_gateway.responses.documents import chat_document, find_id, response_document, response_output
from tests.adapters.cuts import SIZES, cut
from tests.adapters.raw_json import VALUES
from tests.support.cases import each_case

# Far more than any machine needs, and far less than quadratic time would take.
QUADRATIC_S = 60.0

MIB = 1024 * 1024


def sse(*values, end=b"\n"):
    """Return one event for each; bytes are used as data unchanged."""
    texts = [value if isinstance(value, bytes) else json.dumps(value).encode() for value in values]
    return b"".join(b"data: " + text + end + end for text in texts)


def message(text, item_id="msg_1"):
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {"id": item_id, "type": "message", "role": "assistant", "status": "completed", "content": [part]}  # fmt: skip


def response(*items, status="completed", **fields):
    return {
        "id": "resp_1", "object": "response", "created_at": 7, "status": status, "model": "m",
        "output": list(items), "parallel_tool_calls": True, "tool_choice": "auto", "tools": [],
    } | fields  # fmt: skip


def event(kind, **fields):
    return {"type": kind, **fields}


def item_done(index, item):
    return event("response.output_item.done", output_index=index, item=item)


def streamed(final, *between):
    begun = response(status="in_progress")
    return sse(event("response.created", response=begun), *between, final)


# Ids


@pytest.mark.parametrize("given_id", ["resp_1", "a", "x" * 256, "chatcmpl-A.b~!", "a..b"])
def test_an_id_is_found_in_a_whole_result_and_in_a_stream(given_id):
    whole = json.dumps({"object": "response", "id": given_id}).encode()
    assert find_id([whole[:9], whole[9:]], False) == given_id
    assert find_id([sse(event("response.created", response={"id": given_id}))], True) == given_id
    assert find_id([sse({"id": given_id, "choices": []})], True) == given_id


@each_case("bad", ["", "x" * 257, "a b", "a/b", "a\nb", "é", "\x7f", ".", "..", None, 5, ["a"], {"id": "a"}])  # fmt: skip
def test_an_id_that_cannot_stand_in_a_path_is_none(bad):
    assert find_id([json.dumps({"id": bad}).encode()], False) is None
    assert find_id([sse({"id": bad})], True) is None
    assert find_id([sse(event("response.created", response={"id": bad}))], True) is None


def test_the_first_event_that_carries_an_id_counts():
    stream = b": hello\n\n" + sse(event("keepalive"), b"[DONE]", b"{", {"id": "one"}, {"id": "two"})
    assert find_id(cut(stream, [3] * 200), True) == "one"
    assert find_id([sse({"id": "a b"}, {"id": "two"})], True) is None
    assert find_id([sse({"id": "unfinished"}).rstrip()], True) is None


def test_an_id_is_not_looked_for_far_into_a_stream():
    long = sse(*[event("keepalive", n=n) for n in range(20_000)])
    read = []

    def blocks():
        for start in range(0, len(long), 1000):
            read.append(start)
            yield long[start : start + 1000]

    assert find_id([long + sse({"id": "late"})], True) is None
    assert find_id(blocks(), True) is None
    assert read[-1] < 260 * 1024


def test_an_id_in_a_first_event_that_repeats_a_long_request_is_found():
    first = event("response.created", response={"tools": ["x" * MIB], "id": "resp_1"})
    assert find_id([sse(first)], True) == "resp_1"
    assert find_id([b"data: {" + b"x" * (5 * MIB)], True) is None


# Responses


def test_a_whole_response_is_what_came():
    body = b' {"id" : "resp_1", "output": [ ], "n": 1.0E0 }\n'
    assert response_document((body[:4], body[4:]), False) == body


@pytest.mark.parametrize("status", ["completed", "incomplete", "failed"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@given(sizes=SIZES)
def test_a_stream_stands_for_the_response_at_its_end(status, end, sizes):
    raw = b'{ "id":"resp_1","output" : [ {"id":"msg_1","x":1.0E0,"e":"\\u00e9"} ]}'
    final = b'{"response" : %b ,"type":"response.%b"}' % (raw, status.encode())
    stream = sse(event("response.created", response=response()), b"[DONE]", final, end=end)
    assert response_document(tuple(cut(b": note\n\n" + stream, sizes)), True) == raw


def test_a_responses_type_may_stand_in_the_events_name_only():
    stream = b'event: response.completed\ndata: {"response":{"id":"r","output":[1]}}\n\n'
    assert response_document((stream,), True) == b'{"id":"r","output":[1]}'


def test_an_end_without_an_empty_line_after_it_is_no_event():
    stream = streamed(event("response.completed", response={"output": [1]})).rstrip()
    with pytest.raises(ValueError, match="no finished response"):
        response_document((stream,), True)


def test_of_several_ends_the_last_counts():
    stream = sse(*[event("response.completed", response=response(message(text))) for text in "ab"])
    assert json.loads(response_document((stream,), True)) == response(message("b"))


@pytest.mark.parametrize("output", [{}, {"output": None}, {"output": []}])
def test_an_output_that_the_end_leaves_out_is_made_of_its_items(output):
    final = response()
    del final["output"]
    stream = streamed(
        event("response.completed", response=final | output),
        item_done(1, message("later", "msg_2")),
        item_done(0, message("not yet")),
        item_done(0, message("first")),
    )
    document = response_document((stream,), True)
    found = Response.model_validate_json(document)
    assert [item.id for item in found.output] == ["msg_1", "msg_2"]
    assert found.output_text == "firstlater"
    assert json.loads(document) == final | {"output": [message("first"), message("later", "msg_2")]}


def test_an_output_that_is_there_stays_as_it_is():
    final = response(message("the end"))
    stream = streamed(event("response.completed", response=final), item_done(0, message("other")))
    assert json.loads(response_document((stream,), True)) == final


def test_items_keep_their_bytes():
    item = b'{ "type" : "message","n":1.0E0,"s":"\\ud83d"}'
    stream = sse(b'{"type":"response.output_item.done","item":%b}' % item,
                 b'{"type":"response.completed","response":{"id":"r" ,"output":[]}}')  # fmt: skip
    assert response_document((stream,), True) == b'{"id":"r","output":[' + item + b"]}"


@pytest.mark.parametrize(
    "stream",
    [
        b"",
        b"\n\n",
        b"data: {}\n\n",
        sse(event("response.created", response=response())),
        sse(event("response.completed"), event("response.completed", response="secret")),
        sse({"type": ["response.completed"], "response": {}}),
        b'event: response.completed\ndata: {"response":{"id":"secret"',
        b"data: \xff\xfe\n\n",
        b'{"id":"secret"}',
    ],
)
def test_a_stream_without_an_end_is_refused(stream):
    with pytest.raises(ValueError, match="no finished response") as caught:
        response_document((stream,), True)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("body", [b"", b"[]", b"secret", b'{"id":"secret"', b"\xff", b"[" * 99_999])
def test_a_whole_result_that_is_no_object_is_refused(body):
    for read in (response_document, chat_document):
        with pytest.raises(ValueError, match=r"^not a JSON object$"):
            read((body,), False)


@pytest.mark.parametrize(
    ("document", "output"),
    [
        (b'{"output": [ {"a":1.0E0}, {"b" : "]"} ] }', b'{"a":1.0E0}, {"b" : "]"}'),
        (b'{"output":[]}', b""),
        (b'{"output":[ \n]}', b""),
        (b'{"output":null}', b""),
        (b'{"id":"r"}', b""),
        (b'{"output":[1],"outpu\\u0074":[2]}', b"2"),
    ],
)
def test_the_output_is_what_stands_between_its_brackets(document, output):
    assert response_output(document) == output


@pytest.mark.parametrize(
    "document",
    [b'{"output":{}}', b'{"output":"[1]"}', b"[]", b"", b'{"output":[1}', b'{"output":[1],2],"x":[3]}',
     b'{"output":[1 2]}', b'{"output":[],"x"}', b'{"output":[\xff]}', b'{"output":[1,]}', b'{"output":[,]}'],
)  # fmt: skip
def test_an_output_that_is_no_array_is_refused(document):
    with pytest.raises(ValueError, match=r"array|object|expected|end"):
        response_output(document)


@given(st.lists(VALUES, max_size=4))
def test_any_output_comes_out_as_it_is_written(values):
    inner = " , ".join(values).encode()
    assert response_output(b'{"x":[[]],"output" : [ ' + inner + b" ]}") == inner


# Chat completions


def chunk(*choices, **fields):
    return {"id": "c1", "object": "chat.completion.chunk", "created": 7, "model": "m",
            "choices": list(choices)} | fields  # fmt: skip


def delta(index=0, reason=None, logprobs=None, **fields):
    return {"index": index, "delta": fields, "finish_reason": reason, "logprobs": logprobs}


def call(index, **fields):
    return {"index": index, **fields}


def token(text):
    return {"token": text, "logprob": -0.5, "bytes": None, "top_logprobs": []}


def assembled(*values):
    stream = sse(*values)
    return json.loads(chat_document((stream[:11], stream[11:]), True))


def accumulated(*chunks):
    """Return the completion that openai-python builds from the chunks."""
    state = ChatCompletionStreamState()
    for each in chunks:
        state.handle_chunk(ChatCompletionChunk.model_validate(each))
    return state.current_completion_snapshot.to_dict()


EVERYWHERE = {"system_fingerprint": "fp", "service_tier": "default"}
TEXT = [
    chunk(delta(role="assistant", content="", refusal=None), **EVERYWHERE),
    chunk(delta(content="Hello "), usage=None, **EVERYWHERE),
    chunk(delta(1, role="assistant", content="Other"), **EVERYWHERE),
    chunk(delta(content="é😀"), **EVERYWHERE),
    chunk(delta(1, reason="length"), **EVERYWHERE),
    chunk(delta(reason="stop"), **EVERYWHERE),
    chunk(usage={"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}, **EVERYWHERE),
]
CALLS = [
    chunk(delta(role="assistant", content=None)),
    chunk(delta(tool_calls=[call(0, id="call_1", type="function", function={"name": "f", "arguments": ""})])),
    chunk(delta(tool_calls=[call(0, function={"arguments": '{"a"'})])),
    chunk(delta(tool_calls=[call(0, function={"arguments": ":1}"})])),
    chunk(delta(tool_calls=[call(1, id="call_2", type="function", function={"name": "g", "arguments": "{}"})])),
    chunk(delta(reason="tool_calls")),
]  # fmt: skip
LOGPROBS = [
    chunk(delta(role="assistant", content="a", logprobs={"content": [token("a")], "refusal": None})),
    chunk(delta(content="b", logprobs={"content": [token("b")], "refusal": None})),
    chunk(delta(reason="stop")),
]
REFUSAL = [chunk(delta(role="assistant", refusal="I ")), chunk(delta(refusal="cannot", reason="stop"))]
REASONED = [
    chunk(delta(role="assistant", reasoning_content="I ")),
    chunk(delta(reasoning_content="think")),
    chunk(delta(content="So", reason="stop")),
]


@pytest.mark.parametrize("chunks", [TEXT, CALLS, LOGPROBS, REFUSAL, REASONED])
def test_chunks_make_what_openais_client_makes_of_them(chunks):
    ours = ChatCompletion.model_validate(assembled(b"", *chunks, b"[DONE]"), strict=True)
    theirs = accumulated(*chunks)
    for choice in theirs["choices"]:
        for each in choice["message"].get("tool_calls") or ():
            # Added by openai-python: the index of the piece, and the parsed arguments.
            del each["index"]
            each["function"].pop("parsed_arguments", None)
    assert ours.model_dump(exclude_none=True) == (ChatCompletion.model_validate(theirs).model_dump(exclude_none=True))


@given(SIZES)
def test_no_cut_changes_a_chat_completion(sizes):
    stream = sse(*TEXT, b"[DONE]")
    assert chat_document(tuple(cut(stream, sizes)), True) == chat_document((stream,), True)


def test_a_whole_chat_completion_is_what_came():
    body = b' { "id":"c1","choices":[ ] ,"n":1.0E0}'
    assert chat_document((body[:7], body[7:]), False) == body


def test_a_chat_completion_of_text():
    assert assembled(*TEXT) == {
        "id": "c1", "object": "chat.completion", "created": 7, "model": "m",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "Hello é😀", "refusal": None},
             "logprobs": None, "finish_reason": "stop"},
            {"index": 1, "message": {"role": "assistant", "content": "Other"},
             "logprobs": None, "finish_reason": "length"},
        ],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
        "system_fingerprint": "fp", "service_tier": "default",
    }  # fmt: skip


def said(*deltas):
    return assembled(*[chunk({"index": 0, "delta": each}) for each in deltas])["choices"][0]["message"]


def test_values_that_servers_repeat_are_kept_once():
    function = {"name": "f", "arguments": "1"}
    piece = {"role": "assistant", "tool_calls": [call(0, id="call_1", type="function", function=function)]}
    assert said(piece, piece, {"role": "", "tool_calls": [call(0, id="", function={"name": None})]}) == {
        "role": "assistant", "content": None,
        "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "11"}}],
    }  # fmt: skip


def test_calls_without_an_index_are_told_apart_by_their_ids():
    first = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{"}}
    second = {"id": "call_2", "type": "function", "function": {"name": "g", "arguments": "{}"}}
    more = {"function": {"arguments": "}"}}
    found = said({"tool_calls": [first]}, {"tool_calls": [more]}, {"tool_calls": [second]})["tool_calls"]
    assert [(each["id"], each["function"]["arguments"]) for each in found] == [("call_1", "{}"), ("call_2", "{}")]  # fmt: skip


def test_other_strings_are_joined_and_of_other_values_the_last_counts():
    assert said(
        {"audio": {"id": "a", "transcript": "x", "data": "AA"}, "annotations": [{"type": "url_citation"}],
         "function_call": {"name": "f", "arguments": "{"}, "score": 1, "extra": {"a": 1}, "note": "n"},
        {"audio": {"id": "a", "transcript": "y", "data": "BB", "expires_at": 9}, "annotations": [{"type": "other"}],
         "function_call": {"arguments": "}"}, "score": 2, "extra": {"b": 2}, "note": "o"},
    ) == {
        "role": "assistant", "content": None, "audio": {"id": "a", "transcript": "xy", "data": "AABB", "expires_at": 9},
        "annotations": [{"type": "url_citation"}, {"type": "other"}],
        "function_call": {"name": "f", "arguments": "{}"}, "score": 2, "extra": {"b": 2}, "note": "no",
    }  # fmt: skip


def test_custom_tools_and_indexed_lists_are_joined():
    found = said(
        {"tool_calls": [call(0, id="c", type="custom", custom={"name": "t", "input": "a"})],
         "reasoning_details": [{"index": 0, "text": "x"}]},
        {"tool_calls": [call(0, custom={"input": "b"})], "reasoning_details": [{"index": 0, "text": "y"}]},
    )  # fmt: skip
    assert found["tool_calls"] == [{"id": "c", "type": "custom", "custom": {"name": "t", "input": "ab"}}]
    assert found["reasoning_details"] == [{"index": 0, "text": "xy"}]


def test_a_message_that_came_in_one_event_is_kept():
    whole = {"index": 0, "message": {"role": "assistant", "content": "all"}, "finish_reason": "stop"}
    assert assembled(chunk(whole))["choices"][0]["message"]["content"] == "all"


def test_the_first_id_and_the_last_usage_count():
    usage = [{"total_tokens": 1}, {"total_tokens": 2}]
    document = assembled(
        chunk(id="", created=0, model=""), chunk(id="c2", usage=usage[0], provider="p"), chunk(usage=usage[1]),
        chunk(usage=None, obfuscation="xxxx", provider=None),
    )  # fmt: skip
    assert document == {"id": "c2", "created": 7, "model": "m", "object": "chat.completion",
                        "choices": [], "usage": {"total_tokens": 2}, "provider": "p"}  # fmt: skip


def test_half_an_emoji_in_one_chunk_meets_the_other_half():
    pieces = [json.dumps(chunk(delta(content="@"))).encode().replace(b"@", half) for half in (b"\\ud83d", b"\\ude00")]  # fmt: skip
    assert assembled(*pieces)["choices"][0]["message"]["content"] == "😀"
    assert assembled(pieces[0])["choices"][0]["message"]["content"] == "\ud83d"


@pytest.mark.parametrize(
    "stream", [b"", b"data: [DONE]\n\n", sse({"error": {"message": "secret"}}), sse({"choices": "secret"}), b"\xff{"]
)  # fmt: skip
def test_a_stream_without_chunks_is_refused(stream):
    with pytest.raises(ValueError, match="no chunk") as caught:
        chat_document((stream,), True)
    assert "secret" not in str(caught.value)


def test_more_choices_or_calls_than_anyone_asks_for_are_refused():
    with pytest.raises(ValueError, match="1,024 choices"):
        assembled(*[chunk({"index": n}) for n in range(1025)])
    with pytest.raises(ValueError, match="4,096"):
        assembled(chunk(delta(tool_calls=[call(n) for n in range(4097)])))


ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["choices", "delta", "message", "index", "tool_calls", "function", "id", "name", "content", "type",
                         "logprobs", "audio", "response", "output", "item", "output_index", "usage", "role"]),
        inner, max_size=5,
    ),
    max_leaves=20,
)  # fmt: skip
TYPES = st.sampled_from(["response.completed", "response.output_item.done", "response.created"])
ODD_EVENTS = st.dictionaries(
    st.sampled_from(["choices", "response", "item", "output_index", "id", "type"]), ODD
) | st.builds(lambda kind, body: {"type": kind, "response": body, "item": body}, TYPES, ODD)
ODD_STREAMS = st.lists(ODD_EVENTS, max_size=6).map(lambda values: sse(*values)) | st.binary(max_size=80)


@given(ODD_STREAMS, st.booleans())
def test_whatever_comes_is_read_or_refused(stream, is_stream):
    find_id([stream], is_stream)
    for read in (response_document, chat_document):
        try:
            document = read((stream,), is_stream)
        except ValueError:
            continue
        assert isinstance(json.loads(document), dict)
        try:
            output = response_output(document)
        except ValueError:
            continue
        assert isinstance(json.loads(b"[" + output + b"]"), list)


def calls_of(*pieces):
    stream = sse(*(chunk(delta(tool_calls=[piece])) for piece in pieces))
    document = json.loads(chat_document((stream,), True))
    made = document["choices"][0]["message"]["tool_calls"]
    return [(one["id"], one["function"].get("name"), one["function"]["arguments"]) for one in made]


def started(call_id, name="f", index=0):
    return call(index, id=call_id, type="function", function={"name": name, "arguments": ""})


def went_on(arguments, index=0, **more):
    return call(index, function={"arguments": arguments}, **more)


def test_parallel_calls_that_all_have_the_index_0_are_kept_apart_by_their_ids():
    """Regression: they became one call with the arguments of both."""
    assert calls_of(started("a"), went_on('{"x"'), went_on(":1}"), started("b", "g"), went_on("{}")) == [
        ("a", "f", '{"x":1}'),
        ("b", "g", "{}"),
    ]
    # The pieces of both calls may alternate.
    assert calls_of(
        started("a"), started("b", "g"), went_on("1", id="a"), went_on("2", id="b"), went_on("3", id="a")
    ) == [("a", "f", "13"), ("b", "g", "2")]  # fmt: skip


def test_calls_with_indices_of_their_own_are_put_together_by_those():
    assert calls_of(started("a"), started("b", "g", 1), went_on("1"), went_on("2", 1), went_on("3", id="")) == [
        ("a", "f", "13"),
        ("b", "g", "2"),
    ]
    # An id that arrives late belongs to the call that has begun.
    assert calls_of(went_on("1"), went_on("2", id="a"), went_on("3")) == [("a", None, "123")]


@pytest.mark.parametrize("depth", [200, 300, 900, 990, 1020, 1100, 50_000])
def test_deep_values_are_read_or_refused(depth):
    deep = b"[" * depth + b"]" * depth
    for body in (b'{"choices":[{"delta":{"x":%b}}]}' % deep,
                 b'{"choices":[{"delta":{"x":%b,"s":"\\ud800"}}]}' % deep,
                 b'{"type":"response.completed","response":{"output":%b}}' % deep):  # fmt: skip
        for read in (response_document, chat_document):
            for blocks, is_stream in (((sse(body),), True), ((body,), False)):
                # Any exception other than ValueError fails the test.
                with suppress(ValueError):
                    response_output(read(blocks, is_stream))


DELTA = sse(event("response.output_text.delta", sequence_number=9, item_id="msg_1", output_index=0,
                  content_index=0, delta="hello", logprobs=[]))  # fmt: skip
PIECE = sse(chunk(delta(content="hello "), system_fingerprint="fp"))


@pytest.mark.parametrize(
    ("read", "stream"),
    [
        (response_document, DELTA * (2 * MIB // len(DELTA))
         + sse(item_done(0, message("x")), event("response.completed", response=response()))),
        (response_document, streamed(event("response.completed", response=response(message("x" * 2 * MIB))))),
        (chat_document, PIECE * (2 * MIB // len(PIECE))),
        (chat_document, sse(chunk(delta(content="x" * 2 * MIB)))),
        (chat_document, b": note\n\n" * (MIB // 4) + PIECE),
    ],
    ids=["deltas", "one item", "chunks", "one chunk", "comments"],
)  # fmt: skip
def test_two_mebibytes_are_read_in_a_time_that_grows_with_the_length(read, stream):
    blocks = tuple(stream[at : at + 65536] for at in range(0, len(stream), 65536))
    begun = time.perf_counter()
    assert read(blocks, True)
    assert time.perf_counter() - begun < QUADRATIC_S
