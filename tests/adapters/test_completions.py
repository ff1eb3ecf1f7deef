import json

import httpx
import openai
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from openai.types import Completion

from lcp_gateway.adapters.completions import CompletionPlan, FromChatStream, NotAdaptable, from_chat, to_chat
from tests.adapters.cuts import SIZES, cut, passed
from tests.adapters.raw_json import objects, tokens
from tests.support.cases import each_case

PLAIN = CompletionPlan()
TOKENS = [
    {"token": "Hel", "logprob": -0.5, "bytes": [72, 101, 108],
     "top_logprobs": [{"token": "Hel", "logprob": -0.5, "bytes": None}, {"token": "Hi", "logprob": -2}]},
    {"token": "lo", "logprob": -0.25, "bytes": None, "top_logprobs": []},
]  # fmt: skip


def asked(**fields):
    return json.dumps({"model": "m", "prompt": "Say hello"} | fields).encode()


def turned(**fields):
    return json.loads(to_chat(asked(**fields)).body)


def refusal(**fields):
    with pytest.raises(NotAdaptable) as caught:
        to_chat(asked(**fields))
    assert caught.value.message == str(caught.value)
    assert "secret" not in caught.value.message
    return caught.value.param, caught.value.code


# The request


@pytest.mark.parametrize("prompt", ["Say hello", ["Say hello"]])
def test_a_prompt_becomes_a_users_message(prompt):
    assert turned(prompt=prompt) == {"model": "m", "messages": [{"role": "user", "content": "Say hello"}]}


def test_the_model_may_be_another():
    body = to_chat(asked(), model='x/"y"').body
    assert json.loads(body)["model"] == 'x/"y"'


@given(objects(tokens(), absent=("model", "prompt", "echo", "suffix", "best_of", "logprobs", "messages")),
       tokens())  # fmt: skip
def test_all_other_fields_mean_what_they_meant(raw, prompt):
    prefix, value, suffix = raw
    body = (prefix + value + ', "prompt" : [ ' + prompt + " ] " + suffix).encode()
    old = json.loads(body)
    chat = to_chat(body)
    new = json.loads(chat.body)
    assert new.pop("messages") == [{"role": "user", "content": old.pop("prompt")[0]}]
    assert new == old
    assert chat.plan == CompletionPlan(stream=old.get("stream") is True)


def test_fields_keep_their_bytes():
    body = (
        b'{"model":"m","prompt":"cut \\ud83d","temperature":1.0E0,"max_tokens":7,"stop":["\\u0041"],'
        b'"seed":123456789012345678901234567890,"stream":true,"n":2,"best_of":2,"echo":false,"suffix":""}'
    )
    assert to_chat(body).body == (
        b'{"model":"m","temperature":1.0E0,"max_tokens":7,"stop":["\\u0041"],'
        b'"seed":123456789012345678901234567890,"stream":true,"n":2,'
        b'"messages":[{"role":"user","content":"cut \\ud83d"}]}'
    )


def test_of_two_prompts_the_last_counts_as_for_any_parser():
    chat = to_chat(b'{"prompt":["a"],"model":"m","promp\\u0074":"b","echo":true}')
    assert json.loads(chat.body) == {"model": "m", "messages": [{"role": "user", "content": "b"}]}
    assert chat.plan.echo == "b"


@pytest.mark.parametrize("count", [0, 5, 20])
def test_log_probabilities_are_asked_for_in_chats_way(count):
    fields = turned(logprobs=count, top_logprobs=3)
    assert (fields["logprobs"], fields["top_logprobs"]) == (True, count)
    assert to_chat(asked(logprobs=count)).plan.logprobs


def test_no_log_probabilities_are_not_asked_for():
    assert "logprobs" not in turned(logprobs=None)
    assert not to_chat(asked(logprobs=None)).plan.logprobs


def test_the_plan_and_the_request_show_no_text():
    chat = to_chat(asked(prompt="secret words", echo=True))
    assert chat.plan.echo == "secret words"
    assert "secret" not in repr(chat)


@each_case(
    "fields, param, code",
    [
        ({"prompt": ["secret", "b"]}, "prompt", "unsupported_value"),
        ({"prompt": [1, 2]}, "prompt", "unsupported_value"),
        ({"prompt": [[1, 2]]}, "prompt", "unsupported_value"),
        ({"prompt": []}, "prompt", "unsupported_value"),
        ({"prompt": None}, "prompt", "unsupported_value"),
        ({"prompt": {"secret": 1}}, "prompt", "unsupported_value"),
        ({"suffix": "secret"}, "suffix", "unsupported_parameter"),
        ({"best_of": 3}, "best_of", "unsupported_value"),
        ({"best_of": 3, "n": 2}, "best_of", "unsupported_value"),
        ({"best_of": True}, "best_of", "unsupported_value"),
        ({"logprobs": 21}, "logprobs", "unsupported_value"),
        ({"logprobs": -1}, "logprobs", "unsupported_value"),
        ({"logprobs": True}, "logprobs", "unsupported_value"),
        ({"logprobs": "5"}, "logprobs", "unsupported_value"),
        ({"logprobs": 1.0}, "logprobs", "unsupported_value"),
        ({"echo": True, "logprobs": 0}, "logprobs", "unsupported_parameter"),
        ({"echo": "yes"}, "echo", "unsupported_value"),
        ({"messages": ["secret"]}, "messages", "unsupported_parameter"),
    ],
)
def test_features_that_chat_lacks_are_refused_by_name(fields, param, code):
    assert refusal(**fields) == (param, code)


def test_several_prompts_and_token_ids_are_told_what_to_do():
    with pytest.raises(NotAdaptable, match="one request per prompt"):
        to_chat(asked(prompt=["a", "b"]))
    with pytest.raises(NotAdaptable, match="as text"):
        to_chat(asked(prompt=[1, 2, 3]))


@pytest.mark.parametrize("fields", [{"best_of": None}, {"best_of": 1}, {"best_of": 1, "n": 2}, {"best_of": 2, "n": 2}])
def test_best_of_all_is_no_choice(fields):
    assert "best_of" not in turned(**fields)


def test_a_body_that_is_no_object_is_refused():
    with pytest.raises(ValueError, match="not a JSON object"):
        to_chat(b"[]")


# Results that are not streamed


def answer(*choices, **fields):
    return json.dumps(
        {
            "id": "chatcmpl-1", "object": "chat.completion", "created": 7, "model": "m", "system_fingerprint": "fp",
            "choices": list(choices),
            "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
        }
        | fields
    ).encode()  # fmt: skip


def choice(content, index=0, reason="stop", **fields):
    message = {"role": "assistant", "content": content}
    return {"index": index, "message": message, "finish_reason": reason} | fields


def as_completion(data):
    return Completion.model_validate_json(data, strict=True)


def test_an_answer_becomes_a_completion():
    body = from_chat(answer(choice("Hello é😀"), routing_info={"model": "m"}), PLAIN)
    assert json.loads(body) == {
        "id": "chatcmpl-1", "object": "text_completion", "created": 7, "model": "m", "system_fingerprint": "fp",
        "choices": [{"index": 0, "text": "Hello é😀", "logprobs": None, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
        "routing_info": {"model": "m"},
    }  # fmt: skip
    assert as_completion(body).choices[0].text == "Hello é😀"


def test_each_choice_begins_with_the_echo():
    body = from_chat(answer(choice(" a"), choice(None, 1, "length")), CompletionPlan(echo="Say"))
    assert [each.text for each in as_completion(body).choices] == ["Say a", "Say"]


@pytest.mark.parametrize(
    ("content", "text"),
    [(None, ""), ("", ""), ([{"type": "text", "text": "a"}, {"type": "x"}, {"text": "b"}, 3], "ab"), (5, "")],
)  # fmt: skip
def test_content_in_any_form_becomes_text(content, text):
    assert as_completion(from_chat(answer(choice(content)), PLAIN)).choices[0].text == text


@pytest.mark.parametrize("reason", ["tool_calls", "function_call"])
def test_a_stop_for_a_tool_is_a_stop(reason):
    body = from_chat(answer(choice("a", reason=reason)), PLAIN)
    assert as_completion(body).choices[0].finish_reason == "stop"


def test_log_probabilities_get_their_old_form():
    plan = CompletionPlan(logprobs=True)
    body = from_chat(answer(choice("Hello", logprobs={"content": TOKENS})), plan)
    found = as_completion(body).choices[0].logprobs
    assert found.tokens == ["Hel", "lo"]
    assert found.token_logprobs == [-0.5, -0.25]
    assert found.top_logprobs == [{"Hel": -0.5, "Hi": -2}, {"lo": -0.25}]
    assert found.text_offset == [0, 3]


@pytest.mark.parametrize(
    "logprobs", [None, {}, {"content": None}, {"content": []}, {"content": [1]}, {"content": [{"token": 1}]}, [], 3]
)  # fmt: skip
def test_log_probabilities_that_did_not_come_are_null(logprobs):
    body = from_chat(answer(choice("Hello", logprobs=logprobs)), CompletionPlan(logprobs=True))
    assert as_completion(body).choices[0].logprobs is None


def test_log_probabilities_that_were_not_asked_for_are_left_out():
    body = from_chat(answer(choice("Hello", logprobs={"content": TOKENS})), PLAIN)
    assert as_completion(body).choices[0].logprobs is None


@pytest.mark.parametrize(
    "body",
    [
        b'{"error":{"message":"no","code":null}}',
        b'{"choices":"none"}',
        b'{"object":"text_completion","choices":[{"index":0,"text":"a"}]}',
        b'{"choices":[1]}',
        b"[1]",
        b"not JSON",
        b"\xff",
        b"",
    ],
)
def test_a_result_that_is_no_chat_completion_stays_unchanged(body):
    assert from_chat(body, PLAIN) == body


def test_half_an_emoji_in_an_answer_is_kept():
    body = answer(choice("x")).replace(b'"x"', b'"cut \\ud83d"')
    assert json.loads(from_chat(body, PLAIN))["choices"][0]["text"] == "cut \ud83d"
    assert json.loads(from_chat(answer(choice("a")), CompletionPlan(echo="\ude00")))["choices"][0]["text"] == "\ude00a"


# The stream


def chunk(*choices, **fields):
    return {"id": "c1", "object": "chat.completion.chunk", "created": 7, "model": "m",
            "choices": list(choices)} | fields  # fmt: skip


def delta(index=0, reason=None, logprobs=None, **fields):
    return {"index": index, "delta": fields, "finish_reason": reason, "logprobs": logprobs}


def sse(*values, end=b"\n"):
    texts = [value if isinstance(value, bytes) else json.dumps(value).encode() for value in values]
    return b"".join(b"data: " + text + end + end for text in texts)


USAGE = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
STREAM = b": hello\n\n" + sse(
    chunk(delta(role="assistant", content=""), delta(1, role="assistant")),
    chunk(delta(content="Hel")),
    chunk(delta(content="lo é😀")),
    chunk(delta(1, content="Hi")),
    chunk(delta(reason="stop")),
    chunk(delta(1, reason="length")),
    chunk(usage=USAGE),
    b"[DONE]",
)


def events(data):
    """Return the JSON of all events but the end mark."""
    lines = data.replace(b"\r\n", b"\n").split(b"\n")
    payloads = [line[5:] for line in lines if line.startswith(b"data:")]
    return [json.loads(payload) for payload in payloads if payload.strip() != b"[DONE]"]


def texts(data):
    """Return each choice's whole text."""
    found = {}
    for event in events(data):
        for each in event["choices"]:
            found[each["index"]] = found.get(each["index"], "") + each["text"]
    return found


def test_a_stream_becomes_one_of_completions():
    out = passed(FromChatStream(PLAIN), [STREAM])
    assert out.startswith(b": hello\n\ndata: {")
    assert out.endswith(b"\n\ndata: [DONE]\n\n")
    found = events(out)
    assert [event["object"] for event in found] == ["text_completion"] * 6
    assert found[0] == {
        "id": "c1", "object": "text_completion", "created": 7, "model": "m",
        "choices": [{"index": 0, "text": "Hel", "logprobs": None, "finish_reason": None}],
    }  # fmt: skip
    assert texts(out) == {0: "Hello é😀", 1: "Hi"}
    assert [each["finish_reason"] for event in found for each in event["choices"]] == [
        None, None, None, "stop", "length",
    ]  # fmt: skip
    assert (found[-1]["choices"], found[-1]["usage"]) == ([], USAGE)
    for event in found[3:]:
        Completion.model_validate(event, strict=True)


def test_events_go_out_as_they_come():
    stream = FromChatStream(PLAIN)
    first = sse(chunk(delta(content="a")))
    assert stream.feed(first[:-1]) == b""
    assert texts(stream.feed(first[-1:])) == {0: "a"}
    assert stream.feed(sse(chunk(delta(role="assistant", content="")))) == b""
    assert stream.feed(b": beat\n\n") == b": beat\n\n"
    assert stream.rest() == b""


def test_a_stream_echoes_once_for_each_choice():
    out = passed(FromChatStream(CompletionPlan(echo="Say ")), [STREAM])
    assert texts(out) == {0: "Say Hello é😀", 1: "Say Hi"}
    assert [each["text"] for each in events(out)[0]["choices"]] == ["Say ", "Say "]


def test_offsets_go_on_through_a_stream():
    first, second = TOKENS
    stream = sse(
        chunk(delta(content="Hel", logprobs={"content": [first]})),
        chunk(delta(1, content="lo", logprobs={"content": [second]})),
        chunk(delta(content="lo", logprobs={"content": [second]})),
        chunk(delta(content="", logprobs={"content": [second]})),
        chunk(delta(reason="stop")),
    )
    found = [event["choices"][0] for event in events(passed(FromChatStream(CompletionPlan(logprobs=True)), [stream]))]
    assert [each["logprobs"] and each["logprobs"]["text_offset"] for each in found] == [[0], [0], [3], [5], None]


@pytest.mark.parametrize(
    "event",
    [
        b'data: {"error":{"message":"broke","code":null}}\n\n',
        b"event: ping\ndata: 1\n\n",
        b'data: {"choices":[{"index":0,"text":"mine"}]}\n\n',
        b"data: {broken\n\n",
        b": comment\r\n\r\n",
        b"\n\n",
        b"data: [DONE]\r\n\r\n",
    ],
)
def test_other_events_pass_as_they_are(event):
    assert passed(FromChatStream(CompletionPlan(echo="E")), [event]) == event


@pytest.mark.parametrize("end", [b"\r", b"\n", b"\r\n"])
def test_each_line_end_that_events_may_have_is_read(end):
    """Regression: a stream whose lines end with CR alone reached the client unconverted."""
    stream = sse(chunk(delta(content="a")), chunk(delta(content="b"))).replace(b"\n", end)
    assert texts(passed(FromChatStream(PLAIN), [stream]).replace(end, b"\n")) == {0: "ab"}


def test_what_is_no_whole_event_at_the_end_passes_as_it_is():
    rest = sse(chunk(delta(content="a")))[:-2]
    assert passed(FromChatStream(PLAIN), [rest]) == rest
    assert passed(FromChatStream(PLAIN), [b'data: {"cut']) == b'data: {"cut'


def test_other_lines_of_an_event_are_kept():
    data = json.dumps(chunk(delta(content="a")), indent=1).replace("\n", "\r\ndata: ").encode()
    out = passed(FromChatStream(PLAIN), [b": x\r\nid: 4\r\ndata: " + data + b"\r\nevent: y\r\n\r\n"])
    assert out.startswith(b": x\r\nid: 4\r\ndata: {")
    assert out.endswith(b"}\r\nevent: y\r\n\r\n")
    assert texts(out) == {0: "a"}
    silent = b": x\n" + sse(chunk(delta(role="assistant")))
    assert passed(FromChatStream(PLAIN), [silent]) == b": x\n\n"


def test_a_choice_without_a_delta_still_ends():
    last = {"index": 0, "finish_reason": "stop", "delta": None}
    out = passed(FromChatStream(PLAIN), [sse(chunk(last))])
    assert events(out)[0]["choices"][0]["finish_reason"] == "stop"


def test_an_empty_choice_with_usage_is_kept():
    out = passed(FromChatStream(PLAIN), [sse(chunk(delta(role="assistant"), usage=USAGE))])
    assert events(out)[0]["usage"] == USAGE
    assert events(out)[0]["choices"][0]["text"] == ""


def test_an_event_without_end_is_not_kept_for_ever():
    stream = FromChatStream(PLAIN)
    with pytest.raises(ValueError, match="4 MiB"):
        for _ in range(5):
            stream.feed(b"x" * 1024 * 1024)
    with pytest.raises(ValueError, match="4 MiB"):
        FromChatStream(PLAIN).feed(b"x" * 5 * 1024 * 1024 + b"\n\n")


def test_choices_without_end_are_not_counted_for_ever():
    stream = FromChatStream(PLAIN)
    with pytest.raises(ValueError, match="choices"):
        stream.feed(sse(chunk(*[delta(index, content="a") for index in range(1025)])))


PAYLOADS = st.sampled_from(
    [
        chunk(delta(role="assistant", content="")), chunk(delta(content="a é😀")), chunk(delta(1, content="b")),
        chunk(delta(reason="stop")), chunk(delta(content="c", logprobs={"content": TOKENS})),
        chunk(usage=USAGE), {"error": {"message": "x"}}, b"[DONE]", b"{cut",
    ]
)  # fmt: skip
BETWEEN = st.sampled_from([b"", b": x\n\n", b"\n", b"id: 1\r\n", b"\r\n\r\n"])


@example([(b": x\n\n", b"[DONE]", b"\r\n"), (b"", chunk(delta(role="assistant")), b"\n")], [10, 10], PLAIN)
@given(
    st.lists(st.tuples(BETWEEN, PAYLOADS, st.sampled_from([b"\n", b"\r\n"])), max_size=8), SIZES,
    st.sampled_from([PLAIN, CompletionPlan(echo="E"), CompletionPlan(logprobs=True)]),
)  # fmt: skip
def test_how_a_stream_is_cut_changes_nothing(pieces, sizes, plan):
    stream = b"".join(between + sse(payload, end=end) for between, payload, end in pieces)
    whole = passed(FromChatStream(plan), [stream])
    assert passed(FromChatStream(plan), cut(stream, sizes)) == whole
    assert b"chat.completion" not in whole
    assert whole.count(b"[DONE]") == stream.count(b"[DONE]")
    said = [each["delta"].get("content") or "" for event in events(stream.replace(b"data: {cut", b""))
            for each in event.get("choices", ())]  # fmt: skip
    got = "".join(texts(whole.replace(b"data: {cut", b"").replace(b'{"error"', b'{"choices":[],"error"')).values())
    assert sorted(got.replace("E", "")) == sorted("".join(said))


# OpenAI's own client, with and without a stream


class Chat(httpx.BaseTransport):
    """A server for chat completions behind the adapter."""

    def handle_request(self, request):
        chat = to_chat(request.read())
        body = json.loads(chat.body)
        assert body["messages"] == [{"role": "user", "content": "Say"}]
        if not chat.plan.stream:
            return httpx.Response(200, content=from_chat(answer(choice(" hi")), chat.plan), headers=JSON)
        out = passed(FromChatStream(chat.plan), cut(STREAM, [7] * 200))
        return httpx.Response(200, content=out, headers={"content-type": "text/event-stream"})


JSON = {"content-type": "application/json"}


@pytest.fixture
def client():
    with httpx.Client(transport=Chat()) as http:
        yield openai.OpenAI(api_key="k", base_url="http://gateway.invalid/v1", http_client=http)


def test_openais_client_reads_a_completion(client):
    found = client.completions.create(model="m", prompt=["Say"], echo=True)
    assert (found.object, found.choices[0].text, found.usage.total_tokens) == ("text_completion", "Say hi", 3)


def test_openais_client_reads_a_stream(client):
    text = {0: "", 1: ""}
    stream = client.completions.create(
        model="m", prompt="Say", stream=True, n=2, stream_options={"include_usage": True}
    )
    for event in stream:
        for each in event.choices:
            text[each.index] += each.text
    assert text == {0: "Hello é😀", 1: "Hi"}
    assert event.usage.total_tokens == 3
