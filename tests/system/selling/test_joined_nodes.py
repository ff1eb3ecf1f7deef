"""A node that joins with the key of an account: it serves, its owner earns and is paid out, and a revoked key sends it away."""

import subprocess

import pytest

from tests.support.forked import start_module
from tests.support.gateway import clean_environment, gateway
from tests.support.http_node import HttpNodeThread
from tests.support.journaled import money_node, on_node
from tests.support.lnd_standin import LndStandin, channel, in_a_thread, lnd_settings
from tests.support.node_thread import eventually
from tests.system.selling.seller import Seller, charged, selling

MODEL = "model-of-alice"


@pytest.fixture
def lnd(tmp_path):
    standin = LndStandin(tmp_path)
    standin.channels = [channel(10_000_000)]
    with in_a_thread(standin):
        yield standin


@pytest.fixture
def seller(lnd, tmp_path):
    macaroon = lnd.bake("withdrawals", "GetInfo", "ListChannels", "TrackPaymentV2", "SendPaymentV2")
    with money_node(tmp_path) as node:
        sells = selling(
            dialin_accounts="true",
            node_commission_percent=20,
            withdrawals="true",
            withdrawal_freeze_s=0,
            withdrawal_min_msat=1_000,
            withdrawal_fee_base_msat=1_000,
            withdrawal_fee_percent=0,
            lnd_withdrawal_macaroon_file=macaroon,
        )
        settings = on_node(node, journal_url=str(tmp_path / "journal.db"))
        with gateway(embedded=False, env={**settings, **lnd_settings(lnd.address), **sells}) as running:
            yield Seller(running, "")


def joined(port, token, backend):
    """Start `lcp-gateway join` beside a backend, at 5,000 msat a request."""
    return start_module(
        "lcp_gateway",
        *("join", f"ws://127.0.0.1:{port}", "--name", "gpu", "--backend", backend),
        *("--price-per-request-msat", "5000"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=clean_environment({"LCP_GATEWAY_JOIN_TOKEN": token}),
    )


def test_an_owner_earns_by_a_joined_node_and_withdraws_it(seller, lnd):
    office = seller.office
    owner = office.customer(scopes=["wallet", "withdraw"])
    token = office.key(owner.account_id, scopes=["node"])
    buyer = office.customer(100_000)
    backend = HttpNodeThread("backend", (MODEL,))
    backend.start()
    process = joined(seller.port, token["key"], backend.base_url)
    try:
        eventually(lambda: [it["up"] for it in owner.get("/api/nodes").json["data"]] == [True])
        answer = buyer.ask(MODEL)
        assert answer.status == 200, answer.body
        # The customer pays the price and the mark-up of a tenth.
        assert charged(answer) == 5_500
        eventually(lambda: owner.balance()["available_msat"] == 4_000)
        (node,) = owner.get("/api/nodes").json["data"]
        assert (node["name"], node["delivered"], node["earned_msat"], node["commission_msat"]) == (
            "gpu",
            1,
            4_000,
            1_000,
        )
        assert owner.moved() == [("earning", 4_000)]
        # A request that the backend fails earns nothing and costs nothing.
        backend.behave(fail_status=500, fail_body='{"error": {"message": "out of memory"}}')
        assert buyer.ask(MODEL).status >= 400
        backend.behave(fail_status=0)
        eventually(lambda: buyer.balance() == {"balance_msat": 94_500, "held_msat": 0, "available_msat": 94_500})
        assert owner.balance()["balance_msat"] == 4_000
        made = owner.post("/api/wallet/withdrawals", {"payment_request": lnd.elsewhere(3_000)})
        assert made.status == 201, made.body
        eventually(lambda: owner.balance()["balance_msat"] == 1_000 - lnd.payment_fee_msat)
        # A commission that changes holds for what is asked from then on.
        changed = office.post(f"nodes/{node['id']}", {"commission_percent": 50, "reason": "as agreed"})
        assert changed.json["commission_percent"] == 50
        before_msat = owner.balance()["balance_msat"]

        def asked_again():
            return buyer.ask(MODEL, "again").status == 200

        eventually(asked_again)
        eventually(lambda: owner.balance()["balance_msat"] > before_msat)
        assert owner.balance()["balance_msat"] == before_msat + 2_500
        # Revoked at once.
        assert office.delete(f"keys/{token['id']}").status == 200
        eventually(lambda: [it["up"] for it in owner.get("/api/nodes").json["data"]] == [False])
        assert buyer.ask(MODEL).status in {404, 503}
        office.is_in_order()
    finally:
        process.terminate()
        process.wait(60)
        backend.stop()
