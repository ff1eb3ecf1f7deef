"""Budgets hold to the millisatoshi, for any number of concurrent requests and gateways."""

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime

import pytest

from tests.support.gateway import RunningGateway, gateway, run_command
from tests.support.journaled import chat, cost_msat, counted_msat, money_node, on_node, spent_msat, state_counts, states
from tests.support.node_thread import eventually
from tests.support.wire import CHAT, Answer, post

AT_ONCE = 64
ROOM = 10
# Reservations stand for a while before they turn into payments.
NODE = """
[wallet]
payment_latency_s = 0.05
"""
ECHO, LOST, UNPAID = chat(), chat("fault/execute-code-unavailable"), chat("fault/no-route")
STREAMED = chat(stream=True)
KEYS = ("sk-first-of-the-test", "sk-second-of-the-test")


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    with money_node(tmp_path_factory.mktemp("node"), toml=NODE, faults=True) as running:
        yield running


@pytest.fixture(scope="module")
def costs(node):
    """The amount that a budget counts for each body, from quotes."""
    with gateway(embedded=False, env=on_node(node)) as running:
        found = {name: cost_msat(running.port, body) for name, body in BODIES.items()}
    assert not node.events("accept")
    return found


BODIES = {"echo": ECHO, "streamed": STREAMED, "lost": LOST, "unpaid": UNPAID}


@pytest.fixture
def seen(node, costs):
    """The node's events during this test, without the quotes of ``costs``."""
    return node.mark()


@pytest.fixture
def journal(tmp_path):
    return tmp_path / "journal.db"


@contextmanager
def bounded(node, journal, **settings) -> Iterator[RunningGateway]:
    with gateway(embedded=False, env=on_node(node, journal_url=journal, **settings)) as running:
        yield running


def all_at_once(ports: list[int], body: dict, headers: list[dict | None] | None = None) -> list[Answer]:
    """Send one body many times in the same moment, in turn to each port with each of the headers."""
    ready = threading.Barrier(AT_ONCE)

    def ask(number: int) -> Answer:
        ready.wait(60)
        port = ports[number % len(ports)]
        return post(port, CHAT, body, headers[number % len(headers)] if headers else None, 120)

    with ThreadPoolExecutor(AT_ONCE) as clients:
        return list(clients.map(ask, range(AT_ONCE)))


def statuses(answers: list[Answer]) -> Counter:
    return Counter(answer.status for answer in answers)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def settings_of(period: str, limit_msat: int, *, key: bool = False) -> dict[str, object]:
    return {f"{'key_' if key else ''}budget_{period}_msat": limit_msat}


def is_over_budget(answer: Answer, limit_msat: int) -> None:
    assert answer.status == 402 and answer.verdict == "none"
    assert answer.headers["x-should-retry"] == "false"
    assert answer.error["code"] == "budget_exceeded"
    assert answer.error["type"] == "insufficient_quota"
    reported = answer.error["lcp"]
    assert reported["payment"] == "none"
    assert reported["limit_msat"] == limit_msat
    assert reported["price_msat"] == int(answer.headers["x-lcp-price-msat"]) > 0
    assert 0 <= reported["spent_msat"] <= limit_msat
    assert reported["quote_id"] == f"quote_{reported['job_id']}"


@pytest.mark.parametrize("period", ["hour", "day", "month"])
def test_of_64_requests_on_a_budget_for_10_exactly_10_are_paid(node, seen, costs, journal, period):
    limit = ROOM * costs["echo"]
    hour = datetime.now(UTC).hour
    with bounded(node, journal, **settings_of(period, limit)) as running:
        answers = all_at_once([running.port], ECHO)
    if datetime.now(UTC).hour != hour:
        pytest.skip("the hour, and perhaps the day, ended meanwhile: there were two budgets")
    assert statuses(answers) == {200: ROOM, 402: AT_ONCE - ROOM}
    assert seen.count("paid") == seen.count("accept") == ROOM
    for answer in answers:
        if answer.status == 402:
            is_over_budget(answer, limit)
    assert state_counts(journal) == {"delivered": ROOM}
    assert counted_msat(journal, period=period) == spent_msat(journal) == limit


def test_one_msat_less_is_room_for_9_and_a_restart_forgets_nothing(node, seen, costs, journal):
    settings = settings_of("month", ROOM * costs["streamed"] - 1)
    with bounded(node, journal, **settings) as running:
        answers = all_at_once([running.port], STREAMED)
        assert statuses(answers) == {200: ROOM - 1, 402: AT_ONCE - ROOM + 1}
        running.process.kill()
    with bounded(node, journal, **settings) as running:
        assert post(running.port, CHAT, STREAMED).status == 402
    settings = settings_of("month", ROOM * costs["streamed"])
    with bounded(node, journal, **settings) as running:
        assert statuses(all_at_once([running.port], STREAMED)) == {200: 1, 402: AT_ONCE - 1}
    assert seen.count("paid") == ROOM


def test_each_key_has_a_budget_of_its_own(node, seen, costs, journal):
    limit = ROOM * costs["echo"]
    settings = settings_of("month", limit, key=True) | {"api_keys": ",".join(KEYS)}
    with bounded(node, journal, **settings) as running:
        answers = all_at_once([running.port], ECHO, [bearer(key) for key in KEYS])
        for turn in range(len(KEYS)):
            own = answers[turn :: len(KEYS)]
            assert statuses(own) == {200: ROOM, 402: AT_ONCE // 2 - ROOM}
        for key in KEYS:
            answer = post(running.port, CHAT, ECHO, bearer(key))
            is_over_budget(answer, limit)
            assert "this key's budget" in answer.error["message"]
    assert seen.count("paid") == seen.count("accept") == 2 * ROOM


def test_a_key_with_room_is_still_bound_by_the_gateways_budget(node, seen, costs, journal):
    """A request that the lower budget refuses is not counted in the other."""
    settings = settings_of("month", ROOM * costs["echo"]) | {
        "key_budget_month_msat": (ROOM - 3) * costs["echo"],
        "api_keys": ",".join(KEYS),
    }
    with bounded(node, journal, **settings) as running:
        first = [bearer(KEYS[0])]
        answers = all_at_once([running.port], ECHO, first)
        assert statuses(answers) == {200: ROOM - 3, 402: AT_ONCE - ROOM + 3}
        answers = all_at_once([running.port], ECHO, [bearer(KEYS[1])])
        assert statuses(answers) == {200: 3, 402: AT_ONCE - 3}
    assert seen.count("paid") == seen.count("accept") == ROOM
    assert counted_msat(journal) == ROOM * costs["echo"]


def test_what_may_have_been_paid_counts_as_spent(node, seen, costs, journal):
    with bounded(node, journal, **settings_of("month", ROOM * costs["lost"])) as running:
        answers = all_at_once([running.port], LOST)
        assert statuses(answers) == {502: ROOM, 402: AT_ONCE - ROOM}
        assert {a.verdict for a in answers if a.status == 502} == {"unknown"}
        assert post(running.port, CHAT, LOST).status == 402
        eventually(lambda: state_counts(journal) == {"unknown": ROOM})
    assert seen.count("paid") == ROOM
    assert counted_msat(journal) == ROOM * costs["lost"]


def test_what_was_not_paid_is_given_back(node, seen, costs, journal):
    room = max(ROOM * costs["echo"], costs["unpaid"])
    with bounded(node, journal, **settings_of("month", room)) as running:
        refused = all_at_once([running.port], UNPAID)
        assert set(statuses(refused)) <= {400, 402}
        assert statuses(refused)[400] >= 1
        assert {answer.verdict for answer in refused} == {"none"}
        eventually(lambda: counted_msat(journal) == 0)
        answers = all_at_once([running.port], ECHO)
        assert statuses(answers)[200] == room // costs["echo"] == ROOM
    assert seen.count("paid") == ROOM
    assert state_counts(journal)["not_paid"] == statuses(refused)[400]
    assert counted_msat(journal) == ROOM * costs["echo"]


def test_two_gateways_on_one_file_share_a_budget(node, seen, costs, journal):
    settings = settings_of("month", ROOM * costs["echo"])
    with bounded(node, journal, **settings) as one, bounded(node, journal, **settings) as other:
        answers = all_at_once([one.port, other.port], ECHO)
    assert statuses(answers) == {200: ROOM, 402: AT_ONCE - ROOM}
    assert seen.count("paid") == seen.count("accept") == ROOM
    assert counted_msat(journal) == ROOM * costs["echo"]


@pytest.mark.slow
@pytest.mark.parametrize("whose", ["gateway", "key"])
def test_two_gateways_on_one_postgresql_share_a_budget(node, seen, costs, postgres, whose):
    settings = settings_of("month", ROOM * costs["echo"], key=whose == "key")
    headers = None
    if whose == "key":
        settings["api_keys"] = KEYS[0]
        headers = [bearer(KEYS[0])]
    with postgres.fresh_database() as url, ExitStack() as stack:
        ports = [stack.enter_context(bounded(node, url, **settings)).port for _ in range(2)]
        answers = all_at_once(ports, ECHO, headers)
        assert statuses(answers) == {200: ROOM, 402: AT_ONCE - ROOM}
        assert seen.count("paid") == seen.count("accept") == ROOM
        lost = all_at_once(ports, LOST, headers)
        assert statuses(lost) == {402: AT_ONCE}
        database = url.rpartition("/")[2]
        scope = "LIKE 'key:%'" if whose == "key" else "= ''"
        counted = "SELECT spent_msat FROM budget_spend WHERE period = 'month' AND scope "
        assert postgres.sql(counted + scope, database) == str(ROOM * costs["echo"])
        in_journal = "SELECT count(*) FROM purchases"
        assert postgres.sql(in_journal, database) == str(ROOM)


@pytest.mark.slow
def test_a_gateway_that_dies_takes_none_of_the_others_payments_along(node, seen, costs, postgres):
    """On one PostgreSQL: payments under way at the dead gateway become unknown and stay counted."""
    settings = settings_of("month", ROOM * costs["lost"])
    hanging = chat("fault/execute-hangs")
    with postgres.fresh_database() as url, bounded(node, url, **settings) as survivor:
        database = url.rpartition("/")[2]

        def counts() -> dict[str, int]:
            found = postgres.sql("SELECT state, count(*) FROM purchases GROUP BY state", database)
            return {s: int(n) for s, _, n in (line.partition("|") for line in found.split())}

        with bounded(node, url, **settings) as dying, ThreadPoolExecutor(3) as clients:
            for _ in range(3):
                clients.submit(post, dying.port, CHAT, hanging)
            eventually(lambda: counts() == {"paying": 3} and seen.count("paid") == 3)
            dying.process.kill()
        answers = all_at_once([survivor.port], LOST)
        assert statuses(answers) == {502: ROOM - 3, 402: AT_ONCE - ROOM + 3}
        # No gateway is started again: the survivor sweeps.
        eventually(lambda: counts() == {"unknown": ROOM})
    assert seen.count("paid") == ROOM


def test_a_quote_over_the_budget_can_be_taken_when_there_is_room_again(node, seen, costs, journal):
    limit = costs["echo"] + costs["lost"] - 1
    with bounded(node, journal, **settings_of("month", limit)) as running:
        lost = post(running.port, CHAT, LOST)
        assert lost.verdict == "unknown"
        refused = post(running.port, CHAT, ECHO)
        is_over_budget(refused, limit)
        reported = refused.error["lcp"]
        assert reported["spent_msat"] == costs["lost"]
        taken = {"X-Lcp-Quote-Id": reported["quote_id"]}
        again = post(running.port, CHAT, ECHO, taken)
        is_over_budget(again, limit)
        # A quote that was refused again is unchanged, and can still be taken.
        assert again.error["lcp"]["quote_id"] == reported["quote_id"]
        assert seen.count("paid") == 1
        eventually(lambda: states(journal)[lost.error["lcp"]["job_id"]] == "unknown")
        resolve(journal, lost.error["lcp"]["job_id"], "not_paid")
        bought = post(running.port, CHAT, ECHO, taken)
        assert bought.status == 200 and bought.verdict == "settled"
        assert bought.headers["x-lcp-job-id"] == reported["job_id"]
        assert bought.headers["x-lcp-price-msat"] == str(reported["price_msat"])
        # And only once: the journal has the outcome.
        again = post(running.port, CHAT, ECHO, taken)
        assert (again.status, again.error["code"]) == (409, "answer_gone")
    assert seen.jobs("paid")[1:] == [reported["job_id"]]
    assert counted_msat(journal) == costs["echo"]


def test_a_quote_over_the_requests_own_limit_can_be_taken_without_it(node, seen, costs, journal):
    with bounded(node, journal) as running:
        limit = costs["echo"] - 1
        refused = post(running.port, CHAT, ECHO, {"X-Lcp-Max-Price-Msat": str(limit)})
        assert refused.status == 402 and refused.verdict == "none"
        assert refused.error["code"] == "price_limit_exceeded"
        reported = refused.error["lcp"]
        assert reported["limit_msat"] == limit
        assert seen.count("accept") == 0
        bought = post(running.port, CHAT, ECHO, {"X-Lcp-Quote-Id": reported["quote_id"]})
        assert bought.status == 200
        assert bought.headers["x-lcp-job-id"] == reported["job_id"]
    assert seen.jobs("paid") == [reported["job_id"]]


def resolve(journal, job_id: str, outcome: str) -> None:
    done = run_command(
        *("purchases", "resolve", job_id, outcome),
        *("--why", "the test saw it", "--yes", "--journal-url", str(journal)),
    )
    assert done.returncode == 0, done.stderr
