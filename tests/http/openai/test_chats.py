"""Stored chat completions: listed, filtered, changed, deleted, and their messages."""

import json

import pytest
from openai.types.chat import ChatCompletion

from lcp_gateway.responses.store import StoreLimits
from tests.http.storing_front import BOB, response, storing_front

CHATS = "/v1/chat/completions"


def chat(completion_id="chatcmpl-1", text="hello", **fields):
    choice = {"index": 0, "finish_reason": "stop", "logprobs": None, "message": {"role": "assistant", "content": text, "refusal": None}}  # fmt: skip
    named = {} if completion_id is None else {"id": completion_id}
    document = {"object": "chat.completion", "created": 7, "model": "m", "choices": [choice]}
    return json.dumps({**named, **document, **fields}).encode()


def chunks(completion_id="chatcmpl-1", *texts):
    head = {"id": completion_id, "object": "chat.completion.chunk", "created": 7, "model": "m"}
    values = [{**head, "choices": [{"index": 0, "delta": {"content": text}}]} for text in texts]
    values.append({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    return [b"data: " + json.dumps(value).encode() + b"\n\n" for value in values] + [b"data: [DONE]\n\n"]


async def stored(front, number, key="alice", **fields):
    await front.bought(chat(f"chatcmpl-{number}"), front.chat(key, store=True, **fields))


async def ids(front, query="", key="alice"):
    got = await front.get(CHATS + query, key)
    assert got.status == 200, got.body
    return [item["id"] for item in got.document["data"]]


async def test_a_stored_completion_is_found_with_its_metadata(front):
    asked = front.chat(store=True, metadata={"run": "7"})
    got = await front.bought(chat(), asked)
    assert got.body == chat()
    found = await front.get(f"{CHATS}/chatcmpl-1")
    assert ChatCompletion.model_validate(found.document).choices[0].message.content == "hello"
    assert (found.document["metadata"], found.payment) == ({"run": "7"}, "none")
    # The provider's part keeps its bytes.
    assert chat()[chat().index(b'"choices"') : -1] in found.body


async def test_a_streamed_one_is_found_as_the_completion_that_it_amounts_to(front):
    await front.bought(chunks("chatcmpl-1", "he", "llo"), front.chat(store=True, stream=True))
    found = ChatCompletion.model_validate((await front.get(f"{CHATS}/chatcmpl-1")).document)
    assert (found.choices[0].message.content, found.object) == ("hello", "chat.completion")


async def test_they_are_listed_the_oldest_first_and_a_page_at_a_time(front):
    for number in range(5):
        await stored(front, number)
    assert await ids(front) == [f"chatcmpl-{number}" for number in range(5)]
    assert await ids(front, "?order=desc&limit=2") == ["chatcmpl-4", "chatcmpl-3"]
    page = (await front.get(f"{CHATS}?limit=2&after=chatcmpl-1")).document
    assert [item["id"] for item in page["data"]] == ["chatcmpl-2", "chatcmpl-3"]
    assert (page["object"], page["first_id"], page["last_id"], page["has_more"]) == (
        "list",
        "chatcmpl-2",
        "chatcmpl-3",
        True,
    )
    assert await ids(front, "?after=chatcmpl-4") == []


async def test_they_are_filtered_by_model_and_by_metadata(front):
    await stored(front, 0, metadata={"run": "1", "user": "a"})
    await stored(front, 1, metadata={"run": "1", "user": "b"}, model="other")
    await stored(front, 2)
    assert await ids(front, "?metadata[run]=1") == ["chatcmpl-0", "chatcmpl-1"]
    assert await ids(front, "?metadata%5Brun%5D=1&metadata[user]=b") == ["chatcmpl-1"]
    assert await ids(front, "?model=other") == ["chatcmpl-1"]
    assert await ids(front, "?model=other&metadata[user]=a") == []
    assert await ids(front, "?metadata[none]=") == []


async def test_an_empty_list_is_a_list(front):
    page = (await front.get(CHATS)).document
    assert page == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}


async def test_responses_and_completions_are_two_families(front):
    await front.bought(response("same"), front.create())
    await front.bought(chat("same"), front.chat(store=True))
    assert await ids(front) == ["same"]
    await front.ask("DELETE", f"{CHATS}/same")
    assert (await front.get("/v1/responses/same")).status == 200


async def test_other_metadata_takes_the_place_of_the_old_and_the_place_in_the_list_stays(front):
    for number in range(2):
        await stored(front, number, metadata={"run": "1"})
    got = await front.ask("POST", f"{CHATS}/chatcmpl-0", json={"metadata": {"new": "x"}})
    assert got.document["metadata"] == {"new": "x"}
    assert (await front.get(f"{CHATS}/chatcmpl-0")).body == got.body
    assert await ids(front) == ["chatcmpl-0", "chatcmpl-1"]
    cleared = await front.ask("POST", f"{CHATS}/chatcmpl-0", json={"metadata": None})
    assert cleared.document["metadata"] == {}


@pytest.mark.parametrize("body", [{}, {"metadata": 1}, {"metadata": {"a": 1}}, [], {"model": "m"}])
async def test_a_change_that_makes_no_sense_changes_nothing(front, body):
    await stored(front, 0, metadata={"run": "1"})
    assert (await front.ask("POST", f"{CHATS}/chatcmpl-0", json=body)).status == 400
    assert (await front.get(f"{CHATS}/chatcmpl-0")).document["metadata"] == {"run": "1"}


async def test_messages_are_listed_as_they_were_asked_with(front):
    parts = [{"type": "text", "text": "look"}]
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": parts, "name": "n"}, 7]
    await stored(front, 0, messages=messages)
    page = (await front.get(f"{CHATS}/chatcmpl-0/messages")).document
    assert [item["role"] for item in page["data"]] == ["system", "user", None]
    assert page["data"][1]["content_parts"] == parts
    assert len({item["id"] for item in page["data"]}) == 3
    last = (await front.get(f"{CHATS}/chatcmpl-0/messages?order=desc&limit=1")).document
    assert (last["data"], last["has_more"]) == ([page["data"][2]], True)


async def test_a_deleted_one_is_gone(front):
    await stored(front, 0)
    got = await front.ask("DELETE", f"{CHATS}/chatcmpl-0")
    assert got.document == {"object": "chat.completion.deleted", "id": "chatcmpl-0", "deleted": True}
    assert await ids(front) == []


@pytest.mark.parametrize("completion_id", ["chatcmpl-0", "chatcmpl-none"])
async def test_a_chat_of_another_key_is_unknown(front, completion_id):
    await stored(front, 0)
    for method, path in (("GET", ""), ("POST", ""), ("DELETE", ""), ("GET", "/messages")):
        got = await front.ask(
            method, f"{CHATS}/{completion_id}{path}", BOB, json={"metadata": {}} if method == "POST" else None
        )
        assert (got.status, got.code, got.param) == (404, "completion_not_found", "completion_id")
    assert await ids(front, key=BOB) == []
    assert await ids(front, key=BOB, query="?model=m") == []


@pytest.mark.parametrize(
    ("query", "param"), [("limit=x", "limit"), ("order=newest", "order"), ("after=chatcmpl-9", "after")]
)
async def test_a_page_that_makes_no_sense_is_refused(front, query, param):
    got = await front.get(f"{CHATS}?{query}")
    assert (got.status, got.param) == (400, param)


async def test_one_without_an_id_gets_one_since_storing_was_asked_for(front):
    got = await front.bought(chat(None), front.chat(store=True))
    assert got.document["id"].startswith("chatcmpl-")
    assert await ids(front) == [got.document["id"]]


async def test_one_that_cannot_be_read_does_not_hide_the_others_by_id(front):
    await front.bought([b'data: {"id":"chatcmpl-0"}\n\n'], front.chat(store=True, stream=True))
    await stored(front, 1)
    assert (await front.get(f"{CHATS}/chatcmpl-0")).code == "unreadable"
    assert (await front.get(f"{CHATS}/chatcmpl-1")).status == 200


async def test_where_nothing_is_stored_lists_are_empty_and_ids_say_why():
    async with storing_front(limits=StoreLimits(0, 10**6, 1e6)) as front:
        await stored(front, 0)
        assert await ids(front) == []
        assert "max_stored_items" in (await front.get(f"{CHATS}/chatcmpl-0")).document["error"]["message"]
        await front.idle()
