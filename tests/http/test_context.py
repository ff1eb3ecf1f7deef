import pytest

from lcp_gateway.http.context import request_id_of


@pytest.mark.parametrize("safe", ["abc", "req_1", "a" * 128, "7f3c-11:x/y"])
def test_a_safe_request_id_is_kept(safe):
    assert request_id_of(safe) == safe


@pytest.mark.parametrize("unsafe", [None, "", "a" * 129, "a b", "a\nb", "é", '"'])
def test_an_unsafe_request_id_is_replaced(unsafe):
    assert request_id_of(unsafe).startswith("req_")
