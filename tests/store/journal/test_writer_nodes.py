"""Purchases of virtual nodes in the journal: their kind, their cost, and their state after a crash."""

import asyncio
import os
import signal
import subprocess
from datetime import timedelta
from pathlib import Path

import pytest

from lcp_gateway.purchase.journal import BudgetExceeded, PurchaseUpdate
from lcp_gateway.purchase.money import Budget, Msat, Period
from lcp_gateway.purchase.quote import ProviderSource
from lcp_gateway.purchase.states import State
from lcp_gateway.store.database.engines import open_database
from lcp_gateway.store.journal.queries import Books
from lcp_gateway.store.journal.recovery import sweep
from tests.store.journals import NOW, intent, job, spent, swept_once_gone, written
from tests.support.forked import start_module

NODE = "node:ollama"
ROOT = Path(__file__).parents[3]


def node_intent(number, **changes):
    changes = {"payment_hash": None, "fee_cap_msat": Msat(0), **changes}
    return intent(number, source=ProviderSource.NODE, peer_id=NODE, **changes)


async def test_a_purchase_has_its_source(journal, books):
    await journal.intend(node_intent(1))
    await journal.intend(intent(2))
    node, peer = await books.purchase(job(1)), await books.purchase(job(2))
    assert (node.kind, node.upstream, node.peer_id) == ("node", "openai_http", NODE)
    assert (peer.kind, peer.upstream) == ("lcp", "lcpd")


async def test_the_final_charge_replaces_the_ceiling_and_releases_the_rest(journal, books):
    await journal.intend(node_intent(1, price_msat=5_000))
    assert await spent(books) == 5_000
    journal.record(job(1), State.SETTLED, NOW)
    journal.record(job(1), State.DELIVERED, NOW, PurchaseUpdate(charged_msat=Msat(1_200)))
    await written(journal)
    assert await spent(books) == 1_200
    assert (await books.purchase(job(1))).price_msat == 1_200


async def test_a_charge_above_the_ceiling_counts_as_the_ceiling(journal, books):
    await journal.intend(node_intent(1, price_msat=5_000))
    journal.record(job(1), State.SETTLED, NOW)
    journal.record(job(1), State.DELIVERED, NOW, PurchaseUpdate(charged_msat=Msat(9_000)))
    await written(journal)
    assert await spent(books) == 5_000


async def test_the_ceiling_counts_against_budgets_until_the_charge_is_known(journal, books):
    budget = [Budget(Period.HOUR, Msat(6_000))]
    await journal.intend(node_intent(1, price_msat=5_000), budget)
    with pytest.raises(BudgetExceeded):
        await journal.intend(node_intent(2, price_msat=5_000), budget)
    journal.record(job(1), State.SETTLED, NOW)
    journal.record(job(1), State.DELIVERED, NOW, PurchaseUpdate(charged_msat=Msat(500)))
    await written(journal)
    await journal.intend(node_intent(3, price_msat=5_000), budget)


def killed_after(where: str, line: str) -> None:
    """Run a process that journals purchases at a node, and kill it once it has printed a line."""
    process = start_module(
        "tests.store.burst",
        *(where, "x", "2", "1000000", "node"),
        env=os.environ,
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        while (said := process.stdout.readline()).strip() != line:
            assert said
        process.send_signal(signal.SIGKILL)
        process.wait(60)
    finally:
        process.kill()
        process.communicate(timeout=60)


async def test_a_dead_gateways_purchase_at_a_node_is_charged_and_never_unknown(where):
    # The first is recorded as settled; the second stays as it is.
    await asyncio.to_thread(killed_after, where, "intended x-1")
    database = await open_database(where, gone_after_s=0)
    books = Books(database)
    assert len(await swept_once_gone(database, NOW + timedelta(minutes=1))) in {1, 2}
    assert len(await sweep(database, NOW + timedelta(minutes=1))) == 0
    record = await books.purchase(job("x-1"))
    assert record.state is State.UNDELIVERED
    assert [step.state for step in (await books.purchase(job("x-1"))).steps] == [
        State.PAYING,
        State.SETTLED,
        State.UNDELIVERED,
    ]
    assert (await books.outstanding()).unknown == 0
    await database.close()
