"""The commands' HTTP client for a gateway, and its result where no gateway listens."""

from lcp_gateway.cli.gateway_client import ask_readiness


def test_where_no_gateway_answers_there_is_no_readiness():
    assert ask_readiness("http://127.0.0.1:9") is None
    assert ask_readiness("https://127.0.0.1:9") is None
