"""Background jobs after their process has ended: their state, and the state of their payments."""

from datetime import timedelta

import pytest

from lcp_gateway.purchase.journal import JournalUnavailable
from lcp_gateway.purchase.money import Charge, Markup, Msat
from lcp_gateway.purchase.quote import ProviderSource
from lcp_gateway.purchase.states import State, Verdict
from lcp_gateway.store.background_responses import BackgroundRows
from lcp_gateway.store.database.engines import DatabaseUnavailable, open_database
from lcp_gateway.store.journal.recovery import resolve, sweep
from lcp_gateway.store.journal.writer import JournalWriter
from tests.store.journals import NOW, intent, job, until_gone, written

ID = "resp_bg_1"


@pytest.fixture
def jobs(database):
    return BackgroundRows(database)


@pytest.fixture
async def another(where):
    """The same database as another process has it."""
    database = await open_database(where, gone_after_s=0)
    yield database
    await database.close()


async def noted(jobs, job_id=ID, key_id="key_1", at=NOW):
    await jobs.record(job_id, key_id=key_id, model="m", at=at)


def bought(number=1, *, at=NOW, key_id="key_1", request_id=ID, **more):
    return intent(number, key_id=key_id, request_id=request_id, at=at, **more)


async def test_a_job_is_known_as_it_was_written_down(jobs):
    await noted(jobs)
    found = await jobs.find(ID, "key_1")
    assert (found.id, found.model, found.created_at) == (ID, "m", NOW)
    assert found.money == {"payment": "none"}


@pytest.mark.parametrize("key_id", ["key_2", "", "KEY_1"])
async def test_another_credential_finds_nothing(jobs, key_id):
    await noted(jobs)
    assert await jobs.find(ID, key_id) is None
    assert await jobs.find("resp_bg_2", "key_1") is None


async def test_without_keys_a_response_belongs_to_every_client(jobs):
    await noted(jobs, key_id="")
    assert (await jobs.find(ID, "")).model == "m"


async def test_a_job_of_this_process_is_not_elsewhere(jobs):
    await noted(jobs)
    assert not (await jobs.find(ID, "key_1")).elsewhere


async def test_a_job_of_another_process_is_elsewhere_until_that_has_gone(jobs, database, where):
    other = await open_database(where, gone_after_s=0)
    await noted(BackgroundRows(other))
    assert (await jobs.find(ID, "key_1")).elsewhere
    await other.close()
    await until_gone(database, other.owner)
    assert not (await jobs.find(ID, "key_1")).elsewhere


@pytest.mark.parametrize(
    ("states", "verdict"),
    [
        ((), Verdict.UNKNOWN),
        ((State.UNKNOWN,), Verdict.UNKNOWN),
        ((State.UNKNOWN, State.SETTLED), Verdict.SETTLED),
        ((State.UNKNOWN, State.NOT_PAID), Verdict.NONE),
        ((State.SETTLED,), Verdict.SETTLED),
        ((State.SETTLED, State.DELIVERED), Verdict.SETTLED),
        ((State.SETTLED, State.UNDELIVERED), Verdict.SETTLED),
        ((State.NOT_PAID,), Verdict.NONE),
    ],
)
async def test_the_state_of_its_charge_is_that_of_its_purchase(jobs, journal, states, verdict):
    await noted(jobs)
    await journal.intend(bought(at=NOW + timedelta(seconds=1)))
    for state in states:
        journal.record(job(1), state, NOW)
    await written(journal)
    found = await jobs.find(ID, "key_1")
    assert found.money == {
        "payment": verdict.value,
        "state": (states[-1] if states else State.PAYING).value,
        "job_id": job(1).hex(),
        "price_msat": 1_000,
        "peer_id": bought().quote.peer_id,
    }


async def test_what_a_dead_process_was_paying_is_unknown_until_there_is_evidence(jobs, database, where):
    other = await open_database(where, gone_after_s=0)
    journal = JournalWriter(other, on_problem=print)
    journal.start()
    await noted(BackgroundRows(other))
    await journal.intend(bought())
    await journal.close()
    await other.close()
    await until_gone(database, other.owner)
    assert (await jobs.find(ID, "key_1")).money["payment"] == "unknown"
    await sweep(database, NOW)
    assert (await jobs.find(ID, "key_1")).money["payment"] == "unknown"
    await resolve(database, job(1), State.SETTLED, NOW)
    found = await jobs.find(ID, "key_1")
    assert (found.money["payment"], found.elsewhere) == ("settled", False)


async def test_what_a_dead_process_handed_to_a_node_counts_as_bought(jobs, database, where):
    other = await open_database(where, gone_after_s=0)
    journal = JournalWriter(other, on_problem=print)
    journal.start()
    await noted(BackgroundRows(other))
    await journal.intend(bought(source=ProviderSource.NODE))
    await journal.close()
    await other.close()
    await until_gone(database, other.owner)
    await sweep(database, NOW)
    assert (await jobs.find(ID, "key_1")).money["state"] == "undelivered"


async def test_only_purchases_of_the_same_key_for_the_same_job_are_its_own(jobs, journal):
    await noted(jobs)
    await journal.intend(bought(1, request_id="resp_bg_2"))
    await journal.intend(bought(2, key_id="key_2"))
    await journal.intend(bought(3, at=NOW - timedelta(days=1)))
    assert (await jobs.find(ID, "key_1")).money == {"payment": "none"}


async def test_a_node_that_did_not_do_it_does_not_hide_the_one_that_did(jobs, journal):
    await noted(jobs)
    await journal.intend(bought(1))
    journal.record(job(1), State.NOT_PAID, NOW)
    await journal.intend(bought(2, at=NOW + timedelta(seconds=1)))
    await written(journal)
    assert (await jobs.find(ID, "key_1")).money["payment"] == "unknown"


async def test_a_clock_that_was_set_back_hides_no_payment(jobs, journal):
    await noted(jobs)
    await journal.intend(bought(at=NOW - timedelta(minutes=59)))
    assert (await jobs.find(ID, "key_1")).money["payment"] == "unknown"


async def test_a_deleted_row_is_gone_and_deleting_it_twice_does_no_harm(jobs):
    await noted(jobs)
    await noted(jobs, "resp_bg_2")
    await jobs.forget(ID)
    await jobs.forget(ID)
    assert await jobs.find(ID, "key_1") is None
    assert await jobs.find("resp_bg_2", "key_1") is not None


async def test_old_ones_are_cleared_away_and_young_ones_stay(jobs):
    await noted(jobs, "resp_bg_old", at=NOW - timedelta(seconds=1))
    await noted(jobs)
    assert await jobs.forget_older(NOW) == 1
    assert await jobs.find("resp_bg_old", "key_1") is None
    assert await jobs.find(ID, "key_1") is not None


async def test_a_client_that_polls_a_missing_id_does_not_wait_for_a_writer(jobs, database, monkeypatch):
    async def busy(_work):
        raise AssertionError("a write for a missing job")

    await noted(jobs)
    monkeypatch.setattr(type(database), "write", lambda _self, work: busy(work))
    assert await jobs.find("resp_bg_2", "key_1") is None
    assert await jobs.find(ID, "key_2") is None


class UnavailableDatabase:
    """A database that cannot be reached."""

    owner = "a" * 16

    async def write(self, _work):
        raise DatabaseUnavailable("it is away")

    read = write


async def test_without_its_database_a_job_cannot_be_begun_and_nothing_is_paid():
    jobs = BackgroundRows(UnavailableDatabase())
    with pytest.raises(JournalUnavailable, match="nothing was paid"):
        await noted(jobs)
    with pytest.raises(DatabaseUnavailable):
        await jobs.find(ID, "key_1")


async def test_two_processes_write_jobs_down_side_by_side(jobs, another):
    for number in range(10):
        await noted(jobs if number % 2 else BackgroundRows(another), f"resp_bg_{number}")
    found = [await jobs.find(f"resp_bg_{number}", "key_1") for number in range(10)]
    assert [it.elsewhere for it in found] == [True, False] * 5


@pytest.mark.parametrize(
    ("states", "charged_msat", "refund"),
    [
        ((State.UNKNOWN,), 1_050, None),
        ((State.UNKNOWN, State.UNDELIVERED), 0, "given"),
        ((State.NOT_PAID,), 0, None),
        ((State.SETTLED, State.DELIVERED), 1_050, None),
    ],
)
async def test_a_customer_gets_the_charge_of_a_response_that_was_cut_and_its_refund(
    jobs, journal, customer, states, charged_msat, refund
):
    """Regression: the payment was reported, but not that its charge had been refunded."""
    account_id = await customer(10_000)
    await noted(jobs)
    charge = Charge(account_id, Msat(1_050), Markup(50_000), refund_undelivered=True)
    await journal.intend(bought(charge=charge))
    for state in states:
        journal.record(job(1), state, NOW)
    await written(journal)
    money = (await jobs.find(ID, "key_1")).money
    assert (money["charged_msat"], money.get("refund")) == (charged_msat, refund)
