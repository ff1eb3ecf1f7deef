"""A top-up is credited once, although the gateway, lnd or the customer was not connected when it was paid."""

from contextlib import ExitStack, contextmanager

import pytest

from lcp_gateway.lightning import bolt11
from lcp_gateway.node.config import NodeConfig, derive_key
from tests.support.gateway import gateway
from tests.support.journaled import money_node, on_node
from tests.support.lnd_standin import LndStandin, in_a_thread, lnd_settings
from tests.support.node_thread import eventually
from tests.support.wire import get
from tests.system.selling.seller import ADMIN_KEY, Customer, Office, bearer, selling

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    with money_node(tmp_path_factory.mktemp("node")) as running:
        yield running


@pytest.fixture(scope="module")
def lnd(tmp_path_factory):
    standin = LndStandin(tmp_path_factory.mktemp("lnd"), key=derive_key(NodeConfig().seed, "node"))
    with in_a_thread(standin):
        yield standin


@pytest.fixture(scope="module")
def served(node, lnd, tmp_path_factory):
    with selling_gateway(node, lnd, tmp_path_factory.mktemp("journal") / "journal.db") as running:
        yield running


@contextmanager
def selling_gateway(node, lnd, journal, **more):
    settings = {**on_node(node, journal_url=journal), **selling(**more), **lnd_settings(lnd.address)}
    with gateway(embedded=False, env=settings) as running:
        yield running


def payment_hash(topup: dict) -> bytes:
    return bolt11.decode(topup["payment_request"]).payment_hash


def pay(lnd, *topups: dict) -> None:
    for topup in topups:
        lnd.run(lnd.settle(payment_hash(topup)))


def at(customer: Customer, running) -> Customer:
    """The same customer at another gateway, once that has read the key."""
    there = Customer(running.port, customer.account_id, customer.key)
    eventually(lambda: there.get("/api/wallet").status == 200)
    return there


def is_credited_once(customer: Customer, *topups: dict) -> None:
    total = sum(topup["amount_msat"] for topup in topups)
    customer.eventually_has(balance_msat=total)
    lines = customer.office.lines(customer.account_id)
    credited = sorted(line["cause_id"] for line in lines if line["cause"] == "topup")
    assert credited == sorted(topup["id"] for topup in topups)
    customer.office.is_in_order()


def leads(running) -> bool:
    reported = get(running.port, "/metrics", bearer(ADMIN_KEY)).body.decode()
    return "lcpgateway_settlements_leader 1.0" in reported


def test_what_was_paid_while_the_gateway_was_down_is_there_when_it_is_back(node, lnd, tmp_path):
    journal = tmp_path / "journal.db"
    with selling_gateway(node, lnd, journal) as running:
        customer = Office(running.port).customer()
        topups = [customer.top_up(amount) for amount in (5_000, 7_000, 11_000)]
        pay(lnd, topups[0])
        customer.eventually_has(balance_msat=5_000)
        running.process.kill()
        running.process.wait(60)
    pay(lnd, topups[1], topups[2])
    with selling_gateway(node, lnd, journal) as running:
        is_credited_once(at(customer, running), *topups)


def test_a_gateway_killed_while_payments_come_in_credits_each_once(node, lnd, tmp_path):
    journal = tmp_path / "journal.db"
    with selling_gateway(node, lnd, journal, topups_open_max=100) as running:
        customer = Office(running.port).customer()
        topups = [customer.top_up(1_000 + number) for number in range(40)]
        pay(lnd, *topups[:20])
        running.process.kill()
        running.process.wait(60)
    pay(lnd, *topups[20:])
    with selling_gateway(node, lnd, journal) as running:
        is_credited_once(at(customer, running), *topups)


@pytest.mark.parametrize("how", ["stops", "is killed"])
def test_lnd_is_restarted_while_payments_come_in(served, lnd, how):
    customer = Office(served.port).customer()
    topups = [customer.top_up(amount) for amount in (3_000, 4_000, 5_000, 6_000)]
    pay(lnd, topups[0])
    customer.eventually_has(balance_msat=3_000)
    lnd.run(lnd.stop() if how == "stops" else lnd.kill())
    pay(lnd, topups[1], topups[2])
    assert customer.balance()["balance_msat"] == 3_000
    lnd.run(lnd.start())
    pay(lnd, topups[3])
    is_credited_once(customer, *topups)


def test_while_lnd_does_not_answer_customers_can_spend_and_top_ups_are_503(served, lnd):
    customer = Office(served.port).customer(50_000)
    lnd.run(lnd.stop())
    assert customer.ask().status == 200
    refused = customer.post("/api/wallet/topups", {"amount_msat": 5_000})
    assert refused.status == 503 and refused.error["code"] == "topups_unavailable"
    assert customer.get("/api/wallet").status == 200
    poor = Office(served.port).customer()
    answer = poor.ask()
    # The error has the missing amount, but no invoice.
    assert answer.status == 402 and answer.error["code"] == "insufficient_balance"
    assert "topup" not in answer.error["lcp"]
    lnd.run(lnd.start())


def test_of_two_gateways_one_follows_and_the_other_takes_over(node, lnd, postgres):
    with postgres.fresh_database() as url, ExitStack() as stack:
        both = [stack.enter_context(selling_gateway(node, lnd, url, l402_secret="s" * 40)) for _ in range(2)]
        eventually(lambda: sum(map(leads, both)) == 1)
        leader, other = both if leads(both[0]) else both[::-1]
        customer = Office(leader.port).customer()
        topups = [customer.top_up(amount) for amount in (5_000, 7_000, 11_000, 13_000)]
        pay(lnd, topups[0])
        customer.eventually_has(balance_msat=5_000)
        assert sum(map(leads, both)) == 1
        leader.process.kill()
        leader.process.wait(60)
        pay(lnd, topups[1])
        # No customer polls any of them.
        stays = at(customer, other)
        stays.eventually_has(balance_msat=12_000)
        assert leads(other)
        pay(lnd, topups[2])
        stays.eventually_has(balance_msat=23_000)
        # A third gateway does not follow as well, and its customers lose nothing.
        third = stack.enter_context(selling_gateway(node, lnd, url, l402_secret="s" * 40))
        assert leads(other) and not leads(third)
        pay(lnd, topups[3])
        is_credited_once(at(customer, third), *topups)


def test_another_customer_sees_nothing_of_a_top_up(served, lnd):
    owner, stranger = Office(served.port).customer(), Office(served.port).customer()
    topup = owner.top_up(9_000)
    for path in ("", "/qr.svg", "/qr.png"):
        assert stranger.get(f"/api/wallet/topups/{topup['id']}{path}").status == 404
        assert owner.get(f"/api/wallet/topups/{topup['id']}{path}").status == 200
    assert stranger.get("/api/wallet/topups").json["data"] == []
    # An overpayment is credited too.
    lnd.run(lnd.settle(payment_hash(topup), paid_msat=9_500))
    owner.eventually_has(balance_msat=9_500)
    assert stranger.balance()["balance_msat"] == 0
    Office(served.port).is_in_order()
