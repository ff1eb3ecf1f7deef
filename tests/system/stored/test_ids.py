"""The id by which a result is retrieved: its provider's own, or one of the gateway's only where the client asked for storing."""

import json

import pytest

from tests.support.http_node import HttpNodeThread
from tests.support.stored import MODEL, begun, chat, ended, last_response, numbers, on_http_node, respond, retrieve
from tests.support.wire import CHAT, get

MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "content": [{"type": "output_text", "text": "hi", "annotations": []}],
}
EVENTS = "text/event-stream"


@pytest.fixture(scope="module")
def node():
    with HttpNodeThread("one", (MODEL,)) as running:
        yield running


@pytest.fixture(scope="module")
def port(node):
    with on_http_node(node) as running:
        yield running.port


@pytest.fixture(autouse=True)
def as_usual(node):
    node.behave(raw=None, content_type="")


def response(**more) -> dict:
    return {"object": "response", "status": "completed", "output": [MESSAGE], **more}


def answers(node, document: dict) -> bytes:
    raw = json.dumps(document).encode()
    node.behave(raw=raw)
    return raw


def streams(node, *events: dict, done: bool = False) -> bytes:
    raw = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)
    raw += b"data: [DONE]\n\n" if done else b""
    node.behave(raw=raw, content_type=EVENTS)
    return raw


def test_the_providers_own_id_is_the_one(node, port):
    raw = answers(node, response(id="resp_of_the_provider"))
    assert respond(port, model=MODEL).body == raw
    assert retrieve(port, "resp_of_the_provider").body == raw


@pytest.mark.parametrize("given", [None, "", 7, "a/b", "..", "with space", "x" * 300, "\u00fc"])
def test_an_invalid_id_is_unchanged_and_nothing_is_stored(node, port, given):
    raw = answers(node, response(id=given) if given is not None else response())
    answer = respond(port, "unasked", model=MODEL)
    assert answer.status == 200 and answer.body == raw


@pytest.mark.parametrize("given", [None, "", 7, "a/b"])
def test_a_client_that_asks_for_storing_gets_an_id_that_works(node, port, given):
    raw = answers(node, response(id=given) if given is not None else response())
    made = respond(port, "asked", model=MODEL, store=True)
    found = retrieve(port, made.json["id"])
    assert found.status == 200 and found.body == made.body != raw
    assert {**made.json, "id": None} == {**json.loads(raw), "id": None}
    second = respond(port, "more", model=MODEL, previous_response_id=made.json["id"])
    assert second.status == 200 and retrieve(port, second.json["id"]).status == 200


def test_a_stream_without_an_id_gets_one_where_the_client_asked(node, port):
    streams(
        node,
        {"type": "response.created", "response": {"status": "in_progress"}},
        {"type": "response.completed", "response": response()},
    )
    made = respond(port, "asked", model=MODEL, store=True, stream=True)
    response_id = last_response(made)["id"]
    assert json.loads(made.blocks[0][1])["response"]["id"] == response_id
    found = retrieve(port, response_id)
    assert found.status == 200 and found.json["output"] == [MESSAGE]
    again = retrieve(port, response_id, "?stream=true")
    assert [json.loads(data) for _, data in again.blocks] == [
        {**json.loads(data), "sequence_number": number} for number, (_, data) in enumerate(made.blocks)
    ]


def test_a_stream_without_an_id_stays_as_it_is_where_the_client_did_not_ask(node, port):
    raw = streams(
        node,
        {"type": "response.created", "response": {"status": "in_progress"}},
        {"type": "response.completed", "response": response()},
    )
    assert respond(port, "unasked", model=MODEL, stream=True).body == raw


def completion(**more) -> dict:
    message = {"role": "assistant", "content": "hi"}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {"object": "chat.completion", "model": MODEL, "choices": [choice], **more}


def test_a_chat_without_an_id_gets_one(node, port):
    answers(node, completion())
    made = chat(port, model=MODEL)
    found = get(port, f"{CHAT}/{made.json['id']}")
    assert found.status == 200
    assert found.json["choices"] == completion()["choices"]


def test_a_chat_stream_without_an_id_gets_one(node, port):
    def chunk(delta, finish=None):
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return {"object": "chat.completion.chunk", "model": MODEL, "choices": [choice]}

    streams(node, chunk({"role": "assistant", "content": "hi"}), chunk({}, "stop"), done=True)
    made = chat(port, "streamed", model=MODEL, stream=True)
    documents = [json.loads(data) for _, data in made.blocks if data != "[DONE]"]
    assert made.blocks[-1][1] == "[DONE]"
    [chat_id] = {document["id"] for document in documents}
    found = get(port, f"{CHAT}/{chat_id}")
    assert found.status == 200
    assert found.json["choices"][0]["message"]["content"] == "hi"


def test_a_duplicate_id_returns_the_newer_response(node, port):
    answers(node, response(id="resp_same", n=1))
    respond(port, "one", model=MODEL)
    answers(node, response(id="resp_same", n=2))
    respond(port, "two", model=MODEL)
    assert retrieve(port, "resp_same").json["n"] == 2


def test_a_response_and_a_chat_may_have_the_same_id(node, port):
    answers(node, response(id="both"))
    respond(port, model=MODEL)
    answers(node, completion(id="both"))
    chat(port, model=MODEL)
    assert retrieve(port, "both").json["object"] == "response"
    assert get(port, f"{CHAT}/both").json["object"] == "chat.completion"


def test_a_background_response_goes_by_the_id_that_its_client_knows(node, port):
    answers(node, response(id="resp_of_the_provider_2"))
    response_id = begun(port, "background", model=MODEL)
    found = ended(port, response_id)
    assert found.json["id"] == response_id and found.json["background"] is True
    assert retrieve(port, "resp_of_the_provider_2").status == 404
    replayed = retrieve(port, response_id, "?stream=true")
    assert last_response(replayed)["id"] == response_id
    assert numbers(replayed) == list(range(len(replayed.blocks)))


def test_an_answer_that_is_no_response_fails_in_the_background_and_says_that_it_was_paid(node, port):
    node.behave(raw=b"no JSON at all", content_type="text/plain")
    response_id = begun(port, "garbage", model=MODEL)
    found = ended(port, response_id)
    assert found.json["status"] == "failed"
    assert found.json["lcp"]["payment"] == found.verdict
    assert found.json["error"]["code"]
    replayed = retrieve(port, response_id, "?stream=true")
    assert last_response(replayed)["status"] == "failed"


@pytest.mark.parametrize("status", [None, "queued", "in_progress", 7])
def test_a_result_that_says_that_it_goes_on_has_ended_all_the_same(node, port, status):
    """Otherwise a client that polls it never stops."""
    document = response(id="resp_1")
    del document["status"]
    answers(node, document if status is None else {**document, "status": status})
    found = ended(port, begun(port, f"status {status}", model=MODEL))
    assert found.json["status"] == "completed" and found.json["output"] == [MESSAGE]


def test_a_result_that_is_incomplete_says_so(node, port):
    answers(node, response(id="resp_1") | {"status": "incomplete"})
    found = ended(port, begun(port, "status incomplete", model=MODEL))
    assert found.json["status"] == "incomplete" and found.json["output"] == [MESSAGE]


def test_a_result_that_says_that_it_failed_is_none(node, port):
    answers(node, response(id="resp_1") | {"status": "failed"})
    found = ended(port, begun(port, "status failed", model=MODEL))
    assert found.json["status"] == "failed" and found.json["output"] == []
    assert found.json["error"]["code"] == "undelivered"
