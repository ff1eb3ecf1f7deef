"""A repeat of a purchased request is recognised by every process."""

import asyncio
from datetime import timedelta

import pytest
from sqlalchemy import select

from lcp_gateway.purchase.journal import BudgetExceeded, DuplicateIntent, JournalUnavailable, RequestRepeated
from lcp_gateway.purchase.money import Charge, Markup, Msat, Refund
from lcp_gateway.purchase.states import State
from lcp_gateway.store.database.engines import open_database
from lcp_gateway.store.database.schema import purchases
from lcp_gateway.store.journal.queries import Books
from lcp_gateway.store.journal.recovery import resolve, sweep
from lcp_gateway.store.journal.repeats import find_earlier
from lcp_gateway.store.journal.retention import forget_repeat_keys
from lcp_gateway.store.journal.writer import JournalWriter
from tests.store.journals import HOUR, NOW, intent, job, keyed, spent, until_gone, written


@pytest.fixture
async def elsewhere(where):
    """The journal of another process on the same database."""
    database = await open_database(where, gone_after_s=0)
    journal = JournalWriter(database, on_problem=print)
    journal.start()
    yield journal
    await journal.close()
    await database.close()


async def refused(journal, intent):
    with pytest.raises(RequestRepeated) as repeated:
        await journal.intend(intent)
    assert repeated.value.quote.job_id == intent.quote.job_id
    return repeated.value.earlier


async def keys_in(database):
    found = await database.read(
        lambda connection: connection.execute(select(purchases.c.job_id, purchases.c.repeat_key)).all()
    )
    return {job_id: key for job_id, key in found if key is not None}


async def test_a_key_buys_once_in_one_process_and_in_another(journal, elsewhere, books):
    """Regression: after a restart, or in a second process, the same key was paid for again."""
    await journal.intend(keyed(1, "order 17", request_id="req_first"))
    earlier = await refused(elsewhere, keyed(2, "order 17"))
    assert (earlier.quote.job_id, earlier.state) == (job(1), State.PAYING)
    assert (earlier.request_id, earlier.key_id) == ("req_first", "")
    assert (earlier.quote.price_msat, earlier.quote.terms_hash) == (1_000, b"\x22" * 32)
    journal.record(job(1), State.SETTLED, NOW)
    journal.record(job(1), State.DELIVERED, NOW)
    await written(journal)
    assert (await refused(elsewhere, keyed(2, "order 17"))).state is State.DELIVERED
    assert (await refused(journal, keyed(3, "order 17"))).state is State.DELIVERED
    assert await books.purchase(job(2)) is None
    assert await spent(books, HOUR) == 1_010


async def test_the_same_key_of_another_credential_is_another_key(journal, books):
    await journal.intend(keyed(1, "k", key_id="alice"))
    await journal.intend(keyed(2, "k", key_id="bob"))
    assert await books.purchase(job(2)) is not None


async def test_the_same_key_with_another_body_is_refused_and_kept_apart(journal):
    await journal.intend(keyed(1, "k", body=b"1" * 32))
    same, other = keyed(2, "k", body=b"1" * 32), keyed(3, "k", body=b"2" * 32)
    assert (await refused(journal, same)).repeat_body == same.repeat.body
    assert (await refused(journal, other)).repeat_body != other.repeat.body


async def test_an_unpaid_request_may_be_tried_again_with_its_key(journal, elsewhere, books):
    await journal.intend(keyed(1, "k"))
    journal.record(job(1), State.NOT_PAID, NOW)
    # Its update and the next try may come to be written in one transaction.
    await journal.intend(keyed(2, "k"))
    assert (await refused(elsewhere, keyed(3, "k"))).quote.job_id == job(2)
    elsewhere.record(job(2), State.NOT_PAID, NOW)
    await written(elsewhere)
    await elsewhere.intend(keyed(4, "k"))
    assert (await books.purchase(job(4))).state is State.PAYING


async def test_a_purchase_found_unpaid_later_frees_its_key(where, database, journal):
    gone = await open_database(where, gone_after_s=0)
    dead = JournalWriter(gone, on_problem=print)
    dead.start()
    await dead.intend(keyed(1, "k"))
    await dead.close()
    await gone.close()
    await until_gone(database, gone.owner)
    assert len(await sweep(database, NOW)) == 1
    assert (await refused(journal, keyed(2, "k"))).state is State.UNKNOWN
    await resolve(database, job(1), State.NOT_PAID, NOW)
    await journal.intend(keyed(2, "k"))


async def test_a_refused_intent_takes_no_key(journal):
    tight = type(HOUR)(HOUR.period, 500)
    with pytest.raises(BudgetExceeded):
        await journal.intend(keyed(1, "k"), [tight])
    await journal.intend(keyed(2, "k"))


async def test_of_many_at_once_in_two_processes_one_is_written_and_no_other_request_is_harmed(
    journal, elsewhere, books
):
    """A batch must not fail as a whole because one of its intents is a repeat."""

    async def intend(number):
        which = (journal, elsewhere)[number % 2]
        if number % 4 < 2:
            await which.intend(keyed(number, f"k{number // 40}"))
        else:
            await which.intend(intent(number))

    came = await asyncio.gather(*map(intend, range(160)), return_exceptions=True)
    repeats = [error for error in came if isinstance(error, RequestRepeated)]
    assert len(repeats) == 80 - 4
    assert [error for error in came if error is not None and error not in repeats] == []
    assert await spent(books, HOUR) == (4 + 80) * 1_010


async def test_a_key_counts_for_its_time_and_is_then_free(journal, database, books):
    await journal.intend(keyed(1, "k"))
    late = NOW + timedelta(hours=23, minutes=59)
    assert (await refused(journal, keyed(2, "k", at=late))).quote.job_id == job(1)
    later = NOW + timedelta(hours=24, seconds=1)
    await journal.intend(keyed(3, "k", at=later))
    assert set(await keys_in(database)) == {job(3)}
    assert (await books.purchase(job(1))).state is State.PAYING


async def test_old_keys_are_removed_a_bounded_number_at_a_time(journal, database):
    for number in range(10):
        made = keyed if number % 2 else lambda number, _key, at: intent(number, at=at)
        await journal.intend(made(number, f"k{number}", at=NOW + timedelta(minutes=number)))
    now = NOW + timedelta(hours=24, minutes=6)
    looked_at = []
    while count := await forget_repeat_keys(database, now, at_once=4):
        looked_at.append(count)
        assert len(looked_at) < 20
    assert set(await keys_in(database)) == {job(7), job(9)}
    assert max(looked_at) <= 4
    # Its position is remembered: no row is read twice, however long the history.
    assert await forget_repeat_keys(database, now) == 0
    assert await forget_repeat_keys(database, now + timedelta(minutes=1)) == 1


async def test_a_client_request_id_counts_for_its_body_within_the_retry_window(journal, elsewhere):
    await journal.intend(keyed(1, None, client_request_id="c"))
    assert (await refused(elsewhere, keyed(2, None, client_request_id="c"))).quote.job_id == job(1)
    await elsewhere.intend(keyed(3, None, client_request_id="c", body=b"other body"))
    late = NOW + timedelta(seconds=121)
    await elsewhere.intend(keyed(4, None, client_request_id="c", at=late))


async def test_a_retry_that_comes_to_another_process_is_recognised_by_its_body(journal, elsewhere):
    await journal.intend(keyed(1, None))
    await journal.intend(keyed(2, None))
    earlier = await refused(elsewhere, keyed(3, None, retries=True))
    assert earlier.quote.job_id in {job(1), job(2)}
    await elsewhere.intend(keyed(4, None))
    await elsewhere.intend(keyed(5, None, retries=True, body=b"another"))
    await elsewhere.intend(keyed(6, None, retries=True, key_id="bob"))
    late = NOW + timedelta(seconds=121)
    await elsewhere.intend(keyed(7, None, retries=True, at=late))


async def test_a_retry_of_a_purchase_of_this_process_is_left_to_its_own_memory(journal):
    await journal.intend(keyed(1, None))
    await journal.intend(keyed(2, None, retries=True))


async def test_a_first_try_that_was_not_paid_lets_the_retry_through(journal, elsewhere):
    await journal.intend(keyed(1, None))
    journal.record(job(1), State.NOT_PAID, NOW)
    await written(journal)
    await elsewhere.intend(keyed(2, None, retries=True))


async def test_a_job_that_is_known_is_a_duplicate_before_it_is_a_repeat(journal):
    await journal.intend(keyed(1, "k"))
    with pytest.raises(DuplicateIntent):
        await journal.intend(keyed(1, "k"))


async def test_a_purchase_is_found_by_its_job(journal, elsewhere):
    await journal.intend(keyed(1, "k", key_id="alice", request_id="req_1"))
    found = await elsewhere.find(job(1))
    assert (found.state, found.key_id, found.request_id) == (State.PAYING, "alice", "req_1")
    assert await elsewhere.find(job(2)) is None


async def test_a_closed_journal_cannot_be_asked(database, journal, monkeypatch):
    from lcp_gateway.store.database.engines import DatabaseUnavailable

    async def away(_work):
        raise DatabaseUnavailable("gone")

    monkeypatch.setattr(database, "read", away)
    with pytest.raises(JournalUnavailable, match="gone"):
        await journal.find(job(1))


async def test_what_is_not_bought_yet_is_asked_for_beside_other_work(journal, database):
    await journal.intend(keyed(1, "k"))

    async def earlier(intent):
        return await database.read(
            lambda connection: find_earlier(connection, intent.repeat, owner=database.owner, at=intent.at)
        )

    assert (await earlier(keyed(2, "k"))).quote.job_id == job(1)
    assert await earlier(keyed(3, "other")) is None
    assert await earlier(keyed(4, None)) is None


async def test_no_key_can_be_read_from_the_database_or_found_by_trying(journal, database, where, tmp_path):
    """If the secret or the body's hash were stored beside the key's, short keys could be found by trying all of them."""
    await journal.intend(keyed(1, "7", key_id="alice"))
    await Books(database).purchase(job(1))
    (stored,) = (await keys_in(database)).values()
    row = await database.read(lambda connection: connection.execute(select(purchases)).mappings().one())
    assert keyed(2, "7", key_id="alice").repeat.key == stored
    from hashlib import sha256
    from hmac import digest

    known = [value for value in row.values() if isinstance(value, bytes)]
    for key in map(str, range(100)):
        for salt in [b"", b"alice", *known]:
            for text in (key.encode(), salt + key.encode(), key.encode() + salt):
                assert sha256(text).digest() != stored
                assert not salt or digest(salt, text, "sha256") != stored


async def test_a_repeat_has_the_customers_charge_and_its_state(journal, elsewhere, customer):
    """Regression: a repeat had only the verdict of a purchase whose charge had been refunded."""
    account_id = await customer(10_000)
    charge = Charge(account_id, Msat(1_050), Markup(50_000), refund_undelivered=True)
    await journal.intend(keyed(1, "k", charge=charge))
    earlier = await refused(elsewhere, keyed(2, "k", charge=charge))
    assert (earlier.charge, earlier.customer_msat, earlier.refund) == (charge, 1_050, None)
    journal.record(job(1), State.SETTLED, NOW)
    journal.record(job(1), State.UNDELIVERED, NOW)
    await written(journal)
    earlier = await refused(elsewhere, keyed(2, "k", charge=charge))
    assert (earlier.customer_msat, earlier.refund) == (0, Refund.GIVEN)
    await journal.intend(keyed(3, "other"))
    earlier = await refused(elsewhere, keyed(4, "other"))
    assert earlier.charge is earlier.customer_msat is earlier.refund is None
