"""Answers that were paid and not delivered, detected after a crash; and refunds that wait for the operator."""

import asyncio
import json
import threading
import time
from contextlib import contextmanager, suppress

import pytest

from lcp_gateway.node.config import NodeConfig, derive_key
from tests.support.gateway import gateway, run_command
from tests.support.journaled import money_node, on_node
from tests.support.lnd_standin import LndStandin, settled
from tests.support.node_thread import eventually
from tests.support.postgres import RunningPostgres, postgres  # noqa: F401 - a fixture
from tests.support.wire import get
from tests.system.selling.seller import ADMIN_KEY, MARKUP, Customer, Office, bearer, charged, selling

pytestmark = pytest.mark.slow

FILLED = 1_000_000


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    # Its events have the preimages too, which otherwise only lnd knows.
    module = "tests.support.telling_node"
    with money_node(tmp_path_factory.mktemp("node"), faults=True, module=module) as running:
        yield running


@pytest.fixture
def seen(node):
    return node.mark()


@pytest.fixture(params=["sqlite", "postgresql"])
def journal(request, tmp_path):
    if request.param == "sqlite":
        yield str(tmp_path / "journal.db")
    else:
        with request.getfixturevalue("postgres").fresh_database() as url:
            yield url


@contextmanager
def selling_gateway(node, journal, **settings):
    env = {**on_node(node, journal_url=journal), **selling(**settings)}
    with gateway(embedded=False, env=env) as running:
        yield running


def books(journal, *command):
    """The purchases as the command line lists them."""
    return run_command("purchases", *command, env={"LCP_GATEWAY_JOURNAL_URL": journal})


def shown(journal, job_id):
    reported = books(journal, "show", job_id, "--json")
    assert reported.returncode == 0, reported.stderr
    return json.loads(reported.stdout)


def metric(running, name):
    """The sum of a metric's samples."""
    lines = get(running.port, "/metrics", bearer(ADMIN_KEY)).body.decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


def killed_while(node, journal, seen, model, *, until, **ask):
    """Kill a gateway in the middle of a purchase; return the customer, the job and what is charged for it."""
    with selling_gateway(node, journal) as running:
        customer = Office(running.port).customer(FILLED)

        def buy() -> None:
            with suppress(OSError, EOFError, ValueError, IndexError):
                customer.ask(model, "one two three four five", max_tokens=50, **ask)

        buying = threading.Thread(target=buy, daemon=True)
        buying.start()
        eventually(lambda: seen.count("paid") == 1)
        (job_id,) = seen.jobs("paid")
        eventually(lambda: until(customer))
        running.process.kill()
        running.process.wait(60)
        buying.join(60)
    (paid,) = [event for event in node.events("paid") if event["job_id"] == job_id]
    return customer, job_id, MARKUP.charge_msat(paid["price_msat"]), paid


def is_taken(customer):
    return customer.moved()[-1][0] == "purchase"


def is_held(customer):
    return customer.balance()["held_msat"] > 0


def has_it_back(there, charge):
    expected = [("adjustment", FILLED), ("purchase", -charge), ("refund", charge)]
    eventually(lambda: there.moved() == expected)
    assert there.balance() == {"balance_msat": FILLED, "held_msat": 0, "available_msat": FILLED}
    there.office.is_in_order()


def test_a_stream_in_whose_middle_the_gateway_was_killed_is_given_back(node, seen, journal):
    """Once it stayed settled for ever, charged to the customer, and its peer was not blamed."""
    customer, job_id, charge, _ = killed_while(node, journal, seen, "fault/stream-stalls", until=is_taken, stream=True)
    with selling_gateway(node, journal) as running:
        has_it_back(Customer(running.port, customer.account_id, customer.key), charge)
        eventually(lambda: metric(running, "lcpgateway_peer_undelivered_msat") > 0)
        eventually(lambda: metric(running, "lcpgateway_undelivered_total") == 1)
    found = shown(journal, job_id)
    assert (found["state"], found["refund"], found["charged_msat"]) == ("undelivered", "given", 0)
    assert (found["ended_by"], found["received"]) == ("operator", "unknown")
    assert found["provider_blamed"] is True
    assert seen.jobs("paid") == [job_id], "nothing is bought again"


def test_what_a_dead_gateway_left_settled_can_be_resolved_by_hand(node, seen, journal):
    """Once ``purchases resolve`` refused it."""
    _, job_id, _, _ = killed_while(node, journal, seen, "fault/stream-stalls", until=is_taken, stream=True)
    command = ("resolve", job_id, "settled", "--why", "the gateway is gone", "--yes")
    deadline = time.monotonic() + 60
    # A server takes a moment to notice that a session's other end is gone.
    while (said := books(journal, *command)).returncode and time.monotonic() < deadline:
        assert "is running" in said.stderr
    assert said.returncode == 0, said.stderr
    assert "recorded as undelivered" in said.stdout and "refunded" in said.stdout
    assert shown(journal, job_id)["state"] == "undelivered"


async def test_a_payment_that_lnd_knows_of_later_is_given_back(node, seen, journal, tmp_path):
    """Once the reconciler made it settled, and the customer paid for an answer that could not be retrieved."""
    customer, job_id, charge, paid = await asyncio.to_thread(
        lambda: killed_while(node, journal, seen, "fault/execute-hangs", until=is_held)
    )
    lnd = LndStandin(tmp_path, key=derive_key(NodeConfig().seed, "node"))
    preimage = bytes.fromhex(paid["detail"])
    lnd.knows(settled(preimage, value_msat=paid["price_msat"], fee_msat=paid["fee_msat"]))
    await lnd.start()

    def reconciled() -> None:
        settings = {
            "lnd_grpc_addr": lnd.address.target,
            "lnd_tls_cert": lnd.address.tls_cert,
            "lnd_macaroon_file": lnd.address.macaroon,
            "reconcile_interval_s": 1,
        }
        with selling_gateway(node, journal, **settings) as running:
            there = Customer(running.port, customer.account_id, customer.key)
            has_it_back(there, charge)
            eventually(lambda: metric(running, "lcpgateway_undelivered_total") == 1)

    try:
        await asyncio.to_thread(reconciled)
    finally:
        await lnd.stop()
    found = shown(journal, job_id)
    assert (found["ended_by"], found["received"], found["refund"]) == ("unknown", "nothing", "given")
    assert found["preimage"] == preimage.hex() and found["fee_msat"] == paid["fee_msat"]


def test_over_the_limit_the_refund_is_withheld_and_the_operator_decides(node, tmp_path):
    """Once every refund was given, without a limit."""
    journal = str(tmp_path / "journal.db")
    with selling_gateway(node, journal, refund_account_day_msat=10_000) as running:
        office = Office(running.port)
        customer = office.customer(FILLED)
        answers = [customer.ask("fault/wrong-hash") for _ in range(5)]
        reported = [answer.headers["x-lcp-refund"] for answer in answers]
        assert set(reported) == {"given", "withheld"} and reported == sorted(reported)
        last = answers[-1]
        charge = charged(last)
        assert last.error["code"] == "undelivered" and "operator decides" in last.error["message"]
        assert last.error["lcp"]["refund"] == "withheld"
        assert last.error["lcp"]["charged_msat"] == charge > 0
        streamed = customer.ask("fault/stream-cut", "one two three", stream=True, max_tokens=50)
        assert b'"refund":"withheld"' in streamed.body.replace(b" ", b"")
        withheld = reported.count("withheld") + 1
        eventually(lambda: metric(running, "lcpgateway_refunds_withheld ") == withheld)

        mine = customer.get("/api/wallet/refunds?refund=withheld").json["data"]
        assert len(mine) == withheld and "peer_id" not in mine[0]
        everything = office.get("refunds?refund=withheld").json["data"]
        assert [one["job_id"] for one in everything] == [one["job_id"] for one in mine]
        listed = books(journal, "list", "--state", "undelivered", "--refund", "withheld", "--json")
        assert {one["job_id"] for one in json.loads(listed.stdout)} == {one["job_id"] for one in mine}

        job_id = last.headers["x-lcp-job-id"]
        before = customer.balance()["balance_msat"]
        grant = {"decision": "grant", "reason": "the peer lied to many"}
        for _ in range(2):
            decided = office.post(f"refunds/{job_id}", grant)
            assert (decided.status, decided.json["refund"]) == (200, "granted")
        assert customer.balance()["balance_msat"] == before + charge
        other = office.post(f"refunds/{job_id}", {"decision": "deny", "reason": "no"})
        assert (other.status, other.error["code"]) == (409, "refund_not_withheld")
        assert office.get(f"refunds/{job_id}").json["account_id"] == customer.account_id
        assert metric(running, 'lcpgateway_refunds_total{refund="granted"}') == 1

        denied = next(one["job_id"] for one in mine if one["job_id"] != job_id)
        said = books(journal, "refund", denied, "deny", "--why", "a league", "--yes")
        assert said.returncode == 0 and "kept the charge" in said.stdout, said.stderr
        assert customer.balance()["balance_msat"] == before + charge
        again = books(journal, "refund", denied, "grant", "--why", "no", "--yes")
        assert again.returncode == 1 and "its charge was denied" in again.stderr
        acts = [act["action"] for act in office.get("log").json["data"]]
        assert acts.count("refund.grant") == acts.count("refund.deny") == 1
        office.is_in_order()


@pytest.mark.parametrize(
    ("path", "fields", "status", "code"),
    [
        ("refunds/nonsense", None, 404, "purchase_not_found"),
        (f"refunds/{'0' * 64}", None, 404, "refund_not_found"),
        (f"refunds/{'0' * 64}", {"decision": "grant", "reason": "x"}, 404, "purchase_not_found"),
        (f"refunds/{'0' * 64}", {"decision": "perhaps", "reason": "x"}, 400, "invalid_value"),
        (f"refunds/{'0' * 64}", {"decision": "grant"}, 400, "missing_required_parameter"),
        ("refunds?refund=perhaps", None, 400, "invalid_value"),
    ],
)
def test_what_cannot_be_decided_is_refused(refusing, path, fields, status, code):
    answer = refusing.get(path) if fields is None else refusing.post(path, fields)
    assert (answer.status, answer.error["code"]) == (status, code)


def test_refunds_are_the_administrators_and_each_customers_own(refusing):
    customer = refusing.customer(FILLED)
    assert customer.get("/api/admin/refunds").status == 403
    assert customer.get("/api/wallet/refunds").json == {"object": "list", "data": [], "after": None}
    assert get(refusing.port, "/api/wallet/refunds", bearer(ADMIN_KEY)).status == 403


@pytest.fixture(scope="module")
def refusing(node, tmp_path_factory):
    with selling_gateway(node, str(tmp_path_factory.mktemp("refusing") / "journal.db")) as running:
        yield Office(running.port)
