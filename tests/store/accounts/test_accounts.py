"""Accounts: created with a zero balance, listed, renamed, and anonymized when deleted; and the administrators' log."""

import asyncio
from datetime import timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.util import await_only

from lcp_gateway.accounts.models import AccountNotFound, Balance, InvalidText, check_text
from lcp_gateway.purchase.money import Msat
from lcp_gateway.store.accounts.accounts import Accounts, check_lives
from lcp_gateway.store.accounts.admin_log import AdminLog
from lcp_gateway.store.accounts.balances import Balances
from lcp_gateway.store.accounts.keys import Keys
from lcp_gateway.store.database.engines import open_database
from tests.store.invoices import asked
from tests.store.journals import NOW, charged
from tests.support.cases import each_case

LATER = NOW + timedelta(hours=1)


async def test_a_new_account_has_a_name_and_nothing_else(accounts):
    made = await accounts.create("  Alice & Söhne ", actor="op", at=NOW)
    assert made.id.startswith("acct_") and len(made.id) == 29
    assert (made.name, made.balance) == ("Alice & Söhne", Balance(Msat(0), Msat(0)))
    assert await accounts.get(made.id) == made
    assert await accounts.get("acct_nobody") is None


async def test_an_account_shows_what_it_has(accounts, journal, customer):
    account_id = await customer(5_000)
    await journal.intend(charged(1, account_id))
    assert (await accounts.get(account_id)).balance == Balance(Msat(5_000), Msat(1_050))


@each_case("name", ["", "   ", "x" * 129, "two\nlines", "a\0b", "\udc80", "a\u202eb"])
async def test_a_name_has_to_be_readable(accounts, name):
    with pytest.raises(InvalidText):
        await accounts.create(name, actor="op", at=NOW)
    assert (await accounts.page()).items == []


def test_a_memo_may_be_missing():
    assert check_text(" ", "memo", may_be_empty=True) == ""


async def test_accounts_are_listed_page_by_page_the_newest_first(accounts):
    # Two of the same time are ordered by their ids.
    made = [await accounts.create(f"{n}", actor="op", at=NOW + timedelta(seconds=n // 2)) for n in range(7)]
    seen, after = [], None
    while True:
        page = await accounts.page(limit=3, after=after)
        seen += page.items
        after = page.after
        if after is None:
            break
    assert seen == sorted(made, key=lambda account: (account.created_at, account.id), reverse=True)


async def test_an_account_can_be_renamed(accounts):
    made = await accounts.create("old", actor="op", at=NOW)
    await accounts.rename(made.id, "new", actor="op", at=LATER)
    assert (await accounts.get(made.id)).name == "new"
    with pytest.raises(AccountNotFound):
        await accounts.rename("acct_nobody", "new", actor="op", at=LATER)


async def test_a_deleted_account_leaves_its_books_and_no_name(accounts, database, ledger, topups, journal, customer):
    keys = Keys(database)
    account_id = await customer(5_000)
    key = await keys.create(account_id, name="laptop", actor="op", at=NOW)
    topup = await asked(topups, account_id, 1, memo="for Alice")
    await journal.intend(charged(1, account_id))
    await accounts.delete(account_id, actor="op", at=LATER)
    gone = await accounts.get(account_id)
    assert (gone.name, gone.deleted_at) == ("", LATER)
    assert gone.balance == Balance(Msat(5_000), Msat(1_050))
    assert (await accounts.page()).items == []
    assert (await accounts.page(with_deleted=True)).items == [gone]
    found = await keys.get(key.record.id)
    assert (found.name, found.revoked_at) == ("", LATER)
    assert (await topups.get(topup.id)).memo == ""
    assert len((await ledger.statement(account_id)).lines) == 1
    # A payment from before the deletion is still credited.
    await topups.settle(topup.payment_hash, Msat(1_000), settle_index=1, at=LATER)
    assert (await ledger.balance(account_id)).balance_msat == 6_000
    assert (await ledger.audit()).ok
    for act in (
        accounts.delete(account_id, actor="op", at=LATER),
        accounts.rename(account_id, "back", actor="op", at=LATER),
        keys.create(account_id, name="k", actor="op", at=LATER),
        asked(topups, account_id, 2),
    ):
        with pytest.raises(AccountNotFound):
            await act


async def test_everything_an_administrator_does_is_in_the_log_without_names(accounts, database, ledger):
    keys, log = Keys(database), AdminLog(database)
    made = await accounts.create("Alice", actor="op", at=NOW)
    key = await keys.create(made.id, name="Alice's laptop", actor="op", at=NOW)
    await ledger.adjust(made.id, Msat(5), reason="a gift", actor="boss", at=LATER)
    await keys.revoke(key.record.id, actor="op", at=LATER)
    await keys.revoke(key.record.id, actor="op", at=LATER)
    await accounts.rename(made.id, "Bob", actor="op", at=LATER)
    await accounts.delete(made.id, actor="op", at=LATER)
    await log.add("settings.show", "gateway", actor="op", at=LATER, part="wallet")
    first = await log.page(limit=4)
    rest = await log.page(limit=4, after=first.after)
    acts = [*first.items, *rest.items]
    assert rest.after is None
    assert [(act.action, act.target) for act in reversed(acts)] == [
        ("account.create", made.id),
        ("key.create", key.record.id),
        ("account.adjust", made.id),
        ("key.revoke", key.record.id),
        ("account.rename", made.id),
        ("account.delete", made.id),
        ("settings.show", "gateway"),
    ]
    assert (acts[-3].actor, acts[-3].at) == ("boss", LATER)
    assert acts[-3].detail["amount_msat"] == 5 and acts[-3].detail["reason"] == "a gift"
    assert acts[-2].detail == {"account_id": made.id, "scopes": ["inference", "wallet"]}
    assert not any(word in str(acts) for word in ("Alice", "Bob", key.text))


async def test_failed_changes_are_not_in_the_log(accounts, database, ledger, customer):
    account_id = await customer(0)
    with pytest.raises(Exception, match="available"):
        await ledger.adjust(account_id, Msat(-1), reason="too much", actor="op", at=NOW)
    assert [act.action for act in (await AdminLog(database).page()).items] == ["account.create"]


async def test_an_account_is_deleted_beside_a_withdrawal_that_holds_it(postgres_where):
    """Regression: both held the account and waited for each other, until PostgreSQL ended one of them."""
    withdrawing, deleting, looking = [await open_database(postgres_where) for _ in range(3)]
    account = await Accounts(withdrawing).create("one", actor="op", at=NOW)
    holds, go_on = asyncio.Event(), asyncio.Event()

    def withdraw(connection):
        check_lives(connection, account.id)
        holds.set()
        await_only(go_on.wait())
        Balances().lock(connection, [account.id])

    waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        tasks.create_task(withdrawing.write(withdraw))
        await holds.wait()
        tasks.create_task(Accounts(deleting).delete(account.id, actor="op", at=LATER, forfeit_msat=Msat(0)))
        while not await looking.read(lambda connection: connection.execute(waiting).scalar()):
            await asyncio.sleep(0.01)
        go_on.set()
    assert (await Accounts(looking).get(account.id)).deleted_at == LATER
    for database in (withdrawing, deleting, looking):
        await database.close()
