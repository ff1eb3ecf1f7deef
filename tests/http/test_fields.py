"""Fields of bodies and queries: each error names its field, and unexpected values are refused."""

from datetime import UTC, datetime

import pytest
from aiohttp.test_utils import make_mocked_request
from hypothesis import given
from hypothesis import strategies as st

from lcp_gateway.http.errors import ApiError
from lcp_gateway.http.fields import MOST_MSAT, Fields, read_page

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


def refused(call) -> ApiError:
    with pytest.raises(ApiError) as caught:
        call()
    assert caught.value.status == 400
    return caught.value


def test_a_missing_field_is_nothing():
    fields = Fields({"gone": None})
    assert fields.text("name") == fields.text("gone") == ""
    assert fields.amount("amount") is fields.names("names") is fields.time("time") is None
    fields.done()


@pytest.mark.parametrize("document", [{}, {"name": None}, {"name": " "}, {"name": 3}])
def test_a_required_field_must_be_there(document):
    assert refused(lambda: Fields(document).text("name", required=True)).param == "name"


@pytest.mark.parametrize("value", ["a\x00b", "a\nb", "\u202e", "x" * 129])
def test_a_text_is_short_and_printable(value):
    assert refused(lambda: Fields({"name": value}).text("name")).code == "invalid_value"


def test_an_amount_is_whole_and_there_is_no_more_than_there_is():
    assert Fields({"a": MOST_MSAT}).amount("a") == MOST_MSAT
    assert Fields({"a": -5}).amount("a", signed=True) == -5
    assert Fields({"a": 0}).amount("a") == 0
    for value in (MOST_MSAT + 1, -1):
        assert refused(lambda value=value: Fields({"a": value}).amount("a")).param == "a"
    assert refused(lambda: Fields({"a": -MOST_MSAT - 1}).amount("a", signed=True)).param == "a"


def test_names_are_a_set_of_the_allowed_ones():
    assert Fields({"n": ["a", "b", "a"]}).names("n") == {"a", "b"}
    assert Fields({"n": []}).names("n") == frozenset()
    error = refused(lambda: Fields({"n": ["c"]}).names("n", allowed=frozenset({"b", "a"})))
    assert "a, b" in error.message


@pytest.mark.parametrize("value", [1_800_000_000, 1_800_000_000.0, "2027-01-15T08:00:00Z", "2027-01-15T09:00:00+01:00"])
def test_a_time_is_unix_seconds_or_iso_8601(value):
    expected = datetime(2027, 1, 15, 8, 0, tzinfo=UTC)
    assert Fields({"t": value}).time("t") == expected


def test_a_time_without_a_zone_is_utc():
    found = Fields({"t": "2027-01-15T08:00:00"}).time("t")
    assert found == datetime(2027, 1, 15, 8, 0, tzinfo=UTC)


@given(value=ANYTHING)
def test_any_value_is_read_or_refused(value):
    for read in (Fields.text, Fields.amount, Fields.names, Fields.time):
        try:
            found = read(Fields({"field": value}), "field")
        except ApiError as error:
            found = error
        if isinstance(found, ApiError):
            assert (found.status, found.param) == (400, "field")
        assert not isinstance(found, datetime) or found.tzinfo is not None


def test_an_unknown_field_is_refused_and_named():
    fields = Fields({"name": "n", "nmae": 1})
    fields.text("name")
    error = refused(fields.done)
    assert (error.param, error.code) == ("nmae", "unknown_parameter")
    assert len(refused(Fields({"x" * 999: 1}).done).message) < 120


def test_a_page_has_fifty_by_default():
    assert read_page(make_mocked_request("GET", "/x")) == (50, "")
    assert read_page(make_mocked_request("GET", "/x?limit=500&after=a_1")) == (500, "a_1")


@pytest.mark.parametrize("query", ["after=%00", "after=a%0Ab", "after=" + "a" * 129, "after=%C3%A9"])
def test_a_place_that_no_page_ever_gave_is_refused(query):
    assert refused(lambda: read_page(make_mocked_request("GET", f"/x?{query}"))).param == "after"
