"""The official Python SDK and what the gateway keeps: chains, background jobs, stored chats; sync and async alike."""

import openai
import pytest

from tests.support.sdk import completed, done, every, polled

ECHO = "This is the echo node. You said: "
WEATHER = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": False,
}
# At 20 tokens a second this takes ten seconds.
LONG = "word " * 200
BOTH = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])


@pytest.fixture(params=["sync", "async"])
async def client(request, running):
    settings = {"base_url": running.api_url, "api_key": "unused", "max_retries": 0}
    if request.param == "sync":
        with openai.OpenAI(**settings) as made:
            yield made
    else:
        async with openai.AsyncOpenAI(**settings) as made:
            yield made


async def said(client, text, *, stream=False, model="echo-1", **more):
    """Create a response; return a streamed one as it was at its end."""
    made = await done(client.responses.create(model=model, input=text, stream=stream, **more))
    return (await every(made))[-1].response if stream else made


async def input_of(client, response_id, **more):
    return await every(client.responses.input_items.list(response_id, **more))


def texts(items) -> list[str]:
    return [item.content[0].text for item in items if item.type == "message"]


# Responses that are stored.


@BOTH
async def test_a_response_can_be_retrieved_and_costs_nothing_again(client, account, stream):
    made = await said(client, "hello", stream=stream)
    found = await done(client.responses.retrieve(made.id))
    assert found.id == made.id and found.output_text == ECHO + "hello"
    assert found.to_dict() == made.to_dict()
    assert account.accepts == account.payments == 1


@BOTH
async def test_a_stored_response_can_be_streamed_again(client, account, stream):
    made = await said(client, "hello", stream=stream)
    events = await every(await done(client.responses.retrieve(made.id, stream=True)))
    assert events[0].type == "response.created"
    assert events[-1].type == "response.completed"
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == ECHO + "hello"
    assert events[-1].response.to_dict() == made.to_dict()

    later = await every(await done(client.responses.retrieve(made.id, stream=True, starting_after=3)))
    assert [event.to_dict() for event in later] == [event.to_dict() for event in events[4:]]
    assert account.accepts == 1


@BOTH
async def test_a_chain_three_deep_with_a_tool_in_between(client, account, stream):
    """Each turn sends only new items, and the provider gets the whole conversation."""
    first = await said(client, "one", stream=stream)
    asked = await said(client, "two", stream=stream, previous_response_id=first.id, tools=[WEATHER])
    [call] = asked.output
    assert (call.type, call.name) == ("function_call", "weather")
    tool_output = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
    answered = await said(client, [tool_output], stream=stream, previous_response_id=asked.id, tools=[WEATHER])
    assert answered.output_text == "This is the echo node. The tool answered: rain"
    last = await said(client, "three", stream=stream, previous_response_id=answered.id)
    assert last.output_text == ECHO + "three (and before that: one / two)"
    assert account.accepts == account.payments == 4

    items = await input_of(client, last.id, order="asc")
    assert [item.type for item in items] == [
        *("message", "message", "message"),
        *("function_call", "function_call_output", "message", "message"),
    ]
    assert texts(items) == ["one", ECHO + "one", "two", answered.output_text, "three"]
    assert items[3].call_id == items[4].call_id == call.call_id
    # The price grows with the length of the conversation.
    assert last.usage.input_tokens > answered.usage.input_tokens > first.usage.input_tokens


async def test_a_chain_may_be_streamed_now_and_then_and_branch(client):
    root = await said(client, "root", stream=True)
    left = await said(client, "left", previous_response_id=root.id)
    right = await said(client, "right", previous_response_id=root.id, stream=True)
    for turn, word in [(left, "left"), (right, "right")]:
        items = await input_of(client, turn.id, order="asc")
        assert texts(items) == ["root", ECHO + "root", word]


async def test_the_input_items_come_a_page_at_a_time_the_newest_first(client):
    first = await said(client, [{"role": "user", "content": f"n{n}"} for n in range(5)])
    newest = await input_of(client, first.id)
    assert texts(newest) == ["n4", "n3", "n2", "n1", "n0"]
    assert texts(await input_of(client, first.id, limit=2)) == texts(newest)
    page = await done(client.responses.input_items.list(first.id, limit=2))
    assert texts(page.data) == ["n4", "n3"] and page.has_more
    after = await done(client.responses.input_items.list(first.id, limit=2, order="asc", after=newest[3].id))
    assert texts(after.data) == ["n2", "n3"]


async def test_a_deleted_response_is_404_on_every_route(client, account):
    made = await said(client, "hello")
    await done(client.responses.delete(made.id))
    for gone in (
        client.responses.retrieve,
        client.responses.delete,
        client.responses.cancel,
        lambda rid: client.responses.retrieve(rid, stream=True),
    ):
        with pytest.raises(openai.NotFoundError):
            await done(gone(made.id))
    with pytest.raises(openai.NotFoundError):
        await input_of(client, made.id)
    with pytest.raises(openai.NotFoundError) as raised:
        await said(client, "more", previous_response_id=made.id)
    assert raised.value.code == "previous_response_not_found"
    assert raised.value.param == "previous_response_id"
    assert raised.value.response.headers["x-lcp-payment"] == "none"
    assert account.accepts == 1


async def test_a_chain_holds_when_its_beginning_is_deleted(client):
    first = await said(client, "one")
    second = await said(client, "two", previous_response_id=first.id)
    await done(client.responses.delete(first.id))
    third = await said(client, "three", previous_response_id=second.id)
    items = await input_of(client, third.id, order="asc")
    assert texts(items) == ["one", ECHO + "one", "two", ECHO + "two (and before that: one)", "three"]


async def test_store_false_stores_nothing(client):
    made = await said(client, "hello", store=False)
    with pytest.raises(openai.NotFoundError):
        await done(client.responses.retrieve(made.id))
    with pytest.raises(openai.NotFoundError):
        await said(client, "more", previous_response_id=made.id)


async def test_a_turn_that_is_not_stored_can_still_build_on_one_that_is(client):
    first = await said(client, "one")
    second = await said(client, "two", previous_response_id=first.id, store=False)
    assert second.usage.input_tokens > first.usage.input_tokens
    with pytest.raises(openai.NotFoundError):
        await done(client.responses.retrieve(second.id))


@pytest.mark.parametrize("fault", ["stream-cut", "wrong-hash", "fail-after-payment"])
async def test_cut_and_failed_responses_are_not_stored(client, account, fault):
    seen = []
    with pytest.raises(openai.APIError):
        stream = await done(client.responses.create(model=f"fault/{fault}", input="hello", stream=True))
        if hasattr(stream, "__aiter__"):
            async for event in stream:
                seen.append(event)
        else:
            seen.extend(stream)
    if seen:
        with pytest.raises(openai.NotFoundError):
            await done(client.responses.retrieve(seen[0].response.id))
    assert account.accepts == 1


async def test_the_tokens_of_a_turn_are_counted_with_all_that_it_builds_on(client, account):
    first = await said(client, "word " * 200)
    before = account.accepts
    count = client.responses.input_tokens.count
    alone = await done(count(model="echo-1", input="more"))
    chained = await done(count(model="echo-1", input="more", previous_response_id=first.id))
    assert chained.input_tokens > alone.input_tokens + 200
    with pytest.raises(openai.NotFoundError):
        await done(count(model="echo-1", input="more", previous_response_id="resp_missing"))
    assert account.accepts == before


# The background.


async def test_a_background_response_is_queued_then_there(client, account):
    begun = await said(client, "hello", model="echo-slow", background=True)
    assert begun.status == "queued" and begun.background
    assert begun.output == [] and begun.error is None
    found = await completed(client, begun.id)
    assert found.id == begun.id and found.background
    assert found.output_text == ECHO + "hello"
    assert account.accepts == account.payments == 1
    raw = await done(client.responses.with_raw_response.retrieve(begun.id))
    assert raw.headers["x-lcp-payment"] == "settled"
    assert raw.headers["x-lcp-job-id"] == account.seen("accept")[0]["job_id"]


async def test_background_turns_chain_with_others(client, account):
    first = await said(client, "one")
    second = await said(client, "two", background=True, previous_response_id=first.id)
    assert second.previous_response_id == first.id
    found = await completed(client, second.id)
    assert found.previous_response_id == first.id
    third = await said(client, "three", previous_response_id=second.id)
    items = await input_of(client, third.id, order="asc")
    assert texts(items) == ["one", ECHO + "one", "two", ECHO + "two (and before that: one)", "three"]
    assert account.accepts == 3


async def test_a_background_response_can_be_cancelled_before_it_is_paid(client, account):
    begun = await said(client, "hello", model="fault/quote-slow", background=True)
    found = await done(client.responses.cancel(begun.id))
    assert (found.id, found.status) == (begun.id, "cancelled")
    assert found.lcp["payment"] == "none"
    assert (await done(client.responses.retrieve(begun.id))).status == "cancelled"
    assert account.accepts == 0


async def test_a_background_response_can_be_cancelled_after_it_is_paid(client, account):
    begun = await said(client, LONG, model="echo-slow", background=True)
    await polled(client, begun.id, lambda it: it.status == "in_progress" and account.payments)
    found = await done(client.responses.cancel(begun.id))
    assert found.status == "cancelled"
    assert found.lcp["payment"] in {"settled", "unknown"}
    again = await done(client.responses.cancel(begun.id))
    assert again.to_dict() == found.to_dict()
    assert account.accepts == 1


async def test_cancelling_a_completed_job_returns_it(client):
    begun = await said(client, "hello", background=True)
    found = await completed(client, begun.id)
    assert (await done(client.responses.cancel(begun.id))).to_dict() == found.to_dict()


async def test_only_the_background_can_be_cancelled(client):
    made = await said(client, "hello")
    with pytest.raises(openai.BadRequestError):
        await done(client.responses.cancel(made.id))


async def test_a_failed_background_response_says_why_and_what_was_paid(client, account):
    begun = await said(client, "hello", model="fault/fail-after-payment", background=True)
    found = await polled(client, begun.id, lambda it: it.status == "failed")
    assert found.error.code and found.error.message
    assert found.lcp["payment"] in {"settled", "unknown"}
    assert account.accepts == 1


async def test_a_background_stream_is_resumed_where_it_was_left(client, account):
    """Also while it runs: a client that reconnects gets the remaining events, and none twice."""
    # Where the short one has ended before it is looked at, a longer one has not.
    for text in ("a b c d e f g", "a b c d e " * 20 + "f", "a b c d e " * 80 + "f"):
        before = account.accepts
        begun, seen = await left_after_six_events(client, text)
        status = (await done(client.responses.retrieve(begun.id))).status
        if status == "in_progress":
            break
    assert status == "in_progress"
    rest = await every(await done(client.responses.retrieve(begun.id, stream=True, starting_after=seen[-1])))
    numbers = seen + [event.sequence_number for event in rest]
    assert numbers == list(range(len(numbers)))
    assert rest[-1].type == "response.completed"
    assert rest[-1].response.id == begun.id
    assert rest[-1].response.output_text == ECHO + text
    assert account.accepts == account.payments == before + 1
    again = await every(await done(client.responses.retrieve(begun.id, stream=True, starting_after=seen[-1])))
    assert [event.to_dict() for event in again] == [event.to_dict() for event in rest]


async def left_after_six_events(client, text):
    """Stream a background response and leave it; return it as it began, and the numbers of the events."""
    stream = await done(client.responses.create(model="echo-slow", input=text, background=True, stream=True))
    begun, seen = None, []
    if hasattr(stream, "__aiter__"):
        async for event in stream:
            begun = begun or event.response
            seen.append(event.sequence_number)
            if len(seen) == 6:
                break
        await stream.close()
    else:
        for event in stream:
            begun = begun or event.response
            seen.append(event.sequence_number)
            if len(seen) == 6:
                break
        stream.close()
    return begun, seen


async def test_the_background_cannot_go_with_store_false(client, account):
    with pytest.raises(openai.BadRequestError) as raised:
        await said(client, "hello", background=True, store=False)
    assert raised.value.param == "background"
    assert account.accepts == 0


# Chat completions that are stored.


async def chat(client, text, tag, *, model="echo-1", **more):
    return await done(
        client.chat.completions.create(
            model=model,
            messages=[{"role": "system", "content": "be brief"}, {"role": "user", "content": text}],
            store=True,
            metadata={"test": tag, "text": text},
            **more,
        )
    )


@pytest.fixture
def tag(request):
    """The metadata by which a test finds its own chats."""
    return request.node.name[:64]


async def test_a_chat_completion_is_stored_listed_updated_and_deleted(client, account, tag):
    chats = client.chat.completions
    made = await chat(client, "hello", tag)
    [listed] = await every(chats.list(metadata={"test": tag}))
    assert listed.id == made.id
    assert listed.choices[0].message.content == ECHO + "hello"
    assert listed.metadata == {"test": tag, "text": "hello"}

    found = await done(chats.retrieve(made.id))
    assert found.to_dict() == listed.to_dict()
    updated = await done(chats.update(made.id, metadata={"test": tag, "mood": "good"}))
    assert updated.metadata == {"test": tag, "mood": "good"}
    assert (await done(chats.retrieve(made.id))).metadata == updated.metadata
    assert await every(chats.list(metadata={"text": "hello", "test": tag})) == []

    messages = await every(chats.messages.list(made.id))
    assert [(message.role, message.content) for message in messages] == [("system", "be brief"), ("user", "hello")]
    assert len({message.id for message in messages}) == 2

    deleted = await done(chats.delete(made.id))
    assert deleted.deleted and deleted.id == made.id
    for gone in (chats.retrieve, chats.delete, lambda cid: chats.update(cid, metadata={})):
        with pytest.raises(openai.NotFoundError):
            await done(gone(made.id))
    with pytest.raises(openai.NotFoundError):
        await every(chats.messages.list(made.id))
    assert account.accepts == account.payments == 1


async def test_a_streamed_chat_is_stored_as_the_completion_that_it_was(client, tag):
    stream = await chat(client, "hello", tag, stream=True, stream_options={"include_usage": True})
    chunks = await every(stream)
    found = await done(client.chat.completions.retrieve(chunks[0].id))
    assert found.object == "chat.completion"
    assert found.choices[0].message.content == ECHO + "hello"
    assert found.choices[0].finish_reason == "stop"
    assert found.usage.to_dict() == chunks[-1].usage.to_dict()


async def test_stored_chats_are_listed_by_model_metadata_and_page(client, tag):
    chats = client.chat.completions
    made = [await chat(client, f"n{n}", tag, model="echo-1" if n % 2 else "echo-mini") for n in range(5)]
    ids = [one.id for one in made]

    async def found(**more):
        return [one.id for one in await every(chats.list(metadata={"test": tag}, **more))]

    assert await found() == ids
    assert await found(order="desc") == ids[::-1]
    assert await found(limit=2) == ids
    assert await found(model="echo-1") == [ids[1], ids[3]]
    assert await found(after=ids[1]) == ids[2:]
    assert await found(after=ids[1], order="desc", limit=1) == [ids[0]]
    assert await found(model="no-such-model") == []
    page = await done(chats.list(metadata={"test": tag, "text": "n3"}))
    assert [one.id for one in page.data] == [ids[3]] and not page.has_more


async def test_a_chat_is_stored_only_if_asked(client):
    messages = [{"role": "user", "content": "hello"}]
    for more in ({}, {"store": False}):
        made = await done(client.chat.completions.create(model="echo-1", messages=messages, **more))
        with pytest.raises(openai.NotFoundError):
            await done(client.chat.completions.retrieve(made.id))


async def test_a_stored_chat_with_tools_keeps_its_calls_and_their_outputs(client, tag):
    function = {key: WEATHER[key] for key in ("name", "parameters")}
    tools = [{"type": "function", "function": function}]
    asked = await chat(client, "rain?", tag, tools=tools)
    call = asked.choices[0].message
    tool_output = {"role": "tool", "tool_call_id": call.tool_calls[0].id, "content": "rain"}
    answer = await done(
        client.chat.completions.create(
            model="echo-1", messages=[{"role": "user", "content": "rain?"}, call, tool_output], store=True, tools=tools
        )
    )
    messages = await every(client.chat.completions.messages.list(answer.id))
    assert [message.role for message in messages] == ["user", "assistant", "tool"]
    assert messages[1].tool_calls[0].id == call.tool_calls[0].id
    newest = await every(client.chat.completions.messages.list(answer.id, order="desc", limit=1))
    assert [message.id for message in newest] == [message.id for message in messages[::-1]]
