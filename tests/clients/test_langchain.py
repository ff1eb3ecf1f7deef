"""langchain-openai: invoke, stream, tools, structured output and the async twins."""

import openai
import pytest
from pydantic import BaseModel

from tests.support.documented import examples, pointed_at

ECHO = "This is the echo node. You said: hello there"


class Person(BaseModel):
    name: str
    age: int


@pytest.fixture(scope="module")
def chat_class():
    from langchain_openai import ChatOpenAI

    return ChatOpenAI


@pytest.fixture
def model(chat_class, running):
    return chat_class(model="echo-1", base_url=running.api_url, api_key="unused")


def test_invoke_answers_and_buys_once(model, account):
    answer = model.invoke("hello there")
    assert answer.content == ECHO
    assert answer.usage_metadata["output_tokens"] == 9
    assert account.accepts == account.payments == 1


def test_stream_gives_the_answer_in_pieces(model, account):
    pieces = [chunk.content for chunk in model.stream("hello there")]
    assert "".join(pieces) == ECHO
    assert len([piece for piece in pieces if piece]) > 5
    assert account.accepts == 1


async def test_the_async_calls_give_the_same(chat_class, running, account):
    # The default async client is shared and never closed; this one is closed.
    async with openai.DefaultAsyncHttpxClient() as http_client:
        model = chat_class(model="echo-1", base_url=running.api_url, api_key="unused", http_async_client=http_client)
        whole = await model.ainvoke("hello there")
        pieces = [chunk.content async for chunk in model.astream("hello there")]
    assert whole.content == "".join(pieces) == ECHO
    assert account.accepts == 2


def test_a_bound_tool_is_called_and_answered(model):
    from langchain_core.messages import HumanMessage
    from langchain_core.tools import tool

    @tool
    def add(a: int, b: int) -> int:
        """Add two numbers."""
        return a + b

    bound = model.bind_tools([add])
    question = HumanMessage("add something")
    asked = bound.invoke([question])
    [call] = asked.tool_calls
    assert (call["name"], call["args"]) == ("add", {"a": 1, "b": 1})
    answer = bound.invoke([question, asked, add.invoke(call)])
    assert answer.content.endswith("The tool answered: 2")


def test_structured_output_becomes_a_model(model):
    assert model.with_structured_output(Person).invoke("who?") == Person(name="echo", age=1)


def test_the_responses_api_works_too(chat_class, running, account):
    model = chat_class(model="echo-1", base_url=running.api_url, api_key="unused", use_responses_api=True)
    assert model.invoke("hello there").text == ECHO
    assert account.accepts == 1


def test_the_environment_alone_configures_it(chat_class, running, monkeypatch):
    monkeypatch.setenv("OPENAI_API_BASE", running.api_url)
    monkeypatch.setenv("OPENAI_API_KEY", "unused")
    assert chat_class(model="echo-1").invoke("hello there").content == ECHO


@pytest.mark.parametrize("fault", ["fail-after-payment", "execute-code-unavailable"])
def test_what_fails_after_payment_is_paid_once(chat_class, running, account, fault):
    model = chat_class(model=f"fault/{fault}", base_url=running.api_url, api_key="unused", max_retries=3)
    with pytest.raises(openai.APIStatusError):
        model.invoke("hello there")
    assert account.accepts == 1


def test_a_cut_stream_raises(chat_class, running, account):
    model = chat_class(model="fault/stream-cut", base_url=running.api_url, api_key="unused")
    with pytest.raises(openai.APIError, match="broke off"):
        list(model.stream("hello there"))
    assert account.accepts == 1


def test_the_documented_lines_print_the_answer(running, capsys):
    [example] = examples("LangChain", "python")
    exec(compile(pointed_at(example, running.base_url), "docs/clients.md", "exec"), {})
    echo = "This is the echo node. You said: hello"
    assert capsys.readouterr().out == f"{echo}\n{echo} again"
