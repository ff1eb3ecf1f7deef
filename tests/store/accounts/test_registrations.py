"""Accounts that persons open by themselves, invites that work once, and the end of accounts that were never used."""

import asyncio
from datetime import timedelta

import pytest
from sqlalchemy import text

from lcp_gateway.accounts.callers import KeyRules, Scope
from lcp_gateway.accounts.invites import InvalidInvite, InviteStatus
from lcp_gateway.accounts.models import AccountNotFound, BalanceLeft, InvalidText
from lcp_gateway.purchase.money import Msat
from lcp_gateway.store.accounts.admin_log import AdminLog
from lcp_gateway.store.accounts.keys import Keys
from lcp_gateway.store.accounts.nodes import Nodes
from lcp_gateway.store.accounts.registrations import Registrations
from tests.store.journals import NOW

RULES = KeyRules(scopes=frozenset({Scope.ACCOUNT, Scope.WALLET}))
WEEK = timedelta(days=7)


@pytest.fixture
def registrations(database) -> Registrations:
    return Registrations(database)


@pytest.fixture
def register(registrations):
    async def run(name="alice", *, at=NOW, invite=None):
        account, _ = await registrations.register(name, actor="registration", at=at, rules=RULES, invite=invite)
        return account.id

    return run


@pytest.fixture
def invited(registrations):
    async def run(**more):
        values = {"note": "for bob", "expires_at": NOW + WEEK, "actor": "test", "at": NOW, **more}
        return await registrations.create_invite(**values)

    return run


async def test_a_name_is_enough_for_an_account_with_a_key(registrations, accounts, database):
    account, key = await registrations.register(" alice ", actor="registration", at=NOW, rules=RULES)
    assert (await accounts.get(account.id)).name == "alice"
    assert (await Keys(database).get(key.record.id)).rules == RULES
    assert [act.action for act in (await AdminLog(database).page()).items] == ["key.create", "account.register"]
    with pytest.raises(InvalidText):
        await registrations.register(" ", actor="registration", at=NOW, rules=RULES)


async def test_an_invite_opens_one_account(registrations, register, invited):
    made = await invited()
    account_id = await register(invite=f" {made.code} ")
    found = await registrations.get_invite(made.record.id)
    assert (found.status(NOW), found.account_id) == (InviteStatus.USED, account_id)
    with pytest.raises(InvalidInvite):
        await register(invite=made.code)


async def test_the_note_of_an_invite_goes_with_its_account(registrations, register, invited, accounts):
    made = await invited(note="for Bob")
    account_id = await register(invite=made.code)
    await accounts.delete(account_id, actor="test", at=NOW)
    found = await registrations.get_invite(made.record.id)
    assert (found.note, found.account_id) == ("", account_id)


async def test_of_many_that_use_an_invite_at_one_time_one_gets_an_account(registrations, register, invited, accounts):
    made = await invited()
    found = await asyncio.gather(*(register(invite=made.code) for _ in range(8)), return_exceptions=True)
    assert sum(isinstance(one, str) for one in found) == 1
    assert sum(isinstance(one, InvalidInvite) for one in found) == 7
    assert len((await accounts.page()).items) == 1, "a refused one leaves no account"


async def test_wrong_used_expired_and_revoked_invites_are_refused_in_the_same_words(registrations, register, invited):
    used, over, revoked = [await invited() for _ in range(3)]
    await register(invite=used.code)
    await registrations.revoke_invite(revoked.record.id, actor="test", at=NOW)
    said = set()
    for code, at in ((used.code, NOW), (over.code, NOW + WEEK), (revoked.code, NOW), ("lcpi_x", NOW), ("", NOW)):
        with pytest.raises(InvalidInvite) as caught:
            await register(invite=code, at=at)
        said.add(str(caught.value))
    assert len(said) == 1
    statuses = [invite.status(NOW + WEEK) for invite in (await registrations.invites()).items]
    assert sorted(statuses) == ["expired", "revoked", "used"]


async def test_a_used_invite_is_not_revoked(registrations, register, invited):
    made = await invited()
    await register(invite=made.code)
    found = await registrations.revoke_invite(made.record.id, actor="test", at=NOW)
    assert found.revoked_at is None and found.status(NOW) is InviteStatus.USED
    assert await registrations.revoke_invite("inv_none", actor="test", at=NOW) is None


async def test_the_code_of_an_invite_is_stored_nowhere(invited, database):
    made = await invited()
    tables = ("invites", "admin_log")
    rows = await database.read(
        lambda connection: [connection.execute(text(f"SELECT * FROM {table}")).all() for table in tables]
    )
    assert made.code[5:] not in str(rows) and made.code not in repr(made)


async def test_an_account_that_was_never_topped_up_goes_and_its_key_with_it(
    registrations, register, accounts, database
):
    account_id = await register()
    assert await registrations.forget_unfunded(NOW, NOW + WEEK) == 0, "not yet"
    assert await registrations.forget_unfunded(NOW + timedelta(seconds=1), NOW + WEEK) == 1
    assert (await accounts.get(account_id)).deleted_at == NOW + WEEK
    assert [key.revoked_at for key in (await Keys(database).page(account_id)).items] == [NOW + WEEK]
    assert await registrations.forget_unfunded(NOW + WEEK, NOW + WEEK) == 0


async def test_the_owner_of_a_node_that_has_not_earned_yet_stays(registrations, register, accounts, database):
    account_id = await register()
    await Nodes(database).connected("gpu.abc123", account_id, "key_1", "gpu", NOW)
    assert await registrations.forget_unfunded(NOW + WEEK, NOW + WEEK) == 0
    assert (await accounts.get(account_id)).deleted_at is None


async def test_accounts_that_are_used_or_were_not_opened_freely_stay(
    registrations, register, invited, accounts, ledger, topups
):
    funded, waiting, by_invite = await register(), await register(), await register(invite=(await invited()).code)
    by_operator = (await accounts.create("carol", actor="test", at=NOW)).id
    await ledger.adjust(funded, Msat(1), reason="a gift", actor="test", at=NOW)
    await ledger.adjust(funded, Msat(-1), reason="taken again", actor="test", at=NOW)
    await topups.create(
        waiting,
        payment_hash=bytes(32),
        amount_msat=Msat(1000),
        payment_request="lnbcrt1",
        expires_at=NOW + WEEK,
        at=NOW,
    )
    assert await registrations.forget_unfunded(NOW + WEEK, NOW + WEEK) == 0
    for account_id in (funded, waiting, by_invite, by_operator):
        assert (await accounts.get(account_id)).deleted_at is None


async def test_a_holder_deletes_an_account_by_naming_the_money_that_is_lost(accounts, customer):
    account_id = await customer(5_000)
    for wrong in (0, 4_999, 5_001):
        with pytest.raises(BalanceLeft, match="5000 msat"):
            await accounts.delete(account_id, actor="t", at=NOW, forfeit_msat=Msat(wrong))
    await accounts.delete(account_id, actor="t", at=NOW, forfeit_msat=Msat(5_000))
    assert (await accounts.get(account_id)).deleted_at is not None
    with pytest.raises(AccountNotFound):
        await accounts.delete(account_id, actor="t", at=NOW, forfeit_msat=Msat(5_000))
