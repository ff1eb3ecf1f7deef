"""A key that was revoked buys nothing, whatever the state of the database with the revocation: paused, restarted, flooded, busy.

Two gateways share a PostgreSQL of the test's own. Keys are revoked at one and used at the other, which
reads the revocation from the database only.
"""

import itertools
import json
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import pytest

from tests.support.forked import REAL_START
from tests.support.gateway import RunningGateway, gateway
from tests.support.journaled import money_node, on_node
from tests.support.node_thread import eventually
from tests.support.postgres import RunningPostgres, binaries, running_postgres
from tests.support.wire import Answer, get
from tests.system.selling.seller import Customer, Office, selling

pytestmark = pytest.mark.slow

A_LOT = 100_000_000
STALE_S = 5.0
# A watch goes on for so long where what it waits for was not seen in time.
GIVE_UP_S = 60.0


@dataclass(frozen=True)
class Market:
    server: RunningPostgres
    database: str
    node: object
    used: RunningGateway
    administered: RunningGateway

    def customer(self) -> Customer:
        """Return a customer of the gateway that is used, once that gateway knows its key."""
        made = Office(self.administered.port).customer(A_LOT)
        there = Customer(self.used.port, made.account_id, made.key)
        eventually(lambda: there.get("/v1/models").status == 200)
        return there

    def revoke(self, customer: Customer) -> float:
        """Revoke its key at the other gateway; return when."""
        office = Office(self.administered.port)
        (key,) = office.get(f"accounts/{customer.account_id}/keys").json["data"]
        assert office.delete(f"keys/{key['id']}").status == 200
        return time.time()

    def readiness(self) -> Answer:
        return get(self.used.port, "/readyz")

    def is_ready(self) -> bool:
        return self.readiness().status == 200


@pytest.fixture(scope="module")
def market(tmp_path_factory) -> Iterator[Market]:
    with ExitStack() as stack:
        node = stack.enter_context(money_node(tmp_path_factory.mktemp("node")))
        server = stack.enter_context(running_postgres())
        url = stack.enter_context(server.fresh_database())
        env = {**on_node(node, journal_url=url), **selling(keys_stale_s=f"{STALE_S:g}s"), **REAL_START}
        used, administered = [stack.enter_context(gateway(embedded=False, env=env)) for _ in range(2)]
        yield Market(server, url.rpartition("/")[2], node, used, administered)


@dataclass
class Buyer:
    """Buys with a key as fast as it is answered, over several connections, until stopped."""

    customer: Customer
    stop: threading.Event = field(default_factory=threading.Event)
    answers: list[tuple[float, int, str]] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def __call__(self) -> None:
        while not self.stop.is_set():
            sent_at = time.time()
            answer = self.customer.ask(text=f"number {next(self.numbers)}")
            code = "" if answer.status == 200 else answer.error["code"]
            self.answers.append((sent_at, answer.status, code))
            time.sleep(0.05)

    @contextmanager
    def running(self, clients: int = 4) -> Iterator["Buyer"]:
        with ThreadPoolExecutor(clients) as pool:
            threads = [pool.submit(self) for _ in range(clients)]
            try:
                eventually(lambda: len(self.answers) > 2 * clients)
                yield self
            finally:
                self.stop.set()
                for thread in threads:
                    thread.result(60)


def bought_nothing_since(market: Market, buyer: Buyer, revoked_at: float) -> None:
    """Check that the key, the only one in use, bought nothing, and that each answer is one of three errors.

    What was taken up before the revocation may be paid and answered after it.
    """
    asked = (
        "SELECT coalesce(json_object_agg(encode(job_id, 'hex'), paying_at), '{}') FROM purchases "
        f"WHERE account_id = '{buyer.customer.account_id}'"
    )
    taken_up = json.loads(market.server.sql(asked, market.database))
    assert [at for at in taken_up.values() if at > revoked_at * 1_000_000] == []
    paid = {event["job_id"] for event in market.node.events("paid") if event["at"] > revoked_at}
    assert paid <= set(taken_up)
    accepted = [at - revoked_at for at, status, _ in buyer.answers if status == 200]
    assert [late for late in accepted if late > 0] == []
    refused = {(status, code) for _, status, code in buyer.answers if status != 200}
    assert refused <= {(401, "invalid_api_key"), (503, "keys_unavailable"), (503, "journal_unavailable")}


def recovers(market: Market, revoked: Customer, other: Customer) -> None:
    eventually(market.is_ready)
    eventually(lambda: other.ask(text=f"again {time.time()}").status == 200)
    for path in ("/v1/models", "/api/wallet"):
        found = revoked.get(path)
        assert (found.status, found.error["code"]) == (401, "invalid_api_key")


def watched(market: Market, customer: Customer, for_s: float) -> Callable[[], None]:
    """Watch for so long, and until it is seen, whether the gateway reports why it accepts no key; return the check of the result."""
    begun = time.monotonic()
    reported: list[tuple[float, str]] = []
    late: list[tuple[float, int]] = []

    def about_keys() -> list[float]:
        return [after for after, reason in reported if "the keys of accounts were last read" in reason]

    while (after := time.monotonic() - begun) < for_s or (after < GIVE_UP_S and not about_keys()):
        found = market.readiness()
        if found.status == 503:
            reported.append((after, " ".join(found.json["reasons"])))
        status = customer.get("/v1/models").status
        if after > STALE_S + 1.0 and status != 503:
            late.append((after, status))
        time.sleep(0.2)

    def check() -> None:
        assert late == [], "the list is too old, and a key was accepted or refused by it"
        assert about_keys(), reported

    return check


def test_while_the_database_is_paused(market):
    """Once a revoked key went on buying after PostgreSQL was paused for 35 s, until the gateway was restarted."""
    revoked, other = market.customer(), market.customer()
    with Buyer(revoked).running() as buyer:
        revoked_at = market.revoke(revoked)
        with market.server.paused():
            check = watched(market, other, 9.0)
        eventually(market.is_ready)
        time.sleep(2.0)
    check()
    bought_nothing_since(market, buyer, revoked_at)
    recovers(market, revoked, other)


def test_while_the_database_is_paused_for_less_than_the_list_may_be_old(market):
    """Requests that wait for the journal were accepted by an outdated list, and must not be paid."""
    revoked, other = market.customer(), market.customer()
    with Buyer(revoked).running(8) as buyer:
        revoked_at = market.revoke(revoked)
        with market.server.paused():
            time.sleep(3.0)
        time.sleep(3.0)
    bought_nothing_since(market, buyer, revoked_at)
    recovers(market, revoked, other)


def test_while_the_database_restarts(market):
    revoked, other = market.customer(), market.customer()
    with Buyer(revoked).running() as buyer:
        revoked_at = market.revoke(revoked)
        market.server.stop(signal.SIGQUIT)
        try:
            check = watched(market, other, 9.0)
        finally:
            market.server.start()
        eventually(market.is_ready)
        time.sleep(2.0)
    check()
    bought_nothing_since(market, buyer, revoked_at)
    recovers(market, revoked, other)


@contextmanager
def reading(customer: Customer, clients: int, path: str) -> Iterator[list[int]]:
    """Have a customer read as fast as it is answered."""
    stop, statuses = threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            try:
                statuses.append(customer.get(path).status)
            except OSError:
                statuses.append(0)

    with ThreadPoolExecutor(clients) as pool:
        threads = [pool.submit(read) for _ in range(clients)]
        try:
            yield statuses
        finally:
            stop.set()
            for thread in threads:
                thread.result(60)


def test_while_a_customer_floods_the_gateway_with_reads(market):
    """Once one customer's 3,000 reads kept the refresh from getting a connection."""
    revoked, other, flooding = (market.customer() for _ in range(3))
    with Buyer(revoked).running(2) as buyer, reading(flooding, 60, "/api/wallet/transactions?limit=100") as statuses:
        eventually(lambda: len(statuses) > 200)
        revoked_at = market.revoke(revoked)
        # Without a refresh it would be 503 for as long as the flood lasts.
        eventually(lambda: revoked.get("/v1/models").status == 401)
        time.sleep(STALE_S)
        eventually(market.is_ready)
        # The flood is another's.
        eventually(lambda: other.get("/api/wallet").status == 200)
    bought_nothing_since(market, buyer, revoked_at)
    recovers(market, revoked, other)
    # On a busy machine some of these reads take too long.
    assert {200} <= set(statuses) <= {200, 429, 503}


def test_while_every_connection_for_reads_is_busy(market):
    """Once three reads that wait for a lock used up the pool."""
    revoked, other, flooding = (market.customer() for _ in range(3))
    held = "BEGIN; LOCK TABLE ledger_entries; SELECT pg_sleep(60)"
    with Buyer(revoked).running() as buyer:
        locker = subprocess.Popen(
            [binaries() / "psql", "-qAtX", "-d", market.server.url(market.database), "-c", held],
            stdout=subprocess.DEVNULL,
        )
        try:
            with reading(flooding, 12, "/api/wallet/transactions?limit=100") as statuses:
                eventually(lambda: 503 in statuses)
                revoked_at = market.revoke(revoked)
                eventually(lambda: revoked.get("/v1/models").status == 401)
                reasons = market.readiness().json["reasons"]
                assert not any("keys" in reason for reason in reasons)
        finally:
            # It has its query cancelled, and the lock released.
            locker.send_signal(signal.SIGINT)
            locker.wait(60)
        time.sleep(2.0)
    bought_nothing_since(market, buyer, revoked_at)
    recovers(market, revoked, other)
    assert set(statuses) <= {200, 429, 503}
