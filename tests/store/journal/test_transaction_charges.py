"""A customer's charge follows the purchase: held before the payment, taken when it is made, released when it was not."""

import asyncio
from datetime import timedelta

import pytest
from sqlalchemy import text

from lcp_gateway.accounts.models import Balance, Cause
from lcp_gateway.purchase.journal import (
    BudgetExceeded,
    DuplicateIntent,
    InsufficientBalance,
    JournalUnavailable,
    PurchaseUpdate,
)
from lcp_gateway.purchase.money import Budget, Charge, Markup, Msat, Period
from lcp_gateway.purchase.outcome import EndedBy, Ending, Received
from lcp_gateway.purchase.quote import ProviderSource
from lcp_gateway.purchase.states import State
from lcp_gateway.store.accounts import balances as balances_module
from lcp_gateway.store.database.engines import open_database
from lcp_gateway.store.journal.recovery import resolve, sweep
from lcp_gateway.store.journal.transaction import IntentEntry, JournalProblemKind, JournalTransaction
from lcp_gateway.store.journal.writer import JournalWriter
from tests.store.journals import NOW, charged, intent, job, spent, written


async def lines(ledger, account_id):
    """Return the movements after the first adjustment, the oldest first."""
    statement = await ledger.statement(account_id)
    return [(line.cause, line.amount_msat) for line in reversed(statement.lines[:-1])]


async def move(journal, number, *states, **update):
    for state in states:
        journal.record(job(number), state, NOW, PurchaseUpdate(**update) if state is states[-1] else PurchaseUpdate())
    await written(journal)


async def test_a_charge_is_held_with_its_intent(journal, ledger, books, customer):
    account_id = await customer(10_000)
    await journal.intend(charged(1, account_id))
    assert await ledger.balance(account_id) == Balance(Msat(10_000), Msat(1_050))
    assert await lines(ledger, account_id) == []
    found = await books.purchase(job(1))
    assert found.charge == Charge(account_id, Msat(1_050), Markup(50_000))
    assert found.charged_msat == 0
    assert (await ledger.audit()).problems == []


async def test_a_balance_that_is_too_low_is_not_spent(journal, ledger, books, customer):
    account_id = await customer(2_000)
    await journal.intend(charged(1, account_id))
    with pytest.raises(InsufficientBalance) as refused:
        await journal.intend(charged(2, account_id))
    assert (refused.value.required_msat, refused.value.available_msat) == (1_050, 950)
    assert refused.value.code == "insufficient_balance"
    assert refused.value.quote.job_id == job(2)
    assert await books.purchase(job(2)) is None
    assert await spent(books) == 1_010
    await journal.intend(charged(3, account_id, price_msat=900))
    assert (await ledger.balance(account_id)).available_msat == 5


async def test_a_balance_can_be_spent_to_the_last_msat(journal, ledger, customer):
    account_id = await customer(1_050)
    await journal.intend(charged(1, account_id))
    assert (await ledger.balance(account_id)).available_msat == 0


async def test_a_missing_account_has_nothing(journal):
    with pytest.raises(InsufficientBalance) as refused:
        await journal.intend(charged(1, "acct_nobody"))
    assert refused.value.available_msat == 0


async def test_a_purchase_refused_by_a_budget_holds_no_balance(journal, ledger, customer):
    account_id = await customer()
    with pytest.raises(BudgetExceeded):
        await journal.intend(charged(1, account_id), [Budget(Period.HOUR, Msat(1))])
    with pytest.raises(JournalUnavailable):
        await journal.intend(charged(1, account_id, price_msat=2**49, markup=Markup(2_000_000)))
    assert (await ledger.balance(account_id)).held_msat == 0


async def test_a_duplicate_is_not_held_again(journal, ledger, customer):
    account_id = await customer()
    await journal.intend(charged(1, account_id))
    with pytest.raises(DuplicateIntent):
        await journal.intend(charged(1, account_id))
    assert (await ledger.balance(account_id)).held_msat == 1_050


PAID = (Cause.PURCHASE, -1_050)


@pytest.mark.parametrize(
    ("path", "update", "refund", "held_msat", "moves"),
    [
        ([State.NOT_PAID], {}, False, 0, []),
        ([State.UNKNOWN], {}, False, 1_050, []),
        ([State.UNKNOWN, State.NOT_PAID], {}, False, 0, []),
        ([State.UNKNOWN, State.SETTLED], {}, False, 0, [PAID]),
        ([State.SETTLED], {}, False, 0, [PAID]),
        ([State.SETTLED, State.DELIVERED], {}, True, 0, [PAID]),
        ([State.SETTLED, State.DELIVERED], {"charged_msat": 400}, False, 0, [PAID, 630]),
        ([State.SETTLED, State.DELIVERED], {"charged_msat": 1_500}, False, 0, [PAID]),
        ([State.SETTLED], {"charged_msat": 400}, False, 0, [(Cause.PURCHASE, -420)]),
        ([State.SETTLED], {"charged_msat": 0}, False, 0, []),
        ([State.UNKNOWN], {"charged_msat": 400}, False, 420, []),
        ([State.SETTLED, State.UNDELIVERED], {}, False, 0, [PAID]),
        ([State.SETTLED, State.UNDELIVERED], {}, True, 0, [PAID, 1_050]),
        ([State.SETTLED, State.UNDELIVERED], {"charged_msat": 400}, True, 0, [PAID, 1_050]),
        # The client cancelled the rest.
        ([State.SETTLED, State.UNDELIVERED], {"ending": Ending(EndedBy.CLIENT, Received.PART)}, True, 0, [PAID]),
        ([State.SETTLED, State.UNDELIVERED], {"ending": Ending(EndedBy.CLIENT, Received.PART)}, False, 0, [PAID]),
    ],
)
async def test_the_balance_follows_the_states(journal, ledger, books, customer, path, update, refund, held_msat, moves):
    account_id = await customer(10_000)
    await journal.intend(charged(1, account_id, refund_undelivered=refund))
    await move(journal, 1, *path, **update)
    moves = [move if isinstance(move, tuple) else (Cause.REFUND, move) for move in moves]
    assert await lines(ledger, account_id) == moves
    balance_msat = 10_000 + sum(amount for _, amount in moves)
    assert await ledger.balance(account_id) == Balance(Msat(balance_msat), Msat(held_msat))
    assert (await books.purchase(job(1))).charged_msat == 10_000 - balance_msat
    audit = await ledger.audit()
    assert audit.problems == []
    assert audit.books.get("revenue", 0) == 10_000 - balance_msat
    assert audit.books["adjustments"] == -10_000


async def test_a_charge_that_is_lowered_twice_is_refunded_twice(journal, ledger, customer):
    account_id = await customer(10_000)
    await journal.intend(charged(1, account_id, refund_undelivered=True))
    await move(journal, 1, State.SETTLED)
    for charged_msat in (800, 500, 600):
        journal.record(job(1), None, NOW, PurchaseUpdate(charged_msat=Msat(charged_msat)))
    await move(journal, 1, State.UNDELIVERED)
    assert await lines(ledger, account_id) == [PAID, (Cause.REFUND, 210), (Cause.REFUND, 315), (Cause.REFUND, 525)]
    assert (await ledger.audit()).ok


async def test_a_late_update_moves_no_money(journal, ledger, customer, problems):
    account_id = await customer(10_000)
    await journal.intend(charged(1, account_id))
    await move(journal, 1, State.SETTLED, State.DELIVERED)
    await move(journal, 1, State.NOT_PAID)
    await move(journal, 1, State.UNDELIVERED)
    await move(journal, 1, State.SETTLED)
    assert [problem.kind for problem in problems] == [JournalProblemKind.LATE_NOTE] * 3
    assert await lines(ledger, account_id) == [PAID]
    assert (await ledger.audit()).ok


async def test_a_free_answer_can_have_a_fixed_price(journal, ledger, customer):
    account_id = await customer(100)
    fixed = {"price_msat": 0, "markup": Markup(0, Msat(60)), "source": ProviderSource.NODE}
    await journal.intend(charged(1, account_id, fee_cap_msat=Msat(0), **fixed))
    with pytest.raises(InsufficientBalance):
        await journal.intend(charged(2, account_id, fee_cap_msat=Msat(0), **fixed))
    await move(journal, 1, State.SETTLED, State.DELIVERED, charged_msat=0)
    assert await ledger.balance(account_id) == Balance(Msat(40), Msat(0))


async def test_many_of_one_account_in_one_batch_see_one_another(database, ledger, customer):
    account_id, other_id = await customer(10 * 1_050 + 1_049), await customer(1_050)
    entries = [IntentEntry(n, charged(n, account_id), []) for n in range(30)]
    entries += [IntentEntry(99, charged(99, other_id), [])]
    outcome = await database.write(JournalTransaction(database.owner, [], entries).write)
    assert [refusal is None for refusal in outcome.refusals] == [True] * 10 + [False] * 20 + [True]
    assert await ledger.balance(account_id) == Balance(Msat(11_549), Msat(10_500))
    assert (await ledger.audit()).ok


async def test_an_amount_released_by_an_update_can_be_spent_in_the_same_batch(journal, ledger, customer):
    account_id = await customer(1_050)
    await journal.intend(charged(1, account_id))
    journal.record(job(1), State.NOT_PAID, NOW)
    await journal.intend(charged(2, account_id))
    assert await ledger.balance(account_id) == Balance(Msat(1_050), Msat(1_050))


async def test_a_caller_that_leaves_is_not_charged(journal, ledger, books, customer):
    account_id = await customer(100_000)
    waiting = [asyncio.ensure_future(journal.intend(charged(n, account_id))) for n in range(10)]
    await asyncio.sleep(0)
    for task in waiting[::2]:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    await written(journal)
    assert (await ledger.balance(account_id)).held_msat == 5 * 1_050
    assert (await ledger.audit()).ok


async def test_64_parallel_intents_on_a_balance_for_ten_take_exactly_ten(where, journal, ledger, customer):
    account_id = await customer(10_500)
    other_database = await open_database(where)
    other = JournalWriter(other_database, on_problem=print)
    other.start()
    outcomes = await asyncio.gather(
        *((journal, other)[n % 2].intend(charged(n, account_id)) for n in range(64)), return_exceptions=True
    )
    await other.close()
    await other_database.close()
    assert outcomes.count(None) == 10
    assert sum(isinstance(outcome, InsufficientBalance) for outcome in outcomes) == 54
    assert await ledger.balance(account_id) == Balance(Msat(10_500), Msat(10_500))


async def test_a_hold_waits_for_the_one_that_another_gateway_is_writing(postgres_where):
    first, second = [await open_database(postgres_where) for _ in range(2)]
    account_id = "acct_two"
    await first.write(
        lambda connection: [
            connection.execute(text(f"INSERT INTO {into}"))
            for into in (f"accounts VALUES ('{account_id}', 'x', 0)", f"balances VALUES ('{account_id}', 2100, 0)")
        ]
    )
    journal = JournalWriter(second, on_problem=print)
    journal.start()
    # In different hours, so that they contend for the balance and not for a budget's counter.
    await journal.intend(charged(0, account_id, at=NOW + timedelta(days=400)))

    held = asyncio.Event()

    def hold_slowly(connection):
        outcome = JournalTransaction(first.owner, [], [IntentEntry(1, charged(1, account_id), [])]).write(connection)
        held.set()
        connection.execute(text("SELECT pg_sleep(0.2)"))
        return outcome

    slow = asyncio.ensure_future(first.write(hold_slowly))
    await held.wait()
    with pytest.raises(InsufficientBalance):
        await journal.intend(charged(2, account_id, at=NOW + timedelta(days=800)))
    assert (await slow).refusals == [None]
    await journal.close()
    for database in (first, second):
        await database.close()


@pytest.mark.parametrize(
    ("state", "balance"),
    [
        (State.NOT_PAID, Balance(Msat(10_000), Msat(0))),
        (State.SETTLED, Balance(Msat(10_000), Msat(0))),
        (State.UNDELIVERED, Balance(Msat(10_000), Msat(0))),
    ],
)
async def test_evidence_ends_a_hold(journal, database, ledger, customer, state, balance):
    """A charge without a delivered result is refunded, whichever component finds the evidence of payment."""
    account_id = await customer(10_000)
    await journal.intend(charged(1, account_id, refund_undelivered=True))
    await move(journal, 1, State.UNKNOWN)
    await resolve(database, job(1), state, NOW)
    assert await ledger.balance(account_id) == balance
    paid = [] if state is State.NOT_PAID else [PAID, (Cause.REFUND, 1_050)]
    assert await lines(ledger, account_id) == paid
    assert (await ledger.audit()).ok


@pytest.mark.parametrize(
    ("source", "refund", "balance"),
    [
        (ProviderSource.LCP, True, Balance(Msat(10_000), Msat(1_050))),
        (ProviderSource.NODE, False, Balance(Msat(8_950), Msat(0))),
        (ProviderSource.NODE, True, Balance(Msat(10_000), Msat(0))),
    ],
)
async def test_a_sweep_after_a_dead_gateway_goes_by_the_row(where, customer, ledger, database, source, refund, balance):
    account_id = await customer(10_000)
    dead = await open_database(where)
    journal = JournalWriter(dead, on_problem=print)
    journal.start()
    await journal.intend(charged(1, account_id, source=source, refund_undelivered=refund))
    await journal.close()
    await dead.close()
    async with asyncio.timeout(60):
        # A server takes a moment to notice that a session's other end is gone.
        while not len(await sweep(database, NOW)):
            await asyncio.sleep(0.05)
    assert await ledger.balance(account_id) == balance
    assert (await ledger.audit()).ok


async def test_purchases_without_an_account_ask_nothing_of_the_ledger(journal, monkeypatch):
    def fail(*_arguments):
        raise AssertionError("a statement about balances")

    monkeypatch.setattr(balances_module, "execute_in", fail)
    monkeypatch.setattr(balances_module, "execute_many", fail)
    await journal.intend(intent(1))
    await move(journal, 1, State.SETTLED, State.DELIVERED)


async def test_the_database_itself_refuses_what_the_code_must_not_do(database, ledger, customer):
    await customer(1_000)
    for statement in (
        "UPDATE balances SET held_msat = 1001",
        "UPDATE balances SET balance_msat = -1",
        "UPDATE balances SET held_msat = -1",
        "UPDATE ledger_entries SET amount_msat = 5",
        "DELETE FROM ledger_entries",
        "DELETE FROM admin_log",
        "UPDATE admin_log SET actor = 'nobody'",
        """INSERT INTO ledger_entries(tx, at, book, amount_msat, cause, cause_id)
        SELECT 1, 1, book, amount_msat, cause, cause_id FROM ledger_entries""",
    ):
        with pytest.raises(Exception, match=r"constraint|append-only"):
            await database.write(lambda connection, s=statement: connection.execute(text(s)))
    assert (await ledger.audit()).ok
