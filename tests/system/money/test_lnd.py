"""With lnd beside it the gateway learns what payments really cost, and what became of those it lost sight of."""

import pytest

from lcp_gateway.node.config import NodeConfig
from lcp_gateway.node.identity import derive_key
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
        for event in self.node.events("paid"):
            if event["payment_hash"] == payment_hash.hex():
                preimage = bytes.fromhex(event["detail"])
                return settled(preimage, value_msat=event["price_msat"], fee_msat=event["fee_msat"])
        return default


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    folder = tmp_path_factory.mktemp("node")
    with money_node(folder, faults=True, module="tests.support.telling_node") as running:
        yield running


@pytest.fixture(scope="module")
def served(node, tmp_path_factory):
    standin = LndStandin(tmp_path_factory.mktemp("lnd"), key=derive_key(NodeConfig().seed, "node"))
    standin.payments = WhatTheNodePaid(node)
    settings = on_node(node, timeout_execute_s=1, reconcile_interval_s=0.5)
    with (
        in_a_thread(standin),
        gateway(embedded=False, env={**settings, **lnd_settings(standin.address)}) as running,
    ):
        yield running


def receipt(served, job_id):
    return get(served.port, f"/v1/receipts/{job_id}").json


def test_the_real_fee_and_the_preimage_of_a_purchase_are_learnt(served, node):
    job_id = post(served.port, CHAT, chat()).headers["x-lcp-job-id"]
    eventually(lambda: receipt(served, job_id)["preimage"] is not None, timeout_s=15)
    (paid,) = [event for event in node.events("paid") if event["job_id"] == job_id]
    told = receipt(served, job_id)
    assert told["preimage"] == paid["detail"]
    assert told["fee_msat"] == paid["fee_msat"]


def test_an_unknown_payment_is_resolved(served):
    answer = post(served.port, CHAT, chat("fault/execute-hangs"))
    assert answer.verdict == "unknown"
    job_id = answer.headers["x-lcp-job-id"]
    eventually(lambda: receipt(served, job_id)["state"] == "settled", timeout_s=20)
    assert receipt(served, job_id)["preimage"]


def test_readyz_tells_how_lnd_is(served):
    eventually(lambda: get(served.port, "/readyz").json.get("lnd", {}).get("reachable"))
    report = get(served.port, "/readyz").json["lnd"]
    assert report["synced_to_chain"] and report["pays"] and report["network"] == "regtest"
