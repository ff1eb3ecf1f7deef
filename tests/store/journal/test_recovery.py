"""Processes that are killed, and processes that share a journal: no committed purchase is missing."""

import asyncio
import os
import signal
import sqlite3
import subprocess
from contextlib import closing, contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy.dialects import sqlite

from lcp_gateway.purchase.outcome import LOST_BY_CRASH
from lcp_gateway.purchase.records import NotUnknown, PurchaseFilter
from lcp_gateway.purchase.states import State
from lcp_gateway.store.database.engines import open_database
from lcp_gateway.store.journal import recovery
from lcp_gateway.store.journal.queries import Books
from lcp_gateway.store.journal.recovery import resolve, state_of_request, sweep
from tests.store.journals import NO_LIMIT, NOW, intent, job, spent, swept_once_gone, written
from tests.support.forked import start_module

ROOT = Path(__file__).parents[3]


@contextmanager
def gateway(where: str, name: str, purchases: int, limit_msat: int = NO_LIMIT, *more: str):
    process = start_module(
        "tests.store.burst",
        *(where, name, str(purchases), str(limit_msat), *more),
        env=os.environ,
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.stdin.close()
        process.stdout.close()
        process.wait(60)


def read_until(process, word: str, times: int = 1) -> list[str]:
    lines = []
    while times:
        line = process.stdout.readline()
        assert line, f"ended before it said {word}: {lines[-3:]}"
        lines.append(line.strip())
        times -= line.startswith(word)
    return lines


def numbers(lines: list[str]) -> list[str]:
    return [line.split()[1] for line in lines if line.startswith("intended")]


@pytest.mark.parametrize("after", [1, 150])
async def test_intents_survive_a_kill_and_become_unknown_or_undelivered(where, after):
    """Regression: settled purchases of a dead gateway stayed settled, and their customers were charged."""
    with gateway(where, "x", 100_000) as process:
        lines = await asyncio.to_thread(read_until, process, "intended", after)
        process.send_signal(signal.SIGKILL)
        rest, _ = process.communicate(timeout=60)
        promised = numbers(lines + [line for line in rest.splitlines(keepends=True) if "\n" in line])
    assert len(promised) >= after
    database = await open_database(where, gone_after_s=0)
    books = Books(database)
    swept = await swept_once_gone(database, NOW + timedelta(minutes=1))
    missing = [number for number in promised if await books.purchase(job(number)) is None]
    assert missing == []
    outstanding = await books.outstanding()
    assert outstanding.paying == 0
    assert outstanding.unknown == swept.unknown > 0
    # Some may have been committed although their caller was not told: they count until there is evidence.
    purchases = await all_of(books)
    lost = [purchase for purchase in purchases if purchase.state is State.UNDELIVERED]
    assert {purchase.job_id for purchase in lost} == {one.job_id for one in swept.lost}
    assert {(one.ended_by, one.received) for one in lost} <= {LOST_BY_CRASH}
    assert all(purchase.blames_provider for purchase in lost)
    assert len(lost) + swept.unknown == len(purchases)
    assert await spent(books) == 1_010 * len(purchases)
    assert len(await sweep(database, NOW)) == 0
    await database.close()


async def test_purchases_of_a_live_process_are_not_touched(where):
    with gateway(where, "live", 7) as live:
        await asyncio.to_thread(read_until, live, "done")
        with gateway(where, "dead", 4) as dead:
            await asyncio.to_thread(read_until, dead, "done")
        database = await open_database(where, gone_after_s=0)
        books = Books(database)
        swept = await swept_once_gone(database, NOW)
        assert (swept.unknown, len(swept.lost)) == (2, 2)
        by_state = {purchase.state for purchase in await all_of(books)}
        assert by_state == {State.PAYING, State.SETTLED, State.UNKNOWN, State.UNDELIVERED}
        assert (await books.outstanding()).paying == 4
        for number in range(7):
            found = await books.purchase(job(f"live-{number}"))
            assert found.state is (State.SETTLED if number % 3 == 0 else State.PAYING)
    # Now it is dead as well. A server takes a moment to notice that a session's other end is gone.
    swept = 0
    async with asyncio.timeout(60):
        while swept < 7:
            swept += len(await sweep(database, NOW))
            await asyncio.sleep(0.05)
    assert swept == 7
    await database.close()


async def test_a_process_never_sweeps_its_own_purchases(journal, database, books):
    for number, state in ((1, State.PAYING), (2, State.SETTLED)):
        await journal.intend(intent(number))
        if state is State.SETTLED:
            journal.record(job(number), state, NOW)
        await written(journal)
        assert len(await sweep(database, NOW)) == 0
        assert (await books.purchase(job(number))).state is state


@pytest.mark.parametrize("query", [*recovery._OWNERS, *recovery._LEFT_OF_OWNER], ids=range(4))
async def test_a_sweep_reads_only_open_purchases(sqlite_where, query):
    """It runs every few seconds, and a journal may hold millions of ended purchases."""
    compiled = query.compile(dialect=sqlite.dialect(), compile_kwargs={"render_postcompile": True})
    with closing(sqlite3.connect(sqlite_where)) as connection:
        sql = f"EXPLAIN QUERY PLAN {compiled}"
        plan = connection.execute(sql, [1] * str(compiled).count("?")).fetchall()
    reads = [step for *_, step in plan if step.startswith(("SCAN", "SEARCH"))]
    assert reads and all("ix_purchases_" in step for step in reads)


async def test_a_process_that_ended_in_order_is_gone_as_well(where, database, books):
    with gateway(where, "x", 3) as process:
        await asyncio.to_thread(read_until, process, "done")
        process.stdin.write("end\n")
        process.stdin.flush()
        assert await asyncio.to_thread(process.wait, 60) == 0
    assert len(await swept_once_gone(database, NOW)) == 3
    assert (await books.outstanding()).unknown == 2
    assert (await books.purchase(job("x-0"))).state is State.UNDELIVERED


@pytest.mark.parametrize("state", [State.SETTLED, State.UNDELIVERED])
async def test_a_dead_processs_settled_purchase_can_be_resolved_and_a_live_ones_cannot(where, state):
    """Regression: ``purchases resolve`` refused it with "is settled, not unknown"."""
    database = await open_database(where, gone_after_s=0)
    with gateway(where, "x", 1) as process:
        await asyncio.to_thread(read_until, process, "done")
        with pytest.raises(NotUnknown, match="is running"):
            await resolve(database, job("x-0"), state, NOW)
        assert (await Books(database).purchase(job("x-0"))).state is State.SETTLED
    async with asyncio.timeout(60):
        while True:
            # A server takes a moment to notice that a session's other end is gone.
            with suppress(NotUnknown):
                await resolve(database, job("x-0"), state, NOW)
                break
            await asyncio.sleep(0.05)
    found = await Books(database).purchase(job("x-0"))
    assert (found.state, (found.ended_by, found.received)) == (State.UNDELIVERED, LOST_BY_CRASH)
    with pytest.raises(NotUnknown):
        await resolve(database, job("x-0"), State.NOT_PAID, NOW)
    await database.close()


async def test_a_dead_ones_settled_payment_cannot_be_called_unpaid(where):
    with gateway(where, "x", 1) as process:
        await asyncio.to_thread(read_until, process, "done")
    database = await open_database(where, gone_after_s=0)
    with pytest.raises(NotUnknown):
        await resolve(database, job("x-0"), State.NOT_PAID, NOW)
    await database.close()


async def test_two_processes_on_one_budget_for_ten_take_exactly_ten(where):
    with gateway(where, "a", 32, 10_100) as first, gateway(where, "b", 32, 10_100) as second:
        lines = await asyncio.gather(*(asyncio.to_thread(read_until, process, "done") for process in (first, second)))
    assert len(numbers(lines[0]) + numbers(lines[1])) == 10
    database = await open_database(where, gone_after_s=0)
    assert await spent(Books(database)) == 10_100
    await database.close()


async def all_of(books) -> list:
    purchases, after = [], None
    while True:
        page = await books.page(PurchaseFilter(), limit=1_000, after=after)
        purchases.extend(page.purchases)
        after = page.after
        if after is None:
            return purchases


def of(number, request_id="req_x", key_id="key_1", at=NOW):
    return intent(number, request_id=request_id, key_id=key_id, at=at)


async def test_a_request_that_paid_nothing_is_not_known(database):
    assert await state_of_request(database, "key_1", "req_x", NOW) is None


@pytest.mark.parametrize(
    "states",
    [
        (),
        (State.UNKNOWN,),
        (State.SETTLED,),
        (State.SETTLED, State.DELIVERED),
        (State.SETTLED, State.UNDELIVERED),
        (State.NOT_PAID,),
    ],
)
async def test_a_request_stands_where_its_purchase_does(database, journal, states):
    await journal.intend(of(1))
    for state in states:
        journal.record(job(1), state, NOW)
    await written(journal)
    stands = states[-1] if states else State.PAYING
    expected = None if stands is State.NOT_PAID else stands
    assert await state_of_request(database, "key_1", "req_x", NOW) is expected


async def test_only_what_the_same_key_paid_for_the_same_request_since_then_counts(database, journal):
    await journal.intend(of(1, request_id="req_y"))
    await journal.intend(of(2, key_id="key_2"))
    await journal.intend(of(3, at=NOW - timedelta(microseconds=1)))
    assert await state_of_request(database, "key_1", "req_x", NOW) is None
    await journal.intend(of(4))
    assert await state_of_request(database, "key_1", "req_x", NOW) is State.PAYING


async def test_a_node_that_did_not_do_it_does_not_hide_the_one_that_did(database, journal):
    await journal.intend(of(1))
    journal.record(job(1), State.NOT_PAID, NOW)
    await journal.intend(of(2, at=NOW + timedelta(seconds=1)))
    await written(journal)
    assert await state_of_request(database, "key_1", "req_x", NOW) is State.PAYING
