import os
import sqlite3
from contextlib import closing
from dataclasses import astuple, replace
from subprocess import PIPE

import pytest

from lcp_gateway.node.lcp.messages import Protocol
from lcp_gateway.node.storage.files import StoreUnavailable
from lcp_gateway.node.storage.history import HistoryLine, HistoryTotal, OpenJob, open_history
from tests.support.forked import start_module
from tests.support.node_records import PREIMAGE, end, number32, peer, piece, purchase, quote, sale


async def bought(store, number, ended_at, **ended):
    await store.keep_purchase(purchase(number))
    await store.end_purchase(
        quote(number).job_id, **{"outcome": "delivered", "paid": True, "fee_msat": 5, **ended}, ended_at=ended_at
    )


async def sold(store, number, ended_at, outcome="delivered"):
    await store.keep_sale(sale(number))
    job_id = sale(number).kept.request.job_id
    line = {"outcome": outcome, "price_msat": 1_000, "paid": True, "model": "model-a"}
    await store.end_sale(peer(number), job_id, **line, line=True, ended_at=ended_at)


@pytest.fixture
async def store(open_store):
    return await open_store(clock=lambda: 1_000)


async def test_lines_are_read_while_the_node_writes_the_last_first_and_page_by_page(store, path):
    for number in range(5):
        await bought(store, number, 1_010 + number)

    with open_history(path) as history:
        first = history.lines(limit=2)
        await bought(store, 5, 1_020)
        second = history.lines(limit=2, before_id=first[-1].id)

        assert [line.peer_id for line in (*first, *second)] == [peer(4), peer(3), peer(2), peer(1)]
        assert [line.peer_id for line in history.lines(since=1_014)] == [peer(5), peer(4)]


async def test_a_line_has_what_accounting_needs(store, path):
    await bought(store, 1, 1_010, preimage=PREIMAGE)
    await sold(store, 2, 1_011, "lost")

    with open_history(path) as history:
        (line,) = history.lines("purchase")
        assert line == HistoryLine(
            id=1,
            kind="purchase",
            peer_id=peer(1),
            job_id=number32("job", 1),
            protocol=Protocol.V02,
            model="model-a",
            price_msat=1_000,
            fee_msat=5,
            payment_hash=number32("hash", 1),
            preimage=PREIMAGE,
            outcome="delivered",
            paid=True,
            began_at=1_000,
            ended_at=1_010,
        )
        assert [line.outcome for line in history.lines("sale")] == ["lost"]


async def test_totals_are_by_kind_day_peer_model_and_outcome(store, path):
    for number in (0, 0, 1):
        await bought(store, number, 1_010)
    await bought(store, 0, 1_010, paid=False, outcome="unpaid", fee_msat=None)
    await sold(store, 4, 900)
    await sold(store, 5, 1_010)
    await sold(store, 5, 1_010 + 86_400)

    def total(kind, day, number, outcome, jobs, fee_msat, *, paid=True):
        return HistoryTotal(
            kind=kind,
            day=f"1970-01-0{day}",
            peer_id=peer(number),
            model="model-a",
            outcome=outcome,
            paid=paid,
            jobs=jobs,
            price_msat=1_000 * jobs,
            fee_msat=fee_msat,
        )

    with open_history(path) as history:
        totals = history.totals(since=1_000)

    expected = [
        total("purchase", 1, 0, "delivered", 2, 10),
        total("purchase", 1, 0, "unpaid", 1, 0, paid=False),
        total("purchase", 1, 1, "delivered", 1, 5),
        total("sale", 1, 5, "delivered", 1, 0),
        total("sale", 2, 5, "delivered", 1, 0),
    ]
    assert totals == sorted(expected, key=astuple)
    assert all(type(one.price_msat) is type(one.fee_msat) is int for one in totals)


async def test_prices_that_no_peer_can_pay_do_not_break_the_totals(store, path):
    dear = purchase(1)
    dear = replace(dear, kept=replace(dear.kept, quote=replace(dear.kept.quote, price_msat=2**64 - 1)))
    for _ in range(2):
        await store.keep_purchase(dear)
        await store.end_purchase(quote(1).job_id, outcome="not_paid", paid=False, ended_at=1_010)

    with open_history(path) as history:
        assert history.totals()[0].price_msat == 2**63 - 1


async def test_open_jobs_are_those_that_have_not_ended(store, path):
    await store.keep_purchase(purchase(1, params=b"no model"))
    for number in (2, 3):
        await store.keep_sale(sale(number))
    await store.keep_sent(peer(3), sale(3).kept.request.job_id, (piece(3),))

    with open_history(path) as history:
        opened = history.open_jobs()

    assert {(job.kind, job.peer_id, job.model, job.sending) for job in opened} == {
        ("purchase", peer(1), "", False),
        ("sale", peer(2), "model-a", False),
        ("sale", peer(3), "model-a", True),
    }
    assert opened[0] == OpenJob(
        kind="purchase",
        peer_id=peer(1),
        job_id=number32("job", 1),
        protocol=Protocol.V02,
        model="",
        price_msat=1_000,
        payment_hash=number32("hash", 1),
        began_at=1_000,
        quote_expiry=2_000,
        sending=False,
    )


@pytest.mark.parametrize("at_rest", ["encrypted", "memory"])
@pytest.mark.parametrize("has_line", [True, False])
async def test_a_sale_that_ended_is_not_open_while_it_is_kept(open_store, path, at_rest, has_line):
    store = await open_store(at_rest=at_rest)
    job_id = sale(1).kept.request.job_id
    await store.keep_sale(sale(1))
    with open_history(path) as history:
        await store.keep_sent(peer(1), job_id, (piece(1), end(1)))
        assert len(history.open_jobs()) == 1

        line = {"outcome": "delivered", "price_msat": 1_000, "paid": True, "model": "model-a"}
        await store.end_sale(peer(1), job_id, **line, line=has_line, ended_at=10**10)
        assert history.open_jobs() == []
        assert [line.ended_at for line in history.lines()] == [10**10] * has_line
        assert len(await store.sales()) == 1


async def test_history_is_read_after_the_node_has_ended_and_after_it_was_killed(store, path):
    await bought(store, 1, 1_010)
    await store.close()
    with open_history(path) as history:
        assert len(history.lines()) == 1

    killed = path.with_name("killed.db")
    process = start_module(
        "tests.support.node_store_worker", str(killed), "memory", "3", "1", env=dict(os.environ), stdout=PIPE, text=True
    )
    try:
        for _ in range(60):
            process.stdout.readline()
    finally:
        process.kill()
        process.wait(60)
        process.stdout.close()
    with open_history(killed) as history:
        assert history.lines()


async def test_a_reader_writes_nothing(store, path):
    with open_history(path) as history, pytest.raises(sqlite3.OperationalError, match="readonly"):
        history._connection.execute("DELETE FROM history")


def test_a_database_that_is_missing_or_another_programs_is_said_to_be(tmp_path):
    with (
        pytest.raises(StoreUnavailable, match="no node has kept anything here yet"),
        open_history(tmp_path / "node.db"),
    ):
        pass

    other = tmp_path / "other.db"
    with closing(sqlite3.connect(other)) as connection:
        connection.execute("CREATE TABLE theirs (a)")
    with pytest.raises(StoreUnavailable, match="a database of another program"), open_history(other):
        pass

    other.write_bytes(b"no database at all" * 100)
    with pytest.raises(StoreUnavailable, match="damaged"), open_history(other):
        pass


async def test_tables_of_another_version_are_not_read(store, path):
    await store.close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version=9")

    with pytest.raises(StoreUnavailable, match="its tables are of version 9"), open_history(path):
        pass
