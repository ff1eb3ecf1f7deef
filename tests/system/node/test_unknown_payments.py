"""A gateway that was killed while it paid learns from its node what was paid, without an lnd of its own."""

import contextlib
import threading
from hashlib import sha256

import pytest

from tests.support.gateway import gateway
from tests.support.grpc_relay import Relay
from tests.support.lcp_jobs import let_everything_go
from tests.support.lcp_processes import MODEL, lcp_world
from tests.support.lnd_network import in_a_thread
from tests.support.node_program import SELLER_TOML, node_program
from tests.support.node_thread import eventually
from tests.support.wire import CHAT, document, get, post

pytestmark = pytest.mark.slow


def buy(served, model):
    """Begin a purchase whose answer is not awaited: the gateway is killed meanwhile."""

    def run():
        with contextlib.suppress(OSError, EOFError):
            post(served.port, CHAT, document(CHAT, model, "hello", max_tokens=10))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def purchases(served):
    return {one["job_id"]: one for one in get(served.port, "/api/purchases").json["data"]}


def settings(folder, address):
    return {
        "LCP_GATEWAY_LCPD_GRPC_ADDR": address,
        "LCP_GATEWAY_RECONCILE_INTERVAL_S": "0.2",
        "XDG_STATE_HOME": str(folder / "state"),
    }


@pytest.mark.parametrize("node_restarts", [False, True], ids=["the node goes on", "the node is killed too"])
def test_what_a_killed_gateway_paid_and_what_it_did_not_is_resolved_by_its_node(tmp_path, node_restarts):
    # Each purchase asks for its quote once.
    with lcp_world(tmp_path, quote_timeout_s=60.0) as world, Relay(world.buyer.address).running() as relay:
        world.until_ready()
        lnd, threads = world.buyer_lnd, []
        with gateway(embedded=False, env=settings(tmp_path, relay.address)) as served:
            eventually(lambda: get(served.port, "/v1/models").json["data"])
            # One is paid, and its result is being made; one is in flight; of one the call that pays does not come through.
            world.backend.hold("begun")
            threads.append(buy(served, MODEL))
            eventually(lambda: world.backend.begun)
            lnd.payments_go = lambda _hash: "hold"
            threads.append(buy(served, MODEL))
            eventually(lambda: lnd.released)
            relay.keeps = "AcceptAndExecute"
            threads.append(buy(served, MODEL))
            assert relay.kept.wait(60)
            served.process.kill()
            served.process.wait(60)
        for thread in threads:
            thread.join(60)
        if node_restarts:
            world.buyer.kill()
            world.buyer.start()

        with gateway(embedded=False, env=settings(tmp_path, world.buyer.address)) as served:
            assert "lnd" not in get(served.port, "/readyz").json
            assert "10,000 sat" not in served.logs
            eventually(lambda: sorted(states(served)) == ["not_paid", "undelivered", "unknown"])
            assert_paid(served, states(served)["undelivered"], lnd)
            in_flight, never_begun = states(served)["unknown"], states(served)["not_paid"]

            world.network.run(let_everything_go(world))
            eventually(lambda: states(served).get("unknown") is None)
            assert purchases(served)[never_begun]["state"] == "not_paid"
            assert_paid(served, in_flight, lnd)
            assert len(lnd.sent) == len(set(lnd.sent)) == 2


def states(served):
    """Return the purchases by their state, of which each has one at most."""
    return {one["state"]: job_id for job_id, one in purchases(served).items()}


def assert_paid(served, job_id, lnd):
    receipt = get(served.port, f"/v1/receipts/{job_id}").json
    assert (receipt["state"], receipt["fee_msat"]) == ("undelivered", lnd.payment_fee_msat)
    assert sha256(bytes.fromhex(receipt["preimage"])).hexdigest() == receipt["payment_hash"]
    assert bytes.fromhex(receipt["payment_hash"]) in lnd.sent


def test_a_gateway_and_its_node_in_one_process_resolve_what_they_paid_before_they_were_killed(tmp_path):
    with in_a_thread(tmp_path, "buyer", "seller") as network:
        buyer, seller = network.by_identity.values()
        env = {
            "LCP_GATEWAY_LND": buyer.address.target,
            "LCP_GATEWAY_LND_TLS_CERT": str(buyer.address.tls_cert),
            "LCP_GATEWAY_LND_NODE_MACAROON_FILE": str(buyer.address.macaroon),
            "LCP_GATEWAY_RECONCILE_INTERVAL_S": "0.2",
            "XDG_STATE_HOME": str(tmp_path / "state"),
        }
        with node_program(seller, tmp_path / "s", config=SELLER_TOML):
            with gateway(embedded=False, env=env) as served:
                eventually(lambda: get(served.port, "/v1/models").json["data"])
                buyer.payments_go = lambda _hash: "hold"
                thread = buy(served, "echo-1")
                eventually(lambda: buyer.released)
                served.process.kill()
                served.process.wait(60)
            thread.join(60)
            (held,) = buyer.released

            async def arrive():
                buyer.release(held, settle=True)

            with gateway(embedded=False, env=env) as served:
                eventually(lambda: list(states(served)) == ["unknown"])
                network.run(arrive())
                eventually(lambda: list(states(served)) == ["undelivered"])
                assert_paid(served, *states(served).values(), buyer)
                assert buyer.sent == [held]
