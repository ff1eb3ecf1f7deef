"""Top-ups: each is credited once, even if its payment is reported again, late or after a loss."""

import asyncio
from datetime import timedelta

import pytest

from lcp_gateway.accounts.models import (
    AccountNotFound,
    Balance,
    Cause,
    InvalidAmount,
    InvalidText,
    TooManyOpenTopups,
    TopupPurpose,
    TopupState,
)
from lcp_gateway.purchase.money import Msat
from lcp_gateway.store.accounts.topups import Topups
from lcp_gateway.store.database.engines import open_database
from tests.store.invoices import HOUR, asked, hash_of
from tests.store.journals import NOW


async def test_a_topup_waits_until_it_is_paid(topups, ledger, customer):
    account_id = await customer(0)
    made = await asked(topups, account_id, 1, memo="rent")
    assert made.id.startswith("top_") and len(made.id) == 28
    assert (made.state, made.memo, made.purpose) == (TopupState.OPEN, "rent", TopupPurpose.TOPUP)
    assert await topups.get(made.id) == await topups.by_payment_hash(hash_of(1)) == made
    assert await topups.get("top_none") is None
    assert await topups.by_payment_hash(hash_of(2)) is None
    assert (await ledger.balance(account_id)).balance_msat == 0


async def test_a_payment_is_credited_once_however_often_it_is_reported(topups, ledger, customer):
    account_id = await customer(0)
    made = await asked(topups, account_id, 1)
    told = [
        await topups.settle(hash_of(1), Msat(1_000), settle_index=7, at=NOW + n * HOUR, node_id="02ab")
        for n in range(3)
    ]
    assert [credit.is_new for credit in told] == [True, False, False]
    settled = await topups.get(made.id)
    assert {credit.topup for credit in told} == {settled}
    assert (settled.state, settled.settled_at, settled.settle_index) == (TopupState.SETTLED, NOW, 7)
    assert await ledger.balance(account_id) == Balance(Msat(1_000), Msat(0))
    (line,) = (await ledger.statement(account_id)).lines
    assert (line.cause, line.cause_id, line.balance_msat) == (Cause.TOPUP, made.id, 1_000)
    audit = await ledger.audit()
    assert audit.ok and audit.books == {"customers": 1_000, "lightning": -1_000}


async def test_two_gateways_that_are_notified_at_once_credit_it_once(where, topups, ledger, customer):
    account_id = await customer(0)
    other_database = await open_database(where)
    other = Topups(other_database)
    for number in range(5):
        await asked(topups, account_id, number)
    told = await asyncio.gather(
        *(
            one.settle(hash_of(number), Msat(1_000), settle_index=number, at=NOW)
            for number in range(5)
            for one in (topups, other)
        )
    )
    await other_database.close()
    assert sum(credit.is_new for credit in told) == 5
    assert (await ledger.balance(account_id)).balance_msat == 5_000
    assert (await ledger.audit()).ok


async def test_the_received_amount_is_credited_and_not_the_requested_one(topups, ledger, customer):
    account_id = await customer(0)
    made = await asked(topups, account_id, 1)
    await topups.settle(hash_of(1), Msat(1_234), settle_index=1, at=NOW)
    settled = await topups.get(made.id)
    assert (settled.amount_msat, settled.received_msat) == (1_000, 1_234)
    assert (await ledger.balance(account_id)).balance_msat == 1_234
    assert (await ledger.audit()).ok


async def test_a_late_payment_is_credited(topups, ledger, customer):
    account_id = await customer(0)
    expired, canceled = [await asked(topups, account_id, number) for number in (1, 2)]
    assert await topups.cancel(canceled.id)
    assert not await topups.cancel(canceled.id)
    assert await topups.expire(NOW + HOUR) == 0
    assert await topups.expire(NOW + 2 * HOUR) == 1
    assert (await topups.get(expired.id)).state is TopupState.EXPIRED
    assert (await topups.get(canceled.id)).state is TopupState.CANCELED
    for number in (1, 2):
        credit = await topups.settle(hash_of(number), Msat(1_000), settle_index=number, at=NOW)
        assert credit.is_new
    assert (await ledger.balance(account_id)).balance_msat == 2_000
    assert await topups.expire(NOW + 9 * HOUR) == 0
    assert (await ledger.audit()).ok


async def test_an_invoice_of_another_program_is_only_followed(topups, ledger):
    assert await topups.followed("02ab") == 0
    assert await topups.settle(hash_of(1), Msat(5), settle_index=3, at=NOW, node_id="02ab") is None
    assert await topups.followed("02ab") == 3
    assert await topups.followed("02cd") == 0
    await topups.settle(hash_of(2), Msat(5), settle_index=2, at=NOW, node_id="02ab")
    await topups.settle(hash_of(2), Msat(5), settle_index=9, at=NOW)
    assert await topups.followed("02ab") == 3
    assert (await ledger.audit()).entries == 0


async def test_unpaid_topups_are_bounded_and_end_with_time(topups, customer):
    account_id, other_id = await customer(0), await customer(0)
    for number in (1, 2):
        await asked(topups, account_id, number, most_open=2)
    with pytest.raises(TooManyOpenTopups):
        await asked(topups, account_id, 3, most_open=2)
    await asked(topups, other_id, 4, most_open=2)
    assert await topups.open_count(NOW) == 3
    assert await topups.open_count(NOW, account_id=account_id) == 2
    assert await topups.open_count(NOW, purpose=TopupPurpose.L402) == 0
    assert await topups.open_count(NOW + HOUR) == 0
    await topups.settle(hash_of(1), Msat(1), settle_index=1, at=NOW)
    await asked(topups, account_id, 3, most_open=2)
    later = NOW + 2 * HOUR
    await asked(topups, account_id, 5, most_open=1, at=later, expires_at=later + HOUR)


async def test_the_bound_holds_for_many_requests_at_once(where, topups, customer):
    account_id = await customer(0)
    other_database = await open_database(where)
    other = Topups(other_database)
    outcomes = await asyncio.gather(
        *(asked((topups, other)[n % 2], account_id, n, most_open=3) for n in range(12)), return_exceptions=True
    )
    await other_database.close()
    assert sum(isinstance(outcome, TooManyOpenTopups) for outcome in outcomes) == 9
    assert await topups.open_count(NOW, account_id=account_id) == 3


async def test_topups_are_listed_the_newest_first_and_open_ones_by_their_end(topups, customer):
    account_id = await customer(0)
    made = [await asked(topups, account_id, n, at=NOW + n * HOUR, expires_at=NOW + (20 - n) * HOUR) for n in range(5)]
    first = await topups.page(account_id, limit=3)
    rest = await topups.page(account_id, limit=3, after=first.after)
    assert [*first.items, *rest.items] == made[::-1] and rest.after is None
    await topups.settle(hash_of(2), Msat(1), settle_index=1, at=NOW)
    assert await topups.open_ones() == [made[n] for n in (4, 3, 1, 0)]
    assert await topups.open_ones(limit=1) == [made[4]]


async def test_an_account_for_l402_is_made_when_it_is_paid(topups, accounts, ledger):
    made = await asked(topups, None, 1, purpose=TopupPurpose.L402)
    unpaid = await asked(topups, None, 2, purpose=TopupPurpose.L402)
    assert made.account_id.startswith("acct_") and made.account_id != unpaid.account_id
    assert await accounts.get(made.account_id) is None
    assert await topups.open_count(NOW, purpose=TopupPurpose.L402) == 2
    for _ in range(2):
        await topups.settle(hash_of(1), Msat(1_000), settle_index=1, at=NOW)
    account = await accounts.get(made.account_id)
    assert (account.name, account.balance.balance_msat) == ("L402", 1_000)
    assert await accounts.get(unpaid.account_id) is None
    assert (await ledger.audit()).ok


async def test_the_top_up_of_a_deleted_account_is_not_found(topups, accounts):
    await asked(topups, None, 1, purpose=TopupPurpose.L402)
    assert await topups.of_living_account(hash_of(9)) is None
    unpaid = await topups.of_living_account(hash_of(1))
    await topups.settle(hash_of(1), Msat(1_000), settle_index=1, at=NOW)
    paid = await topups.of_living_account(hash_of(1))
    assert (unpaid.state, paid.state) == (TopupState.OPEN, TopupState.SETTLED)
    await accounts.delete(paid.account_id, actor="test", at=NOW)
    assert await topups.of_living_account(hash_of(1)) is None
    assert (await topups.by_payment_hash(hash_of(1))).state is TopupState.SETTLED


async def test_the_oldest_unpaid_of_a_purpose_is_dropped_to_make_room(topups, customer):
    account_id = await customer(0)
    of_customer = await asked(topups, account_id, 1, at=NOW - HOUR / 2)
    made = [
        await asked(topups, None, number, purpose=TopupPurpose.L402, at=NOW + timedelta(seconds=number))
        for number in range(2, 8)
    ]
    await topups.settle(hash_of(2), Msat(1), settle_index=1, at=NOW)
    now = NOW + timedelta(seconds=10)
    assert await topups.make_room(now, purpose=TopupPurpose.L402, most_open=6) == 0
    assert await topups.make_room(now, purpose=TopupPurpose.L402, most_open=4) == 2
    assert await topups.make_room(now, purpose=TopupPurpose.L402, most_open=4) == 0
    states = [(await topups.get(topup.id)).state.value for topup in (of_customer, *made)]
    assert states == ["open", "settled", "canceled", "canceled", "open", "open", "open"]
    credit = await topups.settle(hash_of(3), Msat(7), settle_index=2, at=now)
    assert credit.is_new and credit.topup.state is TopupState.SETTLED


async def test_invalid_values_are_refused(topups, customer):
    account_id = await customer(0)
    for amount_msat in (0, -1, 2**50):
        with pytest.raises(InvalidAmount):
            await asked(topups, account_id, 1, amount_msat=amount_msat)
        with pytest.raises(InvalidAmount):
            await topups.settle(hash_of(1), Msat(amount_msat), settle_index=1, at=NOW)
    with pytest.raises(InvalidText):
        await asked(topups, account_id, 1, memo="two\nlines")
    with pytest.raises(AccountNotFound):
        await asked(topups, "acct_nobody", 1)
    assert await topups.by_payment_hash(hash_of(1)) is None


async def test_unpaid_topups_can_be_deleted(topups, ledger, customer):
    account_id = await customer(0)
    paid, expired, canceled, still_open = [await asked(topups, account_id, n) for n in range(4)]
    unexpired = await asked(topups, account_id, 4, expires_at=NOW + 50 * HOUR)
    await topups.settle(paid.payment_hash, Msat(1_000), settle_index=1, at=NOW)
    for topup in (canceled, unexpired):
        await topups.cancel(topup.id)
    await topups.expire(NOW + 2 * HOUR)
    late = await topups.settle(still_open.payment_hash, Msat(5), settle_index=2, at=NOW)
    assert late.is_new
    assert await topups.forget_unpaid(NOW + 2 * HOUR) == 2
    left = {topup.id for topup in (await topups.page(account_id)).items}
    assert left == {paid.id, still_open.id, unexpired.id}
    assert await topups.get(expired.id) is None
    assert (await ledger.audit()).ok
