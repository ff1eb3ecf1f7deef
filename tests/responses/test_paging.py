import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcp_gateway.responses.paging import InvalidPageQuery, PageRequest, list_object, read_page, select_page
from tests.support.cases import each_case

FIVE = [(name, name.upper()) for name in "abcde"]


def asked(default_order="asc", **query):
    return select_page(FIVE, read_page(query, default_order=default_order))


def read(default_order="asc", **query):
    return read_page(query, default_order=default_order)


def test_a_query_that_says_nothing_gets_what_is_usual():
    assert read("desc") == PageRequest(20, "desc")
    assert read(limit="", order="", after="", before="") == PageRequest(20, "asc")
    assert read_page({}, default_order="asc", default_limit=7).limit == 7


def test_other_parameters_of_a_query_are_ignored():
    assert read(model="m", include="x", after="a") == PageRequest(20, "asc", after="a")


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_the_order_turns_the_list_round(order):
    found = asked(order=order, limit="2")
    assert found.data == (("A", "B") if order == "asc" else ("E", "D"))
    assert (found.first_id, found.last_id) == (("a", "b") if order == "asc" else ("e", "d"))
    assert found.has_more


@each_case(
    "query, data, has_more",
    [
        ({}, "ABCDE", False),
        ({"limit": "5"}, "ABCDE", False),
        ({"limit": "4"}, "ABCD", True),
        ({"after": "b"}, "CDE", False),
        ({"after": "b", "limit": "3"}, "CDE", False),
        ({"after": "b", "limit": "2"}, "CD", True),
        ({"after": "e"}, "", False),
        ({"after": "b", "order": "desc"}, "A", False),
        ({"after": "d", "order": "desc", "limit": "2"}, "CB", True),
        ({"before": "d"}, "ABC", False),
        ({"before": "d", "limit": "2"}, "BC", True),
        ({"before": "a"}, "", False),
        ({"before": "b", "order": "desc", "limit": "2"}, "DC", True),
        ({"after": "a", "before": "e"}, "BCD", False),
        ({"after": "a", "before": "e", "limit": "2"}, "BC", True),
        ({"after": "d", "before": "b"}, "", False),
        ({"after": "c", "before": "c"}, "", False),
    ],
)
def test_a_page_begins_after_one_id_and_ends_before_the_other(query, data, has_more):
    found = asked(**query)
    assert ("".join(found.data), found.has_more) == (data, has_more)


def test_an_empty_page_has_no_ids():
    assert list_object(select_page([], read())) == {
        "object": "list",
        "data": [],
        "first_id": None,
        "last_id": None,
        "has_more": False,
    }


def test_a_list_object_is_what_clients_read():
    assert list_object(asked(limit="2")) == {
        "object": "list",
        "data": ["A", "B"],
        "first_id": "a",
        "last_id": "b",
        "has_more": True,
    }


@pytest.mark.parametrize(
    ("query", "param", "code"),
    [
        ({"limit": "0"}, "limit", "invalid_value"),
        ({"limit": "101"}, "limit", "invalid_value"),
        ({"limit": "-1"}, "limit", "invalid_type"),
        ({"limit": "1.5"}, "limit", "invalid_type"),
        ({"limit": "ten"}, "limit", "invalid_type"),
        ({"limit": "٣"}, "limit", "invalid_type"),
        ({"limit": "1" * 5_000}, "limit", "invalid_type"),
        ({"order": "up"}, "order", "invalid_value"),
        ({"after": "x"}, "after", "invalid_value"),
        ({"before": "x"}, "before", "invalid_value"),
    ],
)
def test_a_query_that_makes_no_sense_is_refused_by_name(query, param, code):
    with pytest.raises(InvalidPageQuery) as caught:
        asked(**query)
    assert (caught.value.param, caught.value.code) == (param, code)
    assert param in caught.value.message


def test_a_refusal_does_not_repeat_what_was_asked():
    with pytest.raises(InvalidPageQuery) as caught:
        asked(after="something-secret")
    assert "secret" not in caught.value.message


def turned(items, order, limit):
    """Return the items that a client gets by reading page after page."""
    got, query = [], {"order": order, "limit": str(limit)}
    for _ in range(len(items) + 2):
        found = select_page(items, read_page(query, default_order="asc"))
        got += found.data
        if not found.has_more:
            return got
        query["after"] = found.last_id
    raise AssertionError("the pages have no end")


@given(st.integers(0, 60), st.sampled_from(["asc", "desc"]), st.integers(1, 9))
def test_all_pages_together_have_every_item_once(count, order, limit):
    items = [(f"i{n}", n) for n in range(count)]
    numbers = list(range(count))
    assert turned(items, order, limit) == (numbers if order == "asc" else numbers[::-1])


@given(st.lists(st.sampled_from("abc"), max_size=12), st.integers(1, 4))
def test_duplicate_ids_do_not_make_paging_endless(names, limit):
    items = list(zip(names, range(len(names)), strict=True))
    got = turned(items, "asc", limit)
    assert got == sorted(set(got))
