"""The official Python SDK, when all goes well: chat and Responses, whole and streamed, sync and async."""

import json

import openai
import pytest
from pydantic import BaseModel

from tests.support.documented import examples, pointed_at

HELLO = [{"role": "user", "content": "hello there"}]
ECHO = "This is the echo node. You said: hello there"
WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city", "days"],
}


class Person(BaseModel):
    name: str
    age: int


@pytest.fixture(scope="module")
def client(running):
    with openai.OpenAI(base_url=running.api_url, api_key="unused") as made:
        yield made


@pytest.fixture
async def async_client(running):
    async with openai.AsyncOpenAI(base_url=running.api_url, api_key="unused") as made:
        yield made


def text_of(chunks) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def test_a_chat_is_answered_and_bought_once(client, account):
    answer = client.chat.completions.create(model="echo-1", messages=HELLO)
    assert answer.choices[0].message.content == ECHO
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens > 0
    assert account.accepts == account.payments == 1


def test_a_chat_streams_token_by_token(client, account):
    chunks = list(client.chat.completions.create(model="echo-1", messages=HELLO, stream=True))
    assert text_of(chunks) == ECHO
    assert len([chunk for chunk in chunks if chunk.choices[0].delta.content]) > 5
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert account.accepts == 1


def test_usage_comes_last_in_a_stream_that_asks_for_it(client):
    chunks = list(
        client.chat.completions.create(
            model="echo-1", messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 9
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_the_sdks_own_stream_helper_puts_a_chat_together(client):
    with client.chat.completions.stream(model="echo-1", messages=HELLO) as stream:
        assert stream.get_final_completion().choices[0].message.content == ECHO


def test_max_tokens_cuts_the_answer_and_the_price(client):
    create = client.chat.completions.with_raw_response.create
    whole = create(model="echo-1", messages=HELLO)
    short = create(model="echo-1", messages=HELLO, max_tokens=3)
    assert short.parse().choices[0].message.content == "This is the"
    assert short.parse().choices[0].finish_reason == "length"
    assert int(short.headers["x-lcp-price-msat"]) < int(whole.headers["x-lcp-price-msat"])


def test_a_tool_is_called_and_its_output_goes_back(client):
    tools = [{"type": "function", "function": {"name": "weather", "parameters": WEATHER}}]
    asked = client.chat.completions.create(model="echo-1", messages=HELLO, tools=tools)
    message = asked.choices[0].message
    assert asked.choices[0].finish_reason == "tool_calls"
    [call] = message.tool_calls
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments) == {"city": "echo", "days": 1}

    messages_so_far = [*HELLO, message, {"role": "tool", "tool_call_id": call.id, "content": "rain"}]
    answer = client.chat.completions.create(model="echo-1", messages=messages_so_far, tools=tools)
    assert answer.choices[0].message.content.endswith("The tool answered: rain")


def test_a_tool_call_streams_its_arguments(client):
    tools = [{"type": "function", "function": {"name": "weather", "parameters": WEATHER}}]
    with client.chat.completions.stream(model="echo-1", messages=HELLO, tools=tools) as stream:
        choice = stream.get_final_completion().choices[0]
    assert choice.finish_reason == "tool_calls"
    assert json.loads(choice.message.tool_calls[0].function.arguments)["city"] == "echo"


def test_json_mode_gives_json(client):
    answer = client.chat.completions.create(model="echo-1", messages=HELLO, response_format={"type": "json_object"})
    assert json.loads(answer.choices[0].message.content) == {"echo": "hello there"}


def test_a_schema_is_parsed_into_a_model_by_chat_and_responses(client):
    chat = client.chat.completions.parse(model="echo-1", messages=HELLO, response_format=Person)
    response = client.responses.parse(model="echo-1", input="hello there", text_format=Person)
    assert chat.choices[0].message.parsed == response.output_parsed == Person(name="echo", age=1)


def test_a_response_is_answered_and_bought_once(client, account):
    answer = client.responses.create(model="echo-1", input="hello there")
    assert answer.output_text == ECHO
    assert answer.status == "completed"
    assert account.accepts == account.payments == 1


def test_a_response_streams_from_created_to_completed(client, account):
    events = list(client.responses.create(model="echo-1", input="hello there", stream=True))
    assert events[0].type == "response.created"
    assert events[-1].type == "response.completed"
    assert events[-1].response.output_text == ECHO
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == ECHO and len(deltas) > 5
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert account.accepts == 1


def test_responses_call_tools_too(client):
    tools = [{"type": "function", "name": "weather", "parameters": WEATHER, "strict": False}]
    [call] = client.responses.create(model="echo-1", input="hello", tools=tools).output
    assert (call.type, call.name) == ("function_call", "weather")
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
    answer = client.responses.create(
        model="echo-1", input=[{"role": "user", "content": "hello"}, call, output], tools=tools
    )
    assert answer.output_text.endswith("The tool answered: rain")


async def test_the_async_client_gets_the_same(async_client, account):
    whole = await async_client.chat.completions.create(model="echo-1", messages=HELLO)
    stream = await async_client.chat.completions.create(model="echo-1", messages=HELLO, stream=True)
    chunks = [chunk async for chunk in stream]
    response = await async_client.responses.create(model="echo-1", input="hello there")
    events = await async_client.responses.create(model="echo-1", input="hello there", stream=True)
    last = [event async for event in events][-1]
    assert whole.choices[0].message.content == text_of(chunks) == ECHO
    assert response.output_text == last.response.output_text == ECHO
    assert account.accepts == account.payments == 4


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_headers_tell_what_was_bought_and_from_whom(client, account, stream):
    raw = client.chat.completions.with_raw_response.create(
        model="echo-1", messages=HELLO, stream=stream, extra_headers={"x-request-id": "mine-1"}
    )
    [accept] = account.seen("accept")
    assert raw.headers["x-lcp-payment"] == "settled"
    assert raw.headers["x-lcp-peer-id"] == accept["peer_id"]
    assert raw.headers["x-lcp-job-id"] == accept["job_id"]
    assert raw.headers["x-lcp-price-msat"] == str(accept["price_msat"])
    assert len(bytes.fromhex(raw.headers["x-lcp-terms-hash"])) == 32
    assert raw.headers["openai-processing-ms"].isdigit()
    assert raw.request_id == "mine-1"
    raw.http_response.close()


def test_every_answer_has_a_request_id_of_its_own(client):
    answers = [client.chat.completions.create(model="echo-1", messages=HELLO) for _ in range(2)]
    assert all(answer._request_id.startswith("req_") for answer in answers)
    assert answers[0]._request_id != answers[1]._request_id


def test_models_are_listed_and_found_by_name(client):
    names = [model.id for model in client.models.list()]
    assert {"echo-1", "echo-mini", "fault/no-route"} <= set(names)
    assert client.models.retrieve("echo-1").id == "echo-1"
    # The SDK sends the slash of a name encoded.
    assert client.models.retrieve("fault/no-route").id == "fault/no-route"


def test_the_environment_alone_configures_the_client(running, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", running.api_url)
    monkeypatch.setenv("OPENAI_API_KEY", "unused")
    with openai.OpenAI() as client:
        assert client.responses.create(model="echo-1", input="hello there").output_text == ECHO


def test_a_key_opens_a_guarded_gateway(guarded, api_key):
    with openai.OpenAI(base_url=guarded.api_url, api_key=api_key) as client:
        answer = client.chat.completions.create(model="echo-1", messages=HELLO, max_tokens=100)
    assert answer.choices[0].message.content == ECHO


@pytest.mark.parametrize("number", range(3))
def test_the_documented_lines_print_the_answer(running, capsys, number):
    example = examples("OpenAI SDK for Python", "python")[number]
    exec(compile(pointed_at(example, running.base_url), "docs/clients.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "This is the echo node. You said: hello"
    if number:
        assert printed[1].endswith((" tokens", " msat"))
