import orjson
import pytest

from tests.support.node_client import responses_task

WEATHER = {
    "type": "function",
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}


def kinds(streamed):
    return [event["type"] for event in streamed.events]


async def test_the_answer_is_a_completed_response(client):
    answer = await client.ask(responses_task(say="good day"))

    assert (answer["object"], answer["status"], answer["error"]) == ("response", "completed", None)
    assert answer["output"][0]["content"][0]["text"] == "This is the echo node. You said: good day"
    assert answer["usage"]["output_tokens"] == 9


async def test_the_last_user_message_of_a_list_is_repeated(client):
    items = [
        {"role": "user", "content": "first"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "a"}]},
        {"role": "user", "content": [{"type": "input_text", "text": "last"}]},
    ]
    answer = await client.ask(responses_task(input=items))

    text = answer["output"][0]["content"][0]["text"]
    # The echo shows that it got the earlier turns.
    assert text.endswith("You said: last (and before that: first)")


async def test_what_stands_before_the_first_question_is_no_earlier_turn(client):
    items = [{"role": "user", "content": "my surroundings"}, {"role": "user", "content": "hello"}]
    answer = await client.ask(responses_task(input=items))
    assert answer["output"][0]["content"][0]["text"].endswith("You said: hello")


async def test_of_a_long_conversation_the_beginning_is_shown(client):
    turns = [{"role": "user", "content": "x" * 150}, {"role": "assistant", "content": "a"}] * 3
    answer = await client.ask(responses_task(input=[*turns, {"role": "user", "content": "last"}]))
    text = answer["output"][0]["content"][0]["text"]
    assert text.endswith("x…)") and len(text) < 300


async def test_a_limit_leaves_the_response_incomplete(client):
    answer = await client.ask(responses_task(max_output_tokens=3))
    streamed = await client.ask_stream(responses_task(max_output_tokens=3, stream=True))

    assert answer["status"] == "incomplete"
    assert answer["incomplete_details"] == {"reason": "max_output_tokens"}
    assert answer["output"][0]["content"][0]["text"] == "This is the"
    assert streamed.events[-1]["type"] == "response.incomplete"
    assert streamed.events[-1]["response"]["incomplete_details"]["reason"] == "max_output_tokens"


async def test_a_stream_has_every_event_in_order_and_no_done(client):
    streamed = await client.ask_stream(responses_task(say="good day", stream=True))

    assert kinds(streamed) == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * 9,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event["sequence_number"] for event in streamed.events] == list(range(17))
    assert b"[DONE]" not in streamed.body
    for chunk, event in zip(streamed.chunks, streamed.events, strict=True):
        assert chunk.startswith(b"event: " + event["type"].encode() + b"\ndata: ")
    text = "".join(event.get("delta", "") for event in streamed.events)
    assert text == streamed.events[-1]["response"]["output"][0]["content"][0]["text"]


async def test_a_tool_is_called(client):
    answer = await client.ask(responses_task(tools=[WEATHER]))
    call = answer["output"][0]

    assert (call["type"], call["name"], call["status"]) == ("function_call", "get_weather", "completed")
    assert orjson.loads(call["arguments"]) == {"city": "echo"}


async def test_a_streamed_tool_call_has_its_own_events(client):
    streamed = await client.ask_stream(responses_task(tools=[WEATHER], stream=True))
    events = streamed.events

    assert "response.function_call_arguments.delta" in kinds(streamed)
    assert not any(kind.startswith("response.output_text") for kind in kinds(streamed))
    done = next(event for event in events if event["type"] == "response.function_call_arguments.done")
    deltas = [event["delta"] for event in events if event["type"].endswith("call_arguments.delta")]
    assert "".join(deltas) == done["arguments"]
    assert done["item_id"] == events[2]["item"]["id"] == events[-1]["response"]["output"][0]["id"]
    assert events[2]["item"]["arguments"] == ""


async def test_after_a_tool_has_answered_there_is_text(client):
    items = [
        {"role": "user", "content": "weather?"},
        {"type": "function_call", "call_id": "c", "name": "get_weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "sunny"},
    ]
    answer = await client.ask(responses_task(input=items, tools=[WEATHER]))

    assert answer["output"][0]["content"][0]["text"].endswith("The tool answered: sunny")


async def test_a_json_schema_is_followed_in_shape(client):
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
    wanted = {"format": {"type": "json_schema", "name": "x", "schema": schema}}
    answer = await client.ask(responses_task(text=wanted))

    assert orjson.loads(answer["output"][0]["content"][0]["text"]) == {"n": 1}
    assert answer["text"] == wanted


@pytest.mark.parametrize("stream", [False, True])
async def test_what_the_request_set_is_repeated(client, stream):
    fields = {"metadata": {"a": "b"}, "temperature": 0.5, "instructions": "be kind"}
    task = responses_task(stream=stream, **fields)
    answer = (await client.ask_stream(task)).events[-1]["response"] if stream else await client.ask(task)

    assert {key: answer[key] for key in fields} == fields
