"""Owners on PostgreSQL: one that loses its lock but lives, and one that has ended."""

import asyncio

import pytest

from lcp_gateway.purchase.money import Msat, Refund
from lcp_gateway.purchase.outcome import LOST_BY_CRASH
from lcp_gateway.purchase.quote import ProviderSource
from lcp_gateway.purchase.records import NotUnknown
from lcp_gateway.purchase.states import State
from lcp_gateway.store.accounts.accounts import Accounts
from lcp_gateway.store.accounts.ledger import Ledger
from lcp_gateway.store.background_responses import BackgroundRows
from lcp_gateway.store.database.engines import GONE_AFTER_S, open_database
from lcp_gateway.store.database.postgres import Absences
from lcp_gateway.store.journal.queries import Books
from lcp_gateway.store.journal.recovery import resolve, sweep
from lcp_gateway.store.journal.transaction import JournalProblemKind
from lcp_gateway.store.journal.writer import JournalLimits, JournalWriter
from tests.store.journals import NOW, charged, intent, job, written

ONE = "a" * 16
OTHER = "b" * 16


class Clock:
    def __init__(self):
        self.now = 1_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def absences(clock):
    return Absences(10.0, clock)


def looks(absences, clock, seconds, *, each=2.0, owner=ONE, asked=True) -> list[bool]:
    found = []
    for _ in range(int(seconds / each)):
        clock.now += each
        found.append(absences.found_free(owner, asked=asked))
    return found


def test_an_owner_is_gone_when_its_lock_was_free_for_ten_seconds(absences, clock):
    """Regression: one look sufficed, and a live gateway seemed dead between the loss of its session and its next write."""
    assert not absences.found_free(ONE)
    assert looks(absences, clock, 12) == [False] * 4 + [True] * 2


def test_a_look_that_finds_it_held_begins_again(absences, clock):
    absences.found_free(ONE)
    looks(absences, clock, 8)
    absences.found_held(ONE)
    assert not absences.is_watched(ONE)
    clock.now += 4
    assert not absences.found_free(ONE)
    assert looks(absences, clock, 10) == [False] * 4 + [True]


def test_two_distant_looks_prove_nothing(absences, clock):
    """Between them the owner may have held its lock, or the server may have been down."""
    absences.found_free(ONE)
    clock.now += 60
    assert not absences.found_free(ONE)
    assert looks(absences, clock, 10)[-1]


def test_a_session_that_was_lost_begins_all_again(absences, clock):
    for owner in (ONE, OTHER):
        absences.found_free(owner)
        looks(absences, clock, 4, owner=owner)
    absences.begin_again()
    assert looks(absences, clock, 10) == [False] * 4 + [True]


def test_owners_are_looked_at_for_as_long_as_they_are_asked_for(absences, clock):
    """A client that polls its background job every half minute must see that the job's owner has ended."""
    absences.found_free(ONE)
    for _ in range(15):
        clock.now += 2
        for owner in absences.to_look_at():
            absences.found_free(owner, asked=False)
    assert absences.found_free(ONE)
    looks(absences, clock, 122, asked=False)
    assert not absences.to_look_at()


def test_one_owner_does_not_wait_for_another(absences, clock):
    absences.found_free(ONE)
    looks(absences, clock, 6)
    absences.found_free(OTHER)
    assert looks(absences, clock, 4) == [False, True]
    assert not absences.found_free(OTHER)


def test_the_number_of_watched_owners_is_bounded(absences, clock):
    for number in range(1_000):
        clock.now += 0.01
        absences.found_free(f"{number:016x}")
    watched = absences.to_look_at()
    assert len(watched) <= 256 and f"{999:016x}" in watched


IMPATIENT = JournalLimits(wait_s=60.0, retry_s=0.02, retry_most_s=0.05)
STEP_S = 0.5


@pytest.fixture
async def pair(postgres_where, clock):
    """A live owner, and another process whose clock the test sets; it considers an owner ended after ten seconds."""
    owner = await open_database(postgres_where)
    other = await open_database(postgres_where)
    other._absences = Absences(GONE_AFTER_S, clock)
    yield owner, other
    await owner.close()
    await other.close()


@pytest.fixture
async def live(pair, problems):
    journal = JournalWriter(pair[0], on_problem=problems.append, limits=IMPATIENT)
    journal.start()
    yield journal
    await journal.close()


async def end_session(database):
    """End the session that holds the owner lock, as the server or a pooler would."""
    pid = await database.write(lambda connection: connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one())
    await database.read(
        lambda connection: connection.exec_driver_sql(f"SELECT pg_terminate_backend({pid}, 10000)").all()
    )


async def account_of(database):
    account = await Accounts(database).create("a customer", actor="test", at=NOW)
    ledger = Ledger(database)
    await ledger.adjust(account.id, Msat(10_000), reason="to begin with", actor="test", at=NOW)
    return account.id, ledger


async def swept_for(database, clock, seconds: float, *, beating=None) -> int:
    """Sweep twice a second by the clock, between the heartbeats of a live owner; return how many purchases were moved on."""
    total = 0
    for _ in range(round(seconds / STEP_S)):
        total += len(await sweep(database, NOW))
        clock.now += STEP_S
        if beating is not None:
            await beating.keep_alive()
    return total


@pytest.mark.parametrize("state", [State.PAYING, State.SETTLED])
@pytest.mark.parametrize("source", [ProviderSource.LCP, ProviderSource.NODE])
async def test_purchases_of_a_live_owner_outlive_its_session(pair, live, clock, problems, state, source):
    """Regression: until its next write the owner seemed dead, and the purchases it was delivering were ended and refunded."""
    owner, other = pair
    account_id, ledger = await account_of(other)
    await live.intend(charged(1, account_id, source=source, refund_undelivered=True))
    if state is State.SETTLED:
        live.record(job(1), State.SETTLED, NOW)
    await written(live)
    moved = 0
    for _ in range(3):
        await end_session(owner)
        moved += await swept_for(other, clock, GONE_AFTER_S * 0.7, beating=owner)
    assert moved == 0
    if state is State.PAYING:
        live.record(job(1), State.SETTLED, NOW)
    live.record(job(1), State.DELIVERED, NOW)
    await written(live)
    found = await Books(other).purchase(job(1))
    assert (found.state, found.refund) == (State.DELIVERED, None)
    assert (await ledger.balance(account_id)).balance_msat == 10_000 - 1_050
    assert (await ledger.audit()).ok
    assert {problem.kind for problem in problems} <= {JournalProblemKind.UNAVAILABLE, JournalProblemKind.AVAILABLE}


async def test_a_beat_takes_a_lost_lock_again_at_once_and_says_so_once(pair):
    owner, other = pair

    async def looks_free() -> bool:
        await other.write(lambda connection: other.is_gone(connection, owner.owner))
        return other.may_be_gone(owner.owner)

    await owner.keep_alive()
    assert not await looks_free()
    await end_session(owner)
    assert await looks_free()
    assert await owner.keep_alive()
    assert not await looks_free()
    assert not await owner.keep_alive()


async def test_an_owner_that_is_gone_is_known_after_its_time_and_not_before(pair, live, clock):
    owner, other = pair
    await live.intend(intent(1))
    live.record(job(1), State.SETTLED, NOW)
    await written(live)
    await end_session(owner)
    assert await swept_for(other, clock, GONE_AFTER_S) == 0
    assert await swept_for(other, clock, STEP_S) == 1
    assert (await Books(other).purchase(job(1))).state is State.UNDELIVERED


async def test_another_gateway_that_looks_is_not_taken_for_the_owner(pair, live, clock, postgres_where):
    """Both gateways probe the owner's lock; one that finds it held by the other must not conclude that the owner lives."""
    owner, other = pair
    third = await open_database(postgres_where)
    third._absences = Absences(GONE_AFTER_S, clock)
    await live.intend(intent(1))
    await end_session(owner)

    def look(connection):
        return third.is_gone(connection, owner.owner)

    assert not await third.write(look)
    assert third.may_be_gone(owner.owner)
    async with other._write_engine.connect() as holding:
        await holding.run_sync(lambda connection: other.is_gone(connection, owner.owner))
        assert not await third.write(look)
        assert third.may_be_gone(owner.owner)
    await owner.keep_alive()
    assert not await third.write(look)
    assert third.may_be_gone(owner.owner) is False
    await third.close()


async def test_a_background_job_of_an_owner_that_lost_its_session_is_not_called_cut(pair, clock):
    owner, other = pair
    await BackgroundRows(owner).record("resp_1", key_id="k", model="m", at=NOW)
    await end_session(owner)
    jobs = BackgroundRows(other)
    assert (await jobs.find("resp_1", "k")).elsewhere
    # The client polls seldom; the heartbeats probe the lock meanwhile.
    for _ in range(round(GONE_AFTER_S / STEP_S)):
        clock.now += STEP_S
        await other.keep_alive()
    assert not (await jobs.find("resp_1", "k")).elsewhere


async def test_resolving_by_hand_waits_until_it_is_known_that_the_owner_is_gone(pair, live, clock, monkeypatch):
    owner, other = pair
    await live.intend(intent(1))
    live.record(job(1), State.SETTLED, NOW)
    await written(live)
    await end_session(owner)
    waits = []

    async def wait(seconds):
        waits.append(seconds)
        clock.now += seconds

    monkeypatch.setattr("lcp_gateway.store.journal.recovery.asyncio.sleep", wait)
    resolved = await resolve(other, job(1), State.SETTLED, NOW)
    assert resolved.state is State.UNDELIVERED
    assert sum(waits) >= GONE_AFTER_S


async def test_resolving_by_hand_is_refused_when_the_owner_comes_back_meanwhile(pair, live, monkeypatch):
    owner, other = pair
    await live.intend(intent(1))
    live.record(job(1), State.SETTLED, NOW)
    await written(live)
    await end_session(owner)
    monkeypatch.setattr("lcp_gateway.store.journal.recovery._LOOK_AGAIN_S", 0.01)
    resolving = asyncio.create_task(resolve(other, job(1), State.SETTLED, NOW))
    while not other.may_be_gone(owner.owner):
        await asyncio.sleep(0.001)
    await owner.keep_alive()
    with pytest.raises(NotUnknown, match="is running"):
        await resolving
    assert (await Books(other).purchase(job(1))).state is State.SETTLED


async def test_a_result_delivered_after_its_owner_was_taken_for_dead_is_reported_and_stays_refunded(
    pair, live, clock, problems
):
    """The owner was cut off from the database for too long; the customer keeps the refund."""
    owner, other = pair
    account_id, ledger = await account_of(other)
    await live.intend(charged(1, account_id, refund_undelivered=True))
    live.record(job(1), State.SETTLED, NOW)
    await written(live)
    await end_session(owner)
    assert await swept_for(other, clock, GONE_AFTER_S + STEP_S) == 1
    await owner.keep_alive()
    live.record(job(1), State.DELIVERED, NOW)
    await live.intend(intent(2))
    live.record(job(2), State.SETTLED, NOW)
    live.record(job(2), State.DELIVERED, NOW)
    await written(live)
    told = [problem for problem in problems if problem.kind is JournalProblemKind.SWEPT]
    assert [(problem.job_id, problem.state) for problem in told] == [(job(1), State.DELIVERED)]
    assert "its charge stays refunded" in told[0].detail
    found = await Books(other).purchase(job(1))
    assert (found.state, found.refund) == (State.UNDELIVERED, Refund.GIVEN)
    assert (found.ended_by, found.received) == LOST_BY_CRASH
    assert (await Books(other).purchase(job(2))).state is State.DELIVERED
    assert (await ledger.balance(account_id)).balance_msat == 10_000
    assert (await ledger.audit()).ok


async def test_a_payment_whose_owner_was_taken_for_dead_goes_on_when_it_comes_back(pair, live, clock, problems):
    owner, other = pair
    account_id, ledger = await account_of(other)
    await live.intend(charged(1, account_id, refund_undelivered=True))
    await end_session(owner)
    assert await swept_for(other, clock, GONE_AFTER_S + STEP_S) == 1
    assert (await Books(other).purchase(job(1))).state is State.UNKNOWN
    live.record(job(1), State.SETTLED, NOW)
    live.record(job(1), State.DELIVERED, NOW)
    await written(live)
    assert (await Books(other).purchase(job(1))).state is State.DELIVERED
    assert (await ledger.balance(account_id)).balance_msat == 10_000 - 1_050
    assert (await ledger.audit()).ok
    assert not [problem for problem in problems if problem.kind is JournalProblemKind.SWEPT]
