"""``lcp-gateway sell``, beside a node whose store is open."""

import json
from datetime import UTC, datetime

import pytest

from lcp_gateway.cli.sell.sell import Earnings, GroupBy, add_up, outcomes, whole
from lcp_gateway.node.runtime.observer import JobEnd
from lcp_gateway.node.storage.history import HistoryTotal
from lcp_gateway.node.storage.store import SqliteStore
from tests.support.node_records import failure, peer, piece, sale

NOW = int(datetime.now(UTC).timestamp())
DAY_S = 86_400
TODAY = datetime.fromtimestamp(NOW, UTC).strftime("%Y-%m-%d")


@pytest.fixture
async def store(tmp_path):
    opened = await SqliteStore.open(tmp_path / "state" / "lcp-gateway" / "node.db")
    yield opened
    await opened.close()


async def sold(store, number, *, ended_at=NOW, outcome=JobEnd.DELIVERED, model="model-a", paid=True):
    await store.keep_sale(sale(number))
    job_id = sale(number).kept.request.job_id
    line = {"outcome": outcome, "price_msat": 1_500, "paid": paid, "model": model, "ended_at": ended_at}
    await store.end_sale(peer(number), job_id, **line, line=paid or outcome is JobEnd.UNPAID)


@pytest.fixture
async def busy(store):
    await sold(store, 1, ended_at=NOW - 40 * DAY_S)
    await sold(store, 1)
    await sold(store, 2, model="model-b")
    await sold(store, 1, outcome=JobEnd.FAILED)
    # It was cancelled before it was paid: no line is kept of it.
    await sold(store, 1, outcome=JobEnd.CANCELLED, paid=False)
    await store.keep_sale(sale(3))
    await store.keep_sale(sale(4))
    await store.keep_sent(peer(4), sale(4).kept.request.job_id, (piece(4),))
    return store


async def test_status_says_what_is_open_ended_and_earned(busy, run):
    done = run("sell", "status")

    assert done.code == 0, done.err
    assert "open    2 for " in done.out
    assert "sat: 1 quoted or running, 1 being answered" in done.out
    assert "ended   2 delivered, 1 failed\n" in done.out
    assert "earned  4.500 sat for 3 jobs, of them 1.500 sat for 1 without a whole result\n" in done.out
    row = next(line for line in done.out.splitlines() if line.startswith(TODAY))
    assert row.split() == [TODAY, "3", "2", "1", "4500", "1500", "4.500", "sat"]


async def test_status_adds_up_by_what_is_asked_for(busy, run):
    done = run("sell", "status", "--by", "model", "--by", "peer", "--since", "60d", "--json")

    document = json.loads(done.out)
    assert [(one["model"], one["peer"], one["jobs"], one["earned_msat"]) for one in document["earnings"]] == [
        ("model-a", peer(1), 3, 4_500),
        ("model-b", peer(2), 1, 1_500),
    ]
    assert (document["jobs"], document["delivered"], document["undelivered_msat"]) == (4, 3, 1_500)
    assert document["ended"] == {"delivered": 3, "failed": 1}
    assert {one["peer_id"]: one["sending"] for one in document["open"]} == {peer(3): False, peer(4): True}


@pytest.mark.parametrize("paid", [True, False])
async def test_a_job_that_failed_has_ended_while_it_is_kept_to_be_sent_again(store, run, paid):
    await store.keep_sale(sale(1))
    await store.keep_sent(peer(1), sale(1).kept.request.job_id, (piece(1),))
    assert "1 being answered" in run("sell", "status").out
    await store.keep_sent(peer(1), sale(1).kept.request.job_id, (failure(1, "backend unavailable"),))
    outcome = JobEnd.FAILED if paid else JobEnd.UNPAID
    line = {"outcome": outcome, "price_msat": 1_000, "paid": paid, "model": "model-a", "ended_at": NOW}
    await store.end_sale(peer(1), sale(1).kept.request.job_id, **line, line=True)

    document = json.loads(run("sell", "status", "--json").out)
    assert document["open"] == []
    assert document["ended"] == {outcome: 1}
    amounts = {"jobs": 1, "delivered": 0, "undelivered": 1, "earned_msat": 1_000, "undelivered_msat": 1_000}
    assert document["earnings"] == [{"day": TODAY, **amounts}] * paid
    (listed,) = json.loads(run("sell", "jobs", "--json").out)
    assert (listed["outcome"], listed["price_msat"]) == (outcome, 1_000)


async def test_status_of_a_node_that_has_sold_nothing(store, run):
    done = run("sell", "status")

    assert done.code == 0, done.err
    assert "open    none\n" in done.out
    assert "ended   none\n" in done.out
    assert "earned  0.000 sat for 0 jobs\n" in done.out
    assert json.loads(run("sell", "status", "--json").out)["earnings"] == []


async def test_jobs_are_listed_the_newest_first(busy, run):
    done = run("sell", "jobs", "--limit", "2", "--json")

    lines = json.loads(done.out)
    assert [(line["outcome"], line["price_msat"]) for line in lines] == [("failed", 1_500), ("delivered", 1_500)]
    assert len(json.loads(run("sell", "jobs", "--json").out)) == 4
    assert peer(1) in run("sell", "jobs").out


def test_without_a_store_the_error_says_where_it_was_looked_for(run, tmp_path):
    for command in ("status", "jobs"):
        done = run("sell", command)
        assert done.code == 1
        assert done.err == f"lcp-gateway: {tmp_path}/state/lcp-gateway/node.db: no node has kept anything here yet\n"


def test_the_store_is_that_of_the_nodes_configuration(run, tmp_path):
    place, config = tmp_path / "other.db", tmp_path / "node.toml"
    place.write_text("no database")
    config.write_text(f'[store]\npath = "{place}"\n')
    done = run("sell", "status", "--config", str(config))

    assert done.code == 1
    assert done.err.startswith(f"lcp-gateway: {place}: ")


async def test_the_configuration_of_a_node_whose_flags_name_its_lnd_is_enough(busy, run, tmp_path):
    config = tmp_path / "node.toml"
    model = '[[sell.models]]\nname = "m"\ninput_msat_per_mtok = 1\noutput_msat_per_mtok = 1\n'
    config.write_text(f'{model}[[sell.backends]]\nkind = "echo"\n')
    done = run("sell", "status", "--config", str(config))

    assert done.code == 0, done.err
    assert "ended   2 delivered, 1 failed\n" in done.out


def test_a_wrong_configuration_is_a_usage_error(run, tmp_path):
    config = tmp_path / "node.toml"
    config.write_text("[sell]\nmodel = 1\n")
    done = run("sell", "jobs", "--config", str(config))

    assert done.code == 2
    assert "model" in done.err


def total(outcome=JobEnd.DELIVERED, *, kind="sale", paid=True, jobs=1, model="m"):
    return HistoryTotal(
        kind=kind,
        day="2026-01-01",
        peer_id="p",
        model=model,
        outcome=outcome,
        paid=paid,
        jobs=jobs,
        price_msat=10 * jobs,
        fee_msat=0,
    )


def test_earnings_are_paid_sales_alone():
    totals = [total(jobs=2), total(JobEnd.LOST), total(kind="purchase"), total(JobEnd.UNPAID, paid=False)]

    assert whole(totals) == Earnings(3, 2, 1, 30, 10)
    assert outcomes(totals) == {"delivered": 2, "lost": 1, "unpaid": 1}


def test_earnings_are_added_up_in_the_order_of_the_ways():
    totals = [total(model="b"), total(model="a"), total(model="a", jobs=3)]

    assert add_up(totals, [GroupBy.MODEL, GroupBy.DAY]) == {
        ("a", "2026-01-01"): Earnings(4, 4, 0, 40, 0),
        ("b", "2026-01-01"): Earnings(1, 1, 0, 10, 0),
    }
