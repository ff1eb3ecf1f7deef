import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcp_gateway.http.errors import ApiError
from lcp_gateway.http.openai.request_body import parse_object, parse_request, parse_task
from lcp_gateway.purchase.order import TaskKind
from tests.support.cases import each_case

CHAT, RESPONSES = TaskKind.CHAT_COMPLETIONS, TaskKind.RESPONSES
COMPLETIONS, EMBEDDINGS = TaskKind.COMPLETIONS, TaskKind.EMBEDDINGS
MESSAGES = b'"messages":[{"role":"user","content":"hi"}]'


def refused(body: bytes, kind=CHAT) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse_task(kind, body)
    assert caught.value.status == 400
    return caught.value


def test_a_task_keeps_the_bytes_as_they_came():
    body = b' {\n"messages" : [ 1.50, "\\u00e9" ],\t"model":"m" , "unknown":{"a":1e400000000000000000000}} '
    body = body.replace(b'"a":1e400000000000000000000', b'"a":10000000000000000000000000')
    task = parse_task(CHAT, body)
    assert (task.body, task.model, task.stream) == (body, "m", False)


@each_case(
    "body, param",
    [
        (b'{"messages":[1]}', "model"),
        (b'{"model":null,"messages":[1]}', "model"),
        (b'{"model":"","messages":[1]}', "model"),
        (b'{"model":" m","messages":[1]}', "model"),
        (b'{"model":"m ","messages":[1]}', "model"),
        (b'{"model":"m\\u0000","messages":[1]}', "model"),
        (b'{"model":7,"messages":[1]}', "model"),
        (b'{"model":"m"}', "messages"),
        (b'{"model":"m","messages":null}', "messages"),
        (b'{"model":"m","messages":[]}', "messages"),
        (b'{"model":"m","messages":"hi"}', "messages"),
        (b'{"model":"m","messages":[1],"stream":"yes"}', "stream"),
        (b'{"model":"m","messages":[1],"stream":1}', "stream"),
    ],
)
def test_the_wrong_field_is_named(body, param):
    assert refused(body).param == param


@pytest.mark.parametrize("body", [b'{"model":"m"}', b'{"model":"m","input":""}',
                                  b'{"model":"m","input":[]}', b'{"model":"m","input":5}'])  # fmt: skip
def test_a_response_needs_an_input(body):
    assert refused(body, RESPONSES).param == "input"


@pytest.mark.parametrize("given", [b'"hi"', b'["a","b"]', b"[1,2,3]", b"[[1,2],[3]]"])
@pytest.mark.parametrize(("kind", "name"), [(COMPLETIONS, b"prompt"), (EMBEDDINGS, b"input")])
def test_prompts_and_inputs_are_text_or_tokens_one_or_several(kind, name, given):
    body = b'{"model":"m", "' + name + b'":' + given + b"}"
    task = parse_task(kind, body)
    assert (task.kind, task.model, task.body, task.stream) == (kind, "m", body, False)


@each_case("kind, name, other", [(COMPLETIONS, "prompt", b'"input":"x"'), (EMBEDDINGS, "input", b'"prompt":"x"')])
@each_case(
    "given, code",
    [
        (None, "missing_required_parameter"),
        (b"null", "missing_required_parameter"),
        (b'""', "invalid_value"),
        (b"[]", "invalid_value"),
        (b"5", "invalid_type"),
        (b"{}", "invalid_type"),
        (b"true", "invalid_type"),
    ],
)
def test_a_completion_needs_a_prompt_and_an_embedding_an_input(kind, name, other, given, code):
    field = other if given is None else b'"' + name.encode() + b'":' + given
    error = refused(b'{"model":"m",' + field + b"}", kind)
    assert (error.param, error.code) == (name, code)


def test_a_completion_may_be_streamed():
    assert parse_task(COMPLETIONS, b'{"model":"m","prompt":"x","stream":true}').stream is True
    assert refused(b'{"model":"m","prompt":"x","stream":"on"}', COMPLETIONS).param == "stream"


def test_an_embedding_is_never_streamed():
    assert parse_task(EMBEDDINGS, b'{"model":"m","input":"x","stream":true}').stream is False


@pytest.mark.parametrize(
    "more",
    [b'"encoding_format":"float"', b'"encoding_format":"base64"', b'"encoding_format":null',
     b'"dimensions":1', b'"dimensions":null', b'"user":5'],
)  # fmt: skip
def test_an_embedding_may_be_encoded_and_shortened(more):
    body = b'{"model":"m","input":"x",' + more + b"}"
    task = parse_task(EMBEDDINGS, body)
    assert (task.kind, task.model, task.body, task.stream) == (EMBEDDINGS, "m", body, False)


@pytest.mark.parametrize(
    ("more", "param", "code"),
    [
        (b'"encoding_format":"int8"', "encoding_format", "invalid_value"),
        (b'"encoding_format":["float"]', "encoding_format", "invalid_value"),
        (b'"encoding_format":5', "encoding_format", "invalid_value"),
        (b'"encoding_format":{}', "encoding_format", "invalid_value"),
        (b'"dimensions":"256"', "dimensions", "invalid_type"),
        (b'"dimensions":1.5', "dimensions", "invalid_type"),
        (b'"dimensions":true', "dimensions", "invalid_type"),
        (b'"dimensions":0', "dimensions", "invalid_value"),
        (b'"dimensions":-3', "dimensions", "invalid_value"),
    ],
)
def test_a_wrong_field_of_an_embedding_is_named(more, param, code):
    error = refused(b'{"model":"m","input":"x",' + more + b"}", EMBEDDINGS)
    assert (error.param, error.code) == (param, code)


def test_the_fields_of_embeddings_mean_nothing_to_other_kinds():
    body = b'{"model":"m","messages":[1],"dimensions":"x","encoding_format":5}'
    assert parse_task(CHAT, body).body is body


@pytest.mark.parametrize("given", [b'"hi"', b'[{"role":"user","content":"hi"}]'])
def test_an_input_is_a_string_or_an_array(given):
    assert parse_task(RESPONSES, b'{"model":"m","input":' + given + b"}").model == "m"


@each_case("body", [
        b"", b"[]", b'"text"', b"null", b"{", b'{"model":"m",}', b'{"model":"m"} x', b"\xff\xfe",
        b'{"model":"m","messages":[NaN]}', b'{"model":"m","messages":["\xff"]}',
        b'{"model":"m","messages":' + b"[" * 60_000 + b"]" * 60_000 + b"}",
        b'{"model":"\\ud800","messages":[1]}',
    ])  # fmt: skip
def test_a_body_that_is_no_json_object_is_refused(body):
    refused(body)


@pytest.mark.parametrize(
    "twice",
    [
        b'{"model":"a","model":"b",%s}',
        b'{"model":"a",%s,"model":"a"}',
        b'{"model":"a","mod\\u0065l":"b",%s}',
        b'{"\\u006dodel":"a","model":"b",%s}',
        b'{"model":"a","Model":"b",%s}',
        b'{"MODEL":"a","model":"b",%s}',
    ],
)
def test_a_model_named_twice_is_refused_however_it_is_spelled(twice):
    error = refused(twice % MESSAGES)
    assert error.param == "model"


@pytest.mark.parametrize(
    "body",
    [
        b'{"mod\\u0065l":"a",%s}',
        b'{"model":"a","metadata":{"model":"b"},%s}',
        b'{"model":"a","note":"the \\"model\\" key",%s}',
        b'{"model":"model",%s}',
    ],
)
def test_other_places_may_speak_of_models(body):
    assert parse_task(CHAT, body % MESSAGES).model in {"a", "model"}


def test_half_a_surrogate_pair_is_let_through_as_other_gateways_do():
    body = b'{"model":"m","messages":[{"role":"user","content":"cut \\ud83d"}]}'
    assert parse_task(CHAT, body).body == body


def test_the_error_never_repeats_the_text():
    assert "secret" not in refused(b'{"model":"m","messages":["secret').message


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(
    extra=st.dictionaries(st.text().filter(lambda k: k.casefold() != "model"), JSON, max_size=5),
    ascii_only=st.booleans(),
)
def test_any_body_with_one_model_is_taken_with_just_that_model(extra, ascii_only):
    document = {**extra, "model": "chosen", "messages": [1], "stream": True}
    body = json.dumps(document, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    task = parse_task(CHAT, body)
    assert (task.model, task.stream, task.body) == ("chosen", True, body)


@given(st.binary(max_size=200), st.sampled_from(list(TaskKind)))
def test_no_bytes_do_more_than_be_refused(body, kind):
    refused(body, kind)


# -- a model for requests without one ----------------------------------------------------------------


@pytest.mark.parametrize("kind", [CHAT, RESPONSES, COMPLETIONS])
@pytest.mark.parametrize("named", [b"", b'"model":null,', b'"mod\\u0065l" : null ,'])
def test_a_body_that_names_no_model_gets_the_default(kind, named):
    subject = {CHAT: MESSAGES, RESPONSES: b'"input":"x"', COMPLETIONS: b'"prompt":"x"'}[kind]
    request = parse_request(kind, b"{" + named + subject + b',"n":1.0E0}', "house")
    assert request.task.model == request.document["model"] == "house"
    sent = json.loads(request.task.body)
    assert sent.pop("model") == "house" and "model" not in sent
    assert subject in request.task.body and b'"n":1.0E0' in request.task.body


@pytest.mark.parametrize("default", ["", "house"])
def test_a_body_that_names_its_model_stays_as_it_came(default):
    body = b' { "model" : "m" ,' + MESSAGES + b"} "
    request = parse_request(CHAT, body, default)
    assert request.task.body is body and request.task.model == "m"


def test_without_a_default_a_model_has_to_be_named():
    assert refused(b"{" + MESSAGES + b"}").code == "missing_required_parameter"


def test_an_embedding_names_its_own_model():
    # Embeddings have no default model: vectors of another model than expected would be useless to the client.
    with pytest.raises(ApiError) as caught:
        parse_request(EMBEDDINGS, b'{"input":"x"}', "house")
    assert caught.value.code == "missing_required_parameter"


@pytest.mark.parametrize("default", ["", "house"])
@pytest.mark.parametrize(
    "twice", [b'"model":"m","model":null', b'"model":null,"model":"m"', b'"model":null,"model":null']
)
def test_a_model_named_twice_is_refused_also_where_one_of_them_is_none(default, twice):
    with pytest.raises(ApiError) as caught:
        parse_request(CHAT, b"{" + twice + b"," + MESSAGES + b"}", default)
    assert caught.value.code == "duplicate_parameter"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"Model":"m",' + MESSAGES + b"}", "invalid_key"),
        (b'{"model":7,' + MESSAGES + b"}", "invalid_type"),
        (b'{"model":"",' + MESSAGES + b"}", "invalid_value"),
        (b'{"model":false,' + MESSAGES + b"}", "invalid_type"),
    ],
)
def test_the_default_model_does_not_hide_other_errors(body, code):
    with pytest.raises(ApiError) as caught:
        parse_request(CHAT, body, "house")
    assert caught.value.code == code


def test_a_default_of_any_letters_is_written_as_json():
    body = parse_request(CHAT, b"{" + MESSAGES + b"}", 'h"\\é😀').task.body
    assert json.loads(body)["model"] == 'h"\\é😀'


def test_the_parsed_body_comes_with_its_task_and_is_in_no_repr():
    request = parse_request(RESPONSES, b'{"model":"m","input":"SECRET","store":false}')
    assert request.document["store"] is False
    assert "SECRET" not in repr(request)


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b'"text"', b"{", b'{"a":NaN}', b"\xff"])
def test_a_body_that_is_no_object_is_refused_without_its_text(body):
    with pytest.raises(ApiError) as caught:
        parse_object(body)
    assert caught.value.code == "invalid_json"
