"""Queries of the journal give the same results on both kinds of database."""

from datetime import UTC, datetime, timedelta

import pytest

from lcp_gateway.purchase.journal import PurchaseUpdate
from lcp_gateway.purchase.money import Msat, Period
from lcp_gateway.purchase.outcome import FOUND_PAID
from lcp_gateway.purchase.records import NotUnknown, PurchaseFilter
from lcp_gateway.purchase.states import State
from lcp_gateway.store.journal.recovery import resolve
from tests.store.journals import HOUR, NOW, intent, job, spent, written

ANN, BOB = "02" + "aa" * 32, "03" + "bb" * 32
PATHS = {
    State.PAYING: [],
    State.UNKNOWN: [State.UNKNOWN],
    State.NOT_PAID: [State.NOT_PAID],
    State.SETTLED: [State.SETTLED],
    State.DELIVERED: [State.SETTLED, State.DELIVERED],
    State.UNDELIVERED: [State.SETTLED, State.UNDELIVERED],
}


async def buy(journal, name, state, **changes):
    wanted = intent(name, **changes)
    await journal.intend(wanted)
    for step in PATHS[state]:
        journal.record(job(name), step, wanted.at)


@pytest.fixture
async def history(journal):
    """Two peers, two models, two keys, over two months."""
    await buy(journal, "a", State.DELIVERED, peer_id=ANN, key_id="k1", model="x")
    await buy(journal, "b", State.UNDELIVERED, peer_id=ANN, key_id="k1", model="x")
    await buy(journal, "c", State.NOT_PAID, peer_id=ANN, key_id="k2", model="y")
    await buy(journal, "d", State.UNKNOWN, peer_id=BOB, key_id="k2", at=NOW + timedelta(hours=1))
    await buy(journal, "e", State.UNKNOWN, peer_id=BOB, at=NOW - timedelta(minutes=5))
    await buy(journal, "f", State.PAYING, peer_id=BOB, at=NOW + timedelta(days=1))
    await buy(journal, "g", State.DELIVERED, peer_id=BOB, at=datetime(2026, 12, 1, tzinfo=UTC))
    await written(journal)


async def names(books, **which):
    page = await books.page(PurchaseFilter(**which))
    return [purchase.request_id.removeprefix("req-") for purchase in page.purchases]


async def test_the_list_is_newest_first_and_filtered(history, books):
    assert await names(books, peer_id=BOB) == ["g", "f", "d", "e"]
    assert await names(books, states=[State.UNKNOWN]) == ["d", "e"]
    assert sorted(await names(books, model="x")) == ["a", "b"]
    assert sorted(await names(books, key_id="k2")) == ["c", "d"]
    assert await names(books, since=NOW + timedelta(hours=1)) == ["g", "f", "d"]
    assert await names(books, until=NOW) == ["e"]
    assert await names(books, states=[]) == []


async def test_pages_cover_the_list_once_also_where_times_are_equal(journal, books):
    for number in range(10):
        await journal.intend(intent(number, at=NOW + timedelta(seconds=number // 4)))
    seen, after = [], None
    for _ in range(10):
        page = await books.page(PurchaseFilter(), limit=3, after=after)
        assert len(page.purchases) <= 3
        seen += page.purchases
        after = page.after
        if after is None:
            break
    assert len(seen) == len({purchase.job_id for purchase in seen}) == 10
    assert [p.paying_at for p in seen] == sorted((p.paying_at for p in seen), reverse=True)


async def test_unknowns_come_oldest_first(history, books):
    assert [p.request_id for p in await books.unknowns()] == ["req-e", "req-d"]
    assert [p.request_id for p in await books.unknowns(limit=1)] == ["req-e"]


async def test_a_job_that_was_never_bought_has_no_purchase(history, books):
    assert await books.purchase(job("never bought")) is None


async def test_outstanding_amounts(history, books):
    outstanding = await books.outstanding()
    assert (outstanding.unknown, outstanding.unknown_msat) == (2, 2_020)
    assert (outstanding.paying, outstanding.paying_msat) == (1, 1_010)
    assert outstanding.oldest_at == NOW - timedelta(minutes=5)


async def test_nothing_is_outstanding_in_an_empty_journal(books):
    outstanding = await books.outstanding()
    assert (outstanding.unknown, outstanding.unknown_msat, outstanding.oldest_at) == (0, 0, None)
    assert await books.peers() == [] == await books.spend(Period.DAY, PurchaseFilter())


async def test_how_each_peer_has_done(history, books):
    ann, bob = await books.peers()
    assert (ann.peer_id, ann.delivered, ann.delivered_msat) == (ANN, 1, 1_010)
    assert (ann.undelivered, ann.undelivered_msat, ann.not_paid) == (1, 1_010, 1)
    assert (bob.unknown, bob.unknown_msat, bob.delivered) == (2, 2_020, 1)
    (lately,) = await books.peers(since=NOW + timedelta(days=2))
    assert (lately.peer_id, lately.delivered, lately.unknown) == (BOB, 1, 0)


@pytest.mark.parametrize(
    ("period", "starts"),
    [
        (Period.MONTH, [datetime(2026, 11, 1, tzinfo=UTC)] * 4),
        (Period.DAY, [datetime(2026, 11, 21, tzinfo=UTC)] * 3 + [datetime(2026, 11, 22, tzinfo=UTC)]),
        (
            Period.HOUR,
            [
                datetime(2026, 11, 21, 12, tzinfo=UTC),
                datetime(2026, 11, 21, 12, tzinfo=UTC),
                datetime(2026, 11, 21, 13, tzinfo=UTC),
                datetime(2026, 11, 22, 12, tzinfo=UTC),
            ],
        ),
    ],
)
async def test_spending_by_period(history, books, period, starts):
    lines = await books.spend(period, PurchaseFilter())
    # Within one month the two purchases without a key, of the same peer and model, are one line.
    expected = starts if period is not Period.MONTH else starts[:3]
    assert [line.starts_at for line in lines[:-1]] == expected
    assert sum(line.purchases for line in lines) == 6
    assert sum(line.settled_msat for line in lines) == 3 * 1_010
    assert sum(line.unknown_msat for line in lines) == 3 * 1_010
    assert sum(line.undelivered_msat for line in lines) == 1_010
    assert lines[-1].starts_at == datetime(2026, 12, 1, tzinfo=UTC)
    ann = next(line for line in lines if line.peer_id == ANN)
    assert (ann.model, ann.key_id, ann.purchases, ann.settled_msat) == ("x", "k1", 2, 2_020)


async def test_an_unknown_that_turns_out_settled_has_its_fee_and_preimage(history, database, books):
    before = await spent(books)
    update = PurchaseUpdate(fee_msat=Msat(4), preimage=b"p" * 32)
    await resolve(database, job("e"), State.SETTLED, NOW, update)
    found = await books.purchase(job("e"))
    assert (found.state, found.fee_msat, found.preimage) == (State.UNDELIVERED, 4, b"p" * 32)
    assert (found.ended_by, found.received) == FOUND_PAID and found.blames_provider
    assert await spent(books) == before - 6


@pytest.mark.parametrize("found", [State.SETTLED, State.UNDELIVERED])
async def test_an_unknown_that_was_paid_is_undelivered(history, database, books, found):
    """Regression: the reconciler left it settled, and its customer charged for a result that is lost."""
    assert (await resolve(database, job("e"), found, NOW)).state is State.UNDELIVERED
    assert [step.state for step in (await books.purchase(job("e"))).steps] == [
        State.PAYING,
        State.UNKNOWN,
        State.UNDELIVERED,
    ]


async def test_an_unknown_that_turns_out_unpaid_releases_its_money(history, database, books):
    before = await spent(books, HOUR)
    await resolve(database, job("e"), State.NOT_PAID, NOW)
    assert await spent(books, HOUR) == before - 1_010
    assert [step.state for step in (await books.purchase(job("e"))).steps][-1] is State.NOT_PAID


@pytest.mark.parametrize("name", ["a", "b", "c", "f", "missing"])
async def test_only_an_unknown_purchase_can_be_resolved(history, database, books, name):
    before = await books.purchase(job(name))
    with pytest.raises(NotUnknown):
        await resolve(database, job(name), State.SETTLED, NOW)
    assert await books.purchase(job(name)) == before


@pytest.mark.parametrize("state", [State.DELIVERED, State.PAYING, State.UNKNOWN, State.REFUSED])
async def test_an_unknown_is_not_resolved_as_anything_else(history, database, state):
    with pytest.raises(ValueError, match="not resolved"):
        await resolve(database, job("e"), state, NOW)
