"""Two gateways on one PostgreSQL and one Redis behave as one gateway to customers, and keep correct books when either service fails."""

import json
import re
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from lcp_gateway.lightning import bolt11
from lcp_gateway.node.config import NodeConfig, derive_key
from tests.support.gateway import RunningGateway, gateway
from tests.support.journaled import money_node, on_node
from tests.support.lnd_standin import LndStandin, in_a_thread, lnd_settings
from tests.support.node_thread import eventually
from tests.support.redis import RunningRedis, running_redis
from tests.support.wire import CHAT, document, get, post, request_bytes, wire
from tests.system.selling.seller import MARKUP, Customer, Office, charged, is_401, selling

A_LOT = 10_000_000
PROMPT = "zanzibar-quokka-prompt"


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    with money_node(tmp_path_factory.mktemp("node"), faults=True) as running:
        yield running


@pytest.fixture(scope="module")
def lnd(tmp_path_factory):
    standin = LndStandin(tmp_path_factory.mktemp("lnd"), key=derive_key(NodeConfig().seed, "node"))
    with in_a_thread(standin):
        yield standin


Seen = tuple[Customer, Customer]


@dataclass(frozen=True)
class Both:
    gateways: tuple[RunningGateway, RunningGateway]
    redis: RunningRedis
    database: str

    @property
    def office(self) -> Office:
        return Office(self.gateways[0].port)

    def customers(self, *rules: dict[str, int]) -> list[Seen]:
        """Create a customer for each of these rules; return it at each gateway, once both have read all keys."""
        here = [self.office.customer(A_LOT, **rule) for rule in rules]
        there = [Customer(self.gateways[1].port, it.account_id, it.key) for it in here]
        eventually(lambda: there[-1].get("/api/wallet").status != 401)
        return list(zip(here, there, strict=True))


@pytest.fixture(scope="module")
def both(node, lnd, postgres):
    with ExitStack() as stack:
        url = stack.enter_context(postgres.fresh_database())
        redis = stack.enter_context(running_redis())
        env = {
            **on_node(node, journal_url=url, redis_url=redis.url),
            **selling(l402="true", l402_msat=50_000, l402_secret="s" * 40),
            **lnd_settings(lnd.address),
        }
        gateways = [stack.enter_context(gateway(embedded=False, env=env)) for _ in range(2)]
        yield Both(tuple(gateways), redis, url.rpartition("/")[2])


@pytest.fixture(scope="module")
def quote(both):
    """The cost of the request of ``at_once``."""
    return both.office.customer(A_LOT).quote()


@pytest.fixture(scope="module")
def customers(both, quote):
    """A customer for each test that uses up its balance; created together, since the other gateway reads them later."""
    rules = {
        "rich": {},
        "poor": {},
        "poor without redis": {},
        "impatient": {"requests_per_minute": 10},
        "impatient later": {"requests_per_minute": 3},
        "probing": {"requests_per_minute": 1},
        "many jobs": {"concurrent_jobs": 3},
        "thrifty": {"budget_day_msat": 5 * (quote["price_msat"] + quote["max_fee_msat"])},
        "revoked": {},
        "deleted": {},
        "paying in": {},
    }
    found = dict(zip(rules, both.customers(*rules.values()), strict=True))
    for name in ("poor", "poor without redis"):
        # One msat less than room for one more.
        leave = 11 * quote["charge_msat"] - 1
        both.office.adjust(found[name][0].account_id, leave - A_LOT)
    both.office.adjust(found["deleted"][0].account_id, -A_LOT)
    return found


def at_once(customers: Seen, times: int, *args, **more) -> Counter:
    """Count the statuses of this many requests; what no test expects has its code beside it."""
    ready = threading.Barrier(times)

    def ask(number: int) -> int | str:
        ready.wait(60)
        answer = customers[number % len(customers)].ask(*args, **more)
        return answer.status if answer.status < 500 else f"{answer.status} {answer.error['code']}"

    with ThreadPoolExecutor(times) as pool:
        return Counter(pool.map(ask, range(times)))


def test_a_balance_is_shared(customers, quote, node):
    seen = node.mark()
    assert at_once(customers["poor"], 40) == {200: 10, 402: 30}
    assert seen.count("paid") == 10
    for each in customers["poor"]:
        each.eventually_has(balance_msat=quote["charge_msat"] - 1, held_msat=0)


def test_requests_a_minute_are_counted_together(customers):
    # One more passes where a minute of the clock ends meanwhile: see tests/support/minutes.py.
    assert at_once(customers["impatient"], 30) in ({200: 10, 429: 20}, {200: 11, 429: 19})


def test_jobs_at_one_time_are_counted_together(customers):
    many = customers["many jobs"]
    # The node makes up for a standstill: a short answer would be over after one.
    body = json.dumps(document(CHAT, "echo-slow", "word " * 1_000, max_tokens=1_000, stream=True)).encode()
    ready, answered = threading.Barrier(12), threading.Barrier(12)

    def ask(number: int) -> int:
        """Return the status; the client leaves once every other one has its own."""
        customer = many[number % 2]
        ready.wait(60)
        with wire(customer.port) as connection:
            connection.send(request_bytes("POST", CHAT, body, customer.headers))
            head = connection.read_until(b"\r\n\r\n")
            answered.wait(60)
        return int(head.split(b" ")[1])

    with ThreadPoolExecutor(12) as pool:
        assert Counter(pool.map(ask, range(12))) == {200: 3, 429: 9}
    # The end of a job reaches Redis a moment after its answer.
    eventually(lambda: at_once(many, 2) == {200: 2})


def test_a_budget_is_shared(customers):
    assert at_once(customers["thrifty"], 20) == {200: 5, 402: 15}


def test_a_revocation_at_one_holds_there_at_once_and_soon_at_the_other(both, customers):
    """A key that is revoked, and an account that is deleted."""
    revoked, deleted = customers["revoked"], customers["deleted"]
    (made,) = both.office.get(f"accounts/{revoked[0].account_id}/keys").json["data"]
    assert both.office.delete(f"keys/{made['id']}").status == 200
    assert both.office.delete(f"accounts/{deleted[0].account_id}").status == 200
    for here, there in (revoked, deleted):
        assert is_401(here.get("/v1/models"))
        eventually(lambda it=there: is_401(it.get("/v1/models")))


def test_a_top_up_that_is_paid_is_seen_by_a_poll_of_either(both, customers, lnd):
    """The polled gateway looks the invoice up itself, whichever of them follows settlements."""
    for each in customers["paying in"]:
        topup = each.top_up(9_000)
        lnd.run(lnd.settle(bolt11.decode(topup["payment_request"]).payment_hash))
        found = each.get(f"/api/wallet/topups/{topup['id']}").json
        assert found["status"] == "settled" and found["received_msat"] == 9_000
    each.eventually_has(balance_msat=A_LOT + 18_000)
    moved = [cause for cause, _ in each.moved()]
    assert moved == ["adjustment", "topup", "topup"]
    both.office.is_in_order()


def test_an_idempotency_key_is_charged_once(both, customers, node):
    seen = node.mark()
    rich = customers["rich"]
    before = rich[0].balance()["available_msat"]
    key = {"Idempotency-Key": "the same for all"}
    with ThreadPoolExecutor(10) as pool:
        asked = [pool.submit(rich[n % 2].ask, "echo-slow", headers=key) for n in range(10)]
        answers = [one.result() for one in asked]
    answers.append(rich[1].ask("echo-slow", headers=key))
    assert {answer.status for answer in answers} == {200}
    assert len({answer.body for answer in answers}) == 1
    assert seen.count("paid") == 1
    after = before - charged(answers[0])
    assert rich[1].balance()["available_msat"] == after

    # And one that is unknown.
    key = {"Idempotency-Key": "unknown for all"}
    tries = [it.ask("fault/execute-code-unavailable", headers=key) for it in (*rich, *rich)]
    assert {answer.verdict for answer in tries} == {"unknown"}
    assert seen.count("paid") == 2
    (paid,) = [e for e in node.events("paid") if e["job_id"] == seen.jobs("paid")[1]]
    charge = MARKUP.charge_msat(paid["price_msat"])
    assert rich[0].balance()["available_msat"] == after - charge
    # What the one before held is captured a moment later.
    rich[0].eventually_has(available_msat=after - charge, held_msat=charge)
    both.office.is_in_order()


def test_an_l402_token_of_one_is_accepted_at_the_other(both, lnd):
    answer = post(both.gateways[0].port, CHAT, document())
    macaroon, invoice = re.match(
        r'L402 macaroon="([^"]+)", invoice="([^"]+)"', answer.headers["www-authenticate"]
    ).groups()
    payment_hash = bolt11.decode(invoice).payment_hash
    lnd.run(lnd.settle(payment_hash))
    preimage = lnd.invoice(payment_hash).r_preimage.hex()
    headers = {"Authorization": f"L402 {macaroon}:{preimage}"}
    left = []
    for each in (both.gateways[1], both.gateways[0]):
        answer = post(each.port, CHAT, document(max_tokens=8), headers)
        assert answer.status == 200
        left.append(int(answer.headers["x-lcp-balance-msat"]))
    assert 0 < left[1] < left[0] < 50_000


def test_redis_holds_neither_keys_nor_prompts_nor_answers(both, customers):
    here, there = customers["many jobs"]
    key = {"Idempotency-Key": "kept in redis for a while"}
    answers = [each.ask("echo-1", PROMPT, headers=key, max_tokens=50) for each in (here, there)]
    assert [answer.status for answer in answers] == [200, 200]
    assert PROMPT in answers[0].json["choices"][0]["message"]["content"]
    # The second got it from Redis.
    assert answers[0].headers["x-lcp-job-id"] == answers[1].headers["x-lcp-job-id"]
    everything = _everything(both.redis)
    assert len(everything) > 100
    for secret in (here.key[10:], PROMPT, "This is the echo", "chat.completion"):
        assert secret.encode() not in everything


def _everything(redis: RunningRedis) -> bytes:
    """Every key with its value, as Redis itself writes them down for another."""
    with wire(redis.port) as connection:
        connection.send(b"CONFIG SET rdbcompression no\r\n")
        assert connection.read_until(b"\r\n") == b"+OK\r\n"
        connection.send(b"SYNC\r\n")
        # Empty lines keep the connection alive until all is written.
        while (line := connection.read_until(b"\n").strip()) == b"":
            pass
        assert line.startswith(b"$")
        return connection.read_exactly(int(line[1:]))


def test_while_redis_is_away_customers_are_served_and_none_overspends(both, customers, quote, node):
    seen = node.mark()
    both.redis.stop()
    try:
        assert at_once(customers["poor without redis"], 30) == {200: 10, 402: 20}
        assert seen.count("paid") == 10
    finally:
        both.redis.start()
    for each in customers["poor without redis"]:
        each.eventually_has(balance_msat=quote["charge_msat"] - 1, held_msat=0)
    # Limits hold again a second after it is back.
    for each in customers["probing"]:
        eventually(lambda it=each: it.ask().status == 429)
    assert at_once(customers["impatient later"], 10) in ({200: 3, 429: 7}, {200: 4, 429: 6})


@pytest.mark.slow
def test_postgresql_is_killed_while_customers_spend_and_the_books_are_right(both, quote, node, postgres):
    """The last test: payments under way when PostgreSQL ends may stay unknown."""
    (customers,) = both.customers({})
    charge = quote["charge_msat"]
    seen = node.mark()
    stop = threading.Event()
    statuses: Counter = Counter()

    def spend(number: int) -> None:
        while not stop.is_set():
            try:
                statuses[customers[number % 2].ask().status] += 1
            except (OSError, EOFError):
                statuses["gone"] += 1
            time.sleep(0.02)

    with ThreadPoolExecutor(12) as pool:
        asked = [pool.submit(spend, number) for number in range(12)]
        try:
            eventually(lambda: statuses[200] > 20)
            postgres.stop(signal.SIGQUIT)
            time.sleep(0.5)
            postgres.start()
            before = statuses[200]
            eventually(lambda: statuses[200] > before + 20)
        finally:
            stop.set()
            if postgres.process is None:
                postgres.start()
            for one in asked:
                one.result(60)
    assert set(statuses) <= {200, 503}, statuses

    def rows() -> dict[str, str]:
        asked = (
            "SELECT coalesce(json_object_agg(encode(job_id, 'hex'), state), '{}') FROM purchases "
            f"WHERE account_id = '{customers[0].account_id}'"
        )
        return json.loads(postgres.sql(asked, both.database))

    eventually(lambda: not {"paying", "settled"} & set(rows().values()))
    found = rows()
    paid = set(seen.jobs("paid"))
    taken = {job for job, state in found.items() if state == "delivered"}
    held = {job for job, state in found.items() if state == "unknown"}
    assert paid == taken | (held & paid)
    assert set(found.values()) <= {"delivered", "unknown", "undelivered", "not_paid"}
    assert customers[0].balance() == {
        "balance_msat": A_LOT - len(taken) * charge,
        "held_msat": len(held) * charge,
        "available_msat": A_LOT - (len(taken) + len(held)) * charge,
    }
    of_the_node = [event for event in node.events("paid") if event["job_id"] in taken]
    assert sum(MARKUP.charge_msat(event["price_msat"]) for event in of_the_node) == (len(taken) * charge)
    both.office.is_in_order()
    # Both have recovered.
    for each in both.gateways:
        eventually(lambda port=each.port: get(port, "/readyz").status == 200)
