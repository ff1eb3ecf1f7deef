"""Bytes to nodes and back: unchanged, except where the client or the operator asked for a change."""

import gzip
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.examples import examples
from tests.support.http_node import HttpNodeThread
from tests.support.wire import CHAT, RESPONSES, post
from tests.system.routing.providers import COMPLETIONS, EMBEDDINGS, row, served_by

NAME = "the/model:latest"
ALIAS = 'gpt-4o "mini" \u00fc'
MODEL = json.dumps(NAME).encode()
DEFAULTS = {"default_temperature": 0.25, "default_max_tokens": 77}
PATHS = pytest.mark.parametrize("path", [CHAT, RESPONSES, COMPLETIONS, EMBEDDINGS])
QUICKLY = settings(max_examples=examples(0.6), deadline=None)
SUBJECT = b'"messages":[{"role":"user","content":"x"}],"input":"x","prompt":"x"'
# Each with one place for the value of the model, and its subject.
HOSTILE = {
    "odd white space": b'\r\n{\t"model" :\n\n%s ,' + SUBJECT + b" \r}\n \t",
    "escaped key": rb'{"\u006do\u0064el":%s,' + SUBJECT + b"}",
    "model last": b"{" + SUBJECT + b',"model":%s}',
    "nested keys": b'{"metadata":{"model":"a","x":[{"model":"auto"}]},"tool":"\\"model\\":\\"auto\\"",'
    b'"a":"}{\\\\","model":%s,"model ":1,' + SUBJECT + b',"z":{"model":{"model":2}}}',
    "half a surrogate": b'{"user":"\\ud83d \\uDE00",' + SUBJECT + b',"model":%s}',
    "characters": '{"user":"\u2028\ufeff\U0001f600\u0301\x7f","model":%s,'.encode() + SUBJECT + b"}",
    "keys twice": b'{"a":1,"a":2,"model":%s,"a":3,' + SUBJECT + b"}",
    "numbers": b'{"ns":[1.0,-0,1E+2,123456789012345678901234567890,-0.0e-0],"model":%s,' + SUBJECT + b"}",
}


def filled(template: bytes, value: bytes) -> bytes:
    return template.replace(b"%s", value, 1)


@pytest.fixture(scope="module")
def node():
    with HttpNodeThread(name="one", models=(NAME, "nomic-embed-text", "with-defaults")) as running:
        yield running


@pytest.fixture(scope="module")
def port(node):
    models = {
        NAME: {"aliases": [ALIAS]},
        "nomic-embed-text": {"aliases": ["embedder"]},
        "auto": {"aliases": ["gpt-whatever"]},
        "with-defaults": {"capabilities": ["defaulted"], **DEFAULTS},
    }
    rows = [
        row(node, endpoints=["chat", "responses", "completions", "embeddings"], models=[NAME]),
        row(Named(node, "two"), endpoints=["embeddings"], models=["nomic-embed-text"]),
        row(Named(node, "three"), endpoints=["chat", "responses", "completions"], models=["with-defaults"]),
    ]
    # A request for auto gets the model without defaults.
    with served_by(*rows, models=models) as process:
        yield process.port


class Named:
    """The same server under another name."""

    def __init__(self, node, name):
        self.name, self.base_url = name, node.base_url


def heard(node, port, path, raw, *, status=200):
    node.requests.clear()
    answer = post(port, path, raw)
    assert answer.status == status, answer.body
    [call] = node.calls()
    assert call.path == path
    return call.body


def real_name(path):
    return "nomic-embed-text" if path == EMBEDDINGS else NAME


@PATHS
@pytest.mark.parametrize("template", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_named_model_changes_nothing(node, port, path, template):
    raw = filled(template, json.dumps(real_name(path)).encode())
    assert heard(node, port, path, raw) == raw


@PATHS
@pytest.mark.parametrize("template", HOSTILE.values(), ids=HOSTILE.keys())
def test_an_alias_changes_the_models_value_alone(node, port, path, template):
    alias = "embedder" if path == EMBEDDINGS else ALIAS
    for written in (json.dumps(alias), json.dumps(alias, ensure_ascii=False)):
        got = heard(node, port, path, filled(template, written.encode()))
        assert got == filled(template, json.dumps(real_name(path)).encode())


@PATHS
@pytest.mark.parametrize("template", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("name", ["auto", "auto:fast+cheap", "gpt-whatever", "\\u0061uto"])
def test_auto_changes_the_models_value_alone(node, port, path, template, name):
    """Where a model with defaults was chosen, they come at the end and nowhere else."""
    got = heard(node, port, path, filled(template, f'"{name}"'.encode()))
    chosen = json.loads(got)["model"].encode()
    whole = filled(template, b'"%s"' % chosen)
    if chosen != b"with-defaults":
        assert got == whole
    else:
        head, bracket, tail = whole.rpartition(b"}")
        assert got.startswith(head) and got.endswith(bracket + tail)


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["model", "a", "", "{", '"']) | st.text(), inner, max_size=4)
    ),
    max_leaves=12,
)
SPACE = st.text(" \t\r\n", max_size=4)


@QUICKLY
@given(
    before=st.dictionaries(st.text().map(lambda key: f"x-{key}"), ANY_JSON, max_size=3),
    after=st.dictionaries(st.text().map(lambda key: f"y-{key}"), ANY_JSON, max_size=3),
    ascii_only=st.booleans(),
    indent=st.sampled_from([None, 0, 3, "\t"]),
    between=SPACE,
    around=st.tuples(SPACE, SPACE),
)
def test_any_body_reaches_the_node_with_the_models_value_alone_changed(
    node, port, before, after, ascii_only, indent, between, around
):
    def written(model):
        messages = [{"role": "user", "content": "x"}]
        document = {**before, "model": model, **after, "messages": messages}
        text = json.dumps(document, ensure_ascii=ascii_only, indent=indent, separators=("," + between, between + ":"))
        return (around[0] + text + around[1]).encode("utf-8", "surrogatepass")

    assert heard(node, port, CHAT, written(ALIAS)) == written(NAME)
    assert heard(node, port, CHAT, written(NAME)) == written(NAME)


# Defaults of the operator.

LIMIT = {CHAT: "max_tokens", RESPONSES: "max_output_tokens", COMPLETIONS: "max_tokens"}


@pytest.mark.parametrize("path", LIMIT)
def test_defaults_come_right_before_the_closing_bracket(node, port, path):
    raw = b'{ "model" :"with-defaults",\r\n' + SUBJECT + b" \n} \n"
    got = heard(node, port, path, raw)
    at = raw.rindex(b"}")
    assert got.startswith(raw[:at]) and got.endswith(raw[at:])
    added = json.loads(got)
    assert added["temperature"] == 0.25 and added[LIMIT[path]] == 77
    assert len(added) == len(json.loads(raw)) + 2


@pytest.mark.parametrize("path", LIMIT)
def test_defaults_do_not_replace_what_the_client_says(node, port, path):
    more = b'"temperature":1e0,"%s":null,' % LIMIT[path].encode()
    raw = b'{"model":"with-defaults",' + more + SUBJECT + b"}"
    assert heard(node, port, path, raw) == raw
    if path == CHAT:
        raw = raw.replace(b'"max_tokens"', b'"max_completion_tokens"')
        assert heard(node, port, path, raw) == raw
    some = b'{"temperature":0,"model":"with-defaults",' + SUBJECT + b"}"
    got = json.loads(heard(node, port, path, some))
    assert got["temperature"] == 0 and got[LIMIT[path]] == 77


# The way back.

ODD = {
    "white space": (b' {\r\n\t"id" : "x" ,\n"choices":[ {"message" : {} } ] } \r\n', "application/json"),
    "CRLF stream": (
        b': hello\r\n\r\nevent: x\r\ndata:{"choices" : [{"delta":{ }}]}\r\n\r\ndata: [DONE]\r\n\r\n',
        "text/event-stream; charset=x",
    ),
}
NO_ANSWERS = {
    "not JSON": (b"\x00\xff\xfe no JSON at all", "application/octet-stream"),
    "empty": (b"", "application/json"),
    "CRLF stream": ODD["CRLF stream"],
}


@pytest.fixture
def answering(node):
    def answer(raw, content_type):
        node.behave(raw=raw, content_type=content_type)

    yield answer
    node.behave(raw=None, content_type="")


# A stream is no answer to a request without one.
ODD_ANSWERS = [(name, stream) for name in ODD for stream in (False, True) if stream or name != "CRLF stream"]


@pytest.mark.parametrize("model", [NAME, ALIAS])
@pytest.mark.parametrize(("name", "stream"), ODD_ANSWERS)
def test_an_answer_comes_back_as_it_is(answering, port, name, stream, model):
    raw, content_type = ODD[name]
    answering(raw, content_type)
    body = {"model": model, "messages": [{}], "stream": stream}
    answer = post(port, CHAT, body)
    assert answer.status == 200 and answer.whole
    assert answer.body == raw and answer.headers["content-type"] == content_type


def test_auto_adds_routing_info_at_the_end_of_the_document_and_leaves_the_rest(answering, port):
    raw, content_type = ODD["white space"]
    answering(raw, content_type)
    answer = post(port, CHAT, {"model": "auto", "messages": [{}]})
    added = b',"routing_info":'
    head, _, tail = answer.body.partition(added)
    reported, end = json.JSONDecoder().raw_decode(tail.decode())
    assert reported == json.loads(answer.headers["x-lcp-routing"])
    assert (head + tail[end:]) == raw


def test_auto_adds_routing_info_to_the_first_event_and_leaves_the_rest(answering, port):
    raw = ODD["CRLF stream"][0]
    answering(raw, "text/event-stream")
    answer = post(port, CHAT, {"model": "auto", "messages": [{}], "stream": True})
    assert answer.whole
    reported = answer.headers["x-lcp-routing"]
    assert json.loads(re.search(rb'"routing_info":(\{.*\})\}\r\n', answer.body)[1]) == json.loads(reported)
    assert re.sub(rb',"routing_info":\{.*\}(\}\r\n)', rb"\1", answer.body) == raw


@pytest.mark.parametrize("model", [NAME, "auto"])
@pytest.mark.parametrize("name", NO_ANSWERS)
def test_a_result_that_is_no_json_document_is_an_error(answering, port, name, model):
    raw, content_type = NO_ANSWERS[name]
    answering(raw, content_type)
    answer = post(port, CHAT, {"model": model, "messages": [{}]})
    assert (answer.status, answer.error["code"]) == (502, "undelivered")


def test_a_compressed_answer_is_unchanged_and_its_routing_info_is_in_the_header_only(node, answering, port):
    packed = gzip.compress(b'{"choices": []}')
    node.behave(content_encoding="gzip")
    answering(packed, "application/json")
    answer = post(port, CHAT, {"model": "auto", "messages": [{}]})
    node.behave(content_encoding="")
    assert answer.body == packed and answer.headers["content-encoding"] == "gzip"
    assert json.loads(answer.headers["x-lcp-routing"])["source"] == "node"
