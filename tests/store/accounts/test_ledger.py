"""The ledger: statements that add up, adjustments that happen once, and an audit that finds discrepancies."""

import asyncio
from datetime import timedelta

import pytest
from sqlalchemy import text

from lcp_gateway.accounts.models import (
    AccountNotFound,
    AdjustmentExceedsBalance,
    AdjustmentIdReused,
    Balance,
    Cause,
    InvalidAmount,
    InvalidText,
    Totals,
)
from lcp_gateway.purchase.money import Msat
from lcp_gateway.purchase.states import State
from lcp_gateway.store.accounts.ledger import Ledger
from lcp_gateway.store.database.engines import open_database
from lcp_gateway.store.journal.retention import forget
from tests.store.invoices import asked, hash_of
from tests.store.journals import NOW, charged, job, written


async def adjust(ledger, account_id, amount_msat, **changes):
    fields = {"reason": "because", "actor": "op", "at": NOW, **changes}
    return await ledger.adjust(account_id, Msat(amount_msat), **fields)


async def test_a_missing_account_has_no_balance(ledger):
    assert await ledger.balance("acct_nobody") is None
    assert (await ledger.statement("acct_nobody")).lines == []
    with pytest.raises(AccountNotFound):
        await adjust(ledger, "acct_nobody", 1)


async def test_an_adjustment_gives_and_takes(ledger, customer):
    account_id = await customer(0)
    assert await adjust(ledger, account_id, 700) == Balance(Msat(700), Msat(0))
    assert await adjust(ledger, account_id, -200) == Balance(Msat(500), Msat(0))
    audit = await ledger.audit()
    assert audit.ok and audit.books == {"customers": 500, "adjustments": -500}


async def test_an_adjustment_of_one_id_happens_once(ledger, customer):
    account_id, other_id = await customer(0), await customer(0)
    for _ in range(3):
        after = await adjust(ledger, account_id, 700, adjustment_id="adj_1")
        assert after.balance_msat == 700
    for whom, amount_msat in ((account_id, 701), (other_id, 700)):
        with pytest.raises(AdjustmentIdReused):
            await adjust(ledger, whom, amount_msat, adjustment_id="adj_1")
    assert (await ledger.totals()) == Totals(2, Msat(700), Msat(0))


async def test_an_adjustment_of_one_id_by_two_at_once_happens_once(where, ledger, customer):
    account_id, other_id = await customer(0), await customer(0)
    other_database = await open_database(where)
    outcomes = await asyncio.gather(
        *(
            adjust(one, whom, 700, adjustment_id="adj_1")
            for one in (ledger, Ledger(other_database))
            for whom in (account_id, other_id)
        ),
        return_exceptions=True,
    )
    await other_database.close()
    assert sum(isinstance(outcome, AdjustmentIdReused) for outcome in outcomes) == 2
    assert (await ledger.totals()).balance_msat == 700
    assert (await ledger.audit()).ok


async def test_an_adjustment_takes_nothing_that_is_held(ledger, journal, customer):
    account_id = await customer(2_000)
    await journal.intend(charged(1, account_id))
    with pytest.raises(AdjustmentExceedsBalance) as refused:
        await adjust(ledger, account_id, -951)
    assert refused.value.available_msat == 950
    assert await adjust(ledger, account_id, -950) == Balance(Msat(1_050), Msat(1_050))


async def test_an_adjustment_has_an_amount_and_a_reason(ledger, customer):
    account_id = await customer(0)
    for amount_msat in (0, 2**50, -(2**50)):
        with pytest.raises(InvalidAmount):
            await adjust(ledger, account_id, amount_msat)
    with pytest.raises(InvalidText):
        await adjust(ledger, account_id, 1, reason=" ")


async def test_a_statement_has_each_movement_and_the_balance_after_it(ledger, journal, topups, customer):
    account_id = await customer(5_000)
    await customer(9_999)
    topup = await asked(topups, account_id, 1)
    await topups.settle(hash_of(1), Msat(1_000), settle_index=1, at=NOW)
    await journal.intend(charged(1, account_id, refund_undelivered=True))
    await journal.intend(charged(2, account_id))
    for state in (State.SETTLED, State.UNDELIVERED):
        journal.record(job(1), state, NOW + timedelta(minutes=1))
    await written(journal)
    lines, after = [], None
    while True:
        statement = await ledger.statement(account_id, limit=1, after=after)
        lines += statement.lines
        after = statement.after
        if after is None:
            break
    assert lines == list((await ledger.statement(account_id)).lines)
    told = [(line.cause, line.amount_msat, line.balance_msat) for line in lines]
    assert told == [
        (Cause.REFUND, 1_050, 6_000),
        (Cause.PURCHASE, -1_050, 4_950),
        (Cause.TOPUP, 1_000, 6_000),
        (Cause.ADJUSTMENT, 5_000, 5_000),
    ]
    assert [line.cause_id for line in lines[:3]] == [job(1).hex(), job(1).hex(), topup.id]
    assert lines[0].at == NOW + timedelta(minutes=1)


async def test_totals_are_those_of_all_customers(ledger, journal, accounts, customer):
    assert await ledger.totals() == Totals(0, Msat(0), Msat(0))
    first, second = await customer(5_000), await customer(3_000)
    await journal.intend(charged(1, first))
    await accounts.delete(second, actor="op", at=NOW)
    assert await ledger.totals() == Totals(1, Msat(8_000), Msat(1_050))


async def test_deleted_purchases_are_not_missed_by_the_audit(ledger, journal, database, customer):
    account_id = await customer(10_000)
    for number in range(6):
        await journal.intend(charged(number, account_id))
    for number in range(4):
        journal.record(job(number), State.SETTLED, NOW)
    await written(journal)
    await forget(database, NOW + timedelta(days=1))
    audit = await ledger.audit()
    assert audit.ok and audit.purchases == 2
    assert audit.books["revenue"] == 4 * 1_050
    assert audit.entries == 2 + 4 * 2


INSERT = "INSERT INTO ledger_entries(tx, at, book, amount_msat, cause, cause_id)"
SPOILT = [
    ("UPDATE balances SET balance_msat = balance_msat + 1", "its entries sum to"),
    ("UPDATE balances SET held_msat = held_msat + 1", "are held"),
    (f"{INSERT} VALUES (1, 1, 'revenue', 5, 'adjustment', 'adj_x')", "do not sum to zero"),
    (
        f"{INSERT} VALUES (1, 1, 'customer:acct_x', 5, 'topup', 'top_x'), (1, 1, 'lightning', -5, 'topup', 'top_x')",
        "entries and no balance; is no top-up",
    ),
    ("UPDATE purchases SET charge_msat = charge_msat - 1 WHERE state='unknown'", "are held"),
    ("UPDATE purchases SET charge_msat = 1 WHERE state='settled'", "its entries say"),
    ("UPDATE purchases SET state = 'not_paid' WHERE state='settled'", "its entries say"),
    ("UPDATE purchases SET account_id = 'acct_x' WHERE state='settled'", "its entries say"),
    ("UPDATE purchases SET account_id = 'acct_x' WHERE state='unknown'", "and no balance; held"),
    ("UPDATE topups SET received_msat = 999 WHERE state = 'settled'", "1000 msat were credited"),
    ("UPDATE topups SET state = 'open'", "1000 msat were credited"),
    ("UPDATE topups SET account_id = 'acct_x'", "0 msat were credited"),
]


@pytest.mark.parametrize(("spoil", "found"), SPOILT)
async def test_an_audit_finds_discrepancies(ledger, journal, topups, database, customer, spoil, found):
    account_id = await customer(10_000)
    await asked(topups, account_id, 1)
    await topups.settle(hash_of(1), Msat(1_000), settle_index=1, at=NOW)
    for number, state in enumerate((State.UNKNOWN, State.SETTLED)):
        await journal.intend(charged(number, account_id))
        journal.record(job(number), state, NOW)
    await written(journal)
    assert (await ledger.audit()).ok
    await database.write(lambda connection: connection.execute(text(spoil)))
    audit = await ledger.audit()
    assert not audit.ok
    for words in found.split("; "):
        assert words in " / ".join(audit.problems)


async def test_an_audit_looks_at_every_purchase(ledger, journal, database, customer, monkeypatch):
    monkeypatch.setattr("lcp_gateway.store.accounts.ledger._CHARGED", _three_at_once())
    account_id = await customer(1_000_000)
    for number in range(20):
        await journal.intend(charged(number, account_id, refund_undelivered=True))
        journal.record(job(number), State.SETTLED, NOW)
        journal.record(job(number), State.UNDELIVERED, NOW)
    await written(journal)
    assert (await ledger.audit()).problems == []
    await database.write(lambda connection: connection.execute(text("UPDATE purchases SET state = 'settled'")))
    audit = await ledger.audit()
    assert len(audit.problems) == audit.purchases == 20


def _three_at_once():
    from lcp_gateway.store.accounts import ledger as audit

    return audit._CHARGED.limit(3)
