import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcp_gateway.adapters.json_bytes import members, rewrite_object
from lcp_gateway.adapters.splice import add_fields, replace_model
from tests.adapters.raw_json import VALUES, objects, tokens
from tests.support.operations import lines_executed

NAMES = st.text(max_size=12)
MIB = 1024 * 1024


@given(objects(tokens(), absent=("model",)), NAMES)
def test_the_models_value_changes_and_not_a_byte_else(raw, name):
    prefix, value, suffix = raw
    old = (prefix + value + suffix).encode()
    new = replace_model(old, name)
    assert new == prefix.encode() + json.dumps(name).encode() + suffix.encode()
    assert json.loads(new) == json.loads(old) | {"model": name}
    assert list(json.loads(new)) == list(json.loads(old))


@given(objects(tokens(), absent=("model",)), NAMES, NAMES)
def test_a_name_that_was_put_in_can_be_put_out_again(raw, first, second):
    old = "".join(raw).encode()
    assert replace_model(replace_model(old, first), second) == replace_model(old, second)


@given(objects(tokens(), absent=("model",)))
def test_members_are_found_where_they_stand(raw):
    text = "".join(raw)
    body = text.encode()
    outermost = []

    def note(pairs):
        # Called for every object, the outermost last.
        outermost[:] = pairs
        return dict(pairs)

    json.loads(text, object_pairs_hook=note)
    found = [(member.key, json.loads(body[member.value_start : member.value_end])) for member in members(body)]
    assert found == outermost


@pytest.mark.parametrize(
    "body",
    [
        '{"model":"a"}',
        ' \r\n{ "model"\t:\n"a" } ',
        '{"mod\\u0065l":"a"}',
        '{"\\u006D\\u006F\\u0064\\u0065\\u006C":"a"}',
        '{"x":{"model":"n"},"model":"a"}',
        '{"model":"a","x":{"model":"n"}}',
        '{"x":"say \\"model\\": \\"b\\"","model":"a"}',
        '{"x":"\\"model","model":"a"}',
        '{"x":"{[\\\\","model":"a"}',
        '{"x":"}}}","model":"a"}',
        '{"x":["model","model"],"model":"a"}',
        '{"x":"\\ud83d","model":"a"}',
        '{"model":"with \\"quotes\\" \\\\ and \\u00e9 é"}',
        '{"n":1E+2,"model":"a","n":1e2}',
        '{"":{},"a":[],"model":"a","b":{"c":[{}]}}',
    ],
)
def test_bodies_in_unusual_notation_get_their_model(body):
    new = replace_model(body.encode(), 'm/"é\\')
    assert json.loads(new)["model"] == 'm/"é\\'
    assert json.loads(new) == json.loads(body) | {"model": 'm/"é\\'}


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b'{"a":1}',
        b'{"a":{"model":"x"}}',
        b'{"a":[{"model":"x"}]}',
        b'{"\\"model":"x"}',
        b'{"a":"model"}',
        b'{"model":"a","model":"b"}',
        b'{"model":"a","mod\\u0065l":"b"}',
        b'{"model":null}',
        b'{"model":1}',
        b'{"model":{"model":"x"}}',
        b'{"model":["x"]}',
        b'["model","x"]',
        b'"model"',
        b"",
        b'{"a":[[[[[[[[{"model":"x"}]]]]]]]]}',
        b'{"x":1,"model"',
        b'{"x":[[[[[[[[[[',
        b'{"x":}',
        b'{"x" 1}',
        b'{"x":1',
    ],
)
def test_a_body_without_one_model_at_the_top_is_refused(body):
    with pytest.raises(ValueError, match=r"model|expected|not a JSON object|does not end"):
        replace_model(body, "m")


def test_a_body_nested_deeper_than_any_parser_goes_is_changed_all_the_same():
    body = b'{"x":' + b"[" * 50_000 + b'{"model":1}' + b"]" * 50_000 + b',"model":"a"}'
    assert replace_model(body, "m") == body[:-4] + b'"m"}'


def work(body):
    return lines_executed(lambda: replace_model(body, "m"))


TEXT = json.dumps([{"role": "user", "content": 'a "quoted" line\n' * (MIB // 18)}]).encode()
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"a": {"type": "string"}}}}
TOOLS = json.dumps([TOOL] * (MIB // len(json.dumps(TOOL)))).encode()


@pytest.mark.parametrize("large", [TEXT, TOOLS], ids=["text", "tools"])
def test_a_large_body_costs_little(large):
    body = b'{"messages":' + large + b',"model":"auto"}'
    # The search is one of C's; an idle machine takes 2 ms.
    assert work(body) < 50


@pytest.mark.parametrize("large", [TEXT, TOOLS], ids=["text", "tools"])
def test_a_large_body_that_says_model_twice_costs_not_much_more(large):
    body = b'{"messages":' + large + b',"metadata":{"model":"n"},"model":"auto"}'
    assert work(body) < 150


@pytest.mark.parametrize(
    "piece", [b"[],", b"[[[[]]]],", b'"",', b'{"model":""},', b"[[[[[[[[[[0]]]]]]]]]],", b'"\\\\",']
)
def test_work_grows_with_the_length_alone(piece):
    def body(size):
        inner = (piece * (size // len(piece)))[:-1]
        return b'{"x":[' + inner + b'],"y":{"model":1},"model":"auto"}'

    # Eight times the length: eight times the work where it is linear, 64 where it is not.
    assert work(body(32 * 1024)) < 9 * work(body(4 * 1024))


@given(
    VALUES.filter(lambda text: text.startswith("{")),
    st.dictionaries(st.text(min_size=1).map("new ".__add__), st.integers() | st.text(), max_size=3),
    st.text(" \t\n\r", max_size=3),
)
def test_fields_are_added_at_the_end_and_nothing_else_changes(text, fields, space):
    old = (space + text + space).encode()
    new = add_fields(old, fields)
    end = len(old.rstrip()) - 1
    assert new[:end] == old[:end]
    assert new[len(new) - len(old) + end :] == old[end:]
    assert json.loads(new) == json.loads(old) | fields


def test_an_empty_object_needs_no_comma():
    assert add_fields(b" { \n} ", {"a": 1, "b": "é"}) == b' { \n"a":1,"b":"\\u00e9"} '
    assert add_fields(b'{"x":{} }', {"a": None}) == b'{"x":{} ,"a":null}'


@pytest.mark.parametrize("body", [b"", b"[1]", b"  ", b"null"])
def test_fields_are_added_to_objects_only(body):
    with pytest.raises(ValueError, match="not a JSON object"):
        add_fields(body, {"a": 1})


def test_a_number_without_a_form_in_json_is_refused():
    with pytest.raises(ValueError, match="not JSON compliant"):
        add_fields(b"{}", {"a": float("nan")})


def test_an_object_is_rewritten_member_by_member():
    body = b'{ "a" : 1E+2, "b": [ 1 ], "\\u0063": 3, "a": 4, "d": "x"}'
    assert (
        rewrite_object(body, {"a": b"true", "b": None, "c": b"[]", "e": b'"new"', "f": None})
        == b'{"a" : true,"\\u0063": [],"d": "x","e":"new"}'
    )
    assert rewrite_object(b"{ }", {}) == b"{}"
