"""A file that is locked, full or slow: nothing is paid meanwhile, nothing is lost, and the gateway recovers."""

import asyncio
import errno
import os
import sqlite3
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

from lcp_gateway.app.background_tasks import BackgroundTasks, Backoff
from lcp_gateway.purchase.journal import JournalUnavailable, PurchaseUpdate
from lcp_gateway.purchase.states import State
from lcp_gateway.store.database.engines import DatabaseUnavailable, open_database
from lcp_gateway.store.journal.queries import Books
from lcp_gateway.store.journal.transaction import JournalProblemKind
from lcp_gateway.store.journal.writer import JournalLimits, JournalWriter
from lcp_gateway.telemetry.logs import get_logger
from tests.store.journals import HOUR, NOW, intent, job, spent, written

ROOT = Path(__file__).parents[3]
IMPATIENT = JournalLimits(wait_s=60.0, close_s=0.5, retry_s=0.02, retry_most_s=0.05)


@pytest.fixture
async def sqlite(sqlite_where):
    database = await open_database(sqlite_where, busy_timeout_s=0.1)
    yield database
    await database.close()


@pytest.fixture
async def journal_on_sqlite(sqlite, problems):
    journal = JournalWriter(sqlite, on_problem=problems.append, limits=IMPATIENT)
    journal.start()
    yield journal
    await journal.close()


@contextmanager
def locked(where: str):
    other = sqlite3.connect(where, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


async def test_a_locked_database_refuses_intents_and_keeps_updates(journal_on_sqlite, sqlite, sqlite_where, problems):
    journal, books = journal_on_sqlite, Books(sqlite)
    await journal.intend(intent(1))
    with locked(sqlite_where):
        journal.record(job(1), State.SETTLED, NOW)
        with pytest.raises(JournalUnavailable, match="locked"):
            await journal.intend(intent(2), [HOUR])
        assert journal.trouble is not None
        assert (await books.purchase(job(1))).state is State.PAYING
    # An intent that comes during a try which began under the lock, and fails, is refused with it.
    await written(journal)
    await journal.intend(intent(2), [HOUR])
    assert journal.trouble is None
    assert (await books.purchase(job(1))).state is State.SETTLED
    assert await spent(books) == 2_020
    assert [problem.kind for problem in problems] == [JournalProblemKind.UNAVAILABLE, JournalProblemKind.AVAILABLE]


async def test_updates_are_written_by_themselves_when_the_lock_is_gone(journal_on_sqlite, sqlite, sqlite_where):
    await journal_on_sqlite.intend(intent(1))
    with locked(sqlite_where):
        journal_on_sqlite.record(job(1), State.UNKNOWN, NOW)
        journal_on_sqlite.record(job(1), State.SETTLED, NOW)
        while journal_on_sqlite.trouble is None:
            await asyncio.sleep(0.001)
        journal_on_sqlite.record(job(1), State.DELIVERED, NOW)
    await written(journal_on_sqlite)
    steps = (await Books(sqlite).purchase(job(1))).steps
    assert [step.state for step in steps] == [State.PAYING, State.UNKNOWN, State.SETTLED, State.DELIVERED]


async def test_updates_keep_their_order_through_a_failure(journal_on_sqlite, sqlite, problems, monkeypatch):
    for number in (1, 2):
        await journal_on_sqlite.intend(intent(number))
    write = sqlite.write
    failures = iter([DatabaseUnavailable("once")])

    async def fail_once(work):
        for failure in failures:
            raise failure
        return await write(work)

    monkeypatch.setattr(sqlite, "write", fail_once)
    for state in (State.UNKNOWN, State.SETTLED, State.DELIVERED):
        for number in (1, 2):
            journal_on_sqlite.record(job(number), state, NOW)
    await written(journal_on_sqlite)
    assert [problem.kind for problem in problems] == [JournalProblemKind.UNAVAILABLE, JournalProblemKind.AVAILABLE]
    assert (await Books(sqlite).purchase(job(1))).state is State.DELIVERED


async def test_updates_keep_their_order_when_a_bad_one_is_singled_out_and_the_database_fails(
    journal_on_sqlite, sqlite, problems, monkeypatch
):
    for number in (1, 2):
        await journal_on_sqlite.intend(intent(number))
    write, calls = sqlite.write, []

    async def fail_the_third(work):
        calls.append(work)
        if len(calls) == 3:
            raise DatabaseUnavailable("once")
        return await write(work)

    monkeypatch.setattr(sqlite, "write", fail_the_third)
    journal_on_sqlite.record(job(2), State.SETTLED, NOW, PurchaseUpdate(result_bytes=2**70))
    journal_on_sqlite.record(job(1), State.SETTLED, NOW)
    journal_on_sqlite.record(job(1), State.DELIVERED, NOW)
    await written(journal_on_sqlite)
    assert [problem.kind for problem in problems] == [
        JournalProblemKind.NOTE_REFUSED,
        JournalProblemKind.UNAVAILABLE,
        JournalProblemKind.AVAILABLE,
    ]
    assert (await Books(sqlite).purchase(job(1))).state is State.DELIVERED


async def test_updates_that_cannot_be_written_until_the_close_are_reported_one_by_one(sqlite, sqlite_where):
    problems = []
    journal = JournalWriter(sqlite, on_problem=problems.append, limits=IMPATIENT)
    journal.start()
    await journal.intend(intent(1))
    with locked(sqlite_where):
        journal.record(job(1), State.SETTLED, NOW)
        journal.record(job(1), State.DELIVERED, NOW)
        await journal.close()
    lost = [(p.job_id, p.state) for p in problems if p.kind is JournalProblemKind.NOTE_LOST]
    assert lost == [(job(1), State.SETTLED), (job(1), State.DELIVERED)]


async def test_the_queue_is_bounded(sqlite, sqlite_where):
    problems = []
    limits = JournalLimits(wait_s=60.0, close_s=0.3, retry_s=0.02, intents=5, updates=3)
    journal = JournalWriter(sqlite, on_problem=problems.append, limits=limits)
    journal.start()
    await journal.intend(intent("x"))
    with locked(sqlite_where):
        outcomes = await asyncio.gather(*(journal.intend(intent(n)) for n in range(9)), return_exceptions=True)
        assert [str(o).startswith("too many purchases wait") for o in outcomes] == [False] * 5 + [True] * 4
        for _ in range(4):
            journal.record(job("x"), State.SETTLED, NOW)
        assert [p.kind for p in problems][-1] is JournalProblemKind.NOTE_LOST
        with pytest.raises(JournalUnavailable, match="too many purchases wait"):
            await journal.intend(intent(20))
    await written(journal)
    await journal.close()


async def test_intents_do_not_wait_behind_many_updates_for_a_database_that_is_away(sqlite, sqlite_where, problems):
    limits = JournalLimits(wait_s=60.0, close_s=0.5, retry_s=0.02, retry_most_s=0.05, batch=10)
    journal = JournalWriter(sqlite, on_problem=problems.append, limits=limits)
    journal.start()
    await journal.intend(intent(1))
    with locked(sqlite_where):
        for _ in range(50):
            journal.record(job(1), State.SETTLED, NOW)
        async with asyncio.timeout(60):
            with pytest.raises(JournalUnavailable):
                await journal.intend(intent(2))
    await written(journal)
    await journal.intend(intent(2))
    await journal.close()
    late = [problem for problem in problems if problem.kind is JournalProblemKind.LATE_NOTE]
    assert len(late) == 49


async def test_an_intent_that_waits_too_long_is_refused_and_taken_back(sqlite, monkeypatch):
    write, hangs, go_on = sqlite.write, asyncio.Event(), asyncio.Event()

    async def hang(work):
        hangs.set()
        await go_on.wait()
        return await write(work)

    monkeypatch.setattr(sqlite, "write", hang)
    journal = JournalWriter(sqlite, on_problem=print, limits=JournalLimits(wait_s=0.1))
    journal.start()
    first = asyncio.ensure_future(journal.intend(intent(1)))
    await hangs.wait()
    outcomes = await asyncio.gather(first, journal.intend(intent(2)), return_exceptions=True)
    assert all("too long" in str(outcome) for outcome in outcomes)
    go_on.set()
    await written(journal)
    books = Books(sqlite)
    # The first was in the transaction that hung, and was withdrawn; the second was never in one.
    assert (await books.purchase(job(1))).state is State.NOT_PAID
    assert await books.purchase(job(2)) is None
    assert await spent(books) == 0
    await journal.close()


async def test_an_unsure_commit_is_taken_back_but_never_another_ones_intent(journal, database, books, monkeypatch):
    await journal.intend(intent(1))
    write = database.write
    failures = iter(["after", "before"])

    async def lose_contact(work):
        how = next(failures, None)
        if how == "after":
            await write(work)
        if how:
            raise DatabaseUnavailable("the connection was lost", unsure=True)
        return await write(work)

    monkeypatch.setattr(database, "write", lose_contact)
    with pytest.raises(JournalUnavailable):
        await journal.intend(intent(2))
    # A second intent for the job of the first, as uncertain as that.
    with pytest.raises(JournalUnavailable):
        await journal.intend(intent(1))
    await written(journal)
    assert (await books.purchase(job(1))).state is State.PAYING
    assert (await books.purchase(job(2))).state is State.NOT_PAID
    assert await spent(books) == 1_010


async def test_an_unsure_commit_never_takes_back_what_another_process_intended(
    journal, database, books, where, monkeypatch
):
    await journal.intend(intent(1))
    other_database = await open_database(where)
    write = other_database.write
    failures = iter([DatabaseUnavailable("the connection was lost", unsure=True)])

    async def lose_contact(work):
        for failure in failures:
            raise failure
        return await write(work)

    monkeypatch.setattr(other_database, "write", lose_contact)
    other = JournalWriter(other_database, on_problem=print)
    other.start()
    # The first intent of each: only the names of the processes differ.
    with pytest.raises(JournalUnavailable):
        await other.intend(intent(1))
    await written(other)
    assert (await books.purchase(job(1))).state is State.PAYING
    assert await spent(books) == 1_010
    await other.close()
    await other_database.close()


@pytest.fixture
def small_folder(tmp_path):
    """A folder of 2 MiB."""
    if os.getuid() != 0:
        pytest.skip("mounting a file system takes root")
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder]
    if subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("mounting is not allowed here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


async def test_a_full_file_system_refuses_to_pay_and_recovers_when_there_is_room(small_folder, problems):
    folder = small_folder
    database = await open_database(str(folder / "journal.db"))
    journal = JournalWriter(database, on_problem=problems.append, limits=IMPATIENT)
    journal.start()
    books = Books(database)
    await journal.intend(intent(0))
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as out:
        try:
            while out.write(b"x" * 4096) == 4096:
                pass
        except OSError:
            pass
    refused = None
    intended = [0]
    for number in range(1, 3_000):
        try:
            await journal.intend(intent(number))
        except JournalUnavailable as error:
            refused = error
            break
        intended.append(number)
    assert refused is not None and "full" in str(refused)
    journal.record(job(0), State.SETTLED, NOW)
    await asyncio.sleep(0.1)
    with pytest.raises(JournalUnavailable):
        await journal.intend(intent("more"))
    ballast.unlink()
    await journal.intend(intent("more"))
    await written(journal)
    assert (await books.purchase(job(0))).state is State.SETTLED
    for number in intended[1:]:
        assert (await books.purchase(job(number))).state is State.PAYING
    assert await spent(books) == 1_010 * (len(intended) + 1)
    assert [p.kind for p in problems] == [JournalProblemKind.UNAVAILABLE, JournalProblemKind.AVAILABLE]
    await journal.close()
    await database.close()


LIMITED = """
import asyncio, resource, signal, sys
sys.path.insert(0, {root!r})
from lcp_gateway.purchase.journal import JournalUnavailable, PurchaseUpdate
from lcp_gateway.store.database.engines import open_database
from lcp_gateway.store.journal.writer import JournalLimits, JournalWriter
from lcp_gateway.store.journal.queries import Books
from tests.store.journals import intent, spent

async def main():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    database = await open_database({where!r})
    journal = JournalWriter(database, on_problem=lambda problem: None, limits=JournalLimits(wait_s=60.0))
    journal.start()
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))
    written = 0
    try:
        for number in range(3_000):
            await journal.intend(intent(number))
            written += 1
    except JournalUnavailable as error:
        print("refused", error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    await journal.intend(intent("more"))
    assert await spent(Books(database)) == 1_010 * (written + 1)
    print("written", written)
    await journal.close()
    await database.close()

asyncio.run(main())
"""


async def test_a_file_that_may_not_grow_refuses_to_pay_and_recovers(sqlite_where):
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", LIMITED.format(root=str(ROOT), where=sqlite_where)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert said[0].startswith("refused the journal cannot be written")
    assert int(said[1].split()[1]) > 0


async def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DatabaseUnavailable):
        await open_database(str(tmp_path / "file" / "journal.db"))


async def test_a_file_that_is_no_database_is_a_clear_error(tmp_path):
    (tmp_path / "journal.db").write_bytes(b"something else " * 1000)
    with pytest.raises(DatabaseUnavailable, match="not a database"):
        await open_database(str(tmp_path / "journal.db"))


async def test_a_journal_whose_writer_ended_by_an_error_goes_on_with_what_waits(sqlite, problems, monkeypatch):
    """Regression: the writer task was not restarted after an error; until it is, nothing may be lost."""
    # The supervisor logs a traceback first, which may take seconds on a busy machine.
    journal = JournalWriter(sqlite, on_problem=problems.append, limits=IMPATIENT)
    tasks = BackgroundTasks(get_logger("test"), backoff=Backoff(first_s=0.01))
    take, failures = journal._take, [ZeroDivisionError()]

    def broken():
        if failures:
            raise failures.pop()
        return take()

    monkeypatch.setattr(journal, "_take", broken)
    journal.start(tasks.starter("journal"))
    await journal.intend(intent(1))
    journal.record(job(1), State.SETTLED, NOW)
    await written(journal)
    assert tasks.report()["journal"]["restarts"] == 1
    assert (await Books(sqlite).purchase(job(1))).state is State.SETTLED
    await journal.close()
    assert tasks.report()["journal"]["restarts"] == 1, "its end at the close is no error"


async def test_an_idle_gateway_notices_that_it_cannot_write(journal_on_sqlite, problems):
    """Regression: `/readyz` returned 200 as long as nothing was bought."""
    journal_on_sqlite.suspect("the database does not answer in time")
    assert journal_on_sqlite.trouble == "the database does not answer in time"
    async with asyncio.timeout(60):
        while journal_on_sqlite.trouble is not None:
            await asyncio.sleep(0.01)
    kinds = [problem.kind for problem in problems]
    assert kinds == [JournalProblemKind.UNAVAILABLE, JournalProblemKind.AVAILABLE]


def one(connection):
    return connection.exec_driver_sql("SELECT 1").scalar_one()


async def test_the_reserved_read_does_not_wait_for_a_read_that_takes_long(sqlite):
    """Regression: the refresh of the keys shared the one thread of all reads."""
    release = threading.Event()
    slow = asyncio.create_task(sqlite.read(lambda _connection: release.wait(60)))
    behind = [asyncio.create_task(sqlite.read(one)) for _ in range(100)]
    assert await sqlite.read_reserved(one) == 1
    assert not slow.done()
    # Reads whose callers were cancelled are skipped.
    for read in behind:
        read.cancel()
    release.set()
    await asyncio.gather(slow, *behind, return_exceptions=True)
    assert await sqlite.read(one) == 1


async def test_a_reserved_read_that_hangs_is_given_up_in_time(sqlite, monkeypatch):
    release = threading.Event()
    with monkeypatch.context() as patched:
        patched.setattr("lcp_gateway.store.database.sqlite._RESERVED_READ_S", 0.05)
        with pytest.raises(DatabaseUnavailable, match="in time"):
            await sqlite.read_reserved(lambda _connection: release.wait(60))
    release.set()
    assert await sqlite.read_reserved(one) == 1


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, "Input/output error"),
        sqlite3.OperationalError("database is locked"),
        sqlite3.OperationalError("disk I/O error"),
        sqlite3.OperationalError("unable to open database file"),
        sqlite3.DatabaseError("database disk image is malformed"),
    ],
    ids=str,
)
async def test_every_way_in_which_a_file_says_not_now_is_one_error(sqlite, error):
    def fail(_connection):
        raise error

    for do in (sqlite.read, sqlite.read_reserved, sqlite.write):
        with pytest.raises(DatabaseUnavailable):
            await do(fail)
        assert await do(one) == 1


async def test_an_error_of_the_work_stays_what_it_is(sqlite):
    def fail(_connection):
        raise sqlite3.IntegrityError("UNIQUE constraint failed")

    for do in (sqlite.read, sqlite.read_reserved, sqlite.write):
        with pytest.raises(sqlite3.IntegrityError):
            await do(fail)


async def test_no_purchase_is_looked_up_before_an_intent_is_written(sqlite):
    statements = []
    journal = JournalWriter(sqlite, on_problem=print)
    journal.start()
    await journal.intend(intent(1))
    sqlite._write_connection.connection.set_trace_callback(statements.append)
    await journal.intend(intent(2))
    assert [text for text in statements if "purchases" in text and not text.startswith("INSERT INTO purchases")] == []
    await journal.close()
