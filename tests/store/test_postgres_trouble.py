"""A server that is away, crashes or hangs: nothing may be paid, nothing is lost, and it recovers."""

import asyncio
import signal
import time

import pytest

from lcp_gateway.purchase.journal import JournalUnavailable
from lcp_gateway.purchase.states import State
from lcp_gateway.store.database import DatabaseUnavailable
from lcp_gateway.store.engine import open_database
from lcp_gateway.store.entries import ProblemKind
from lcp_gateway.store.journal import JournalLimits, StoredJournal
from lcp_gateway.store.queries import Books
from tests.store.journals import NOW, intent, job, spent, written
from tests.support.postgres import running_postgres

IMPATIENT = JournalLimits(wait_s=2.0, close_s=0.5, retry_s=0.02, retry_most_s=0.05)


async def test_a_server_that_nobody_runs_is_a_clear_error_without_its_address():
    with pytest.raises(DatabaseUnavailable) as error:
        await open_database("postgresql://me:secret@127.0.0.1:1/none")
    assert "secret" not in str(error.value) and "127.0.0.1" not in str(error.value)


async def test_a_postgresql_that_crashes_and_comes_back(problems):
    with running_postgres() as server, server.fresh_database() as url:
        database = await open_database(url)
        journal = StoredJournal(database, on_problem=problems.append, limits=IMPATIENT)
        journal.start()
        books = Books(database)
        await journal.intend(intent(1))
        server.stop(signal.SIGQUIT)
        journal.note(job(1), State.SETTLED, NOW)
        with pytest.raises(JournalUnavailable):
            await journal.intend(intent(2))
        server.start()
        await written(journal)
        await journal.intend(intent(2))
        assert (await books.purchase(job(1))).state is State.SETTLED
        assert await spent(books) == 2_020
        # The sign of life was given anew: another gateway sees that this one lives.
        other = await open_database(url)
        assert not await other.write(lambda connection: other.is_gone(connection, database.owner))
        await other.close()
        await journal.close()
        await database.close()
    kinds = [problem.kind for problem in problems]
    assert kinds == [ProblemKind.UNAVAILABLE, ProblemKind.AVAILABLE]


async def test_a_session_that_the_server_ends_is_replaced(postgres, postgres_where):
    database = await open_database(postgres_where)
    journal = StoredJournal(database, on_problem=print, limits=IMPATIENT)
    journal.start()
    await journal.intend(intent(1))
    postgres.sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name='lcp-gateway'"
    )
    await asyncio.sleep(0.1)
    with pytest.raises(JournalUnavailable):
        await journal.intend(intent(2))
    await journal.intend(intent(2))
    assert await spent(Books(database)) == 2_020
    await journal.close()
    await database.close()


async def test_a_server_that_does_not_answer_is_given_up_in_time(postgres, postgres_where):
    database = await open_database(postgres_where, busy_timeout_s=30.0, write_timeout_s=0.5)
    journal = StoredJournal(database, on_problem=print, limits=IMPATIENT)
    journal.start()
    await journal.intend(intent(1))
    other = await open_database(postgres_where)

    async def hold():
        from sqlalchemy import text

        async with other._read_engine.begin() as connection:
            await connection.execute(text("LOCK TABLE budget_spend"))
            begun = time.monotonic()
            with pytest.raises(JournalUnavailable, match="in time"):
                await journal.intend(intent(2))
            assert time.monotonic() - begun < 1.9

    await hold()
    await journal.intend(intent(2))
    assert await spent(Books(database)) == 2_020
    for closed in (journal, database, other):
        await closed.close()
