"""Rows that changed lately are read alike on both kinds of database, whichever process changed them."""

from datetime import UTC, datetime, timedelta

import pytest

from lcp_gateway.accounts.callers import KeyRules, Scope
from lcp_gateway.accounts.feed import Watched
from lcp_gateway.accounts.models import KeyIsRevoked, TopupState
from lcp_gateway.purchase.money import Msat
from lcp_gateway.purchase.records import NotUnknown
from lcp_gateway.purchase.states import State
from lcp_gateway.store.accounts.admin_log import AdminLog
from lcp_gateway.store.accounts.keys import Keys
from lcp_gateway.store.journal.changes import ChangedRows
from lcp_gateway.store.journal.resolutions import ManualResolutions
from tests.store.journals import NOW, charged, intent, job, written

BEFORE = NOW - timedelta(seconds=1)


def micros(record):
    return (record.updated_at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


async def make_customers(accounts, ledger):
    ids = []
    for name in ("ann", "bob"):
        account = await accounts.create(name, actor="test", at=NOW)
        await ledger.adjust(account.id, Msat(1_000_000), reason="test", actor="test", at=NOW)
        ids.append(account.id)
    return ids


async def test_purchases_are_told_once_for_each_change_to_the_streams_that_watch_them(
    database, journal, accounts, ledger
):
    ann, bob = await make_customers(accounts, ledger)
    feed = ChangedRows(database)
    await journal.intend(charged(1, ann, key_id="k1"))
    await journal.intend(charged(2, bob, key_id="k2", at=NOW + timedelta(milliseconds=1)))
    await journal.intend(intent(3, key_id="k3", at=NOW + timedelta(milliseconds=2)))

    async def told(**watched):
        changes = await feed.changes(Watched(BEFORE, **watched), limit=10)
        return [record.job_id for record in changes.purchases], changes

    assert (await told(is_whole=True))[0] == [job(1), job(2), job(3)]
    assert (await told(account_ids=frozenset({ann})))[0] == [job(1)]
    assert (await told(key_ids=frozenset({"k2", "k3"})))[0] == [job(2), job(3)]
    assert (await told())[0] == []
    seen = {record.job_id: micros(record) for record in (await told(is_whole=True))[1].purchases}
    assert (await told(is_whole=True, seen=seen))[0] == []
    journal.record(job(2), State.SETTLED, NOW + timedelta(milliseconds=5))
    await written(journal)
    again, changes = await told(is_whole=True, seen=seen)
    assert again == [job(2)] and changes.purchases[0].state is State.SETTLED
    assert (await feed.changes(Watched(NOW + timedelta(seconds=1), is_whole=True), limit=10)).purchases == ()


async def test_of_many_the_newest_are_told_and_that_there_are_more(database, journal):
    for number in range(5):
        await journal.intend(intent(number, at=NOW + timedelta(milliseconds=number)))
    changes = await ChangedRows(database).changes(Watched(BEFORE, is_whole=True), limit=3)
    assert [record.job_id for record in changes.purchases] == [job(2), job(3), job(4)]
    assert changes.is_cut
    assert not (await ChangedRows(database).changes(Watched(BEFORE, is_whole=True), limit=5)).is_cut


async def test_balances_and_topups_are_those_of_the_watched_accounts(database, accounts, ledger, topups):
    ann, bob = await make_customers(accounts, ledger)
    made = [
        await topups.create(
            account_id,
            payment_hash=bytes([number]) * 32,
            amount_msat=Msat(5_000),
            payment_request=f"lnbcrt{number}",
            expires_at=NOW + timedelta(hours=1),
            at=NOW,
        )
        for number, account_id in enumerate((ann, bob))
    ]
    feed, watched = ChangedRows(database), frozenset({ann})
    changes = await feed.changes(Watched(NOW, account_ids=watched), limit=1)
    assert set(changes.balances) == {ann} and changes.balances[ann].balance_msat == 1_000_000
    assert [topup.id for topup in changes.topups] == [made[0].id]
    whole = await feed.changes(Watched(NOW, is_whole=True), limit=1)
    assert {topup.id for topup in whole.topups} == {topup.id for topup in made}
    await topups.settle(made[0].payment_hash, Msat(5_000), settle_index=1, at=NOW)
    (settled,) = (
        await feed.changes(Watched(NOW, account_ids=watched, open_topups=frozenset({made[0].id})), limit=1)
    ).topups
    assert settled.state is TopupState.SETTLED
    assert (await feed.changes(Watched(NOW, account_ids=watched), limit=1)).topups == []


async def test_a_key_is_changed_until_it_is_revoked_and_others_learn_of_it(database, accounts):
    account = await accounts.create("ann", actor="test", at=NOW)
    keys = Keys(database)
    made = (await keys.create(account.id, name="k", actor="test", at=NOW)).record
    before = (await keys.load_all()).upto
    rules = KeyRules(scopes=frozenset({Scope.ACCOUNT}), models=frozenset({"m"}), budget_day_msat=Msat(7))
    changed = await keys.change(made.id, actor="test", at=NOW, name="other", rules=rules)
    assert (changed.name, changed.rules, changed.key_hash) == ("other", rules, made.key_hash)
    assert [record.id for record in (await keys.changed_since(before)).records] == [made.id]
    assert await keys.names([made.id, "key_none"]) == {made.id: "other"}
    assert await keys.names([]) == {}
    assert await keys.change("key_none", actor="test", at=NOW, name="x", rules=rules) is None
    await keys.revoke(made.id, actor="test", at=NOW)
    with pytest.raises(KeyIsRevoked):
        await keys.change(made.id, actor="test", at=NOW, name="x", rules=rules)
    assert (await keys.get(made.id)).revoked_at == NOW


async def test_a_resolution_and_its_reason_are_written_together(database, journal, books, accounts, ledger):
    ann, _ = await make_customers(accounts, ledger)
    resolved, refunds = [], []
    manual = ManualResolutions(
        database,
        books,
        refund_limits=lambda: journal.refunds,
        on_refund=refunds.append,
        on_resolved=lambda record, state: resolved.append((record.job_id, state)),
    )
    await journal.intend(charged(1, ann, refund_undelivered=True))
    journal.record(job(1), State.UNKNOWN, NOW)
    await written(journal)
    await manual.resolve(job(1), State.SETTLED, reason="seen in lnd", actor="op", at=NOW)
    assert resolved == [(job(1), State.UNDELIVERED)] and len(refunds) == 1
    for job_id, state in ((job(1), State.UNDELIVERED), (job(9), None)):
        with pytest.raises(NotUnknown) as caught:
            await manual.resolve(job_id, State.NOT_PAID, reason="again", actor="op", at=NOW)
        assert caught.value.state is state
    (entry,) = [one for one in (await AdminLog(database).page()).items if one.action == "purchase.resolve"]
    assert entry.detail == {"reason": "seen in lnd", "state": "settled"}
    assert (await ledger.audit()).ok
