"""langchain-openai with use_previous_response_id: it sends only new messages, and the gateway adds the earlier turns."""

import openai
import pytest
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool

ECHO = "This is the echo node. You said: "


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@pytest.fixture
def make(running):
    """Return a model that chains its turns."""
    from langchain_openai import ChatOpenAI

    def make(**more):
        return ChatOpenAI(
            model="echo-1",
            base_url=running.api_url,
            api_key="unused",
            use_responses_api=True,
            use_previous_response_id=True,
            max_retries=0,
            **more,
        )

    return make


@pytest.fixture
def sdk(running):
    with openai.OpenAI(base_url=running.api_url, api_key="unused") as made:
        yield made


def put_together(chunks):
    whole = next(chunks)
    for chunk in chunks:
        whole += chunk
    return whole


def invoke(model, messages):
    return model.invoke(messages)


def stream(model, messages):
    return put_together(model.stream(messages))


async def ainvoke(model, messages):
    return await model.ainvoke(messages)


async def astream(model, messages):
    whole = None
    async for chunk in model.astream(messages):
        whole = chunk if whole is None else whole + chunk
    return whole


def remembered(sdk, answer) -> list[str]:
    """The stored input items and output of an answer."""
    items = sdk.responses.input_items.list(answer.response_metadata["id"], order="asc")
    return [item.content[0].text if item.type == "message" else f"{item.type}:{item.call_id}" for item in items]


def check(sdk, account, call, output, second, third):
    assert second.text == f"This is the echo node. The tool answered: {output}"
    assert third.text == ECHO + "and now? (and before that: add something)"
    assert remembered(sdk, third) == [
        "add something",
        f"function_call:{call['id']}",
        f"function_call_output:{call['id']}",
        second.text,
        "and now?",
    ]
    assert account.accepts == account.payments == 3


@pytest.mark.parametrize("ask", [invoke, stream])
def test_three_turns_with_a_tool(make, sdk, account, ask):
    model = make()
    bound = model.bind_tools([add])
    history = [HumanMessage("add something")]
    first = ask(bound, history)
    [call] = first.tool_calls
    assert (call["name"], call["args"]) == ("add", {"a": 1, "b": 1})
    output = add.invoke(call)
    history += [first, output]
    second = ask(bound, history)
    history += [second, HumanMessage("and now?")]
    third = ask(model, history)
    check(sdk, account, call, output.content, second, third)


@pytest.mark.parametrize("ask", [ainvoke, astream])
async def test_three_turns_with_a_tool_async(make, sdk, account, ask):
    # The default async client is shared and never closed; this one is closed.
    async with openai.DefaultAsyncHttpxClient() as http_client:
        model = make(http_async_client=http_client)
        bound = model.bind_tools([add])
        history = [HumanMessage("add something")]
        first = await ask(bound, history)
        [call] = first.tool_calls
        output = add.invoke(call)
        history += [first, output]
        second = await ask(bound, history)
        history += [second, HumanMessage("and now?")]
        third = await ask(model, history)
    check(sdk, account, call, output.content, second, third)


def test_a_missing_earlier_turn_is_an_error_that_costs_nothing(make, sdk, account):
    model = make()
    first = model.invoke("hello")
    sdk.responses.delete(first.response_metadata["id"])
    with pytest.raises(openai.NotFoundError) as raised:
        model.invoke([HumanMessage("hello"), first, HumanMessage("and now?")])
    assert raised.value.code == "previous_response_not_found"
    assert account.accepts == 1
