import pytest

from lcp_gateway.http.errors import ApiError
from lcp_gateway.http.openai.request_headers import read_request_headers


def refused(**headers) -> ApiError:
    with pytest.raises(ApiError) as caught:
        read_request_headers({name.replace("_", "-"): value for name, value in headers.items()})
    assert (caught.value.status, caught.value.code) == (400, "invalid_header")
    return caught.value


def test_without_headers_nothing_is_asked():
    asked = read_request_headers({})
    assert (asked.quote_only, asked.route_only, asked.quote_id, asked.limit_msat) == (
        False, False, None, None,
    )  # fmt: skip
    assert (asked.repeat.key, asked.repeat.is_retry) == (None, False)


@pytest.mark.parametrize(("value", "wanted"), [("true", True), (" TRUE ", True), ("False", False)])
def test_a_route_or_a_quote_alone_is_asked_for_by_a_word(value, wanted):
    assert read_request_headers({"X-Lcp-Route-Only": value}).route_only is wanted
    assert read_request_headers({"X-Lcp-Quote-Only": value}).quote_only is wanted


@pytest.mark.parametrize("name", ["X-Lcp-Route-Only", "X-Lcp-Quote-Only"])
@pytest.mark.parametrize("value", ["", "1", "yes", "truest"])
def test_any_other_word_is_refused_and_the_header_named(name, value):
    assert refused(**{name: value}).param == name


@pytest.mark.parametrize(("value", "limit"), [("0", 0), (" 25000 ", 25_000)])
def test_a_limit_is_in_millisatoshi(value, limit):
    assert read_request_headers({"X-Lcp-Max-Price-Msat": value}).limit_msat == limit


@pytest.mark.parametrize("value", ["", "-1", "1.5", "1e3", "٣", "9" * 19, "1 sat"])
def test_a_limit_is_a_whole_number(value):
    assert refused(X_Lcp_Max_Price_Msat=value).param == "X-Lcp-Max-Price-Msat"


@pytest.mark.parametrize("value", ["", "x" * 256, "a\x00b", "a\nb"])
def test_an_idempotency_key_can_be_shown(value):
    assert refused(Idempotency_Key=value).param == "Idempotency-Key"


@pytest.mark.parametrize(("count", "is_retry"), [("0", False), ("1", True), ("x", False), ("", False), ("-1", False)])
def test_a_count_of_retries_tells_a_retry(count, is_retry):
    assert read_request_headers({"x-stainless-retry-count": count}).repeat.is_retry is is_retry
