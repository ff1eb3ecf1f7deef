"""The request of a chain to its provider: the earlier turns and the new one, byte for byte, and nothing else changed."""

import json

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.support.examples import examples
from tests.support.http_node import HttpNodeThread
from tests.support.stored import MODEL, ended, input_items, on_http_node, respond, retrieve
from tests.support.wire import RESPONSES, post

BOTH = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
# Items in unusual spellings; each is put into an array unchanged.
ITEMS = {
    "odd spacing": b'{ "role" :\t"user",\r\n "content" : "x" }',
    "escapes": rb'{"role":"user","content":"\u0068\/\u00fc \ud83d\ude00 \" \\ \b"}',
    "half a surrogate": rb'{"role":"user","content":"cut \ud83d here \uDE00"}',
    "keys twice": b'{"role":"system","role":"user","content":"a","content":"b"}',
    "numbers": b'{"role":"user","content":"x","n":[1.0,-0,1E+2,123456789012345678901234567890]}',
    "brackets in text": rb'{"role":"user","content":"]},{\"[ \\\"]"}',
    "characters": '{"role":"user","content":"\u2028\ufeff\U0001f600\u0301\x7f"}'.encode(),
    "deep": b'{"role":"user","content":"x","deep":' + b"[" * 60 + b"]" * 60 + b"}",
    "no role": b'{"type":"item_reference","id":"msg_unknown"}',
    "several": b'{"role":"user","content":"a"} ,\n\t{"role":"user","content":"b"}',
}


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
    node.behave(raw=None, content_type="", delay_s=0.0)
    node.requests.clear()


def sent(port, raw, *, status=200) -> dict:
    """Send a body as it is."""
    answer = post(port, RESPONSES, raw)
    assert answer.status == status, answer.body
    return answer.json


def heard(node) -> list[bytes]:
    return [call.body for call in node.calls()]


def turn(previous: str = "", items: bytes = b'[{"role":"user","content":"next"}]') -> bytes:
    chained = f'"previous_response_id":"{previous}",'.encode() if previous else b""
    return b'{"model":"m",' + chained + b'"input":' + items + b"}"


def output_of(document: bytes) -> bytes:
    """The text between the brackets of a document's output, as the stand-in writes it."""
    start = document.index(b'"output": [') + len(b'"output": [')
    item = json.JSONDecoder().raw_decode(document[start:].decode())
    return document[start : start + len(document[start:].decode()[: item[1]].encode())]


@pytest.mark.parametrize("item", ITEMS.values(), ids=ITEMS.keys())
def test_items_are_carried_on_as_they_were_written(node, port, item):
    first = sent(port, turn(items=b"[" + item + b"]"))
    output = output_of(post(port, RESPONSES, turn(items=b"[" + item + b"]")).body)
    node.requests.clear()
    second = sent(port, turn(first["id"], b"[ " + item + b" ]"))
    third = sent(port, turn(second["id"]))
    two, three = heard(node)
    assert two == b'{"model":"m","input":[' + b",".join([item, output, item]) + b"]}"
    assert three.startswith(two[: -len(b"]}")]) and json.loads(three)
    assert third["status"] == "completed"


def test_a_text_becomes_a_message_of_the_user_and_keeps_its_escapes(node, port):
    text = rb'"\u0068ello \ud83d \/ \n"'
    first = sent(port, turn(items=text))
    sent(port, turn(first["id"], text))
    bare, chained = heard(node)
    # Without a chain the request is what the client sent, to the byte.
    assert bare == turn(items=text)
    message = b'{"type":"message","role":"user","content":' + text + b"}"
    assert chained.startswith(b'{"model":"m","input":[' + message + b",{")
    assert chained.endswith(b"}," + message + b"]}")


HOSTILE = {
    "white space": (b'\r\n{\t"model" :\n\n"m" ,%s \r}\n \t', b'{"model" :\n\n"m",%s}'),
    "an escaped key": (rb'{"\u006do\u0064el":"m",%s}', rb'{"\u006do\u0064el":"m",%s}'),
    "nested keys": (
        b'{"metadata":{"previous_response_id":"x","input":"y","background":"z"},"model":"m",%s}',
        b'{"metadata":{"previous_response_id":"x","input":"y","background":"z"},"model":"m",%s}',
    ),
    "half a surrogate": (
        rb'{"instructions":"\ud83d",%s,"model":"m","user":"\uDE00"}',
        rb'{"instructions":"\ud83d",%s,"model":"m","user":"\uDE00"}',
    ),
    "keys twice": (b'{"a":1,"a":2,"model":"m",%s,"a":3}', b'{"a":1,"a":2,"model":"m",%s,"a":3}'),
    "numbers": (b'{"ns":[1.0,-0,1E+2],"model":"m",%s}', b'{"ns":[1.0,-0,1E+2],"model":"m",%s}'),
}


@pytest.mark.parametrize(("asked", "expected"), HOSTILE.values(), ids=HOSTILE.keys())
def test_all_other_members_keep_their_bytes(node, port, asked, expected):
    """The earlier turns are put into the input and `previous_response_id` is removed; white space between members is dropped."""
    first = sent(port, turn(items=b'[{"role":"user","content":"a"}]'))
    new = b'{"role":"user","content":"b"}'
    chain = b'"input": [' + new + b'] ,"previous_response_id" : "%s"' % first["id"].encode()
    output = output_of(retrieve(port, first["id"]).body)
    sent(port, asked % chain)
    items = b",".join([b'{"role":"user","content":"a"}', output, new])
    assert heard(node)[-1] == expected % (b'"input": [' + items + b"]")


def test_of_a_duplicate_input_the_last_one_counts(node, port):
    first = sent(port, b'{"model":"m","input":"no","input":[{"role":"user","content":"yes"}]}')
    sent(port, turn(first["id"]))
    items = json.loads(heard(node)[-1])["input"]
    assert [item["content"] for item in items if item["role"] == "user"] == ["yes", "next"]


def test_instructions_are_not_carried_over_and_nothing_else_is(node, port):
    first = sent(port, b'{"model":"m","input":"a","instructions":"be brief","temperature":0.5,"user":"u"}')
    sent(port, turn(first["id"]))
    assert set(json.loads(heard(node)[-1])) == {"model", "input"}


@BOTH
def test_a_streamed_output_is_carried_on_as_the_provider_wrote_it(node, port, stream):
    item = rb'{ "id":"msg_1","type" : "message","role":"assistant","content":[{"type":"output_text","text":"\ud83d \u0041"}] }'
    response = b'{"id":"resp_odd","object":"response","status":"completed","output":[ %b ]}' % item
    if stream:
        node.behave(
            raw=b'event: response.created\r\ndata: {"type":"response.created","response":{"id":"resp_odd"}}\r\n\r\n'
            b'event: response.completed\r\ndata: {"type":"response.completed","response":%b}\r\n\r\n' % response,
            content_type="text/event-stream",
        )
    else:
        node.behave(raw=response)
    answer = post(port, RESPONSES, b'{"model":"m","input":"a","stream":%b}' % json.dumps(stream).encode())
    assert answer.status == 200
    assert retrieve(port, "resp_odd").body == response
    node.behave(raw=None, content_type="")
    sent(port, turn("resp_odd"))
    assert b"," + item + b"," in heard(node)[-1]


def test_background_reaches_no_provider_and_all_else_does_as_it_was(node, port):
    raw = rb'{"model":"m" , "background" : true,"instructions":"\ud83d","input":"x" ,"a":1,"a":2}'
    made = sent(port, raw)
    assert made["status"] == "queued"
    assert ended(port, made["id"]).json["status"] == "completed"
    assert heard(node) == [rb'{"model":"m","instructions":"\ud83d","input":"x","a":1,"a":2}']
    # The lone surrogate in the instructions does no harm.
    assert input_items(port, made["id"])[0]["content"][0]["text"] == "x"


def test_background_false_has_no_effect_and_stays(node, port):
    raw = b'{"model":"m","background":false,"previous_response_id":null,"input":"x"}'
    sent(port, raw)
    assert heard(node) == [raw]


def test_input_items_of_any_kind_can_be_listed(node, port):
    items = b"[" + b",".join(ITEMS.values()) + b',"text",7,null,[]]'
    node.behave(raw=b'{"id":"resp_listed","object":"response","output":[]}')
    first = sent(port, turn(items=items))
    listed = input_items(port, first["id"], "?order=asc&limit=100")
    assert len(listed) == len(json.loads(items))
    assert all(isinstance(item["id"], str) for item in listed)


TEXTS = st.text(st.characters(codec="utf-8"), max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


@hypothesis_settings(max_examples=examples(0.4))
@given(st.lists(st.dictionaries(TEXTS, VALUES, max_size=4), min_size=1, max_size=4), st.booleans())
def test_earlier_turns_come_first_and_unchanged(node, port, items, ascii_only):
    written = json.dumps(items, ensure_ascii=ascii_only).encode()
    first = sent(port, turn(items=written))
    node.requests.clear()
    sent(port, turn(first["id"], written))
    [body] = heard(node)
    reported = json.loads(body)["input"]
    assert reported[: len(items)] == reported[-len(items) :] == items
    assert body.count(written[1:-1]) >= 2


def test_an_unreadable_response_is_an_error_and_is_not_paid_for(node, port):
    deep = b"[" * 1_000 + b"]" * 1_000
    node.behave(raw=b'{"id":"resp_bad","object":"response","output":%b}' % deep)
    assert post(port, RESPONSES, turn()).status == 200
    node.behave(raw=None)
    node.requests.clear()
    answer = post(port, RESPONSES, turn("resp_bad"))
    assert (answer.status, answer.verdict) == (400, "none")
    assert answer.error["param"] == "previous_response_id"
    assert not node.calls()


def test_the_requests_own_body_is_not_touched_without_a_chain(node, port):
    for raw in (b' {"input" : "x","store":true, "model":"m"}', b'{"model":"m","input":"x","store":false} '):
        sent(port, raw)
        assert heard(node)[-1] == raw


def test_a_conversation_is_not_read_again_when_it_grows(node, port):
    """Thirty turns of ten KiB: each is sent whole, and each is answered."""
    previous, text = "", "y" * 10_000
    for number in range(30):
        made = sent(port, turn(previous, json.dumps(f"{number} {text}").encode()))
        previous = made["id"]
    reported = json.loads(heard(node)[-1])["input"]
    assert len(reported) == 59
    assert [item["content"].split()[0] for item in reported[::2]] == [str(n) for n in range(30)]
    assert respond(port, "end", model=MODEL, previous_response_id=previous).status == 200
