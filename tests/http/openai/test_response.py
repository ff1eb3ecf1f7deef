"""Changes to a result on its way to the client: none, unless the client asked the gateway for one."""

import json
from dataclasses import replace

import pytest

from lcp_gateway.http.openai.response import ADAPTER_HEADER, ROUTING_HEADER, ResultTransform, safe_header
from lcp_gateway.purchase.errors import Undelivered
from lcp_gateway.purchase.money import Msat
from lcp_gateway.purchase.order import Task, TaskKind
from lcp_gateway.purchase.purchase import Purchase
from lcp_gateway.purchase.quote import Candidate
from lcp_gateway.routing.adaptation import COMPLETIONS_AS_CHAT
from tests.support.purchases import PEER, TASK, order, quote

COMPLETION = Task(TaskKind.COMPLETIONS, "m", b'{"model":"m","prompt":"Say","echo":true}', stream=False)
STREAMED = Task(TaskKind.COMPLETIONS, "m", b'{"model":"m","prompt":"Say","stream":true}', stream=True)
ROUTING = {"source": "lcp", "peer": PEER, "model": "m", "score": 0.5, "candidates": 3}
CHAT_ANSWER = (
    b'{"id":"c","object":"chat.completion","model":"m","choices":'
    b'[{"index":0,"message":{"role":"assistant","content":" hi"},"finish_reason":"stop"}]}'
)
CHUNK = b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"hi"}}]}\r\n\r\n'
DONE = b"data: [DONE]\n\n"
PLAIN = ["", "identity", " Identity "]
ENCODED = ["gzip", "br", "zstd"]


def transform(task=TASK, *, adapter="", routing=None, encoding="identity", charged_msat=None):
    candidate = Candidate(PEER, adapter=adapter, routing=routing)
    purchase = Purchase(order(task), quote(), candidate=candidate)
    if charged_msat is not None:
        purchase.charged_msat = Msat(charged_msat)
    return ResultTransform(order(task), purchase, encoding)


async def stream_of(*chunks):
    for chunk in chunks:
        if isinstance(chunk, Exception):
            raise chunk
        yield chunk


async def transformed(made, *chunks) -> bytes:
    return b"".join([chunk async for chunk in made.stream(stream_of(*chunks))])


# -- no options -------------------------------------------------------------


@pytest.mark.parametrize("encoding", PLAIN + ENCODED)
def test_a_plain_result_is_the_very_same_object(encoding):
    body = b' {"odd" :  1 }\r\n'
    made = transform(encoding=encoding)
    assert made.whole(body) is body
    assert made.headers() == {}


async def test_a_plain_stream_is_the_very_same_generator():
    chunks = stream_of(CHUNK)
    assert transform().stream(chunks) is chunks
    await chunks.aclose()


def test_a_request_for_a_chat_is_not_read_again():
    assert transform(replace(TASK, body=b"no JSON")).whole(b"x") == b"x"


# -- routing --------------------------------------------------------------------------------------


def test_the_routing_is_a_field_of_the_result_and_a_header():
    made = transform(routing=ROUTING)
    body = made.whole(b'{ "id":"c" }\n')
    assert body.startswith(b'{ "id":"c" ,')
    info = json.loads(body)["routing_info"]
    assert info == {**ROUTING, "price_msat": 5_000}
    assert json.loads(made.headers()[ROUTING_HEADER]) == info
    assert ADAPTER_HEADER not in made.headers()


def test_the_price_is_the_final_one_once_that_is_known():
    made = transform(routing=ROUTING, charged_msat=1_200)
    assert json.loads(made.headers()[ROUTING_HEADER])["price_msat"] == 1_200


def test_the_routers_own_facts_are_not_changed():
    said = dict(ROUTING)
    transform(routing=said).whole(b"{}")
    assert said == ROUTING


def test_a_result_that_is_no_object_is_left_alone():
    assert transform(routing=ROUTING).whole(b"[1]") == b"[1]"


async def test_the_routing_is_in_the_first_event_of_a_stream_and_all_else_is_as_it_came():
    out = await transformed(transform(routing=ROUTING), b": hi\n\n" + CHUNK[:20], CHUNK[20:], CHUNK, DONE)
    assert out.startswith(b": hi\n\n" + CHUNK[:-5] + b',"routing_info":{"source":"lcp"')
    assert out.endswith(b"}}\r\n\r\n" + CHUNK + DONE)
    assert out.count(b"routing_info") == 1


@pytest.mark.parametrize("encoding", ENCODED)
async def test_encoded_bytes_are_left_alone_and_only_the_headers_speak(encoding):
    body = b"\x1f\x8b\x08{}"
    made = transform(COMPLETION, adapter=COMPLETIONS_AS_CHAT, routing=ROUTING, encoding=encoding)
    assert made.whole(body) is body
    chunks = stream_of(body)
    assert made.stream(chunks) is chunks
    await chunks.aclose()
    assert set(made.headers()) == {ADAPTER_HEADER, ROUTING_HEADER}


@pytest.mark.parametrize("encoding", PLAIN)
def test_plain_is_however_it_is_spelled(encoding):
    assert b"routing_info" in transform(routing=ROUTING, encoding=encoding).whole(b"{}")


# -- the adapter ----------------------------------------------------------------------------------


def test_a_chat_is_turned_back_into_the_completion_that_was_asked_for():
    made = transform(COMPLETION, adapter=COMPLETIONS_AS_CHAT)
    document = json.loads(made.whole(CHAT_ANSWER))
    assert document["object"] == "text_completion"
    assert document["choices"][0]["text"] == "Say hi"
    assert "routing_info" not in document
    assert made.headers() == {ADAPTER_HEADER: COMPLETIONS_AS_CHAT}


def test_adapter_and_routing_go_together():
    made = transform(COMPLETION, adapter=COMPLETIONS_AS_CHAT, routing=ROUTING)
    document = json.loads(made.whole(CHAT_ANSWER))
    assert (document["object"], document["routing_info"]["model"]) == ("text_completion", "m")


@pytest.mark.parametrize("size", [1, 7, 1_000])
async def test_a_stream_of_chat_is_turned_back_and_says_its_routing_once(size):
    whole = CHUNK + CHUNK + DONE
    chunks = [whole[at : at + size] for at in range(0, len(whole), size)]
    made = transform(STREAMED, adapter=COMPLETIONS_AS_CHAT, routing=ROUTING)
    first, second, done = (await transformed(made, *chunks)).replace(b"\r", b"").strip().split(b"\n\n")
    first, second = (json.loads(event.removeprefix(b"data: ")) for event in (first, second))
    assert (first["choices"][0]["text"], second["choices"][0]["text"]) == ("hi", "hi")
    assert first["routing_info"]["score"] == 0.5 and "routing_info" not in second
    assert done == b"data: [DONE]"


async def test_held_back_bytes_come_at_the_end():
    made = transform(STREAMED, adapter=COMPLETIONS_AS_CHAT, routing=ROUTING)
    out = await transformed(made, CHUNK, b": no event\n")
    assert out.count(b'"text":"hi"') == 1 and out.count(b"routing_info") == 1
    assert out.endswith(b": no event\n")


async def test_nothing_comes_of_nothing():
    made = transform(STREAMED, adapter=COMPLETIONS_AS_CHAT, routing=ROUTING)
    assert await transformed(made) == b""


async def test_a_stream_that_no_adapter_can_hold_is_paid_and_undelivered():
    made = transform(STREAMED, adapter=COMPLETIONS_AS_CHAT)
    with pytest.raises(Undelivered, match="cannot be adapted") as caught:
        await transformed(made, b"data: " + b"x" * (5 * 1024 * 1024))
    assert caught.value.quote == quote()


async def test_an_error_that_cuts_a_stream_cuts_the_changed_one():
    cut = Undelivered("cut")
    for made in (transform(routing=ROUTING), transform(STREAMED, adapter=COMPLETIONS_AS_CHAT)):
        with pytest.raises(Undelivered) as caught:
            await transformed(made, CHUNK[:10], cut)
        assert caught.value is cut


async def test_a_reader_that_leaves_lets_the_stream_behind_go():
    left = []

    async def chunks():
        try:
            while True:
                yield CHUNK
        finally:
            left.append("closed")

    stream = transform(routing=ROUTING).stream(chunks())
    assert b"routing_info" in await anext(stream)
    await stream.aclose()
    assert left == ["closed"]


@pytest.mark.parametrize("value", ["", "text/plain\r\nX-Evil: 1", "a\x00b", "é", "x" * 300])
def test_a_header_that_a_provider_chose_cannot_do_harm(value):
    assert safe_header(value, "text/plain") == "text/plain"
