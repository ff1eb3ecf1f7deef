"""One of several processes is the leader, and another takes over when it ends, however it ended."""

import asyncio
import os
import signal
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from lcp_gateway.store.database.engines import DatabaseUnavailable, open_database
from lcp_gateway.store.database.leader import Leadership
from tests.support.forked import start_module
from tests.support.postgres import running_postgres

ROOT = Path(__file__).parents[3]
END_SESSIONS = (
    "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE application_name = 'lcp-gateway leader'"
)


@contextmanager
def gateway(where: str):
    process = start_module("tests.store.lead", where, env=os.environ, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.stdout.close()
        process.wait(60)


async def word(process, timeout_s: float = 60.0) -> tuple[str, float]:
    """Return the next word that a process prints, with the process's timestamp."""
    async with asyncio.timeout(timeout_s):
        line = await asyncio.to_thread(process.stdout.readline)
    said, _, at = line.partition(" ")
    return said, float(at)


@pytest.fixture
async def another(where):
    """A second connection to the database, as another gateway would have it."""
    database = await open_database(where)
    yield database
    await database.close()


@pytest.fixture
def lead(database):
    return Leadership(database, "settlements")


async def test_of_two_one_leads_until_it_releases_the_lead(lead, another):
    other = Leadership(another, "settlements")
    assert not await lead.still_leading()
    assert await lead.try_lead()
    assert not await other.try_lead()
    assert await lead.try_lead() and await lead.still_leading()
    assert not await other.try_lead() and not await other.still_leading()

    await lead.release()
    assert not await lead.still_leading()
    assert await other.try_lead()
    assert not await lead.try_lead()
    await other.release()
    assert await lead.try_lead()
    await lead.release()
    await lead.release()


async def test_asking_whether_this_process_leads_does_not_take_the_lead(lead, another):
    other = Leadership(another, "settlements")
    assert await lead.try_lead()
    assert not await other.try_lead()
    await lead.release()
    assert not await other.still_leading()
    assert await lead.try_lead()
    await lead.release()


async def test_each_task_has_a_leader_of_its_own(lead, another):
    other = Leadership(another, "retention")
    assert await lead.try_lead() and await other.try_lead()
    await lead.release()
    assert await other.still_leading()
    await other.release()


@pytest.mark.parametrize("name", ["", "../up", "a b", "a-b", "ä"])
def test_a_leaderships_name_is_restricted_to_letters(name):
    with pytest.raises(ValueError, match="letters"):
        Leadership(None, name)


async def test_a_process_that_asks_many_times_at_once_has_the_lead_once(lead, another):
    other = Leadership(another, "settlements")
    mine = asyncio.gather(*(lead.try_lead() for _ in range(10)))
    theirs = asyncio.gather(*(other.try_lead() for _ in range(10)))
    told = await asyncio.gather(mine, theirs)
    assert [len(set(one)) for one in told] == [1, 1]
    assert told[0][0] is not told[1][0]
    for leadership in (lead, other):
        await leadership.release()
    assert await lead.try_lead()
    await lead.release()


async def test_a_leader_that_is_killed_is_followed_by_exactly_one_of_the_others(where, database):
    with gateway(where) as first:
        assert (await word(first))[0] == "leads"
        with gateway(where) as second, gateway(where) as third:
            others = [second, third]
            assert [(await word(one))[0] for one in others] == ["follows", "follows"]
            first.send_signal(signal.SIGKILL)
            said = [asyncio.ensure_future(word(one)) for one in others]
            done, waiting = await asyncio.wait(said, return_when=asyncio.FIRST_COMPLETED)
            (leader,) = done
            assert leader.result()[0] == "leads"
            # The other one prints nothing for as long as this one leads.
            (follower,) = waiting
            assert not (await asyncio.wait(waiting, timeout=0.5))[0]
            others[said.index(leader)].send_signal(signal.SIGKILL)
            assert (await follower)[0] == "leads"
    # After all of them were killed, this process can lead.
    leadership = Leadership(database, "settlements")
    async with asyncio.timeout(60):
        while not await leadership.try_lead():
            await asyncio.sleep(0.02)
    await leadership.release()


async def test_a_stopped_leader_process_keeps_the_lead_and_no_other_takes_it(where):
    with gateway(where) as first:
        assert (await word(first))[0] == "leads"
        first.send_signal(signal.SIGSTOP)
        with gateway(where) as second:
            assert (await word(second))[0] == "follows"
            said = asyncio.ensure_future(word(second))
            assert not (await asyncio.wait({said}, timeout=0.5))[0]
            first.send_signal(signal.SIGCONT)
            assert not (await asyncio.wait({said}, timeout=0.3))[0]
            first.send_signal(signal.SIGKILL)
            assert (await said)[0] == "leads"


async def test_a_leader_whose_session_ends_leads_no_more(postgres, postgres_where):
    database, another = await open_database(postgres_where), await open_database(postgres_where)
    lead, other = Leadership(database, "settlements"), Leadership(another, "settlements")
    assert await lead.try_lead()
    postgres.sql(END_SESSIONS)
    assert await other.try_lead()
    # The first call reports the loss, so that the leader's work ends; only the next one tries again.
    assert not await lead.try_lead()
    assert not await lead.try_lead()
    await other.release()
    assert await lead.try_lead()
    postgres.sql(END_SESSIONS)
    assert not await lead.still_leading()
    for leadership in (lead, other):
        await leadership.release()
    for opened in (database, another):
        await opened.close()


async def test_the_lead_is_lost_with_a_crash_of_the_server_and_can_be_taken_again():
    with running_postgres() as server, server.fresh_database() as url:
        database = await open_database(url)
        lead = Leadership(database, "settlements")
        assert await lead.try_lead()
        server.stop(signal.SIGQUIT)
        assert not await lead.try_lead()
        with pytest.raises(DatabaseUnavailable) as error:
            await lead.try_lead()
        assert "127.0.0.1" not in str(error.value)
        server.start()
        assert await lead.try_lead()
        await lead.release()
        await database.close()


async def test_a_server_that_hangs_ends_the_lead_before_another_process_gets_it(monkeypatch):
    with running_postgres() as server, server.fresh_database() as url:
        database = await open_database(url)
        lead = Leadership(database, "settlements")
        assert await lead.try_lead()
        pid = int(
            server.sql("SELECT pid FROM pg_locks WHERE locktype='advisory' AND objsubid=1 AND mode='ExclusiveLock'")
        )
        os.kill(pid, signal.SIGSTOP)
        try:
            with monkeypatch.context() as quick:
                quick.setattr("lcp_gateway.store.database.leader._ANSWER_S", 0.3)
                assert not await lead.try_lead()
                with pytest.raises(asyncio.CancelledError):
                    task = asyncio.ensure_future(lead.try_lead())
                    await asyncio.sleep(0)
                    task.cancel()
                    await task
        finally:
            os.kill(pid, signal.SIGCONT)
        async with asyncio.timeout(60):
            while not await lead.try_lead():
                await asyncio.sleep(0.02)
        await lead.release()
        await database.close()


async def test_a_lock_file_that_is_deleted_ends_the_lead(sqlite_where):
    database, another = await open_database(sqlite_where), await open_database(sqlite_where)
    lead, other = Leadership(database, "settlements"), Leadership(another, "settlements")
    assert await lead.try_lead()
    os.unlink(f"{sqlite_where}.leader-settlements")  # noqa: PTH108 - a pathlib call is one that ruff holds for slow
    assert await other.try_lead()
    assert not await lead.try_lead() and not await lead.try_lead()
    await other.release()
    assert await lead.try_lead()
    for opened in (database, another):
        await opened.close()
    await lead.release()


async def test_a_folder_that_is_gone_is_a_clear_error_without_its_path(sqlite_where):
    database = await open_database(sqlite_where)
    lead = Leadership(database, "settlements")
    assert await lead.try_lead()
    await lead.release()
    folder = Path(sqlite_where).parent
    folder.rename(folder.with_name("elsewhere"))
    with pytest.raises(DatabaseUnavailable) as error:
        await lead.try_lead()
    assert str(folder) not in str(error.value)
    folder.with_name("elsewhere").rename(folder)
    await database.close()


async def test_a_lock_that_was_granted_to_a_cancelled_caller_is_free_at_once(postgres_where, monkeypatch):
    """When the call is cancelled before the server's reply arrives, the session already holds the lock."""
    database, another = await open_database(postgres_where), await open_database(postgres_where)
    lead, other = Leadership(database, "settlements"), Leadership(another, "settlements")
    given = asyncio.Event()
    execute = AsyncConnection.execute

    async def slow(self, *arguments, **named):
        result = await execute(self, *arguments, **named)
        if "pg_try_advisory_lock" in str(arguments[0]):
            given.set()
            await asyncio.Event().wait()
        return result

    monkeypatch.setattr(AsyncConnection, "execute", slow)
    taking = asyncio.create_task(lead.try_lead())
    await given.wait()
    taking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await taking
    monkeypatch.undo()

    assert not await lead.still_leading()
    assert await other.try_lead()
    await other.release()
    await database.close()
    await another.close()
