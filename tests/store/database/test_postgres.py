"""A server that is unreachable, crashes or hangs: nothing is paid meanwhile, nothing is lost, and the gateway recovers."""

import asyncio
import signal
import sqlite3
from contextlib import asynccontextmanager

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, PendingRollbackError, ResourceClosedError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from lcp_gateway.purchase.journal import JournalUnavailable
from lcp_gateway.purchase.states import State
from lcp_gateway.store.database.engines import DatabaseUnavailable, open_database
from lcp_gateway.store.database.postgres_sessions import as_unavailable
from lcp_gateway.store.database.schema import migrate
from lcp_gateway.store.journal.queries import Books
from lcp_gateway.store.journal.transaction import JournalProblemKind
from lcp_gateway.store.journal.writer import JournalLimits, JournalWriter
from tests.store.journals import NOW, intent, job, spent, written
from tests.support.postgres import running_postgres

IMPATIENT = JournalLimits(wait_s=60.0, close_s=0.5, retry_s=0.02, retry_most_s=0.05)


async def test_a_server_that_does_not_run_is_a_clear_error_without_its_address():
    with pytest.raises(DatabaseUnavailable) as error:
        await open_database("postgresql://me:secret@127.0.0.1:1/none")
    assert "secret" not in str(error.value) and "127.0.0.1" not in str(error.value)


async def test_a_postgresql_that_crashes_and_comes_back(problems):
    with running_postgres() as server, server.fresh_database() as url:
        database = await open_database(url)
        journal = JournalWriter(database, on_problem=problems.append, limits=IMPATIENT)
        journal.start()
        books = Books(database)
        await journal.intend(intent(1))
        server.stop(signal.SIGQUIT)
        journal.record(job(1), State.SETTLED, NOW)
        with pytest.raises(JournalUnavailable):
            await journal.intend(intent(2))
        server.start()
        await written(journal)
        await journal.intend(intent(2))
        assert (await books.purchase(job(1))).state is State.SETTLED
        assert await spent(books) == 2_020
        # The owner lock was taken again: another gateway sees that this one lives.
        other = await open_database(url, gone_after_s=0)
        assert not await other.write(lambda connection: other.is_gone(connection, database.owner))
        await other.close()
        await journal.close()
        await database.close()
    kinds = [problem.kind for problem in problems]
    assert kinds == [JournalProblemKind.UNAVAILABLE, JournalProblemKind.AVAILABLE]


async def test_a_session_that_the_server_ends_is_replaced(postgres, postgres_where):
    database = await open_database(postgres_where)
    journal = JournalWriter(database, on_problem=print, limits=IMPATIENT)
    journal.start()
    await journal.intend(intent(1))
    postgres.sql("SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE application_name='lcp-gateway'")
    with pytest.raises(JournalUnavailable):
        await journal.intend(intent(2))
    await journal.intend(intent(2))
    assert await spent(Books(database)) == 2_020
    await journal.close()
    await database.close()


async def test_a_start_that_takes_long_between_two_steps_keeps_its_session(postgres_where, monkeypatch):
    """Regression: on a busy machine the server ended the session of a start that was idle in its transaction."""

    def slowly(connection):
        found.append(connection.execute(text("SHOW idle_in_transaction_session_timeout")).scalar_one())
        migrate(connection)

    found = []
    monkeypatch.setattr("lcp_gateway.store.database.postgres.migrate", slowly)
    monkeypatch.setattr("lcp_gateway.store.database.postgres.is_current", lambda _connection: False)
    await (await open_database(postgres_where)).close()
    assert found == ["0"]


async def test_a_server_that_does_not_answer_is_given_up_in_time(postgres_where, monkeypatch):
    database = await open_database(postgres_where)
    journal = JournalWriter(database, on_problem=print, limits=IMPATIENT)
    journal.start()
    await journal.intend(intent(1))
    other = await open_database(postgres_where)

    async def hold():
        async with other._read_engine.begin() as connection:
            await connection.execute(text("LOCK TABLE budget_spend"))
            # By the timeout of a write, long before the intent's own.
            with pytest.raises(JournalUnavailable, match="does not answer in time"):
                await journal.intend(intent(2))

    with monkeypatch.context() as quick:
        quick.setattr(database, "_write_timeout_s", 1.0)
        await hold()
    await journal.intend(intent(2))
    assert await spent(Books(database)) == 2_020
    for closed in (journal, database, other):
        await closed.close()


def nap(seconds: float):
    """Return a read that takes so long."""
    return lambda connection: connection.execute(text(f"SELECT pg_sleep({seconds})")).all()


def one(connection) -> int:
    return connection.execute(text("SELECT 1")).scalar_one()


@asynccontextmanager
async def flooded(database, readers: int = 3):
    """Keep every connection for reads busy."""
    reads = [asyncio.create_task(database.read(nap(300))) for _ in range(readers)]
    while database._read_engine.sync_engine.pool.checkedout() < 3:
        await asyncio.sleep(0.001)
    try:
        yield reads
    finally:
        for read in reads:
            read.cancel()
        await asyncio.gather(*reads, return_exceptions=True)


async def test_a_read_that_finds_every_connection_busy_raises_the_stores_own_error(postgres_where):
    """Regression: the pool's own error was not recognized, became a 500, and ended the tasks that read."""
    database = await open_database(postgres_where)
    database._read_engine.sync_engine.pool._timeout = 0.05
    async with flooded(database):
        with pytest.raises(DatabaseUnavailable, match="busy"):
            await database.read(one)
    await database.close()


async def test_the_reserved_read_does_not_wait_for_other_reads(postgres_where):
    """Regression: the refresh of the keys waited behind many reads, and a revoked key kept working."""
    database = await open_database(postgres_where, write_timeout_s=60.0)
    async with flooded(database, readers=50) as reads:
        assert await database.read_reserved(one) == 1
        assert not any(read.done() for read in reads)
    await database.close()


async def test_reads_that_are_left_in_the_middle_take_no_connection_with_them(postgres_where):
    database = await open_database(postgres_where)
    for _ in range(3):
        async with flooded(database):
            pass
    assert await database.read(one) == 1
    await database.close()


async def test_a_reserved_read_gives_a_server_up_that_hangs_and_finds_it_again(monkeypatch):
    with running_postgres() as server, server.fresh_database() as url:
        database = await open_database(url)
        assert await database.read_reserved(one) == 1
        with server.paused(), monkeypatch.context() as quick:
            quick.setattr("lcp_gateway.store.database.postgres._RESERVED_READ_S", 1.0)
            with pytest.raises(DatabaseUnavailable, match="in time"):
                await database.read_reserved(one)
            with pytest.raises(DatabaseUnavailable):
                await database.read_reserved(one)
        assert await database.read_reserved(one) == 1
        await database.close()


@pytest.mark.parametrize(
    "error",
    [asyncpg.CannotConnectNowError("starting up"), asyncpg.TooManyConnectionsError("full")],
    ids=lambda error: type(error).__name__,
)
async def test_a_server_that_refuses_connections_counts_as_unavailable(postgres_where, monkeypatch, error):
    """Not every version of SQLAlchemy wraps the errors that the driver raises while it connects."""
    database = await open_database(postgres_where)
    await database._read_engine.dispose()

    async def refuse(*_args, **_more):
        raise error

    monkeypatch.setattr(asyncpg, "connect", refuse)
    for read in (database.read, database.read_reserved):
        with pytest.raises(DatabaseUnavailable, match=error.sqlstate):
            await read(one)
    await database.close()


def wrapped(error: Exception, *, invalidated: bool = False) -> DBAPIError:
    """Return an error as SQLAlchemy raises it."""
    error.sqlstate = getattr(error, "sqlstate", None)
    return DBAPIError("SELECT 1", (), error, connection_invalidated=invalidated)


@pytest.mark.parametrize(
    "error",
    [
        PoolTimeoutError("QueuePool limit of size 3 overflow 0 reached"),
        PendingRollbackError("can't reconnect"),
        ResourceClosedError("this Connection is closed"),
        TimeoutError(),
        ConnectionRefusedError(),
        EOFError(),
        wrapped(asyncpg.InterfaceError("connection is closed")),
        wrapped(asyncpg.InternalClientError("unexpected state")),
        wrapped(asyncpg.UniqueViolationError("x"), invalidated=True),
        *(
            made(error("x"))
            for made in (wrapped, lambda error: error)
            for error in (
                asyncpg.AdminShutdownError,
                asyncpg.CrashShutdownError,
                asyncpg.CannotConnectNowError,
                asyncpg.TooManyConnectionsError,
                asyncpg.ConnectionDoesNotExistError,
                asyncpg.QueryCanceledError,
                asyncpg.LockNotAvailableError,
                asyncpg.DeadlockDetectedError,
                asyncpg.SerializationError,
                asyncpg.ReadOnlySQLTransactionError,
                asyncpg.DiskFullError,
                asyncpg.OutOfMemoryError,
                asyncpg.IdleInTransactionSessionTimeoutError,
                asyncpg.InvalidCatalogNameError,
            )
        ),
        asyncpg.InterfaceError("connection is closed"),
    ],
    ids=lambda error: f"{type(error).__name__} {type(getattr(error, 'orig', None)).__name__}",
)
def test_every_error_of_an_unavailable_server_becomes_one_error(error):
    """Regression: an error that was not recognized became a 500, and ended the background task that met it."""
    unavailable = as_unavailable(error)
    assert unavailable is not None
    assert "QueuePool" not in unavailable.reason and unavailable.reason != "x"


@pytest.mark.parametrize(
    "error",
    [
        wrapped(asyncpg.UniqueViolationError("x")),
        wrapped(asyncpg.NumericValueOutOfRangeError("x")),
        wrapped(asyncpg.UndefinedColumnError("x")),
        asyncpg.UniqueViolationError("x"),
        ValueError("x"),
        asyncio.CancelledError(),
        sqlite3.OperationalError("of another driver"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_of_the_query_is_not_taken_for_an_outage(error):
    assert as_unavailable(error) is None
