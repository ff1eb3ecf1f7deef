"""With lnd the gateway records the real fees, and resolves unknown payments."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from lcp_gateway.node.config import NodeConfig, derive_key
from tests.support.gateway import gateway
from tests.support.journaled import chat, money_node, on_node
from tests.support.lnd_standin import LndStandin, in_a_thread, lnd_settings, settled
from tests.support.node_thread import eventually
from tests.support.wire import CHAT, get, post


class WhatTheNodePaid(dict):
    """The payments that the node's own lnd knows: those of the node's events, as they come."""

    def __init__(self, node):
        super().__init__()
        self.node = node

    def get(self, payment_hash, default=None):
        return next((it for it in self.values() if it.payment_hash == payment_hash.hex()), default)

    def values(self):
        return [
            settled(bytes.fromhex(event["detail"]), value_msat=event["price_msat"], fee_msat=event["fee_msat"])
            for event in self.node.events("paid")
        ]


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    folder = tmp_path_factory.mktemp("node")
    with money_node(folder, faults=True, module="tests.support.telling_node") as running:
        yield running


@pytest.fixture(scope="module")
def lnd(node, tmp_path_factory):
    standin = LndStandin(tmp_path_factory.mktemp("lnd"), key=derive_key(NodeConfig().seed, "node"))
    standin.payments = WhatTheNodePaid(node)
    with in_a_thread(standin):
        yield standin


@pytest.fixture(scope="module")
def served(node, lnd):
    settings = on_node(node, reconcile_interval_s=0.5)
    with gateway(embedded=False, env={**settings, **lnd_settings(lnd.address)}) as running:
        yield running


def receipt(served, job_id):
    return get(served.port, f"/v1/receipts/{job_id}").json


def test_a_daemon_that_keeps_to_no_limit_of_fees_is_warned_about_once(served):
    warning = "routing fees of up to 10,000 sat a payment"
    served.wait_for_log(warning)
    assert served.logs.count(warning) == 1


def test_the_real_fee_and_the_preimage_of_a_purchase_are_recorded(served, node):
    job_id = post(served.port, CHAT, chat()).headers["x-lcp-job-id"]
    eventually(lambda: receipt(served, job_id)["preimage"] is not None)
    (paid,) = [event for event in node.events("paid") if event["job_id"] == job_id]
    reported = receipt(served, job_id)
    assert reported["preimage"] == paid["detail"]
    assert reported["fee_msat"] == paid["fee_msat"]


def test_a_purchase_that_settled_while_lnd_was_away_is_not_forgotten(served, node, lnd):
    """Once the look-up was lost, and the fee never recorded."""
    lnd.run(lnd.stop())
    try:
        job_id = post(served.port, CHAT, chat()).headers["x-lcp-job-id"]
        eventually(lambda: not get(served.port, "/readyz").json["lnd"]["reachable"])
    finally:
        lnd.run(lnd.start())
    eventually(lambda: receipt(served, job_id)["fee_msat"] is not None)
    (paid,) = [event for event in node.events("paid") if event["job_id"] == job_id]
    assert receipt(served, job_id)["preimage"] == paid["detail"]


def test_fees_are_read_in_batches_and_not_for_each_purchase(served, lnd):
    eventually(lambda: "TrackPaymentV2" not in lnd.calls[-20:])
    lnd.calls.clear()
    with ThreadPoolExecutor(10) as clients:
        bought = list(clients.map(lambda _: post(served.port, CHAT, chat()), range(10)))
    jobs = [answer.headers["x-lcp-job-id"] for answer in bought]
    eventually(lambda: all(receipt(served, it)["preimage"] for it in jobs))
    assert lnd.calls.count("TrackPaymentV2") == 0
    assert 1 <= lnd.calls.count("ListPayments") < len(jobs)


def test_an_unknown_payment_is_resolved(served):
    answer = post(served.port, CHAT, chat("fault/execute-code-unavailable"))
    assert answer.verdict == "unknown"
    job_id = answer.headers["x-lcp-job-id"]
    eventually(lambda: receipt(served, job_id)["state"] == "undelivered")
    assert receipt(served, job_id)["preimage"]


def test_readyz_has_the_state_of_lnd(served):
    reports = []

    def is_reachable() -> bool:
        reports.append(get(served.port, "/readyz").json.get("lnd", {}))
        return reports[-1].get("reachable", False)

    eventually(is_reachable)
    report = reports[-1]
    assert report["synced_to_chain"] and report["pays"] and report["network"] == "regtest"
