import orjson
import pytest

from tests.support.node_client import chat_task

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object"}}}


async def test_the_result_names_the_echo_node_and_repeats_the_message(client):
    answer = await client.ask(chat_task(say="good day"))
    choice = answer["choices"][0]

    assert choice["message"]["content"] == "This is the echo node. You said: good day"
    assert (choice["finish_reason"], choice["message"]["role"]) == ("stop", "assistant")
    assert (answer["object"], answer["model"]) == ("chat.completion", "echo-1")
    assert answer["id"].startswith("chatcmpl-")


async def test_usage_counts_four_bytes_of_request_and_one_word_of_answer_as_a_token(client):
    task = chat_task(say="good day")
    usage = (await client.ask(task))["usage"]
    size = len(task.openai_chat_completions_v1.request_json)

    assert usage["prompt_tokens"] == -(-size // 4)
    assert usage["completion_tokens"] == 9
    assert usage["total_tokens"] == usage["prompt_tokens"] + 9


@pytest.mark.parametrize("key", ["max_tokens", "max_completion_tokens"])
async def test_a_limit_on_tokens_cuts_the_answer(client, key):
    answer = await client.ask(chat_task(say="one two three", **{key: 6}))

    assert answer["choices"][0]["message"]["content"] == "This is the echo node. You"
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 6


async def test_several_choices_are_given_and_counted(client):
    answer = await client.ask(chat_task(n=3))
    streamed = await client.ask_stream(chat_task(n=3, stream=True))

    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert answer["usage"]["completion_tokens"] == 3 * 8
    for index in range(3):
        text = "".join(
            event["choices"][0]["delta"].get("content") or ""
            for event in streamed.events
            if event["choices"][0]["index"] == index
        )
        assert text == answer["choices"][0]["message"]["content"]


async def test_a_stream_is_the_role_the_tokens_the_finish_and_done(client):
    streamed = await client.ask_stream(chat_task(say="good day", stream=True))
    events = streamed.events

    assert streamed.begin.content_type == "text/event-stream; charset=utf-8"
    assert streamed.begin.content_encoding == "identity"
    assert streamed.chunks[-1] == b"data: [DONE]\n\n"
    assert events[0]["choices"][0]["delta"]["role"] == "assistant"
    assert [event["choices"][0]["delta"].get("content") for event in events[1:-1]] == [
        "This", " is", " the", " echo", " node.", " You", " said:", " good", " day",
    ]  # fmt: skip
    assert events[-1]["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}
    assert len({event["id"] for event in events}) == 1
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    assert len(streamed.chunks) == 9 + 3
    assert all("usage" not in event for event in events)


async def test_usage_comes_last_when_it_is_asked_for(client):
    streamed = await client.ask_stream(chat_task(stream=True, stream_options={"include_usage": True}))
    *others, last = streamed.events

    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 8
    assert all(event["usage"] is None for event in others)


async def test_the_end_of_a_stream_holds_its_hash_and_length(client):
    import hashlib

    streamed = await client.ask_stream(chat_task(stream=True))
    digest = hashlib.sha256(streamed.body).digest()

    assert streamed.end.result_hash == streamed.result.result_hash == digest
    assert streamed.end.result_len == streamed.result.result_len == len(streamed.body)
    assert streamed.result.result == b""
    assert streamed.result.status == 1


async def test_unary_and_streaming_calls_both_take_both_kinds_of_request(client):
    whole = await client.accept(await client.quote(chat_task(stream=True)))
    assert whole.result.result.endswith(b"data: [DONE]\n\n")
    assert whole.result.content_type == "text/event-stream; charset=utf-8"

    streamed = await client.ask_stream(chat_task())
    assert orjson.loads(streamed.body)["object"] == "chat.completion"
    assert streamed.begin.content_type == "application/json; charset=utf-8"


async def test_a_tool_is_called_with_arguments_in_its_schemas_shape(client):
    answer = await client.ask(chat_task(tools=[WEATHER, CLOCK]))
    choice = answer["choices"][0]
    call = choice["message"]["tool_calls"][0]

    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    assert (call["type"], call["function"]["name"]) == ("function", "get_weather")
    assert orjson.loads(call["function"]["arguments"]) == {"city": "echo", "days": 1}


async def test_a_streamed_tool_call_adds_up_to_the_same(client):
    streamed = await client.ask_stream(chat_task(tools=[WEATHER], stream=True))
    deltas = [event["choices"][0]["delta"] for event in streamed.events]
    arguments = "".join(delta["tool_calls"][0]["function"]["arguments"] for delta in deltas if "tool_calls" in delta)

    assert deltas[0]["tool_calls"][0]["function"]["name"] == "get_weather"
    assert orjson.loads(arguments) == {"city": "echo", "days": 1}
    assert streamed.events[-1]["choices"][0]["finish_reason"] == "tool_calls"


async def test_the_choice_of_a_tool_is_followed(client):
    named = {"type": "function", "function": {"name": "get_time"}}
    answer = await client.ask(chat_task(tools=[WEATHER, CLOCK], tool_choice=named))
    none = await client.ask(chat_task(tools=[WEATHER], tool_choice="none"))

    assert answer["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "get_time"
    assert none["choices"][0]["message"]["content"].startswith("This is the echo node")


async def test_after_a_tool_has_answered_there_is_text(client):
    messages = [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "tool", "tool_call_id": "x", "content": "sunny"},
    ]
    answer = await client.ask(chat_task(messages=messages, tools=[WEATHER]))

    assert answer["choices"][0]["message"]["content"].endswith("The tool answered: sunny")


async def test_json_mode_and_json_schema_give_json(client):
    plain = await client.ask(chat_task(say="hi", response_format={"type": "json_object"}))
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    shaped = await client.ask(chat_task(response_format=wanted))

    assert orjson.loads(plain["choices"][0]["message"]["content"]) == {"echo": "hi"}
    assert orjson.loads(shaped["choices"][0]["message"]["content"]) == {"ok": True}


async def test_images_are_accepted_and_counted(client):
    content = [
        {"type": "text", "text": "what is this"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
    ]
    answer = await client.ask(chat_task(messages=[{"role": "user", "content": content}]))

    assert answer["choices"][0]["message"]["content"].endswith("You said (and sent 1 image): what is this")


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [1, None, "x"]},
        {"messages": [{"role": "user"}], "tools": "no", "response_format": 7},
        {"messages": [{"role": "user", "content": [{"type": "text"}, 3]}], "tools": [{}, 1]},
        {"messages": [{"role": "system", "content": "s"}], "stream_options": []},
        {"max_tokens": "many", "n": "two", "tool_choice": 5},
        {"max_tokens": 0, "n": 0},
        {"max_tokens": True, "n": True},
    ],
)
async def test_malformed_requests_get_errors_in_the_usual_shape(client, fields):
    answer = await client.ask(chat_task(**fields))
    streamed = await client.ask_stream(chat_task(**fields, stream=True))

    assert answer["choices"][0]["message"]["content"].startswith("This is the echo node")
    assert streamed.chunks[-1] == b"data: [DONE]\n\n"


async def test_a_pace_is_kept(client):
    import time

    start = time.perf_counter()
    streamed = await client.ask_stream(chat_task(model="echo-slow", stream=True, max_tokens=6), "Carol")
    took = time.perf_counter() - start

    assert len(streamed.events) == 8
    assert took >= 0.29


async def test_the_same_request_is_answered_with_the_same_words(client):
    first, second = [await client.ask(chat_task(say="again")) for _ in range(2)]

    assert first["choices"] == second["choices"]
    assert first["id"] != second["id"]
