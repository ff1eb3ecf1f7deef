"""Keys: shown once, stored as hashes, revoked immediately, and synchronized by change numbers."""

import asyncio
import hashlib
from datetime import timedelta

import pytest
from sqlalchemy import text

from lcp_gateway.accounts.callers import Caller, KeyRules, Scope
from lcp_gateway.accounts.models import AccountNotFound, InvalidAmount, InvalidText, KeyKind
from lcp_gateway.purchase.money import Msat
from lcp_gateway.store.accounts.keys import Keys
from lcp_gateway.store.database.engines import open_database
from tests.store.journals import NOW

LATER = NOW + timedelta(hours=1)
EVERY_RULE = KeyRules(
    scopes=frozenset({Scope.INFERENCE, Scope.ADMIN}),
    models=frozenset({"llama", "qwen"}),
    max_price_msat=Msat(1),
    requests_per_minute=2,
    tokens_per_minute=3,
    budget_hour_msat=Msat(4),
    budget_day_msat=Msat(5),
    budget_month_msat=Msat(6),
    concurrent_jobs=7,
    expires_at=LATER,
)


@pytest.fixture
def keys(database) -> Keys:
    return Keys(database)


async def test_a_key_comes_back_as_it_was_made(keys, customer):
    account_id = await customer(0)
    made = await keys.create(account_id, name="laptop", actor="op", at=NOW, rules=EVERY_RULE, kind=KeyKind.AGENT)
    assert made.text.startswith("lcpg_") and len(made.text) == 48
    assert made.record.prefix == made.text[:10]
    assert made.record.key_hash == hashlib.sha256(made.text.encode()).digest()
    assert made.record.id.startswith("key_") and len(made.record.id) == 20
    assert made.record.caller == Caller(made.record.id, account_id, EVERY_RULE)
    assert made.record.revoked_at is None
    assert await keys.get(made.record.id) == made.record
    simple = await keys.create(account_id, name="simple", actor="op", at=NOW)
    assert (await keys.get(simple.record.id)).rules == KeyRules()


async def test_the_key_itself_is_nowhere(keys, customer, database):
    made = await keys.create(await customer(0), name="laptop", actor="op", at=NOW)
    rows = await database.read(
        lambda connection: [
            connection.execute(text(f"SELECT * FROM {table}")).all() for table in ("keys", "admin_log", "accounts")
        ]
    )
    secret = made.text[10:]
    assert secret not in str(rows)
    assert secret not in repr(made) and "key_hash" not in repr(made)


@pytest.mark.parametrize(
    ("rules", "error"),
    [
        (KeyRules(max_price_msat=Msat(-1)), InvalidAmount),
        (KeyRules(tokens_per_minute=2**63), InvalidAmount),
        (KeyRules(models=frozenset({"a\nb"})), InvalidText),
        (KeyRules(models=frozenset(str(n) for n in range(101))), InvalidAmount),
    ],
)
async def test_rules_that_make_no_sense_are_refused(keys, customer, rules, error):
    with pytest.raises(error):
        await keys.create(await customer(0), name="k", actor="op", at=NOW, rules=rules)


async def test_a_key_belongs_to_an_account(keys):
    with pytest.raises(AccountNotFound):
        await keys.create("acct_nobody", name="k", actor="op", at=NOW)


async def test_a_revoked_key_stays_in_the_list_and_leaves_the_cache(keys, customer):
    account_id = await customer(0)
    first, second = [
        await keys.create(account_id, name=f"{n}", actor="op", at=NOW + timedelta(seconds=n)) for n in range(2)
    ]
    before = await keys.load_all()
    assert {record.id for record in before.records} == {first.record.id, second.record.id}
    assert (await keys.changed_since(before.upto)).records == []
    revoked = await keys.revoke(first.record.id, actor="op", at=LATER)
    assert revoked.revoked_at == LATER
    changes = await keys.changed_since(before.upto)
    assert changes.records == [revoked] and changes.upto == revoked.change > before.upto
    assert [record.id for record in (await keys.load_all()).records] == [second.record.id]
    listed = await keys.page(account_id, limit=1)
    assert [record.id for record in listed.items] == [second.record.id]
    assert (await keys.page(account_id, after=listed.after)).items == [revoked]
    assert len((await keys.page()).items) == 2
    assert (await keys.page("acct_nobody")).items == []


async def test_a_key_is_revoked_once_and_a_missing_one_never(keys, customer):
    made = await keys.create(await customer(0), name="k", actor="op", at=NOW)
    await keys.revoke(made.record.id, actor="op", at=NOW)
    again = await keys.revoke(made.record.id, actor="op", at=LATER)
    assert again.revoked_at == NOW
    assert await keys.revoke("key_nobody", actor="op", at=NOW) is None


async def test_deleting_an_account_is_a_change_of_its_keys(keys, accounts, customer):
    account_id, other_id = await customer(0), await customer(0)
    mine = [await keys.create(account_id, name=f"{n}", actor="op", at=NOW) for n in range(2)]
    await keys.create(other_id, name="other", actor="op", at=NOW)
    upto = (await keys.load_all()).upto
    await accounts.delete(account_id, actor="op", at=LATER)
    changes = await keys.changed_since(upto)
    assert {record.id for record in changes.records} == {made.record.id for made in mine}
    assert all(record.revoked_at == LATER for record in changes.records)


async def test_no_change_is_missed_by_a_reader_while_others_write(where, keys, customer):
    account_id = await customer(0)
    other_database = await open_database(where)
    other = Keys(other_database)
    seen, upto, done = set(), 0, False

    async def follow():
        nonlocal upto
        while True:
            last_look = done
            changes = await other.changed_since(upto)
            seen.update(record.id for record in changes.records)
            upto = changes.upto
            if last_look:
                return
            await asyncio.sleep(0)

    following = asyncio.ensure_future(follow())
    made = await asyncio.gather(
        *(one.create(account_id, name=f"{n}", actor="op", at=NOW) for n in range(20) for one in (keys, other))
    )
    done = True
    await following
    await other_database.close()
    assert seen == {key.record.id for key in made}
    assert len({key.record.change for key in made}) == 40
