"""A key that is revoked during its request buys nothing: the intent's transaction checks it."""

import asyncio

import pytest

from lcp_gateway.accounts.callers import L402_KEY_PREFIX
from lcp_gateway.purchase.journal import KeyRevoked
from lcp_gateway.store.accounts.accounts import Accounts
from lcp_gateway.store.accounts.keys import Keys
from lcp_gateway.store.journal.queries import Books
from tests.store.journals import NOW, charged, job, spent


@pytest.fixture
async def key(database, customer):
    account_id = await customer(10_000)
    made = await Keys(database).create(account_id, name="k", actor="test", at=NOW)
    return made.record


def of(key, number: int):
    return charged(number, key.account_id, key_id=key.id)


async def test_a_key_that_was_revoked_after_its_admission_buys_nothing(database, journal, ledger, key):
    """Regression: the request was admitted while the database was paused, and bought as soon as it resumed."""
    await journal.intend(of(key, 1))
    await Keys(database).revoke(key.id, actor="test", at=NOW)
    with pytest.raises(KeyRevoked) as refused:
        await journal.intend(of(key, 2))
    assert refused.value.quote.job_id == job(2)
    books = Books(database)
    assert await books.purchase(job(2)) is None
    assert await spent(books) == 1_010
    balance = await ledger.balance(key.account_id)
    assert balance.held_msat == 1_050


async def test_the_keys_of_others_in_the_same_commit_go_on_buying(database, journal, customer, key):
    other = (await Keys(database).create(await customer(), name="k", actor="t", at=NOW)).record
    await Keys(database).revoke(key.id, actor="test", at=NOW)
    intents = [journal.intend(of(one, number)) for number, one in enumerate((key, other, key), 1)]
    found = await asyncio.gather(*intents, return_exceptions=True)
    assert [type(one) for one in found] == [KeyRevoked, type(None), KeyRevoked]


@pytest.mark.parametrize("kind", ["key", "L402"])
async def test_an_account_that_is_deleted_during_its_request_buys_nothing(database, journal, customer, key, kind):
    """The request is admitted before the deletion, and quoted after it."""
    key_id = key.id if kind == "key" else f"{L402_KEY_PREFIX}00ff"
    other_id = await customer(10_000)
    await journal.intend(charged(1, key.account_id, key_id=key_id))
    await Accounts(database).delete(key.account_id, actor="test", at=NOW)
    with pytest.raises(KeyRevoked):
        await journal.intend(charged(2, key.account_id, key_id=key_id))
    await journal.intend(charged(3, other_id, key_id=f"{L402_KEY_PREFIX}00fe"))
    books = Books(database)
    assert await books.purchase(job(1)) is not None, "what was paid before goes its way"
    assert await books.purchase(job(2)) is None
    assert await books.purchase(job(3)) is not None
