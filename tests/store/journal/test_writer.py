"""The journal's guarantees: intents are durable and unique, and updates follow the state table."""

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from lcp_gateway.purchase.journal import BudgetExceeded, DuplicateIntent, JournalUnavailable, PurchaseUpdate
from lcp_gateway.purchase.money import Budget, Msat
from lcp_gateway.purchase.states import State
from lcp_gateway.store.database.engines import open_database
from lcp_gateway.store.journal.queries import Books
from lcp_gateway.store.journal.receipts import receipt_of
from lcp_gateway.store.journal.transaction import JournalProblemKind
from lcp_gateway.store.journal.writer import JournalLimits, JournalWriter, NullJournal
from tests.store.journals import HOUR, NOW, intent, job, key_budget, spent, written


async def test_an_intent_is_on_the_disk_when_intend_returns(journal, where):
    wanted = intent(1, model="llama", key_id="k1", runner_up_msat=6_000)
    await journal.intend(wanted)
    other = await open_database(where)
    found = await Books(other).purchase(job(1))
    await other.close()
    assert found.state is State.PAYING
    assert (found.model, found.key_id, found.runner_up_msat) == ("llama", "k1", 6_000)
    assert found.payment_hash == wanted.payment_hash
    assert found.payment_request == wanted.quote.payment_request
    assert found.paying_at == NOW and found.expires_at == wanted.quote.expires_at
    assert found.fee_msat is None and found.ended_at is None


async def test_the_version_of_a_quote_and_what_it_promises_of_its_response_are_recorded(journal, books):
    types = {"response_content_type": "text/plain", "response_content_encoding": "identity"}
    for number, quoted in enumerate(({}, {"protocol_version": 3}, {"protocol_version": 3, **types})):
        made = intent(number)
        await journal.intend(replace(made, quote=replace(made.quote, **quoted)))
    found = [await books.purchase(job(number)) for number in range(3)]
    assert [record.protocol_version for record in found] == [2, 3, 3]
    assert [record.response_content_type for record in found] == [None, None, "text/plain"]
    quote = receipt_of(found[2]).quote
    assert (quote.response_content_type, quote.response_content_encoding) == ("text/plain", "identity")


async def test_a_job_is_never_intended_twice(journal, books):
    await journal.intend(intent(1))
    with pytest.raises(DuplicateIntent) as refused:
        await journal.intend(intent(1))
    assert refused.value.quote.job_id == job(1)
    assert await spent(books) == 1_010


async def test_a_job_is_never_intended_twice_by_two_processes_at_once(journal, where, books):
    other_database = await open_database(where)
    other = JournalWriter(other_database, on_problem=print)
    other.start()
    outcomes = await asyncio.gather(
        *(one.intend(intent(n)) for n in range(20) for one in (journal, other)), return_exceptions=True
    )
    await other.close()
    await other_database.close()
    assert outcomes.count(None) == 20
    assert sum(isinstance(outcome, DuplicateIntent) for outcome in outcomes) == 20
    assert await spent(books) == 20 * 1_010


async def test_of_the_same_job_in_one_batch_one_is_written(journal):
    outcomes = await asyncio.gather(*(journal.intend(intent(1)) for _ in range(5)), return_exceptions=True)
    assert sorted(type(outcome).__name__ for outcome in outcomes) == [*["DuplicateIntent"] * 4, "NoneType"]


async def test_a_known_job_costs_its_neighbours_one_more_try_and_nothing_else(journal, database, books, monkeypatch):
    await journal.intend(intent(1))
    tries = []
    write = database.write

    async def counted(work):
        tries.append(work)
        return await write(work)

    monkeypatch.setattr(database, "write", counted)
    entries = [journal.intend(intent(number)) for number in (2, 1, 3, 1, 4)]
    outcomes = await asyncio.gather(*entries, return_exceptions=True)
    assert [type(outcome).__name__ for outcome in outcomes] == [
        "NoneType",
        "DuplicateIntent",
        "NoneType",
        "DuplicateIntent",
        "NoneType",
    ]
    # All at once, and again with a look-up; not one by one.
    assert len(tries) == 2
    assert [(await books.purchase(job(number))).state for number in (1, 2, 3, 4)] == [State.PAYING] * 4


async def test_a_known_job_is_a_duplicate_whatever_else_is_wrong_with_it(journal):
    """Only a duplicate's quote is not cancelled: its job may be paid for and running."""
    await journal.intend(intent(1), [HOUR])
    nothing_left = Budget(HOUR.period, Msat(1_500))
    with pytest.raises(BudgetExceeded):
        await journal.intend(intent(2), [nothing_left])
    with pytest.raises(DuplicateIntent) as refused:
        await journal.intend(intent(1), [nothing_left])
    assert refused.value.quote.job_id == job(1)


async def test_updates_are_written_in_order_with_their_facts(journal, books):
    await journal.intend(intent(1))
    journal.record(job(1), State.SETTLED, NOW + timedelta(seconds=1))
    journal.record(
        job(1), State.DELIVERED, NOW + timedelta(seconds=2), PurchaseUpdate(result_sha256=b"r" * 32, result_bytes=77)
    )
    await written(journal)
    found = await books.purchase(job(1))
    assert found.state is State.DELIVERED
    assert (found.result_sha256, found.result_bytes) == (b"r" * 32, 77)
    assert found.ended_at == found.updated_at == NOW + timedelta(seconds=2)
    steps = (await books.purchase(job(1))).steps
    assert [step.state for step in steps] == [State.PAYING, State.SETTLED, State.DELIVERED]
    assert [(step.at - NOW).seconds for step in steps] == [0, 1, 2]


async def test_a_update_right_behind_its_intent_is_not_too_early(journal, books):
    waiting = asyncio.ensure_future(journal.intend(intent(1)))
    await asyncio.sleep(0)
    journal.record(job(1), State.SETTLED, NOW)
    await waiting
    await written(journal)
    assert (await books.purchase(job(1))).state is State.SETTLED


@pytest.mark.parametrize(
    ("path", "late"),
    [
        ([State.NOT_PAID], State.SETTLED),
        ([State.SETTLED], State.NOT_PAID),
        ([State.SETTLED], State.SETTLED),
        ([State.UNKNOWN, State.SETTLED], State.UNKNOWN),
        ([State.SETTLED, State.UNDELIVERED], State.DELIVERED),
        ([], State.DELIVERED),
        ([], State.PAYING),
    ],
)
async def test_a_move_that_the_table_lacks_changes_nothing_and_is_reported(journal, books, problems, path, late):
    await journal.intend(intent(1))
    for state in path:
        journal.record(job(1), state, NOW)
    await written(journal)
    before, before_spent = await books.purchase(job(1)), await spent(books)
    assert problems == []
    journal.record(job(1), late, NOW + timedelta(seconds=9))
    await written(journal)
    assert await books.purchase(job(1)) == before
    assert await spent(books) == before_spent
    assert [(p.kind, p.job_id, p.state) for p in problems] == [(JournalProblemKind.LATE_NOTE, job(1), late)]


async def test_an_update_of_a_missing_purchase_is_reported(journal, problems):
    journal.record(job(1), State.SETTLED, NOW)
    await written(journal)
    assert [p.kind for p in problems] == [JournalProblemKind.UNKNOWN_JOB]


async def test_an_entry_that_the_database_refuses_leaves_its_neighbours_alone(journal, books, problems):
    await journal.intend(intent(99))
    bad_hash = PurchaseUpdate(result_bytes=2**70)
    outcomes = asyncio.gather(
        *(journal.intend(intent(n, model="\udc80" if n == 3 else "m")) for n in range(8)), return_exceptions=True
    )
    await asyncio.sleep(0)
    journal.record(job(99), State.SETTLED, NOW, bad_hash)
    outcomes = await outcomes
    await written(journal)
    assert [type(outcome).__name__ for outcome in outcomes] == [
        "JournalUnavailable" if n == 3 else "NoneType" for n in range(8)
    ]
    assert [(p.kind, p.job_id) for p in problems] == [(JournalProblemKind.NOTE_REFUSED, job(99))]
    assert "udc80" not in str(outcomes[3])
    assert (await books.purchase(job(99))).state is State.PAYING
    assert await spent(books) == 8 * 1_010


async def test_a_caller_that_leaves_takes_its_intent_along(journal, books):
    waiting = [asyncio.ensure_future(journal.intend(intent(n))) for n in range(10)]
    await asyncio.sleep(0)
    for task in waiting[::2]:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    await written(journal)
    states = [found.state if (found := await books.purchase(job(n))) else None for n in range(10)]
    assert states[1::2] == [State.PAYING] * 5
    assert set(states[::2]) <= {None, State.NOT_PAID}
    assert await spent(books) == 5 * 1_010


async def test_a_caller_that_leaves_during_the_commit_takes_its_intent_along(journal, books, database, monkeypatch):
    begun, go_on = asyncio.Event(), asyncio.Event()
    write = database.write

    async def slow_write(work):
        result = await write(work)
        begun.set()
        await go_on.wait()
        return result

    monkeypatch.setattr(database, "write", slow_write)
    task = asyncio.ensure_future(journal.intend(intent(1), [HOUR]))
    await begun.wait()
    task.cancel()
    go_on.set()
    await asyncio.gather(task, return_exceptions=True)
    await written(journal)
    assert (await books.purchase(job(1))).state is State.NOT_PAID
    assert await spent(books) == 0


async def test_concurrent_intents_share_commits(database):
    commits = []
    journal = JournalWriter(database, on_problem=print, on_commit=lambda entries, seconds: commits.append(entries))
    journal.start()
    await asyncio.gather(*(journal.intend(intent(n)) for n in range(100)))
    await journal.close()
    assert sum(commits) == 100
    assert len(commits) <= 3


async def test_close_writes_the_queue(database, books):
    journal = JournalWriter(database, on_problem=print)
    journal.start()
    await journal.intend(intent(1))
    journal.record(job(1), State.SETTLED, NOW)
    await journal.close()
    assert (await books.purchase(job(1))).state is State.SETTLED
    with pytest.raises(JournalUnavailable):
        await journal.intend(intent(2))


async def test_a_update_after_the_close_is_reported_as_lost(journal, problems):
    await journal.close()
    journal.record(job(1), State.SETTLED, NOW)
    assert [(p.kind, p.job_id, p.state) for p in problems] == [(JournalProblemKind.NOTE_LOST, job(1), State.SETTLED)]


async def test_an_amount_that_is_too_large_is_refused(journal, books):
    with pytest.raises(JournalUnavailable):
        await journal.intend(intent(1, price_msat=2**60))
    assert await books.purchase(job(1)) is None


async def test_a_budget_of_another_key_is_a_mistake_of_the_caller(journal):
    with pytest.raises(ValueError, match="another key"):
        await journal.intend(intent(1, key_id="a"), [key_budget("b")])


async def test_an_error_in_the_reporter_does_not_stop_the_journal(database):
    def fail(_problem):
        raise RuntimeError

    journal = JournalWriter(database, on_problem=fail)
    journal.start()
    journal.record(job(1), State.SETTLED, NOW)
    await written(journal)
    await journal.intend(intent(1))
    await journal.close()


async def test_a_journal_that_is_off_lets_everything_pass():
    off = NullJournal()
    await off.intend(intent(1), [HOUR])
    off.record(job(1), State.SETTLED, NOW)


async def test_updates_of_a_good_delivery_share_the_next_intents_commit(database, books):
    """For a single client a purchase then costs one commit, not two."""
    commits = []
    journal = JournalWriter(
        database,
        on_problem=print,
        on_commit=lambda entries, _seconds: commits.append(entries),
        limits=JournalLimits(wait_s=60.0, update_s=3_600),
    )
    journal.start()
    await journal.intend(intent(1))
    journal.record(job(1), State.SETTLED, NOW)
    journal.record(job(1), State.DELIVERED, NOW)
    await journal.intend(intent(2))
    assert commits == [1, 3]
    assert (await books.purchase(job(1))).state is State.DELIVERED
    await journal.close()


async def test_updates_of_a_good_delivery_wait_a_moment_at_most(database, books):
    journal = JournalWriter(database, on_problem=print, limits=JournalLimits(wait_s=60.0, update_s=0.001))
    journal.start()
    await journal.intend(intent(1))
    journal.record(job(1), State.SETTLED, NOW)
    journal.record(job(1), State.DELIVERED, NOW)
    while (await books.purchase(job(1))).state is not State.DELIVERED:
        await asyncio.sleep(0.001)
    await journal.close()


@pytest.mark.parametrize("state", [State.NOT_PAID, State.UNKNOWN])
async def test_updates_of_failed_purchases_are_written_at_once(database, books, state):
    journal = JournalWriter(database, on_problem=print, limits=JournalLimits(wait_s=60.0, update_s=3_600))
    journal.start()
    await journal.intend(intent(1))
    journal.record(job(1), state, NOW)
    while (await books.purchase(job(1))).state is not state:
        await asyncio.sleep(0.001)
    await journal.close()


async def test_updates_that_wait_are_written_at_the_end(database, books):
    limits = JournalLimits(wait_s=60.0, close_s=60.0, update_s=3_600)
    journal = JournalWriter(database, on_problem=print, limits=limits)
    journal.start()
    await journal.intend(intent(1))
    journal.record(job(1), State.SETTLED, NOW)
    journal.record(job(1), State.DELIVERED, NOW)
    await journal.close()
    assert (await books.purchase(job(1))).state is State.DELIVERED
