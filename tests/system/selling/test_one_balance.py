"""Sixty clients spend one balance through three gateways, of which one is killed and replaced."""

import json
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from tests.support.gateway import RunningGateway, gateway
from tests.support.journaled import money_node, on_node
from tests.support.node_thread import eventually
from tests.support.redis import running_redis
from tests.support.wire import CHAT, document, get, post
from tests.system.selling.seller import MARKUP, Office, bearer, selling

CLIENTS = 60
# Every request costs the same, so that the number of purchases is known.
BODY = document(CHAT, "echo-1", "hello", max_tokens=8)
# More is paid in later than clients may have requests under way.
ROOM, LATER = 240, 90
NODE = """
[wallet]
payment_latency_s = 0.05
"""


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    with money_node(tmp_path_factory.mktemp("node"), toml=NODE) as running:
        yield running


@pytest.fixture(scope="module")
def redis():
    with running_redis() as running:
        yield running


class Clients:
    """Clients that send requests through whichever gateway runs, until stopped; and their answers."""

    def __init__(self, keys: list[str]) -> None:
        self.ports: list[int] = []
        self.keys = keys
        self.stop = threading.Event()
        self.statuses: Counter = Counter()
        self.charged_msat = 0
        self.sold_at: dict[int, set[str]] = defaultdict(set)
        self.odd: list[tuple[int, bytes]] = []
        self._lock = threading.Lock()

    def __call__(self, number: int) -> None:
        turn = number
        while not self.stop.is_set():
            ports = self.ports
            port = ports[turn % len(ports)]
            turn += 1
            try:
                answer = post(port, CHAT, BODY, bearer(self.keys[number % len(self.keys)]))
            except (OSError, EOFError, ValueError, IndexError):
                # No gateway is there, or it was killed while it answered.
                with self._lock:
                    self.statuses["gone"] += 1
                time.sleep(0.05)
                continue
            with self._lock:
                self.statuses[answer.status] += 1
                if answer.status == 200:
                    self.sold_at[port].add(answer.headers["x-lcp-job-id"])
                    self.charged_msat += int(answer.headers["x-lcp-charged-msat"])
                elif answer.status not in {402, 503}:
                    self.odd.append((answer.status, answer.body[:300]))
            if answer.status == 402:
                # The balance is used up, but another client's hold may yet be released.
                time.sleep(0.2)


class Watch:
    """Reads a balance in the database continuously, and records the lowest."""

    def __init__(self, postgres, database: str) -> None:
        self._postgres, self._database = postgres, database
        self.least_msat = self.least_free_msat = 1 << 62
        self.looks = 0
        self.stop = threading.Event()

    def __call__(self) -> None:
        asked = "SELECT min(balance_msat), min(balance_msat - held_msat) FROM balances"
        while not self.stop.is_set():
            balance, free = self._postgres.sql(asked, self._database).split("|")
            self.least_msat = min(self.least_msat, int(balance))
            self.least_free_msat = min(self.least_free_msat, int(free))
            self.looks += 1
            time.sleep(0.1)


@dataclass
class Three:
    """Three gateways on one database."""

    url: str
    running: list[RunningGateway]
    start: Callable[[], RunningGateway]

    @property
    def database(self) -> str:
        return self.url.rpartition("/")[2]

    @property
    def office(self) -> Office:
        """The administrator at the gateway that is not killed."""
        return Office(self.running[0].port)

    @property
    def ports(self) -> list[int]:
        return [each.port for each in self.running]


@pytest.fixture
def three(node, redis, postgres):
    with postgres.fresh_database() as url, ExitStack() as stack:
        shared = {"journal_url": url, "redis_url": redis.url, "l402_secret": "s" * 40}
        settings = {**on_node(node, **shared), **selling()}

        def start() -> RunningGateway:
            return stack.enter_context(gateway(embedded=False, env=settings))

        yield Three(url, [start() for _ in range(3)], start)


def keys_of(three: Three, account_id: str) -> list[str]:
    """Create keys, and wait until every gateway has read them."""
    keys = [three.office.key(account_id)["key"] for _ in range(4)]
    for port in three.ports:
        eventually(lambda at=port: get(at, "/api/wallet", bearer(keys[-1])).status == 200)
    return keys


def kill_one_and_restart_another(three: Three, clients: Clients, seen, more) -> int:
    """Return the number of payments when the gateway was killed; ``more`` adds balance, for its replacement to sell."""
    eventually(lambda: seen.count("paid") >= ROOM // 10)
    stays, dies, pauses = three.running
    dies.process.kill()
    dies.process.wait(60)
    killed_at = seen.count("paid")
    clients.ports = [stays.port, pauses.port]
    pauses.stop()
    clients.ports = [stays.port]
    replacement = three.start()
    # The other sells only to those that wait for its answer already.
    clients.ports = [replacement.port]
    more()
    eventually(lambda: clients.sold_at[replacement.port])
    clients.ports = [stays.port, replacement.port]
    return killed_at


@pytest.mark.slow
def test_sixty_clients_spend_one_balance_on_three_gateways_and_no_more(node, three, postgres):
    seen = node.mark()
    office = three.office
    account_id = office.account()
    keys = keys_of(three, account_id)
    quoting = {**bearer(keys[0]), "X-Lcp-Quote-Only": "true"}
    charge = post(three.ports[0], CHAT, BODY, quoting).json["charge_msat"]
    # One msat less than room for one more.
    office.adjust(account_id, (ROOM - LATER) * charge + charge - 1)
    clients, watch = Clients(keys), Watch(postgres, three.database)
    clients.ports = three.ports
    with ThreadPoolExecutor(CLIENTS + 1) as pool:
        watching = pool.submit(watch)
        asking = [pool.submit(clients, number) for number in range(CLIENTS)]
        try:
            killed_at = kill_one_and_restart_another(
                three, clients, seen, lambda: office.adjust(account_id, LATER * charge)
            )
            eventually(lambda: clients.statuses[402] > CLIENTS)
            # The killed gateway is taken for dead after ten seconds, and its settled purchases are refunded.
            is_open = "SELECT count(*) FROM purchases WHERE state IN ('paying', 'settled')"
            eventually(lambda: postgres.sql(is_open, three.database) == "0")
            # The hold of a request that was not paid is released, and spent by another client.
            eventually(lambda: office.balance(account_id)["available_msat"] < charge)
        finally:
            clients.stop.set()
            for one in asking:
                one.result(60)
            watch.stop.set()
            watching.result(60)
    assert not clients.odd, clients.odd[:5]
    assert killed_at < ROOM - LATER, "it was killed when all was over"
    assert watch.looks > 5
    assert watch.least_msat >= 0 and watch.least_free_msat >= 0
    books = books_agree(three, node, seen, postgres, account_id, charge)
    # The balance was spent as far as possible.
    assert len(books.taken | books.unknown) == ROOM, clients.statuses
    dead = three.running[1].port
    reported = set().union(*(jobs for port, jobs in clients.sold_at.items() if port != dead))
    assert reported <= books.taken
    # The killed gateway could not record its last answers: those are refunded.
    assert clients.sold_at[dead] <= books.taken | books.unknown | books.given_back
    assert clients.charged_msat == len(reported | clients.sold_at[dead]) * charge
    assert clients.statuses[200] >= ROOM - CLIENTS


@dataclass(frozen=True)
class Books:
    """The ids of the jobs that are charged, of those whose payment is not known, and of those that were given back."""

    taken: set[str]
    unknown: set[str]
    given_back: set[str]


def books_agree(three: Three, node, seen, postgres, account_id: str, charge: int) -> Books:
    """Compare the books with what the node was paid."""

    def in_state(*states: str) -> set[str]:
        listed = ", ".join(f"'{state}'" for state in states)
        asked = f"SELECT coalesce(json_agg(encode(job_id, 'hex')), '[]') FROM purchases WHERE state IN ({listed})"
        return set(json.loads(postgres.sql(asked, three.database)))

    # The dead gateway's payments are swept into unknown by the others.
    eventually(lambda: not in_state("paying", "settled"))
    charges = postgres.sql("SELECT DISTINCT charge_msat FROM purchases", three.database)
    assert charges == str(charge)
    taken, unknown = in_state("delivered"), in_state("unknown")
    given_back = in_state("undelivered")
    paid = seen.jobs("paid")
    assert len(paid) == len(set(paid)), "something was paid twice"
    # Every payment to the node is charged, held, or refunded; nothing else is.
    assert taken | given_back <= set(paid) <= taken | given_back | unknown

    reported = three.office.is_in_order()
    balance = three.office.balance(account_id)
    assert balance["held_msat"] == len(unknown) * charge
    assert balance["balance_msat"] == (ROOM + 1) * charge - 1 - len(taken) * charge
    assert reported["books"]["revenue"] == len(taken) * charge
    of_the_node = [event for event in node.events("paid") if event["job_id"] in taken]
    assert sum(MARKUP.charge_msat(it["price_msat"]) for it in of_the_node) == len(taken) * charge
    return Books(taken, unknown, given_back)
