"""Charges of undelivered purchases: refunded within limits, withheld above them, and then decided once by the operator."""

import asyncio
from collections import defaultdict
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lcp_gateway.accounts.models import Cause, InvalidText, PurchaseNotFound, RefundNotWithheld
from lcp_gateway.purchase.journal import PurchaseUpdate
from lcp_gateway.purchase.money import NO_REFUND_LIMITS, Refund, RefundLimits
from lcp_gateway.purchase.outcome import EndedBy, Ending, Received
from lcp_gateway.purchase.states import State
from lcp_gateway.store.accounts.admin_log import AdminLog
from lcp_gateway.store.accounts.refunds import Refunds
from lcp_gateway.store.database.engines import open_database
from lcp_gateway.store.journal.recovery import resolve, sweep
from lcp_gateway.store.journal.retention import forget
from lcp_gateway.store.journal.writer import JournalWriter
from tests.store.journals import NOW, charged, job, written
from tests.support.examples import examples

CUT = Ending(EndedBy.PROVIDER, Received.PART)
# Each costs 1,000, or 1,010 with the estimated fee, and is charged at 1,050; the charge counts.
EACH = 1_050
TOMORROW = NOW + timedelta(days=1)


@pytest.fixture
def refunds(database):
    return Refunds(database)


@pytest.fixture
def heard(journal):
    decisions = []
    journal._on_refund = decisions.append
    return decisions


async def undelivered(journal, number, account_id, *, ending=CUT, at=NOW, heard=None, **changes):
    """Buy something that is not delivered in full."""
    await journal.intend(charged(number, account_id, refund_undelivered=True, at=at, **changes))
    journal.record(job(number), State.SETTLED, at)
    journal.record(job(number), State.UNDELIVERED, at, PurchaseUpdate(ending=ending), heard)
    await written(journal)


async def refund_of(books, number):
    record = await books.purchase(job(number))
    return record.refund


async def test_a_charge_within_the_limits_is_refunded_at_once(journal, books, ledger, customer, heard):
    journal.refunds = RefundLimits(account_day_msat=2 * EACH, day_msat=3 * EACH)
    account_id = await customer(10_000)
    listening = []
    for number in range(2):
        await undelivered(journal, number, account_id, heard=listening.append)
        record = await books.purchase(job(number))
        assert (record.refund, record.charged_msat) == (Refund.GIVEN, 0)
        assert (record.ended_by, record.received) == CUT
    assert (await ledger.balance(account_id)).balance_msat == 10_000
    assert listening == [Refund.GIVEN] * 2 == [decision.refund for decision in heard]
    assert heard[0].amount_msat == EACH


async def test_over_the_limit_of_an_account_it_is_withheld(journal, books, ledger, customer, heard):
    """Regression: a customer that colluded with peers got every charge refunded, and bought again."""
    journal.refunds = RefundLimits(account_day_msat=2 * EACH)
    greedy, other = await customer(10_000), await customer(10_000)
    listening = []
    for number in range(4):
        await undelivered(journal, number, greedy, heard=listening.append)
    await undelivered(journal, "other", other)
    assert listening == [Refund.GIVEN, Refund.GIVEN, Refund.WITHHELD, Refund.WITHHELD]
    assert await refund_of(books, "other") is Refund.GIVEN
    record = await books.purchase(job(3))
    assert (record.state, record.charged_msat) == (State.UNDELIVERED, EACH)
    assert (await ledger.balance(greedy)).balance_msat == 10_000 - 2 * EACH
    assert await books.withheld() == (2, 2 * EACH)
    assert (await ledger.audit()).problems == []


async def test_the_limit_on_all_holds_for_all_together(journal, books, customer):
    journal.refunds = RefundLimits(account_day_msat=2 * EACH, day_msat=3 * EACH)
    accounts = [await customer(10_000) for _ in range(4)]
    for number, account_id in enumerate(accounts):
        await undelivered(journal, number, account_id)
    given = [await refund_of(books, number) for number in range(4)]
    assert given == [Refund.GIVEN] * 3 + [Refund.WITHHELD]


async def test_a_new_day_has_limits_of_its_own(journal, books, customer):
    journal.refunds = RefundLimits(account_day_msat=EACH)
    account_id = await customer(10_000)
    await undelivered(journal, 1, account_id)
    await undelivered(journal, 2, account_id, at=TOMORROW)
    await undelivered(journal, 3, account_id, at=TOMORROW)
    given = [await refund_of(books, number) for number in (1, 2, 3)]
    assert given == [Refund.GIVEN, Refund.GIVEN, Refund.WITHHELD]


async def test_what_the_provider_was_paid_counts_where_it_is_more_than_the_charge(journal, books, customer):
    # A price of 1,000 and a fee of 900: the operator loses 1,900.
    journal.refunds = RefundLimits(account_day_msat=3_799)
    account_id = await customer(10_000)
    for number in range(2):
        await undelivered(journal, number, account_id, fee_cap_msat=900)
    assert await refund_of(books, 0) is Refund.GIVEN
    assert await refund_of(books, 1) is Refund.WITHHELD


@pytest.mark.parametrize("received", [Received.PART, Received.NOTHING])
async def test_a_result_that_the_client_left_is_not_refunded_and_counts_for_no_limit(
    journal, books, customer, received
):
    journal.refunds = RefundLimits(account_day_msat=EACH)
    account_id = await customer(10_000)
    await undelivered(journal, 1, account_id, ending=Ending(EndedBy.CLIENT, received))
    record = await books.purchase(job(1))
    assert (record.refund, record.charged_msat) == (None, EACH)
    assert record.blames_provider is (received is Received.NOTHING)
    await undelivered(journal, 2, account_id)
    assert await refund_of(books, 2) is Refund.GIVEN


async def test_many_in_one_batch_see_one_another(journal, books, customer):
    journal.refunds = RefundLimits(account_day_msat=3 * EACH)
    account_id = await customer(100_000)
    await asyncio.gather(
        *(journal.intend(charged(number, account_id, refund_undelivered=True)) for number in range(20))
    )
    for number in range(20):
        journal.record(job(number), State.SETTLED, NOW)
        journal.record(job(number), State.UNDELIVERED, NOW, PurchaseUpdate(ending=CUT))
    await written(journal)
    given = [await refund_of(books, number) for number in range(20)]
    assert given.count(Refund.GIVEN) == 3


@pytest.mark.parametrize("found", ["sweep", "resolve"])
async def test_the_limits_hold_for_every_way_to_find_it_out(where, database, books, ledger, customer, found):
    account_id = await customer(10_000)
    dead = await open_database(where)
    journal = JournalWriter(dead, on_problem=print)
    journal.start()
    limits = RefundLimits(account_day_msat=2 * EACH)
    for number in range(3):
        await journal.intend(charged(number, account_id, refund_undelivered=True))
        journal.record(job(number), State.UNKNOWN if found == "resolve" else State.SETTLED, NOW)
    await journal.close()
    await dead.close()
    decisions = []
    if found == "resolve":
        for number in range(3):
            resolved = await resolve(database, job(number), State.SETTLED, NOW, refunds=limits)
            decisions.append(resolved.refund)
    else:
        async with asyncio.timeout(60):
            while len(decisions) < 3:
                swept = await sweep(database, NOW, limits)
                decisions += [decision.refund for decision in swept.refunds]
    assert sorted(decisions) == [Refund.GIVEN, Refund.GIVEN, Refund.WITHHELD]
    assert (await ledger.balance(account_id)).balance_msat == 10_000 - EACH
    assert (await ledger.audit()).problems == []


async def test_two_gateways_on_one_server_share_the_limits(postgres_where):
    databases = [await open_database(postgres_where) for _ in range(2)]
    from lcp_gateway.store.accounts.accounts import Accounts
    from lcp_gateway.store.accounts.ledger import Ledger
    from lcp_gateway.store.journal.queries import Books

    account = await Accounts(databases[0]).create("one", actor="test", at=NOW)
    ledger = Ledger(databases[0])
    await ledger.adjust(account.id, 100_000, reason="to begin with", actor="test", at=NOW)
    journals = [JournalWriter(database, on_problem=print) for database in databases]
    for journal in journals:
        journal.start()
        journal.refunds = RefundLimits(account_day_msat=5 * EACH, day_msat=7 * EACH)
    await asyncio.gather(
        *(
            undelivered(journal, f"{whose}-{number}", account.id)
            for whose, journal in enumerate(journals)
            for number in range(10)
        )
    )
    books = Books(databases[0])
    given = [await refund_of(books, f"{whose}-{n}") for whose in range(2) for n in range(10)]
    assert given.count(Refund.GIVEN) == 5 and given.count(Refund.WITHHELD) == 15
    assert (await ledger.audit()).problems == []
    for journal, database in zip(journals, databases, strict=True):
        await journal.close()
        await database.close()


# The operator's decisions.


async def withheld(journal, customer, number=1):
    journal.refunds = RefundLimits(account_day_msat=1)
    account_id = await customer(10_000)
    await undelivered(journal, number, account_id)
    return account_id


async def decide(refunds, grant, *, number=1, reason="looked into it"):
    return await refunds.decide(job(number), grant=grant, reason=reason, actor="op", at=TOMORROW)


@pytest.mark.parametrize(("grant", "refund"), [(True, Refund.GRANTED), (False, Refund.DENIED)])
async def test_a_decision_is_made_once_and_recorded(journal, database, refunds, books, ledger, customer, grant, refund):
    account_id = await withheld(journal, customer)
    before = await ledger.balance(account_id)
    for at in range(3):
        decided, is_new = await decide(refunds, grant)
        assert (decided.refund, decided.amount_msat, is_new) == (refund, EACH, at == 0)
    assert await refunds.get(job(1)) == decided
    assert await refunds.get(job("another")) is None
    with pytest.raises(RefundNotWithheld, match=str(refund)):
        await decide(refunds, not grant)
    record = await books.purchase(job(1))
    assert (record.refund, record.charged_msat) == (refund, 0 if grant else EACH)
    after = await ledger.balance(account_id)
    assert after.balance_msat - before.balance_msat == (EACH if grant else 0)
    lines = (await ledger.statement(account_id)).lines
    assert (lines[0].cause is Cause.REFUND) is grant
    acts = (await AdminLog(database).page()).items
    (act,) = [act for act in acts if act.action.startswith("refund.")]
    assert (act.actor, act.target) == ("op", job(1).hex())
    assert act.detail == {"account_id": account_id, "amount_msat": EACH, "reason": "looked into it"}
    assert (await ledger.audit()).problems == []
    assert await books.withheld() == (0, 0)


async def test_two_operators_at_once_refund_it_once(journal, refunds, ledger, customer):
    account_id = await withheld(journal, customer)
    decided = await asyncio.gather(*(decide(refunds, True) for _ in range(8)))
    assert [is_new for _, is_new in decided].count(True) == 1
    assert (await ledger.balance(account_id)).balance_msat == 10_000
    assert (await ledger.audit()).problems == []


async def test_only_a_withheld_refund_waits_for_a_decision(journal, refunds, customer):
    with pytest.raises(PurchaseNotFound):
        await decide(refunds, True)
    account_id = await customer(10_000)
    await journal.intend(charged(1, account_id, refund_undelivered=True))
    journal.record(job(1), State.SETTLED, NOW)
    await written(journal)
    with pytest.raises(RefundNotWithheld, match="the purchase is settled"):
        await decide(refunds, True)
    await undelivered(journal, 2, account_id)
    with pytest.raises(RefundNotWithheld, match="its charge was given"):
        await decide(refunds, True, number=2)
    with pytest.raises(InvalidText):
        await decide(refunds, True, number=2, reason="")


async def test_refunds_are_listed_in_pages_and_by_account(journal, refunds, customer):
    journal.refunds = RefundLimits(account_day_msat=EACH)
    first, second = await customer(10_000), await customer(10_000)
    for number in range(4):
        at = NOW + timedelta(seconds=number // 2)
        await undelivered(journal, number, (first, second)[number % 2], at=at)
    await journal.intend(charged("not among them", first))
    everything, after = [], None
    while True:
        page = await refunds.page(limit=3, after=after)
        everything += page.items
        after = page.after
        if after is None:
            break
    assert {record.job_id for record in everything} == {job(number) for number in range(4)}
    assert len(everything) == 4 and everything[0].paying_at > everything[-1].paying_at
    held = (await refunds.page(refund=Refund.WITHHELD)).items
    assert {record.account_id for record in held} == {first, second}
    assert len((await refunds.page(account_id=first)).items) == 2
    assert (await refunds.page(after="nonsense")).items == []


async def test_withheld_refunds_are_not_deleted(journal, database, books, refunds, customer):
    await withheld(journal, customer)
    later = NOW + timedelta(days=900)
    assert (await forget(database, later)).purchases == 0
    await decide(refunds, False)
    assert (await forget(database, later)).purchases == 1


# After any sequence the day's refunds stay within the limits, and no refund within them is withheld.

buys = st.tuples(st.integers(0, 2), st.integers(1, 3_000), st.sampled_from([NOW, TOMORROW]), st.booleans())


@settings(max_examples=examples(0.25), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(buys, max_size=12), st.integers(0, 6_000), st.integers(0, 9_000))
async def test_the_limits_are_kept_to_the_msat(sqlite_where, bought, account_day_msat, day_msat):
    from lcp_gateway.store.accounts.accounts import Accounts
    from lcp_gateway.store.accounts.ledger import Ledger
    from lcp_gateway.store.journal.queries import Books

    database = await open_database(sqlite_where)
    await database.write(lambda connection: connection.exec_driver_sql("DELETE FROM budget_spend"))
    ledger, books = Ledger(database), Books(database)
    accounts = []
    for _ in range(3):
        account = await Accounts(database).create("c", actor="t", at=NOW)
        await ledger.adjust(account.id, 100_000, reason="a", actor="t", at=NOW)
        accounts.append(account.id)
    journal = JournalWriter(database, on_problem=print)
    journal.start()
    journal.refunds = RefundLimits(account_day_msat, day_msat)
    of_account, of_all = defaultdict(int), defaultdict(int)
    balances = dict.fromkeys(accounts, 100_000)
    for at_place, (whose, price_msat, at, leaves) in enumerate(bought):
        number, account_id = f"{accounts[0]}-{at_place}", accounts[whose]
        ending = Ending(EndedBy.CLIENT, Received.PART) if leaves else CUT
        await undelivered(journal, number, account_id, price_msat=price_msat, at=at, ending=ending)
        record = await books.purchase(job(number))
        amount_msat = max(record.charge.amount_msat, price_msat + 10)
        fits = (not account_day_msat or of_account[account_id, at] + amount_msat <= account_day_msat) and (
            not day_msat or of_all[at] + amount_msat <= day_msat
        )
        if leaves:
            assert record.refund is None
        else:
            assert record.refund is (Refund.GIVEN if fits else Refund.WITHHELD)
        if leaves or not fits:
            balances[account_id] -= record.charge.amount_msat
        else:
            of_account[account_id, at] += amount_msat
            of_all[at] += amount_msat
    for account_id, balance_msat in balances.items():
        assert (await ledger.balance(account_id)).balance_msat == balance_msat
    assert (await ledger.audit()).problems == []
    await journal.close()
    await database.close()


def test_without_limits_everything_is_refunded():
    assert (NO_REFUND_LIMITS.account_day_msat, NO_REFUND_LIMITS.day_msat) == (0, 0)
