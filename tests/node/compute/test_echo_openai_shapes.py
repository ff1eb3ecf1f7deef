"""The echo's results, read by OpenAI's client."""

import httpx
import pytest
from langchain_openai import ChatOpenAI
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from tests.support.node_client import chat_task, raw_chat_task, raw_responses_task, responses_task

PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
CHAT_TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": PARAMETERS, "strict": True}}
RESPONSES_TOOL = {"type": "function", "name": "get_weather", "parameters": PARAMETERS, "strict": True}
CHAT_VARIANTS = [{}, {"max_tokens": 2}, {"n": 2}, {"tools": [CHAT_TOOL]}, {"response_format": {"type": "json_object"}}]
RESPONSES_VARIANTS = [{}, {"max_output_tokens": 2}, {"tools": [RESPONSES_TOOL]}]
EVENT = TypeAdapter(ResponseStreamEvent)


class City(BaseModel):
    name: str
    population: int


class NodeTransport(httpx.AsyncBaseTransport):
    """An HTTP transport that buys each response from a node, as a gateway would."""

    def __init__(self, client):
        self._client = client

    async def handle_async_request(self, request):
        body = await request.aread()
        make = raw_chat_task if request.url.path.endswith("/chat/completions") else raw_responses_task
        terms = await self._client.quote(make(body, "echo-1"))
        result = (await self._client.accept(terms)).result
        return httpx.Response(200, headers={"content-type": result.content_type}, content=result.result)


@pytest.fixture
async def openai(client):
    http = httpx.AsyncClient(transport=NodeTransport(client))
    async with AsyncOpenAI(api_key="k", base_url="http://node.invalid/v1", http_client=http, max_retries=0) as openai:
        yield openai


@pytest.mark.parametrize("fields", CHAT_VARIANTS, ids=lambda fields: "-".join(fields) or "plain")
async def test_chat_answers_are_valid_to_the_letter(client, fields):
    ChatCompletion.model_validate(await client.ask(chat_task(**fields)), strict=True)
    options = {"stream": True, "stream_options": {"include_usage": True}}
    streamed = await client.ask_stream(chat_task(**fields, **options))
    for event in streamed.events:
        ChatCompletionChunk.model_validate(event, strict=True)


@pytest.mark.parametrize("fields", RESPONSES_VARIANTS, ids=lambda fields: "-".join(fields) or "plain")
async def test_responses_are_valid_to_the_letter(client, fields):
    Response.model_validate(await client.ask(responses_task(**fields)))
    streamed = await client.ask_stream(responses_task(**fields, stream=True))
    for event in streamed.events:
        # Pydantic picks a union's loosest member unless the type names the right one.
        parsed = EVENT.validate_python(event)
        assert parsed.type == event["type"]
        assert type(parsed).__name__.removesuffix("Event") == "".join(
            part.title() for part in event["type"].replace("output_text", "text").replace(".", "_").split("_")
        )


async def test_the_chat_stream_helper_adds_up_what_was_said(openai):
    async with openai.chat.completions.stream(model="echo-1", messages=[{"role": "user", "content": "hi"}]) as stream:
        kinds = [event.type async for event in stream]
        final = await stream.get_final_completion()

    assert {"content.delta", "content.done"} <= set(kinds)
    assert final.choices[0].message.content == "This is the echo node. You said: hi"


async def test_the_chat_stream_helper_reads_a_tool_call(openai):
    async with openai.chat.completions.stream(
        model="echo-1", messages=[{"role": "user", "content": "hi"}], tools=[CHAT_TOOL]
    ) as stream:
        final = await stream.get_final_completion()

    call = final.choices[0].message.tool_calls[0]
    assert call.function.parsed_arguments == {"city": "echo"}


async def test_structured_output_parses_into_a_model(openai):
    completion = await openai.chat.completions.parse(
        model="echo-1", messages=[{"role": "user", "content": "hi"}], response_format=City
    )
    response = await openai.responses.parse(model="echo-1", input="hi", text_format=City)

    assert completion.choices[0].message.parsed == City(name="echo", population=1)
    assert response.output_parsed == City(name="echo", population=1)


async def test_the_responses_stream_helper_adds_up_what_was_said(openai):
    async with openai.responses.stream(model="echo-1", input="hi") as stream:
        kinds = [event.type async for event in stream]
        final = await stream.get_final_response()

    assert kinds[0] == "response.created" and kinds[-1] == "response.completed"
    assert final.output_text == "This is the echo node. You said: hi"


async def test_the_responses_stream_helper_reads_a_tool_call(openai):
    async with openai.responses.stream(model="echo-1", input="hi", tools=[RESPONSES_TOOL]) as stream:
        final = await stream.get_final_response()

    assert final.output[0].parsed_arguments == {"city": "echo"}


@pytest.mark.parametrize("use_responses_api", [False, True], ids=["chat", "responses"])
async def test_langchain_talks_streams_and_calls_tools(client, use_responses_api):
    http = httpx.AsyncClient(transport=NodeTransport(client))
    model = ChatOpenAI(
        model="echo-1",
        api_key="k",
        base_url="http://node.invalid/v1",
        http_async_client=http,
        use_responses_api=use_responses_api,
    )
    said = await model.ainvoke("hi")
    assert said.text.endswith("You said: hi")
    assert said.usage_metadata["output_tokens"] == 8

    pieces = [piece.text async for piece in model.astream("hi")]
    assert "".join(pieces) == said.text and len(pieces) > 5

    called = await model.bind_tools([CHAT_TOOL]).ainvoke("hi")
    assert [(call["name"], call["args"]) for call in called.tool_calls] == [("get_weather", {"city": "echo"})]
    assert await model.with_structured_output(City).ainvoke("hi") == City(name="echo", population=1)
    await http.aclose()
