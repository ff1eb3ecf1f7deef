"""Usage is added up alike on both kinds of database, and agrees with spending and with the customer's statement."""

from datetime import UTC, datetime, timedelta

import pytest

from lcp_gateway.purchase.money import Msat, Period, RefundLimits
from lcp_gateway.purchase.records import GroupBy, PurchaseFilter, UsageSums
from lcp_gateway.purchase.states import State
from tests.store.journals import NOW, charged, intent, written
from tests.support.cases import each_case

PATHS = {
    State.PAYING: [],
    State.UNKNOWN: [State.UNKNOWN],
    State.NOT_PAID: [State.NOT_PAID],
    State.DELIVERED: [State.SETTLED, State.DELIVERED],
    State.UNDELIVERED: [State.SETTLED, State.UNDELIVERED],
}
STATES = list(PATHS)
START = datetime(2026, 10, 1, tzinfo=UTC)


async def buy(journal, wanted, state):
    await journal.intend(wanted)
    for step in PATHS[state]:
        journal.record(wanted.quote.job_id, step, wanted.at)


@pytest.fixture
async def history(journal, accounts, ledger):
    """A customer with purchases in every state over two months, another customer, and some of the operator's own."""
    ids = []
    for name in ("ann", "bob"):
        account = await accounts.create(name, actor="test", at=START)
        await ledger.adjust(account.id, Msat(10_000_000), reason="test", actor="test", at=START)
        ids.append(account.id)
    for number in range(60):
        at = START + timedelta(hours=31 * number)
        account_id = ids[number % 2]
        wanted = charged(
            number,
            account_id,
            price_msat=1_000 + number,
            refund_undelivered=number % 3 == 0,
            model=f"m{number % 20}",
            key_id=f"key_{number % 4}",
            at=at,
        )
        await buy(journal, wanted, STATES[number % 5])
    for number in range(100, 105):
        await buy(journal, intent(number, at=START, model="own", key_id=""), STATES[number % 5])
    await written(journal)
    return ids


def spend_sums(found):
    return [
        sum(getattr(one, name) for one in found)
        for name in ("purchases", "settled_msat", "unknown_msat", "undelivered_msat")
    ]


def usage_sums(sums):
    return [sums.purchases, sums.settled_msat, sums.unknown_msat, sums.undelivered_msat]


@each_case("period", list(Period))
@each_case("by", list(GroupBy))
async def test_usage_equals_spending_in_all_by_group_and_by_period(history, books, by, period):
    column = {GroupBy.MODEL: "model", GroupBy.KEY: "key_id", GroupBy.PEER: "peer_id"}[by]
    which = PurchaseFilter(since=START + timedelta(hours=5))
    spend = await books.spend(period, which)
    usage = await books.usage(by, period, which, most=100, by_charge=False)
    assert usage_sums(usage.totals) == spend_sums(spend)
    for name, sums in usage.groups:
        assert usage_sums(sums) == spend_sums([one for one in spend if getattr(one, column) == name])
    for start, name, sums in usage.data:
        alike = [one for one in spend if (one.starts_at, getattr(one, column)) == (start, name)]
        assert usage_sums(sums) == spend_sums(alike)
    assert [start for start, _, _ in usage.data] == sorted(start for start, _, _ in usage.data)


async def test_the_largest_groups_are_named_and_the_rest_is_one(history, books):
    every = await books.usage(GroupBy.MODEL, Period.DAY, PurchaseFilter(), most=100, by_charge=False)
    some = await books.usage(GroupBy.MODEL, Period.DAY, PurchaseFilter(), most=3, by_charge=False)
    names = [name for name, _ in some.groups]
    assert names == [*(name for name, _ in every.groups[:3]), None]
    assert some.totals == every.totals
    rest = UsageSums()
    for _, sums in every.groups[3:]:
        rest.add(sums)
    assert some.groups[-1][1] == rest
    cost = [sums.settled_msat + sums.unknown_msat for _, sums in every.groups]
    assert cost == sorted(cost, reverse=True)


async def test_a_customers_charges_equal_its_statement(history, books, ledger):
    for account_id in history:
        which = PurchaseFilter(account_id=account_id)
        usage = await books.usage(GroupBy.KEY, Period.MONTH, which, most=12, by_charge=True)
        statement = await ledger.statement(account_id, limit=1_000)
        taken = -sum(line.amount_msat for line in statement.lines if line.cause.value in {"purchase", "refund"})
        assert usage.totals.charged_msat == taken > 0
        assert usage.totals.held_msat == (await ledger.balance(account_id)).held_msat > 0
        assert usage.totals.undelivered > 0


async def test_a_withheld_refund_is_still_charged(journal, books, accounts, ledger):
    account = await accounts.create("ann", actor="test", at=START)
    await ledger.adjust(account.id, Msat(1_000_000), reason="test", actor="test", at=START)
    journal.refunds = RefundLimits(account_day_msat=1, day_msat=0)
    await buy(journal, charged(1, account.id, refund_undelivered=True), State.UNDELIVERED)
    await written(journal)
    usage = await books.usage(GroupBy.MODEL, Period.DAY, PurchaseFilter(account_id=account.id), most=12, by_charge=True)
    assert (usage.totals.charged_msat, usage.totals.undelivered) == (1_050, 1)


async def test_nothing_bought_is_nothing(books):
    usage = await books.usage(GroupBy.MODEL, Period.DAY, PurchaseFilter(), most=12, by_charge=False)
    assert (usage.totals, usage.groups, usage.data) == (UsageSums(), [], [])


async def test_an_accounts_purchases_are_listed_alone(history, books):
    ann, bob = history
    page = await books.page(PurchaseFilter(account_id=ann), limit=100)
    assert len(page.purchases) == 30
    assert {record.charge.account_id for record in page.purchases} == {ann}
    alike = await books.page(PurchaseFilter(account_id=bob, key_id="key_0"), limit=100)
    assert alike.purchases == []


async def test_the_use_of_keys_is_their_newest_purchase_and_what_their_budgets_count(journal, books):
    await journal.intend(intent(1, key_id="k1", at=NOW))
    await journal.intend(intent(2, key_id="k1", at=NOW - timedelta(hours=2)))
    await journal.intend(intent(3, key_id="k2", at=NOW - timedelta(days=40)))
    await written(journal)
    use = await books.key_use(["k1", "k2", "never"], NOW)
    assert use["k1"].last_used_at == NOW
    assert use["k1"].spent_msat == {Period.HOUR: 1_010, Period.DAY: 2_020, Period.MONTH: 2_020}
    assert use["k2"].last_used_at == NOW - timedelta(days=40)
    assert set(use["k2"].spent_msat.values()) == {0}
    assert use["never"].last_used_at is None
    assert await books.key_use([], NOW) == {}


async def test_the_total_since_a_time_is_that_of_its_purchases(history, books):
    since = START + timedelta(days=30)
    total = await books.total(since)
    spend = await books.spend(Period.MONTH, PurchaseFilter(since=since))
    assert usage_sums(total) == spend_sums(spend)
    assert 0 < total.sold_msat <= total.settled_msat
