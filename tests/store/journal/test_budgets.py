"""Budgets are exact, with several gateways and for every end of a purchase."""

import asyncio
import itertools
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from lcp_gateway.purchase.journal import BudgetExceeded, DuplicateIntent, PurchaseUpdate
from lcp_gateway.purchase.money import Budget, Msat, Period
from lcp_gateway.purchase.records import PurchaseFilter
from lcp_gateway.purchase.states import TRANSITIONS, State
from lcp_gateway.store.database.engines import open_database
from lcp_gateway.store.journal.transaction import IntentEntry, JournalTransaction
from lcp_gateway.store.journal.writer import JournalWriter
from tests.store.journals import DAY, HOUR, MONTH, NOW, intent, job, key_budget, spent, written
from tests.support.examples import examples


def for_ten(period: Period = Period.HOUR, key_id: str | None = None) -> Budget:
    return Budget(period, Msat(10_100), key_id)


async def test_64_parallel_intents_on_a_budget_for_ten_take_exactly_ten(journal, books):
    outcomes = await asyncio.gather(
        *(journal.intend(intent(n), [for_ten()]) for n in range(64)), return_exceptions=True
    )
    assert outcomes.count(None) == 10
    assert sum(isinstance(outcome, BudgetExceeded) for outcome in outcomes) == 54
    assert await spent(books) == 10_100
    assert len((await books.page(PurchaseFilter())).purchases) == 10


async def test_a_refusal_names_the_budget_and_what_is_spent_of_it(journal):
    budget = for_ten(Period.DAY, "k")
    await journal.intend(intent(1, price_msat=9_000, key_id="k"), [HOUR, budget])
    with pytest.raises(BudgetExceeded) as refused:
        await journal.intend(intent(2, price_msat=2_000, key_id="k"), [HOUR, budget])
    assert refused.value.budget == budget
    assert refused.value.spent_msat == 9_010
    assert refused.value.quote.job_id == job(2)


async def test_a_key_has_its_own_budget_and_counts_for_the_gateway(journal, books):
    await journal.intend(intent(1, key_id="a"), [key_budget("a", limit_msat=1_010)])
    await journal.intend(intent(2, key_id="b"), [key_budget("b", limit_msat=1_010)])
    with pytest.raises(BudgetExceeded):
        await journal.intend(intent(3, key_id="a"), [key_budget("a", limit_msat=1_010)])
    assert await spent(books, key_budget("a")) == await spent(books, key_budget("b")) == 1_010
    assert await spent(books, MONTH) == 2_020


async def test_a_budget_set_later_finds_what_was_spent_without_it(journal):
    await journal.intend(intent(1, price_msat=9_500))
    with pytest.raises(BudgetExceeded):
        await journal.intend(intent(2), [for_ten()])


@pytest.mark.parametrize(
    ("budget", "before", "after"),
    [
        (HOUR, datetime(2026, 3, 1, 9, 59, 59, 999_999, UTC), datetime(2026, 3, 1, 10, tzinfo=UTC)),
        (DAY, datetime(2026, 3, 1, 23, 59, 59, 999_999, UTC), datetime(2026, 3, 2, tzinfo=UTC)),
        (MONTH, datetime(2028, 2, 29, 23, 59, 59, 999_999, UTC), datetime(2028, 3, 1, tzinfo=UTC)),
        (MONTH, datetime(2026, 12, 31, 23, 59, 59, 999_999, UTC), datetime(2027, 1, 1, tzinfo=UTC)),
    ],
)
async def test_a_budget_is_reset_with_its_period(journal, books, budget, before, after):
    limit = Budget(budget.period, Msat(1_010))
    await journal.intend(intent(1, at=before), [limit])
    with pytest.raises(BudgetExceeded):
        await journal.intend(intent(2, at=before), [limit])
    await journal.intend(intent(3, at=after), [limit])
    (state,) = await books.budgets([limit], before)
    assert (state.spent_msat, state.left_msat, state.ends_at) == (1_010, 0, after)


async def test_an_unpaid_amount_is_released_in_the_budget_it_was_reserved_in(journal, books):
    late = NOW + timedelta(days=40)
    await journal.intend(intent(1, key_id="k"))
    await journal.intend(intent(2, key_id="k", at=late))
    journal.record(job(1), State.NOT_PAID, late)
    await written(journal)
    for budget in (HOUR, DAY, MONTH, key_budget("k")):
        assert await spent(books, budget, NOW) == 0
        assert await spent(books, budget, late) == 1_010


async def test_what_is_unknown_stays_counted_until_it_is_known(journal, books):
    await journal.intend(intent(1))
    journal.record(job(1), State.UNKNOWN, NOW)
    await written(journal)
    assert await spent(books) == 1_010
    journal.record(job(1), State.NOT_PAID, NOW)
    await written(journal)
    assert await spent(books) == 0


async def test_the_real_fee_replaces_the_estimated_one(journal, books):
    for number in (1, 2):
        await journal.intend(intent(number))
    journal.record(job(1), State.SETTLED, NOW, PurchaseUpdate(fee_msat=Msat(3)))
    journal.record(job(2), State.SETTLED, NOW)
    journal.record(job(2), State.DELIVERED, NOW)
    await written(journal)
    assert await spent(books) == 1_003 + 1_010
    journal.record(job(2), None, NOW, PurchaseUpdate(fee_msat=Msat(25)))
    await written(journal)
    assert await spent(books) == 1_003 + 1_025
    assert (await books.purchase(job(2))).fee_msat == 25


async def test_an_amount_released_by_an_update_can_be_spent_at_once(journal):
    await journal.intend(intent(1), [Budget(Period.HOUR, Msat(1_010))])
    journal.record(job(1), State.NOT_PAID, NOW)
    await journal.intend(intent(2), [Budget(Period.HOUR, Msat(1_010))])


async def test_two_gateways_on_one_database_keep_one_budget(where, database, journal, books):
    other_database = await open_database(where)
    other = JournalWriter(other_database, on_problem=print)
    other.start()
    outcomes = await asyncio.gather(
        *((journal, other)[n % 2].intend(intent(n), [for_ten()]) for n in range(64)), return_exceptions=True
    )
    await other.close()
    await other_database.close()
    assert outcomes.count(None) == 10
    assert sum(isinstance(outcome, BudgetExceeded) for outcome in outcomes) == 54
    assert await spent(books) == 10_100


async def test_a_reservation_waits_for_the_one_that_another_gateway_is_writing(postgres_where):
    first, second = [await open_database(postgres_where) for _ in range(2)]
    room_for_two = Budget(Period.HOUR, Msat(2_020))
    journal = JournalWriter(second, on_problem=print)
    journal.start()
    await journal.intend(intent(0), [room_for_two])
    entry = IntentEntry(1, intent(1), [room_for_two])

    held = asyncio.Event()

    def reserve_slowly(connection):
        outcome = JournalTransaction(first.owner, [], [entry]).write(connection)
        held.set()
        connection.execute(text("SELECT pg_sleep(0.2)"))
        return outcome

    slow = asyncio.ensure_future(first.write(reserve_slowly))
    await held.wait()
    with pytest.raises(BudgetExceeded):
        await journal.intend(intent(2), [room_for_two])
    assert (await slow).refusals == [None]
    await journal.close()
    for database in (first, second):
        await database.close()


KEYS = ("", "a", "b")
JOBS = range(6)
PERIODS = (HOUR, DAY, MONTH)

intents = st.tuples(
    st.just("intend"),
    st.sampled_from(JOBS),
    st.sampled_from(KEYS),
    st.integers(0, 2_000),
    st.sampled_from((0, 1, 30, 24 * 60)),
    st.lists(st.tuples(st.sampled_from(list(Period)), st.integers(0, 6_000), st.booleans()), max_size=3),
)
updates = st.tuples(
    st.just("update"), st.sampled_from(JOBS), st.sampled_from([None, *State]), st.none() | st.integers(0, 50)
)
_months = itertools.count()


class Model:
    """The expected counters, computed from all purchases each time."""

    def __init__(self):
        self.purchases = {}

    def spent(self, budget, at):
        return sum(
            counted
            for key_id, paid_at, _, counted, _ in self.purchases.values()
            if budget.key_id in {None, key_id} and _period(budget.period, paid_at) == _period(budget.period, at)
        )

    def intend(self, wanted, budgets):
        if wanted.quote.job_id in self.purchases:
            return False
        if any(self.spent(b, wanted.at) + wanted.amount_msat > b.limit_msat for b in budgets):
            return False
        self.purchases[wanted.quote.job_id] = (
            wanted.key_id,
            wanted.at,
            State.PAYING,
            wanted.amount_msat,
            wanted.fee_cap_msat,
        )
        return True

    def record(self, job_id, state, fee_msat):
        if job_id not in self.purchases:
            return
        key_id, at, now, counted, cap = self.purchases[job_id]
        if state not in {None, now}:
            if state not in TRANSITIONS[now].values():
                return
            now = state
        if fee_msat is not None and cap is not None:
            counted, cap = counted - cap + fee_msat, None
        if now is State.NOT_PAID:
            counted = 0
        self.purchases[job_id] = (key_id, at, now, counted, cap)


def _period(period, at):
    return {
        Period.HOUR: (at.year, at.month, at.day, at.hour),
        Period.DAY: (at.year, at.month, at.day),
        Period.MONTH: (at.year, at.month),
    }[period]


@settings(max_examples=examples(0.3), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(intents | updates, max_size=25))
async def test_the_counters_are_what_a_model_says_after_any_sequence(journal, books, steps):
    # Each example has a month and jobs of its own in the one database.
    month = next(_months)
    base = datetime(1990 + month // 12, month % 12 + 1, 5, 10, 15, tzinfo=UTC)
    model = Model()
    for step in steps:
        if step[0] == "intend":
            _, number, key_id, price_msat, minutes, limits = step
            at = base + timedelta(minutes=minutes)
            wanted = intent(f"{month}/{number}", price_msat=price_msat, key_id=key_id, at=at)
            budgets = [Budget(period, Msat(limit), key_id if own and key_id else None) for period, limit, own in limits]
            try:
                await journal.intend(wanted, budgets)
                taken = True
            except (BudgetExceeded, DuplicateIntent):
                taken = False
            assert taken == model.intend(wanted, budgets)
        else:
            _, number, state, fee_msat = step
            job_id = job(f"{month}/{number}")
            journal.record(job_id, state, base, PurchaseUpdate(fee_msat=fee_msat))
            model.record(job_id, state, fee_msat)
    await written(journal)
    for at in (base, base + timedelta(days=1)):
        for budget in (*PERIODS, *(key_budget(key_id, period) for key_id in "ab" for period in Period)):
            assert await spent(books, budget, at) == model.spent(budget, at), budget
    for job_id, (_, _, state, _, _) in model.purchases.items():
        assert (await books.purchase(job_id)).state is state
