"""Withdrawals in the database: held, paid once, never with others' money, whatever happens at the same time."""

import asyncio
from datetime import timedelta

import pytest
from sqlalchemy import text

from lcp_gateway.accounts.callers import KeyRules, Scope
from lcp_gateway.accounts.models import AccountNotFound, Balance, Cause, TopupState
from lcp_gateway.accounts.withdrawal_states import WithdrawalEvent
from lcp_gateway.accounts.withdrawal_states import WithdrawalState as State
from lcp_gateway.accounts.withdrawals import (
    DayLimitReached,
    FailedBecause,
    InsufficientFunds,
    InvalidInvoice,
    InvoiceUsed,
    KeyMayNotWithdraw,
    Liquidity,
    NodeCannotCover,
    TooManyOpenWithdrawals,
    WithdrawalNotFound,
    WithdrawalRules,
    WithdrawalsFrozen,
    WrongWithdrawalState,
)
from lcp_gateway.purchase.journal import PurchaseUpdate
from lcp_gateway.purchase.money import Msat
from lcp_gateway.purchase.states import State as PurchaseState
from lcp_gateway.store.accounts.keys import Keys
from lcp_gateway.store.accounts.withdrawals import Withdrawals
from lcp_gateway.store.database.engines import open_database
from tests.store.invoices import asked, hash_of
from tests.store.journals import NOW, charged, job, until_gone, written
from tests.store.withdrawing import HOUR, NODE, RICH, RULES, invoice_hash, new


@pytest.fixture
def withdrawals(database):
    return Withdrawals(database)


async def test_a_withdrawal_is_held_and_being_paid_before_any_call(withdrawals, ledger, customer, database):
    account_id = await customer(10_000)
    made, is_new = await withdrawals.create(new(account_id, 1), RULES, RICH, NOW)
    assert is_new and made.id.startswith("wd_")
    assert (made.state, made.owner, made.paying_at, made.node_id) == (State.PAYING, database.owner, NOW, NODE)
    assert made.held_msat == 1_100
    assert await withdrawals.get(made.id) == await withdrawals.by_payment_hash(invoice_hash(1)) == made
    assert await ledger.balance(account_id) == Balance(Msat(10_000), Msat(1_100))
    assert (await ledger.audit()).problems == []


async def test_the_real_fee_is_charged_and_the_rest_given_back(withdrawals, ledger, customer):
    account_id = await customer(10_000)
    made, _ = await withdrawals.create(new(account_id, 1), RULES, RICH, NOW)
    settled = await withdrawals.record(made.id, WithdrawalEvent.SETTLE, NOW + HOUR, fee_msat=7, preimage=b"\x01" * 32)
    assert (settled.state, settled.fee_msat, settled.preimage) == (State.SETTLED, 7, b"\x01" * 32)
    assert settled.ended_at == NOW + HOUR and settled.held_msat == 0
    assert await ledger.balance(account_id) == Balance(Msat(8_993), Msat(0))
    line = (await ledger.statement(account_id)).lines[0]
    assert (line.cause, line.cause_id, line.amount_msat) == (Cause.WITHDRAWAL, made.id, -1_007)
    audit = await ledger.audit()
    assert audit.problems == []
    assert audit.books == {"adjustments": -10_000, "customers": 8_993, "lightning": 1_007}


async def test_a_fee_above_the_limit_is_the_operators(withdrawals, ledger, customer):
    account_id = await customer(1_100)
    made, _ = await withdrawals.create(new(account_id, 1), RULES, RICH, NOW)
    settled = await withdrawals.record(made.id, WithdrawalEvent.SETTLE, NOW, fee_msat=5_000)
    assert settled.fee_msat == 100
    assert await ledger.balance(account_id) == Balance(Msat(0), Msat(0))


@pytest.mark.parametrize("event", [WithdrawalEvent.FAIL, WithdrawalEvent.LOSE_SIGHT])
async def test_a_failed_one_gives_everything_back_and_an_unknown_one_nothing(withdrawals, ledger, customer, event):
    account_id = await customer(10_000)
    made, _ = await withdrawals.create(new(account_id, 1), RULES, RICH, NOW)
    ended = await withdrawals.record(made.id, event, NOW, reason=FailedBecause.NO_ROUTE)
    if event is WithdrawalEvent.FAIL:
        assert (ended.state, ended.reason) == (State.FAILED, FailedBecause.NO_ROUTE)
        assert await ledger.balance(account_id) == Balance(Msat(10_000), Msat(0))
        # It has ended: no later news changes it.
        assert await withdrawals.record(made.id, WithdrawalEvent.SETTLE, NOW) is None
    else:
        assert ended.state is State.UNKNOWN
        assert await ledger.balance(account_id) == Balance(Msat(10_000), Msat(1_100))
        settled = await withdrawals.record(made.id, WithdrawalEvent.SETTLE, NOW, fee_msat=1)
        assert settled.state is State.SETTLED
        assert await ledger.balance(account_id) == Balance(Msat(8_999), Msat(0))
    assert (await ledger.audit()).problems == []


async def test_the_same_invoice_is_one_withdrawal(withdrawals, ledger, customer, where):
    account_id, other = await customer(10_000), await customer(10_000)
    made, _ = await withdrawals.create(new(account_id, 1), RULES, RICH, NOW)
    assert await withdrawals.create(new(account_id, 1), RULES, RICH, NOW) == (made, False)
    for wrong in (new(other, 1), new(account_id, 1, 1_001)):
        with pytest.raises(InvoiceUsed):
            await withdrawals.create(wrong, RULES, RICH, NOW)
    # Neither on another gateway, nor after it failed.
    second = await open_database(where, gone_after_s=0)
    await withdrawals.record(made.id, WithdrawalEvent.FAIL, NOW)
    again, is_new = await Withdrawals(second).create(new(account_id, 1), RULES, RICH, NOW)
    await second.close()
    assert (again.id, again.state, is_new) == (made.id, State.FAILED, False)
    assert await ledger.balance(account_id) == await ledger.balance(other) == Balance(Msat(10_000), Msat(0))


async def test_a_hundred_at_once_on_a_balance_for_ten_over_two_gateways(withdrawals, ledger, customer, where):
    account_id = await customer(11_000)
    second = await open_database(where, gone_after_s=0)
    both = (withdrawals, Withdrawals(second))
    made = await asyncio.gather(
        *(both[n % 2].create(new(account_id, n), RULES, RICH, NOW) for n in range(100)), return_exceptions=True
    )
    await second.close()
    refused = [it for it in made if isinstance(it, InsufficientFunds)]
    assert (len(refused), len(made) - len(refused)) == (90, 10)
    assert all(it.needed_msat == 1_100 and it.available_msat == 0 for it in refused[-1:])
    assert await ledger.balance(account_id) == Balance(Msat(11_000), Msat(11_000))
    assert (await ledger.audit()).problems == []


async def test_the_same_invoice_at_once_over_two_gateways_is_paid_by_one(withdrawals, customer, where):
    account_id = await customer(100_000)
    second = await open_database(where, gone_after_s=0)
    both = (withdrawals, Withdrawals(second))
    made = await asyncio.gather(*(both[n % 2].create(new(account_id, 1), RULES, RICH, NOW) for n in range(20)))
    await second.close()
    assert sum(is_new for _, is_new in made) == 1
    assert len({withdrawal.id for withdrawal, _ in made}) == 1


async def test_nothing_is_paid_with_what_other_customers_are_owed(withdrawals, customer):
    account_id = await customer(10_000)
    await customer(50_000)
    with pytest.raises(NodeCannotCover):
        await withdrawals.create(new(account_id, 1), RULES, Liquidity(Msat(59_999), NOW), NOW)
    with pytest.raises(NodeCannotCover):
        await withdrawals.create(new(account_id, 1), RULES, None, NOW)
    reserved = WithdrawalRules(enabled=True, min_msat=1, reserve_msat=1)
    with pytest.raises(NodeCannotCover):
        await withdrawals.create(new(account_id, 1), reserved, Liquidity(Msat(60_000), NOW), NOW)
    made, is_new = await withdrawals.create(new(account_id, 1), RULES, Liquidity(Msat(60_000), NOW), NOW)
    assert is_new and made.state is State.PAYING


async def test_what_settled_since_the_reading_is_taken_off_it(withdrawals, journal, customer):
    account_id = await customer(10_000)
    reading = Liquidity(Msat(10_000), NOW)
    first, _ = await withdrawals.create(new(account_id, 1), RULES, reading, NOW)
    # In flight: owed and held in full, whether the node's balance shows it or not.
    second, _ = await withdrawals.create(new(account_id, 2), RULES, reading, NOW)
    await withdrawals.record(first.id, WithdrawalEvent.SETTLE, NOW + HOUR, fee_msat=10)
    await withdrawals.record(second.id, WithdrawalEvent.SETTLE, NOW - HOUR, fee_msat=10)
    # The second settled before the reading, which knows it; the first did not.
    with pytest.raises(NodeCannotCover):
        await withdrawals.create(new(account_id, 3), RULES, Liquidity(Msat(8_989), NOW), NOW)
    assert (await withdrawals.create(new(account_id, 3), RULES, Liquidity(Msat(8_990), NOW), NOW))[1]


async def test_purchases_that_were_paid_since_the_reading_are_taken_off_it(withdrawals, journal, customer, ledger):
    account_id = await customer(10_000)
    await journal.intend(charged(1, account_id, price_msat=1_000))
    journal.record(job(1), PurchaseState.SETTLED, NOW + HOUR / 2, PurchaseUpdate(fee_msat=Msat(3)))
    await written(journal)
    owed_msat = (await ledger.balance(account_id)).balance_msat
    assert owed_msat < 10_000
    with pytest.raises(NodeCannotCover):
        await withdrawals.create(new(account_id, 1), RULES, Liquidity(Msat(owed_msat + 1_002), NOW), NOW)
    made = await withdrawals.create(new(account_id, 1), RULES, Liquidity(Msat(owed_msat + 1_003), NOW), NOW)
    assert made[1]
    later = Liquidity(Msat(owed_msat), NOW + HOUR)
    assert (await withdrawals.create(new(account_id, 2), RULES, later, NOW))[1]


async def test_limits_by_day_account_and_number(withdrawals, customer):
    account_id, other = await customer(100_000), await customer(100_000)
    rules = WithdrawalRules(enabled=True, min_msat=1, account_day_msat=2_500, day_msat=3_500, most_open=2)
    first, _ = await withdrawals.create(new(account_id, 1), rules, RICH, NOW)
    await withdrawals.create(new(account_id, 2), rules, RICH, NOW)
    with pytest.raises(TooManyOpenWithdrawals):
        await withdrawals.create(new(account_id, 3), rules, RICH, NOW)
    with pytest.raises(DayLimitReached, match="all accounts"):
        await withdrawals.create(new(other, 4, 1_300), rules, RICH, NOW)
    await withdrawals.record(first.id, WithdrawalEvent.SETTLE, NOW, fee_msat=0)
    with pytest.raises(DayLimitReached, match="this account"):
        await withdrawals.create(new(account_id, 3), rules, RICH, NOW)
    # Another day, and what failed, does not count.
    assert (await withdrawals.create(new(account_id, 3), rules, RICH, NOW + timedelta(days=1)))[1]


async def test_a_key_that_may_withdraw_freezes_its_account_for_a_while(withdrawals, customer, database):
    account_id = await customer(100_000)
    rules = WithdrawalRules(enabled=True, min_msat=1, frozen_for=timedelta(days=1))
    keys = Keys(database)
    await keys.create(account_id, name="buys", actor="op", at=NOW)
    assert (await withdrawals.create(new(account_id, 1), rules, RICH, NOW))[1]
    made = await keys.create(
        account_id, name="pays", actor="op", at=NOW, rules=KeyRules(scopes=frozenset({Scope.WALLET, Scope.WITHDRAW}))
    )
    # Revoking it does not help a thief.
    await keys.revoke(made.record.id, actor="op", at=NOW)
    with pytest.raises(WithdrawalsFrozen, match="from"):
        await withdrawals.create(new(account_id, 2), rules, RICH, NOW + timedelta(hours=23))
    assert (await withdrawals.create(new(account_id, 2), rules, RICH, NOW + timedelta(days=1)))[1]


async def test_a_key_that_is_given_the_scope_later_freezes_its_account_as_a_new_one_does(
    withdrawals, customer, database
):
    account_id = await customer(100_000)
    rules = WithdrawalRules(enabled=True, min_msat=1, frozen_for=timedelta(days=1))
    keys = Keys(database)
    old = (await keys.create(account_id, name="buys", actor="op", at=NOW - timedelta(days=9))).record
    may_withdraw = KeyRules(scopes=frozenset({Scope.WALLET, Scope.WITHDRAW}))
    await keys.change(old.id, actor="thief", at=NOW, name="buys", rules=may_withdraw)
    with pytest.raises(WithdrawalsFrozen, match="from"):
        await withdrawals.create(new(account_id, 1, key_id=old.id), rules, RICH, NOW)
    # Nor does it help to take the scope away again, nor does any other change begin the time anew.
    await keys.change(old.id, actor="thief", at=NOW, name="buys", rules=KeyRules())
    with pytest.raises(WithdrawalsFrozen, match="from"):
        await withdrawals.create(new(account_id, 2), rules, RICH, NOW + timedelta(hours=23))
    later = NOW + timedelta(days=1)
    assert (await withdrawals.create(new(account_id, 3), rules, RICH, later))[1]


async def test_a_key_that_ended_while_its_request_was_worked_on_withdraws_nothing(
    withdrawals, customer, database, ledger
):
    account_id = await customer(100_000)
    keys = Keys(database)
    rules = KeyRules(scopes=frozenset({Scope.WITHDRAW}))
    kept, narrowed, revoked = [
        (await keys.create(account_id, name="pays", actor="op", at=NOW, rules=rules)).record.id for _ in range(3)
    ]
    await keys.change(narrowed, actor="op", at=NOW, name="pays", rules=KeyRules())
    await keys.revoke(revoked, actor="op", at=NOW)
    for key_id in (narrowed, revoked):
        with pytest.raises(KeyMayNotWithdraw):
            await withdrawals.create(new(account_id, 1, key_id=key_id), RULES, RICH, NOW)
    assert await ledger.balance(account_id) == Balance(Msat(100_000), Msat(0))
    assert (await withdrawals.create(new(account_id, 1, key_id=kept), RULES, RICH, NOW))[1]


async def test_an_account_that_the_operator_froze(withdrawals, customer, ledger):
    account_id = await customer(100_000)
    big = WithdrawalRules(enabled=True, min_msat=1, approval_msat=1)
    waiting, _ = await withdrawals.create(new(account_id, 1), big, RICH, NOW)
    await withdrawals.decide(waiting.id, approve=True, reason="fine", actor="op", at=NOW)
    freeze = {"reason": "a call from its owner", "actor": "op", "at": NOW}
    assert await withdrawals.freeze(account_id, frozen=True, **freeze)
    assert not await withdrawals.freeze(account_id, frozen=True, **freeze)
    with pytest.raises(WithdrawalsFrozen):
        await withdrawals.create(new(account_id, 2), RULES, RICH, NOW)
    assert await withdrawals.begin(waiting.id, RULES, RICH, NOW) is None
    assert await withdrawals.freeze(account_id, frozen=False, **freeze)
    assert (await withdrawals.begin(waiting.id, RULES, RICH, NOW)).state is State.PAYING
    with pytest.raises(AccountNotFound):
        await withdrawals.freeze("acct_none", frozen=True, **freeze)


async def test_above_the_threshold_the_operator_decides(withdrawals, ledger, customer, database):
    account_id = await customer(100_000)
    rules = WithdrawalRules(enabled=True, min_msat=1, approval_msat=1_000)
    assert (await withdrawals.create(new(account_id, 1), rules, RICH, NOW))[0].state is State.PAYING
    # Without a look at the node: nothing is paid yet.
    big, _ = await withdrawals.create(new(account_id, 2, 1_001), rules, None, NOW)
    assert (big.state, big.owner, big.held_msat) == (State.AWAITING_APPROVAL, None, 1_101)
    assert await withdrawals.begin(big.id, rules, RICH, NOW) is None
    approved = await withdrawals.decide(big.id, approve=True, reason="known", actor="op", at=NOW)
    assert (approved[0].state, approved[1]) == (State.APPROVED, True)
    assert not (await withdrawals.decide(big.id, approve=True, reason="known", actor="op", at=NOW))[1]
    with pytest.raises(NodeCannotCover):
        await withdrawals.begin(big.id, rules, Liquidity(Msat(1), NOW), NOW)
    begun = await withdrawals.begin(big.id, rules, RICH, NOW)
    assert (begun.state, begun.owner, begun.paying_at) == (State.PAYING, database.owner, NOW)
    assert await withdrawals.begin(big.id, rules, RICH, NOW) is None
    with pytest.raises(WrongWithdrawalState):
        await withdrawals.decide(big.id, approve=False, reason="late", actor="op", at=NOW)
    denied, _ = await withdrawals.create(new(account_id, 3, 1_001), rules, None, NOW)
    denied, _ = await withdrawals.decide(denied.id, approve=False, reason="no", actor="op", at=NOW)
    assert (denied.state, denied.reason, denied.held_msat) == (State.DENIED, FailedBecause.OPERATOR, 0)
    taken_back, _ = await withdrawals.create(new(account_id, 4, 1_001), rules, None, NOW)
    taken_back = await withdrawals.cancel(account_id, taken_back.id, NOW)
    assert taken_back.state is State.CANCELED
    assert await withdrawals.cancel(account_id, taken_back.id, NOW) == taken_back
    with pytest.raises(WithdrawalNotFound):
        await withdrawals.cancel(await customer(0), taken_back.id, NOW)
    with pytest.raises(WrongWithdrawalState):
        await withdrawals.cancel(account_id, big.id, NOW)
    assert (await ledger.balance(account_id)).held_msat == 1_100 + 1_101
    assert (await ledger.audit()).problems == []


async def test_what_a_dead_process_was_paying_becomes_unknown(where, withdrawals, customer, ledger, database):
    account_id = await customer(100_000)
    second = await open_database(where, gone_after_s=0)
    theirs = Withdrawals(second)
    lost, _ = await theirs.create(new(account_id, 1), RULES, RICH, NOW)
    own, _ = await withdrawals.create(new(account_id, 2), RULES, RICH, NOW)
    assert await withdrawals.take_over([own.id], NOW) == []
    with pytest.raises(WrongWithdrawalState):
        await withdrawals.resolve(lost.id, settled=True, fee_msat=0, reason="seen", actor="op", at=NOW)
    await second.close()
    await until_gone(database, second.owner)
    (found,) = await withdrawals.take_over([own.id], NOW)
    assert (found.id, found.state) == (lost.id, State.UNKNOWN)
    # One of its own that it no longer follows is lost as well.
    (found,) = await withdrawals.take_over([], NOW)
    assert (found.id, found.state) == (own.id, State.UNKNOWN)
    open_now = await withdrawals.outstanding()
    assert open_now.counts == {State.UNKNOWN: (2, 2_200)} and open_now.oldest_unknown_at == NOW
    ended, changed = await withdrawals.resolve(
        lost.id, settled=True, fee_msat=5, reason="lncli shows it", actor="op", at=NOW
    )
    assert (ended.state, ended.fee_msat, changed) == (State.SETTLED, 5, True)
    failed, _ = await withdrawals.resolve(own.id, settled=False, fee_msat=0, reason="none there", actor="op", at=NOW)
    assert (failed.state, failed.reason) == (State.FAILED, FailedBecause.OPERATOR)
    with pytest.raises(WrongWithdrawalState):
        await withdrawals.resolve(own.id, settled=True, fee_msat=0, reason="no", actor="op", at=NOW)
    assert (await ledger.audit()).problems == []


async def test_a_topup_of_another_account_is_paid_inside_the_ledger_once(withdrawals, ledger, topups, customer):
    payer, receiver = await customer(10_000), await customer(0)
    topup = await asked(topups, receiver, 1)
    inside = {"payment_hash": hash_of(1), "is_internal": True, "fee_limit_msat": Msat(0)}
    with pytest.raises(InvalidInvoice, match="the account that would pay it"):
        await withdrawals.create(new(receiver, 1, **inside), RULES, None, NOW)
    # No look at the node: nothing leaves it.
    made, is_new = await withdrawals.create(new(payer, 1, **inside), RULES, None, NOW)
    assert is_new
    assert (made.state, made.topup_id, made.fee_msat, made.held_msat) == (State.SETTLED, topup.id, 0, 0)
    assert await withdrawals.create(new(payer, 1, **inside), RULES, None, NOW) == (made, False)
    assert await ledger.balance(payer) == Balance(Msat(9_000), Msat(0))
    assert await ledger.balance(receiver) == Balance(Msat(1_000), Msat(0))
    (line,) = (await ledger.statement(receiver)).lines
    assert (line.cause, line.cause_id, line.amount_msat) == (Cause.TRANSFER, made.id, 1_000)
    assert (await topups.get(topup.id)).state is TopupState.SETTLED
    assert (await ledger.audit()).problems == []
    # A wallet elsewhere pays the same invoice all the same: that is money too, and credited once.
    told = [await topups.settle(hash_of(1), Msat(1_000), settle_index=1, at=NOW) for _ in range(2)]
    assert [credit.is_new for credit in told] == [True, False]
    assert await ledger.balance(receiver) == Balance(Msat(2_000), Msat(0))
    assert (await ledger.audit()).problems == []


async def test_an_own_invoice_that_is_no_open_topup_is_refused(withdrawals, topups, customer):
    payer, receiver = await customer(10_000), await customer(0)
    with pytest.raises(InvalidInvoice):
        await withdrawals.create(new(payer, 1, is_internal=True), RULES, None, NOW)
    await asked(topups, receiver, 2)
    await topups.settle(hash_of(2), Msat(1_000), settle_index=1, at=NOW)
    with pytest.raises(InvalidInvoice):
        await withdrawals.create(new(payer, 2, payment_hash=hash_of(2), is_internal=True), RULES, None, NOW)


async def test_an_approved_transfer_whose_topup_was_paid_meanwhile_fails(withdrawals, topups, customer, ledger):
    payer, receiver = await customer(10_000), await customer(0)
    await asked(topups, receiver, 1)
    rules = WithdrawalRules(enabled=True, min_msat=1, approval_msat=1)
    inside = {"payment_hash": hash_of(1), "is_internal": True, "fee_limit_msat": Msat(0)}
    made, _ = await withdrawals.create(new(payer, 1, **inside), rules, None, NOW)
    await withdrawals.decide(made.id, approve=True, reason="fine", actor="op", at=NOW)
    await topups.settle(hash_of(1), Msat(1_000), settle_index=1, at=NOW)
    ended = await withdrawals.begin(made.id, rules, None, NOW)
    assert (ended.state, ended.reason) == (State.FAILED, FailedBecause.INCORRECT_PAYMENT_DETAILS)
    assert await ledger.balance(payer) == Balance(Msat(10_000), Msat(0))
    assert (await ledger.audit()).problems == []


async def test_the_audit_finds_a_withdrawal_that_its_entries_contradict(withdrawals, ledger, customer, database):
    account_id = await customer(10_000)
    made, _ = await withdrawals.create(new(account_id, 1), RULES, RICH, NOW)
    await withdrawals.record(made.id, WithdrawalEvent.SETTLE, NOW, fee_msat=7)
    await database.write(lambda connection: connection.execute(text("UPDATE withdrawals SET fee_msat = 8")))
    (problem,) = (await ledger.audit()).problems
    assert problem == f"withdrawal {made.id} is settled and took 1008 msat, its entries say 1007 msat"


async def test_pages(withdrawals, customer):
    account_id, other = await customer(100_000), await customer(100_000)
    made = [
        (await withdrawals.create(new(account_id, n), RULES, RICH, NOW + timedelta(seconds=n)))[0] for n in range(3)
    ]
    elsewhere, _ = await withdrawals.create(new(other, 9), RULES, RICH, NOW)
    page = await withdrawals.page(account_id=account_id, limit=2)
    assert page.items == [made[2], made[1]] and page.after == made[1].id
    assert (await withdrawals.page(account_id=account_id, after=page.after)).items == [made[0]]
    await withdrawals.record(made[0].id, WithdrawalEvent.LOSE_SIGHT, NOW)
    assert [it.id for it in (await withdrawals.page(state=State.UNKNOWN)).items] == [made[0].id]
    assert {it.id for it in await withdrawals.open_ones()} == {*(it.id for it in made), elsewhere.id}
