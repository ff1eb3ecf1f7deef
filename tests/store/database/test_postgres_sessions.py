"""Behind PgBouncer: session mode works like a direct connection; modes that share sessions are refused at the start."""

import asyncio

import pytest
from sqlalchemy import text

from lcp_gateway.purchase.states import State
from lcp_gateway.store.database.engines import BadDatabaseUrl, open_database
from lcp_gateway.store.database.leader import Leadership
from lcp_gateway.store.journal.queries import Books
from lcp_gateway.store.journal.writer import JournalWriter
from tests.store.journals import NOW, intent, job, written
from tests.support.pgbouncer import pgbouncer, through


async def until(is_so):
    for _ in range(200):
        if await is_so():
            return
        await asyncio.sleep(0.05)
    raise AssertionError("it never was")


async def test_session_mode_with_its_defaults_is_as_good_as_no_pooler(postgres, problems):
    """Regression: every start failed with "SQLSTATE 08P01", the pooler's error for an unknown startup parameter."""
    with pgbouncer(postgres) as port, postgres.fresh_database() as url:
        database = await open_database(through(url, port))
        other = await open_database(through(url, port), gone_after_s=0)
        journal = JournalWriter(database, on_problem=problems.append)
        journal.start()
        await journal.intend(intent(1))
        journal.record(job(1), State.SETTLED, NOW)
        await written(journal)
        assert (await Books(other).purchase(job(1))).state is State.SETTLED
        assert not await other.write(lambda connection: other.is_gone(connection, database.owner))
        first, second = Leadership(database, "test"), Leadership(other, "test")
        assert await first.try_lead()
        assert not await second.try_lead()
        await first.release()
        # The pooler resets the server's session before another client gets it, and so releases the lock.
        await until(second.try_lead)
        await second.release()
        await journal.close()
        await database.close()
        await until(lambda: other.write(lambda connection: other.is_gone(connection, database.owner)))
        await other.close()
    assert not problems


@pytest.mark.parametrize("pooled", [True, False])
async def test_the_settings_of_a_session_hold(postgres, pooled):
    with pgbouncer(postgres) as port, postgres.fresh_database() as url:
        database = await open_database(through(url, port) if pooled else url, busy_timeout_s=61.0, write_timeout_s=62.0)
        names = "'lock_timeout', 'idle_in_transaction_session_timeout', 'application_name'"
        question = text(f"SELECT name, setting FROM pg_settings WHERE name IN ({names})")

        def ask(connection):
            return dict(connection.execute(question).all())

        expected = {
            "lock_timeout": "61000",
            "idle_in_transaction_session_timeout": "248000",
            "application_name": "lcp-gateway",
        }
        assert await database.write(ask) == expected
        assert await database.read(ask) == expected
        await database.close()


@pytest.mark.parametrize("round_robin", ["0", "1"])
@pytest.mark.parametrize("idle", [0, 1, 2, 3])
@pytest.mark.parametrize("mode", ["transaction", "statement"])
async def test_a_pooler_that_shares_sessions_is_refused_in_a_line(postgres, mode, idle, round_robin):
    """Regression: the gateway started, reported ready, and failed later."""
    with pgbouncer(postgres, pool_mode=mode, server_round_robin=round_robin) as port, postgres.fresh_database() as url:
        await leave_idle(through(url, port), idle)
        with pytest.raises(BadDatabaseUrl, match="pool_mode = session") as error:
            await open_database(through(url, port))
        assert "\n" not in str(error.value) and str(port) not in str(error.value)


async def leave_idle(url, sessions):
    """Leave so many idle sessions in the pooler, which it may give to another client."""
    import asyncpg

    clients = [await asyncpg.connect(url) for _ in range(sessions)]
    await asyncio.gather(*(client.execute("SELECT pg_sleep(0.1)") for client in clients))
    for client in clients:
        client.terminate()
