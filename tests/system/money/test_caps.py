"""Caps on the price of one request: the operator's and the client's."""

from contextlib import contextmanager

import pytest

from tests.support.gateway import gateway
from tests.support.money import accepts, ask

PRICE = 10_000
FEE = 1_100  # 1% and 1 sat


PEER = """
[[peers]]
alias = "Only"
[[peers.models]]
name = "echo-1"
base_msat = 10_000
prompt_token_msat = 0
output_token_msat = 0
[[peers.models]]
name = "dearer"
base_msat = 10_001
prompt_token_msat = 0
output_token_msat = 0
"""


@contextmanager
def selling(tmp_path, **settings):
    """A gateway whose only peer asks 10,000 msat for everything, and one more for the model that is dearer."""
    file = tmp_path / "peers.toml"
    file.write_text(PEER)
    with gateway(env={"LCP_GATEWAY_NODE_PEERS_FILE": str(file), **settings}) as served:
        yield served


def is_over(answer, limit_msat, price_msat=PRICE):
    assert answer.status == 402 and answer.error["code"] == "price_limit_exceeded"
    assert answer.error["type"] == "insufficient_quota"
    assert answer.verdict == "none" and answer.headers["x-should-retry"] == "false"
    assert answer.error["lcp"]["price_msat"] == price_msat
    assert answer.error["lcp"]["limit_msat"] == limit_msat
    assert answer.error["lcp"]["quote_id"].startswith("quote_")


@pytest.mark.parametrize(
    ("name", "enough"),
    [
        ("LCP_GATEWAY_MAX_PRICE_MSAT", PRICE),
        ("OPENAI_SERVE_MAX_PRICE_MSAT", PRICE),
        ("LCP_GATEWAY_MAX_TOTAL_MSAT", PRICE + FEE),
        ("LCP_GATEWAY_MODEL_MAX_TOTAL_MSAT", PRICE + FEE),
    ],
)
def test_each_cap_holds_to_the_millisatoshi(tmp_path, name, enough):
    value = f"echo-1={enough};dearer={enough};other=1" if "MODEL" in name else str(enough)
    with selling(tmp_path, **{name: value}) as served:
        for stream in (False, True):
            assert ask(served, "x", stream=stream).status == 200
            is_over(ask(served, "x", model="dearer", stream=stream), enough, PRICE + 1)
        assert len(accepts(served)) == 2
        is_over(limited(served, "0"), 0)
        lifted = ask(served, "x", model="dearer", headers={"X-Lcp-Max-Price-Msat": "999999999"})
        is_over(lifted, enough, PRICE + 1)
        assert len(accepts(served)) == 2


def test_the_estimated_fee_can_be_set(tmp_path):
    fees = {"LCP_GATEWAY_FEE_PPM": "0", "LCP_GATEWAY_FEE_BASE_MSAT": "0"}
    with selling(tmp_path, LCP_GATEWAY_MAX_TOTAL_MSAT=str(PRICE), **fees) as served:
        assert ask(served, "x").status == 200
        is_over(ask(served, "x", model="dearer"), PRICE, PRICE + 1)


@pytest.fixture(scope="module")
def uncapped(tmp_path_factory):
    with selling(tmp_path_factory.mktemp("uncapped")) as served:
        yield served


def limited(served, value, text="x"):
    return ask(served, text, headers={"X-Lcp-Max-Price-Msat": value})


def test_the_client_s_limit_counts_the_fee(uncapped):
    before = len(accepts(uncapped))
    is_over(limited(uncapped, str(PRICE + FEE - 1)), PRICE + FEE - 1)
    assert len(accepts(uncapped)) == before
    assert limited(uncapped, str(PRICE + FEE)).status == 200


@pytest.mark.parametrize("value", ["", "abc", "-1", "1.5", "1e3", "0x10", "9" * 19, "١٢", "1 000"])
def test_a_limit_that_cannot_be_read_buys_nothing(uncapped, value):
    before = len(accepts(uncapped))
    if not value.isascii():
        value = value.encode().decode("latin-1")
    answer = limited(uncapped, value)
    assert answer.status == 400 and answer.error["code"] == "invalid_header"
    assert answer.error["param"] == "X-Lcp-Max-Price-Msat" and answer.verdict == "none"
    assert len(accepts(uncapped)) == before
