import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcp_gateway.adapters.json_bytes import array_elements, dump_json, member_value, object_or_none
from tests.adapters.raw_json import SPACE, VALUES


@given(st.lists(st.tuples(SPACE, VALUES, SPACE), max_size=5), SPACE)
def test_the_elements_of_an_array_are_given_as_they_are_written(parts, space):
    text = space + "[" + space + ",".join("".join(part) for part in parts) + "]" + space
    assert array_elements(text.encode()) == [value.encode() for _, value, _ in parts]


@given(st.text('[]{},:"\\ 01tru\n', max_size=12) | st.binary(max_size=8).map(repr))
def test_what_is_no_array_is_refused_and_no_other_is(text):
    try:
        expected = isinstance(json.loads(text), list)
    except ValueError:
        expected = False
    try:
        found = array_elements(text.encode())
    except ValueError as error:
        assert not expected
        assert str(error) == "not a JSON array"  # noqa: PT017 - what it says must hold nothing of the text
    else:
        assert expected and len(found) == len(json.loads(text))


@pytest.mark.parametrize("text", [b"[1 2]", b"[1,]", b"[,1]", b"[1", b"[1]]", b"[\xff]", b"{}", b"", b"[" * 9999])
def test_such_arrays_are_refused(text):
    with pytest.raises(ValueError, match=r"^not a JSON array$"):
        array_elements(text)


def test_numbers_may_be_longer_than_python_reads():
    assert array_elements(b"[" + b"1" * 9999 + b",1e99999]") == [b"1" * 9999, b"1e99999"]


def test_of_a_key_that_stands_twice_the_last_value_is_given():
    assert member_value(b'{"a":1, "\\u0061" : [ 2 ] ,"b":{"a":3}}', "a") == b"[ 2 ]"
    assert member_value(b'{"b":1}', "a") is None


@pytest.mark.parametrize("data", [b"", b"[]", b"1", b"{", b"\xff", b'{"a":' * 9999])
def test_what_is_no_object_is_none(data):
    assert object_or_none(data) is None


def test_values_nested_too_deeply_are_refused():
    value = []
    for _ in range(5000):
        value = [value]
    with pytest.raises(ValueError, match="nested too deeply"):
        dump_json(value)
