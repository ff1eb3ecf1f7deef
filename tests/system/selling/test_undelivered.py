"""Failures after a payment, certain or unknown: charges, holds and refunds of customers."""

import json
import socket
import subprocess
import threading
import time
from contextlib import contextmanager, suppress

import pytest

from tests.support.gateway import gateway, run_command
from tests.support.journaled import money_node, on_node, states
from tests.support.node_thread import eventually
from tests.support.wire import CHAT, document, request_bytes, wire
from tests.system.selling.seller import MARKUP, Customer, Office, charged, selling

FILLED = 1_000_000
# Paid, without a valid result; the last two can only be detected after the head was sent.
UNDELIVERED = ["wrong-hash", "wrong-length", "result-failed", "no-result"]
CUT = ["stream-cut", "stream-cut-silently"]
UNPAID = ["no-route", "quote-refused", "wrong-price", "expired"]


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    with money_node(tmp_path_factory.mktemp("node"), faults=True) as running:
        yield running


@pytest.fixture
def seen(node):
    return node.mark()


@contextmanager
def open_shop(node, journal, **settings):
    env = {**on_node(node, journal_url=journal), **selling(**settings)}
    with gateway(embedded=False, env=env) as running:
        yield running


@pytest.fixture(scope="module")
def journal(tmp_path_factory):
    return tmp_path_factory.mktemp("journal") / "journal.db"


@pytest.fixture(scope="module")
def refunding(node, journal):
    with open_shop(node, journal) as running:
        yield running
        Office(running.port).is_in_order()


@pytest.fixture(scope="module")
def keeping(node, tmp_path_factory):
    journal = tmp_path_factory.mktemp("keeping") / "journal.db"
    with open_shop(node, journal, refund_undelivered="false") as running:
        yield running
        Office(running.port).is_in_order()


@pytest.fixture
def customer(refunding):
    return Office(refunding.port).customer(FILLED)


def settles(customer: Customer, *moves: tuple[str, int], held_msat: int = 0) -> None:
    """Wait until a statement says this and nothing else."""
    expected = [("adjustment", FILLED), *moves]
    eventually(lambda: customer.moved() == expected)
    balance = sum(amount for _, amount in expected)
    reported = {"balance_msat": balance, "held_msat": held_msat, "available_msat": balance - held_msat}
    eventually(lambda: customer.balance() == reported)
    customer.office.is_in_order()


def charge_of(node, job_id: str) -> int:
    (paid,) = [event for event in node.events("paid") if event["job_id"] == job_id]
    return MARKUP.charge_msat(paid["price_msat"])


@pytest.mark.parametrize("fault", UNDELIVERED)
def test_what_was_not_delivered_is_given_back(customer, node, fault):
    answer = customer.ask(f"fault/{fault}")
    assert answer.status >= 500 and answer.error["code"] == "undelivered"
    assert answer.verdict == "settled" and answer.headers["x-should-retry"] == "false"
    charge = charge_of(node, answer.headers["x-lcp-job-id"])
    assert charged(answer) == 0
    settles(customer, ("purchase", -charge), ("refund", charge))


def test_an_error_has_the_refund_and_the_balance_after_it(customer):
    answer = customer.ask("fault/wrong-hash")
    assert charged(answer) == 0
    assert answer.headers["x-lcp-refund"] == answer.error["lcp"]["refund"] == "given"
    assert int(answer.headers["x-lcp-balance-msat"]) == FILLED


@pytest.mark.parametrize("fault", UNDELIVERED)
def test_without_refunds_an_undelivered_purchase_is_charged_and_the_error_says_so(keeping, node, fault):
    customer = Office(keeping.port).customer(FILLED)
    answer = customer.ask(f"fault/{fault}")
    assert answer.error["code"] == "undelivered" and answer.verdict == "settled"
    charge = charge_of(node, answer.headers["x-lcp-job-id"])
    assert charged(answer) == charge
    assert int(answer.headers["x-lcp-balance-msat"]) == FILLED - charge
    settles(customer, ("purchase", -charge))


@pytest.mark.parametrize("fault", CUT)
@pytest.mark.parametrize("refunds", [True, False])
def test_a_stream_that_is_cut_counts_as_not_delivered(refunding, keeping, node, fault, refunds):
    served = refunding if refunds else keeping
    customer = Office(served.port).customer(FILLED)
    answer = customer.ask(f"fault/{fault}", "one two three four five", stream=True, max_tokens=50)
    assert not answer.whole or answer.blocks[-1][1] != "[DONE]"
    charge = charge_of(node, answer.headers["x-lcp-job-id"])
    back = [("refund", charge)] if refunds else []
    settles(customer, ("purchase", -charge), *back)


@pytest.mark.parametrize("fault", UNPAID)
def test_what_was_not_paid_is_not_charged(customer, seen, fault):
    answer = customer.ask(f"fault/{fault}")
    assert answer.status >= 400 and answer.verdict == "none"
    assert answer.headers.get("x-lcp-charged-msat", "0") == "0"
    settles(customer)
    assert not seen.jobs("paid")


@pytest.mark.parametrize(
    ("fault", "evidence"), [("execute-code-unavailable", "settled"), ("execute-hangs", "not_paid")]
)
def test_an_unknown_payment_is_held_until_the_operator_resolves_it(node, tmp_path, fault, evidence):
    journal = tmp_path / "journal.db"
    # Only what hangs shall reach a limit.
    limit = {"timeout_execute_s": 3} if fault == "execute-hangs" else {}
    with open_shop(node, journal, **limit) as running:
        customer = Office(running.port).customer(FILLED)
        answer = customer.ask(f"fault/{fault}")
        assert answer.verdict == "unknown" and answer.error["code"] == "payment_unknown"
        assert answer.headers["x-should-retry"] == "false"
        job_id = answer.headers["x-lcp-job-id"]
        charge = charge_of(node, job_id)
        settles(customer, held_msat=charge)
        assert int(answer.headers["x-lcp-balance-msat"]) == FILLED - charge
        # What is held cannot be taken away.
        over = {"amount_msat": -(FILLED - charge + 1), "reason": "of a test"}
        refused = customer.office.post(f"accounts/{customer.account_id}/adjustments", over)
        assert refused.status == 409 and refused.error["code"] == "insufficient_balance"
        eventually(lambda: states(journal)[job_id] == "unknown")

        said = resolve(journal, job_id, evidence)
        assert said.returncode == 0, said.stderr
        # Paid and not delivered: given back as by the running gateway.
        moves = [("purchase", -charge), ("refund", charge)] if evidence == "settled" else []
        settles(customer, *moves)
        # Once and for all.
        assert resolve(journal, job_id, evidence).returncode != 0
        settles(customer, *moves)


def resolve(journal, job_id: str, evidence: str) -> subprocess.CompletedProcess:
    command = ["purchases", "resolve", job_id, evidence, "--why", "of a test", "--yes"]
    return run_command(*command, env={"LCP_GATEWAY_JOURNAL_URL": str(journal)})


def test_a_gateway_killed_while_it_pays_leaves_the_hold_and_another_keeps_it(node, seen, tmp_path):
    """The gateway that sweeps has another mark-up: the charge of the purchase counts."""
    journal = tmp_path / "journal.db"
    with open_shop(node, journal) as running:
        customer = Office(running.port).customer(FILLED)
        charge = customer.quote("fault/execute-hangs")["charge_msat"]

        def ask() -> None:
            with suppress(OSError, EOFError):
                customer.ask("fault/execute-hangs")

        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        eventually(lambda: seen.count("paid") == 1)
        customer.eventually_has(held_msat=charge, balance_msat=FILLED)
        running.process.kill()
        running.process.wait(60)
        asking.join(60)
    (job_id,) = seen.jobs("paid")
    with open_shop(node, journal, markup_percent="300", refund_undelivered="false") as running:
        there = Customer(running.port, customer.account_id, customer.key)
        eventually(lambda: states(journal)[job_id] == "unknown")
        settles(there, held_msat=charge)
        assert resolve(journal, job_id, "settled").returncode == 0
        settles(there, ("purchase", -charge), ("refund", charge))


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_a_killed_gateway_had_in_its_memory_is_given_back(node, seen, tmp_path, stream):
    """Once it was on disk as delivered while a slow client was still reading it, and the customer was charged for a part."""
    journal = tmp_path / "journal.db"
    with open_shop(node, journal) as running:
        customer = Office(running.port).customer(FILLED)
        body = document(CHAT, "fault/big-result", max_tokens=8, stream=stream)
        with slow_reader(running.port) as connection:
            raw = json.dumps(body).encode()
            connection.send(request_bytes("POST", CHAT, raw, customer.headers))
            eventually(lambda: stream or seen.count("result") == 1)
            assert connection.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 200")
            (job_id,) = seen.jobs("paid")
            eventually(lambda: states(journal)[job_id] == "settled")
            # Longer than a commit takes.
            time.sleep(0.5)
            assert states(journal)[job_id] == "settled"
            running.process.kill()
            running.process.wait(60)
    charge = charge_of(node, job_id)
    with open_shop(node, journal) as running:
        there = Customer(running.port, customer.account_id, customer.key)
        settles(there, ("purchase", -charge), ("refund", charge))
    assert states(journal)[job_id] == "undelivered"


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_was_read_in_full_is_on_disk_as_delivered_though_the_gateway_is_killed(
    node, seen, tmp_path, stream
):
    journal = tmp_path / "journal.db"
    with open_shop(node, journal) as running:
        customer = Office(running.port).customer(FILLED)
        answer = customer.ask("echo-1", stream=stream)
        assert answer.status == 200 and answer.whole
        job_id = answer.headers["x-lcp-job-id"]
        eventually(lambda: states(journal)[job_id] == "delivered")
        running.process.kill()
        running.process.wait(60)
    with open_shop(node, journal) as running:
        there = Customer(running.port, customer.account_id, customer.key)
        settles(there, ("purchase", -charge_of(node, job_id)))


@contextmanager
def slow_reader(port):
    """A connection that takes little until it is read, whatever the system's buffers are."""
    with wire(port) as connection:
        connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        yield connection
