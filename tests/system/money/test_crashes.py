"""kill -9 at any moment: every payment is in the journal, and nothing is paid twice.

`LCP_TEST_KILLS=200` is the full run, `LCP_TEST_SEED` repeats the moments of another one.
"""

import asyncio
import hashlib
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lcp_gateway.node.config import NodeConfig, derive_key
from tests.support.gateway import gateway
from tests.support.journaled import (
    PAID_STATES,
    TestedNode,
    counted_msat,
    money_node,
    on_node,
    query,
    spent_msat,
    state_counts,
    states,
)
from tests.support.killing import LONGEST_START_S, kill_under_load, kill_while_starting, resolve_later
from tests.support.lnd_standin import LndStandin, settled
from tests.support.node_thread import eventually
from tests.support.wire import CHAT, RESPONSES, Answer, document, get, post

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("LCP_TEST_KILLS", "12"))
SEED = os.environ.get("LCP_TEST_SEED") or str(random.randrange(10**6))
CLIENTS = 12
# Most moments are under load; some are while the gateway starts and sweeps the last one's purchases.
WHILE_STARTING = 0.15
LONGEST_RUN_S = 0.6
# Long enough that a payment is always under way.
NODE = """
[wallet]
payment_latency_s = 0.03
"""
HUGE_BUDGET_MSAT = 10**15


@dataclass
class Load:
    """Clients that buy without a pause, from whichever gateway runs."""

    port: int = 0
    answers: list[Answer] = field(default_factory=list)
    cut_off: int = 0
    up: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)

    def buy(self, dice: random.Random) -> None:
        while not self.over.is_set():
            if not self.up.wait(0.1):
                continue
            path = dice.choice((CHAT, RESPONSES))
            limit = {"max_tokens" if path == CHAT else "max_output_tokens": dice.randint(1, 6)}
            model = dice.choice(("echo-1", "echo-1", "echo-mini", "echo-slow"))
            body = document(path, model, stream=dice.random() < 0.5, **limit)
            try:
                self.answers.append(post(self.port, path, body))
            except (OSError, EOFError, ValueError, IndexError):
                self.cut_off += 1
                time.sleep(0.02)


@contextmanager
def under_load(dice: random.Random) -> Iterator[Load]:
    load = Load()
    clients = [threading.Thread(target=load.buy, args=(random.Random(dice.random()),)) for _ in range(CLIENTS)]
    for client in clients:
        client.start()
    try:
        yield load
    finally:
        load.over.set()
        for client in clients:
            client.join(60)


@dataclass
class Aftermath:
    """The state after the last gateway was killed, and one more has started and stopped in order."""

    node: TestedNode
    folder: Path
    load: Load
    settings: dict[str, str]
    killed: Counter

    @property
    def journal(self) -> Path:
        return self.folder / "lcp-gateway" / "journal.db"

    def paid(self) -> dict[str, dict]:
        return {event["job_id"]: event for event in self.node.events("paid")}


@pytest.fixture(scope="module")
def aftermath(tmp_path_factory) -> Iterator[Aftermath]:
    folder = tmp_path_factory.mktemp("crashes")
    dice = random.Random(SEED)
    killed = Counter()
    module = "tests.support.telling_node"
    with money_node(folder, toml=NODE, module=module) as node:
        settings = on_node(node, budget_month_msat=HUGE_BUDGET_MSAT)
        settings["XDG_STATE_HOME"] = str(folder)
        settings["XDG_CONFIG_HOME"] = str(folder)
        with under_load(dice) as load:
            for number in range(KILLS):
                if dice.random() < WHILE_STARTING:
                    kill_while_starting(settings, dice.uniform(0, LONGEST_START_S))
                    killed["while starting"] += 1
                else:
                    # On a busy machine a gateway may have had no request yet: most have answered one.
                    answers = load.answers if number % 3 else None
                    kill_under_load(settings, load, dice.uniform(0, LONGEST_RUN_S), answers=answers)
                    killed["under load"] += 1
        with gateway(embedded=False, env=settings) as last:
            assert last.stop() == 0
        left = Aftermath(node, folder, load, settings, killed)
        print(
            f"\nseed {SEED}; killed {dict(killed)}; answers {len(load.answers)}, cut off {load.cut_off}; "
            f"quotes {len(node.events('quote'))}, accepts {len(node.events('accept'))}, "
            f"paid {len(left.paid())}; journal {dict(state_counts(left.journal))}"
        )
        yield left


def test_the_gateways_were_killed_in_the_middle_of_payments(aftermath):
    assert aftermath.killed.total() == KILLS
    lost_sight_of = state_counts(aftermath.journal)["unknown"]
    assert lost_sight_of >= aftermath.killed["under load"] // 2
    assert aftermath.load.cut_off


def test_every_job_that_the_node_saw_paid_is_in_the_journal(aftermath):
    found = states(aftermath.journal)
    paid = aftermath.paid()
    assert paid
    assert [job for job in paid if job not in found] == []
    assert {found[job] for job in paid} <= PAID_STATES


def test_every_job_that_the_node_was_asked_to_pay_is_in_the_journal(aftermath):
    found = states(aftermath.journal)
    asked = [event["job_id"] for event in aftermath.node.events("accept")]
    assert [job for job in asked if job not in found] == []


def test_no_job_was_accepted_or_paid_twice(aftermath):
    for kind in ("accept", "paid"):
        times = Counter(event["job_id"] for event in aftermath.node.events(kind))
        assert set(times.values()) == {1}, kind
    hashes = Counter(event["payment_hash"] for event in aftermath.node.events("paid"))
    assert set(hashes.values()) == {1}


def test_nothing_is_left_paying_and_the_prices_are_those_that_were_paid(aftermath):
    rows = query(
        aftermath.journal, "SELECT lower(hex(job_id)), lower(hex(payment_hash)), price_msat, state FROM purchases"
    )
    paid = aftermath.paid()
    for job, payment_hash, price_msat, state in rows:
        assert state not in {"paying", "settled"}
        if job in paid:
            assert payment_hash == paid[job]["payment_hash"]
            assert price_msat == paid[job]["price_msat"]
        else:
            # The gateway died between its intent and the call, or before the node had read it.
            assert state in {"unknown", "not_paid"}


def test_every_answer_agrees_with_the_journal(aftermath):
    paid, found = aftermath.paid(), states(aftermath.journal)
    assert aftermath.load.answers
    for answer in aftermath.load.answers:
        verdict, job = answer.headers.get("x-lcp-payment"), answer.headers.get("x-lcp-job-id")
        if verdict == "settled":
            assert job in paid and found[job] in PAID_STATES
        elif verdict == "none":
            assert job not in paid


def test_the_budget_counts_exactly_what_the_journal_holds(aftermath):
    assert counted_msat(aftermath.journal) == spent_msat(aftermath.journal) > 0


def test_the_file_is_sound(aftermath):
    assert query(aftermath.journal, "PRAGMA integrity_check") == [("ok",)]
    assert query(aftermath.journal, "PRAGMA foreign_key_check") == []


async def test_with_lnd_every_unknown_resolves(aftermath, tmp_path):
    lnd = LndStandin(tmp_path, key=derive_key(NodeConfig().seed, "node"))
    paid = aftermath.paid()
    for event in paid.values():
        preimage = bytes.fromhex(event["detail"])
        lnd.knows(settled(preimage, value_msat=event["price_msat"], fee_msat=event["fee_msat"]))
    await lnd.start()
    before = states(aftermath.journal)
    unknown = {job for job, state in before.items() if state == "unknown"}
    try:
        await resolved_by_a_gateway(aftermath, lnd, {job for job in unknown if job in paid})
        after = states(aftermath.journal)
        # lnd has no record of the others, which is evidence only once their invoices have expired.
        never_paid = {job for job in unknown if job not in paid}
        assert {job for job, state in after.items() if state == "unknown"} == never_paid
        await resolve_later(aftermath.journal, lnd)
    finally:
        await lnd.stop()
    after = states(aftermath.journal)
    assert "unknown" not in after.values()
    for job in unknown:
        assert after[job] == ("undelivered" if job in paid else "not_paid")
    assert {job: state for job, state in after.items() if job not in unknown} == {
        job: state for job, state in before.items() if job not in unknown
    }
    resolved = query(
        aftermath.journal,
        "SELECT lower(hex(job_id)), preimage, fee_msat, payment_hash FROM purchases WHERE preimage IS NOT NULL",
    )
    assert {job for job, *_ in resolved} >= unknown & set(paid)
    for job, preimage, fee_msat, payment_hash in resolved:
        assert hashlib.sha256(preimage).digest() == payment_hash
        assert fee_msat == paid[job]["fee_msat"]
    assert counted_msat(aftermath.journal) == spent_msat(aftermath.journal)
    print(f"\nresolved by lnd: {len(unknown & set(paid))} settled, {len(never_paid)} not paid")


async def resolved_by_a_gateway(aftermath: Aftermath, lnd: LndStandin, jobs: set[str]) -> None:
    settings = {
        **aftermath.settings,
        "LCP_GATEWAY_LND_GRPC_ADDR": lnd.address.target,
        "LCP_GATEWAY_LND_TLS_CERT": str(lnd.address.tls_cert),
        "LCP_GATEWAY_LND_MACAROON_FILE": str(lnd.address.macaroon),
        "LCP_GATEWAY_RECONCILE_INTERVAL_S": "1",
    }

    def wait() -> None:
        with gateway(embedded=False, env=settings) as running:
            deadline = time.monotonic() + 60 + KILLS
            while any(states(aftermath.journal)[job] == "unknown" for job in jobs):
                assert time.monotonic() < deadline, running.logs[-2000:]
                time.sleep(0.1)
            # lnd's state is read apart from the payments, and again only after seconds where an answer came too late.
            eventually(lambda: get(running.port, "/readyz").json["lnd"].get("pays") is True)
            assert running.stop() == 0

    await asyncio.to_thread(wait)
