"""A quote that fails any check is refused before anything is paid."""

import pytest

from lcp_gateway.lightning.checks import Mismatch
from tests.support.gateway import gateway
from tests.support.money import accepts, ask, metric
from tests.support.wire import CHAT, RESPONSES

REASONS = {
    "wrong-price": "amount",
    "wrong-payee": "payee",
    "wrong-description-hash": "description_hash",
    "wrong-terms-hash": "terms_hash",
    "wrong-network": "network",
    "wrong-invoice-expiry": "expiry",
    "expired-invoice": "expired",
    "bad-signature": "signature",
    "garbage-invoice": "malformed",
}


@pytest.fixture(scope="module")
def served():
    settings = {"LCP_GATEWAY_NODE_FAULTS": "true", "LCP_GATEWAY_NETWORK": "regtest"}
    with gateway(env=settings) as running:
        yield running


@pytest.mark.parametrize(("fault", "reason"), REASONS.items())
@pytest.mark.parametrize("path", [CHAT, RESPONSES])
@pytest.mark.parametrize("stream", [False, True])
def test_it_is_refused_unpaid_and_counted(served, fault, reason, path, stream):
    before = metric(served, "quote_mismatches_total", mismatch=reason)
    answer = ask(served, "x", path, model=f"fault/{fault}", stream=stream)
    assert answer.status == 502 and answer.error["code"] == "quote_mismatch"
    assert answer.verdict == "none" and answer.headers["x-should-retry"] == "false"
    assert answer.error["lcp"]["payment"] == "none"
    assert "nothing was paid" in answer.error["message"]
    assert accepts(served, answer.headers["x-lcp-job-id"]) == []
    assert served.events("paid") == []
    assert metric(served, "quote_mismatches_total", mismatch=reason) == before + 1


def test_it_is_not_shown_as_a_quote_to_take_either(served):
    before = accepts(served)
    for fault in REASONS:
        answer = ask(served, "x", model=f"fault/{fault}", headers={"X-Lcp-Quote-Only": "true"})
        assert answer.status == 502 and answer.error["code"] == "quote_mismatch", fault
        assert "quote_id" not in answer.error["lcp"]
    assert accepts(served) == before


def test_every_reason_can_be_counted():
    assert set(REASONS.values()) | {"protocol_version"} == {reason.value for reason in Mismatch}


def test_a_job_id_of_the_wrong_size_is_refused_unpaid(served):
    before = accepts(served)
    answer = ask(served, "x", model="fault/short-job-id")
    assert answer.status >= 500 and answer.verdict == "none"
    assert accepts(served) == before


def test_a_quote_that_has_expired_is_refused_unpaid(served):
    before = accepts(served)
    answer = ask(served, "x", model="fault/expired")
    assert answer.status in {410, 502} and answer.verdict == "none"
    assert accepts(served) == before


def test_an_unchecked_network_lets_any_pass():
    """Without the setting `network` and without lnd there is nothing to compare with; the daemon's own check remains."""
    with gateway(env={"LCP_GATEWAY_NODE_FAULTS": "true"}) as running:
        answer = ask(running, "x", model="fault/wrong-network")
        assert answer.status == 400 and answer.verdict == "none"
        assert answer.error["code"] == "payment_failed"
        assert running.events("paid") == []


@pytest.mark.parametrize("path", [CHAT, RESPONSES])
def test_a_good_quote_passes_every_check(served, path):
    before = metric(served, "quote_mismatches_total")
    answer = ask(served, "naïve \u2028 text\n", path, model="fault/no-route", stream=True)
    assert answer.error["code"] == "payment_failed", "it came as far as the payment"
    assert metric(served, "quote_mismatches_total") == before


def test_a_network_that_is_not_the_peer_s_buys_nothing():
    with gateway(env={"LCP_GATEWAY_NETWORK": "mainnet"}) as running:
        answer = ask(running, "x")
        assert answer.status == 502 and answer.error["code"] == "quote_mismatch"
        assert running.events("accept") == []
