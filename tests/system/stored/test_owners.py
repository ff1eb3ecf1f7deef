"""Two keys at one gateway: neither can distinguish the other's objects from missing ones."""

import pytest

from tests.support.gateway import gateway
from tests.support.stored import begun, cancel, chat, delete, ended, respond, retrieve
from tests.support.wire import CHAT, RESPONSES, get, post

KEYS = ("sk-the-first-of-the-test", "sk-the-second-of-the-test")
MINE, THEIRS = ({"Authorization": f"Bearer {key}"} for key in KEYS)


@pytest.fixture(scope="module")
def port():
    settings = {"LCP_GATEWAY_API_KEYS": ",".join(KEYS), "LCP_GATEWAY_NODE_FAULTS": "true"}
    with gateway(env=settings) as running:
        yield running.port


def on_a_response(port, response_id, headers):
    """Every way to get at a response."""
    return {
        "get": retrieve(port, response_id, headers=headers),
        "stream": retrieve(port, response_id, "?stream=true", headers=headers),
        "resume": retrieve(port, response_id, "?stream=true&starting_after=1", headers=headers),
        "items": get(port, f"{RESPONSES}/{response_id}/input_items", headers),
        "chain": respond(port, previous_response_id=response_id, headers=headers),
        "chain in the background": respond(port, previous_response_id=response_id, background=True, headers=headers),
        "chain, streamed": respond(port, previous_response_id=response_id, stream=True, headers=headers),
        "quote": respond(port, previous_response_id=response_id, headers={**headers, "X-Lcp-Quote-Only": "true"}),
        "cancel": cancel(port, response_id, headers=headers),
        "delete": delete(port, f"{RESPONSES}/{response_id}", headers=headers),
    }


def on_a_chat(port, chat_id, headers):
    """Every way to get at a stored chat."""
    path = f"{CHAT}/{chat_id}"
    return {
        "get": get(port, path, headers),
        "messages": get(port, f"{path}/messages", headers),
        "update": post(port, path, {"metadata": {"a": "b"}}, headers),
        "update with nonsense": post(port, path, b"no json", headers),
        "delete": delete(port, path, headers=headers),
    }


def alike(found, missing):
    """Check that two sets of answers differ only in values that are unique to each answer."""
    assert found.keys() == missing.keys()
    for name, answer in found.items():
        other = missing[name]
        assert answer.status == other.status == 404, name
        assert answer.body == other.body, name
        own = {"x-request-id", "date", "openai-processing-ms"}
        assert {k: v for k, v in answer.headers.items() if k not in own} == {
            k: v for k, v in other.headers.items() if k not in own
        }, name
        assert answer.verdict == "none" or name in {"get", "stream"}, name


def test_anothers_response_is_like_one_that_does_not_exist(port):
    made = respond(port, headers=MINE).json["id"]
    alike(on_a_response(port, made, THEIRS), on_a_response(port, "resp_" + "0" * (len(made) - 5), THEIRS))
    # And the other's attempts had no effect.
    assert retrieve(port, made, headers=MINE).status == 200


def test_anothers_background_response_is_like_one_that_does_not_exist(port):
    made = begun(port, "word " * 1_000, model="echo-slow", headers=MINE)
    missing = on_a_response(port, "resp_bg_" + "0" * 48, THEIRS)
    alike(on_a_response(port, made, THEIRS), missing)
    assert retrieve(port, made, headers=MINE).json["status"] in {"queued", "in_progress"}
    assert cancel(port, made, headers=MINE).json["status"] == "cancelled"
    alike(on_a_response(port, made, THEIRS), missing)
    assert delete(port, f"{RESPONSES}/{made}", headers=MINE).status == 200


def test_anothers_chat_is_like_one_that_does_not_exist(port):
    made = chat(port, headers=MINE).json["id"]
    alike(on_a_chat(port, made, THEIRS), on_a_chat(port, "chatcmpl-missing", THEIRS))
    assert get(port, f"{CHAT}/{made}", MINE).json["metadata"] == {}
    assert made in [one["id"] for one in get(port, CHAT, MINE).json["data"]]
    assert get(port, CHAT, THEIRS).json["data"] == []


def test_anothers_chat_is_no_valid_page_cursor(port):
    made = chat(port, headers=MINE).json["id"]
    theirs = get(port, f"{CHAT}?after={made}", THEIRS)
    missing = get(port, f"{CHAT}?after=chatcmpl-missing", THEIRS)
    assert (theirs.status, theirs.body) == (missing.status, missing.body)


def test_the_same_idempotency_key_of_two_credentials_is_two_jobs(port):
    key = {"Idempotency-Key": "the-same"}
    mine = begun(port, headers={**MINE, **key})
    theirs = begun(port, headers={**THEIRS, **key})
    assert mine != theirs
    assert ended(port, mine, headers=MINE).json["status"] == "completed"
    assert ended(port, theirs, headers=THEIRS).json["status"] == "completed"


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer sk-wrong"}])
def test_without_a_key_every_request_is_401(port, headers):
    made = respond(port, headers=MINE).json["id"]
    stored = chat(port, headers=MINE).json["id"]
    answers = [
        retrieve(port, made, headers=headers),
        delete(port, f"{RESPONSES}/{made}", headers=headers),
        cancel(port, made, headers=headers),
        get(port, f"{RESPONSES}/{made}/input_items", headers),
        get(port, CHAT, headers),
        get(port, f"{CHAT}/{stored}", headers),
        post(port, f"{CHAT}/{stored}", {"metadata": {}}, headers),
        delete(port, f"{CHAT}/{stored}", headers=headers),
        get(port, f"{CHAT}/{stored}/messages", headers),
    ]
    assert {answer.status for answer in answers} == {401}
    assert retrieve(port, made, headers=MINE).status == 200
