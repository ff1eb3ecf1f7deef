"""The HTTP client by which commands ask a gateway: an address without one is an answer too."""

from lcp_gateway.cli.gateway_client import ask_readiness


def test_where_no_gateway_answers_there_is_no_readiness():
    assert ask_readiness("http://127.0.0.1:9") is None
    assert ask_readiness("https://127.0.0.1:9") is None
