"""Purchases that ended long ago are deleted; open ones never are."""

from datetime import timedelta

from sqlalchemy import func, select

from lcp_gateway.purchase.records import PurchaseFilter
from lcp_gateway.purchase.states import State
from lcp_gateway.store.database.schema import budget_spend
from lcp_gateway.store.journal.retention import forget
from tests.store.journals import HOUR, MONTH, NOW, intent, job, spent, written

OLD = NOW - timedelta(days=100)


async def fill(journal):
    for number, (path, at) in enumerate(
        [
            ([State.SETTLED, State.DELIVERED], OLD),
            ([State.SETTLED, State.UNDELIVERED], OLD),
            ([State.NOT_PAID], OLD),
            ([State.SETTLED], OLD),
            ([State.UNKNOWN], OLD),
            ([], OLD),
            ([State.SETTLED, State.DELIVERED], NOW),
        ]
    ):
        await journal.intend(intent(number, at=at))
        for state in path:
            journal.record(job(number), state, at)
    await written(journal)


async def left(books):
    return {int(p.request_id[4:]) for p in (await books.page(PurchaseFilter())).purchases}


async def test_only_old_purchases_that_ended_are_deleted(journal, database, books):
    await fill(journal)
    gone = await forget(database, NOW - timedelta(days=30), at_once=2)
    assert gone.purchases == 4
    assert await left(books) == {4, 5, 6}


async def test_recently_updated_purchases_stay(journal, database, books):
    await fill(journal)
    journal.record(job(4), State.SETTLED, NOW)
    await written(journal)
    await forget(database, NOW - timedelta(days=30))
    assert await left(books) == {4, 5, 6}


async def test_budgets_of_the_present_stay_as_they_are(journal, database, books):
    await fill(journal)
    before = await spent(books, MONTH)
    await forget(database, NOW)
    assert await spent(books, MONTH) == before == 1_010
    assert await spent(books, HOUR) == 1_010


async def test_counters_of_old_periods_are_deleted_and_late_updates_still_work(journal, database, books):
    await fill(journal)
    gone = await forget(database, NOW - timedelta(days=30))
    assert gone.counters == 3
    journal.record(job(4), State.NOT_PAID, NOW)
    await written(journal)
    assert (await books.purchase(job(4))).state is State.NOT_PAID
    least = await database.read(lambda c: c.execute(select(func.min(budget_spend.c.spent_msat))).scalar())
    assert least == 1_010
