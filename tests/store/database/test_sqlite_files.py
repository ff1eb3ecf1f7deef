"""The journal is the file that was opened: if another file is at its path, the gateway neither pays nor reads, and loses nothing."""

import shutil
import sqlite3
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select

from lcp_gateway.purchase.journal import JournalUnavailable
from lcp_gateway.purchase.states import State
from lcp_gateway.store.accounts.accounts import Accounts
from lcp_gateway.store.accounts.ledger import Ledger
from lcp_gateway.store.database.engines import DatabaseUnavailable, open_database
from lcp_gateway.store.database.schema import purchases
from lcp_gateway.store.journal.queries import Books
from lcp_gateway.store.journal.transaction import JournalProblemKind
from lcp_gateway.store.journal.writer import JournalLimits, JournalWriter
from tests.store.journals import NOW, intent, job, keyed, written

IMPATIENT = JournalLimits(wait_s=60.0, close_s=0.5, retry_s=0.02, retry_most_s=0.05)


@pytest.fixture(autouse=True)
def looked_at_always(monkeypatch):
    monkeypatch.setattr("lcp_gateway.store.database.sqlite_files._SELDOM_S", 0.0)


@pytest.fixture
def file(tmp_path: Path, migrated_file: Path) -> Path:
    """A journal in a folder of its own."""
    folder = tmp_path / "state"
    folder.mkdir()
    return Path(shutil.copy(migrated_file, folder / "journal.db"))


@pytest.fixture
async def opened(file):
    database = await open_database(file, busy_timeout_s=0.5)
    yield database
    await database.close()


@pytest.fixture
async def writing(opened, problems):
    journal = JournalWriter(opened, on_problem=problems.append, limits=IMPATIENT)
    journal.start()
    await journal.intend(intent(1))
    await Books(opened).purchase(job(1))
    yield journal
    await journal.close()


def log_of(file: Path) -> Path:
    return file.with_name("journal.db-wal")


def index_of(file: Path) -> Path:
    return file.with_name("journal.db-shm")


def move(what: Path):
    aside = what.with_name(f"{what.name}.aside")
    what.rename(aside)
    return lambda: aside.replace(what)


def replace(what: Path):
    back = move(what)
    shutil.copy(what.with_name(f"{what.name}.aside"), what)
    return back


def make_read_only(what: Path):
    mode = what.stat().st_mode
    what.chmod(mode & ~0o222)
    return lambda: what.chmod(mode)


def replace_folder(file: Path):
    folder = file.parent
    back = move(folder)
    shutil.copytree(folder.with_name("state.aside"), folder)

    def put_back():
        shutil.rmtree(folder)
        back()

    return put_back


HARMS = {
    "moved": (move, "its file was deleted or moved"),
    "replaced": (replace, "its file was replaced by another one"),
    "read-only": (make_read_only, "its file was made read-only"),
    "log moved": (lambda file: move(log_of(file)), "its write-ahead log was deleted or replaced"),
    "log replaced": (lambda file: replace(log_of(file)), "its write-ahead log was deleted or replaced"),
    "index moved": (lambda file: move(index_of(file)), "the index of its write-ahead log was deleted or replaced"),
    "folder moved": (lambda file: move(file.parent), "its file was deleted or moved"),
    "folder replaced": (replace_folder, "its file was replaced by another one"),
    "folder read-only": (lambda file: make_read_only(file.parent), "its folder was made read-only"),
}


@pytest.mark.parametrize(("harm", "reason"), HARMS.values(), ids=HARMS)
async def test_nothing_is_paid_or_read_until_the_very_file_is_back(writing, opened, file, problems, harm, reason):
    """Regression: a gateway kept buying with a journal that had been deleted or replaced."""
    books = Books(opened)
    await books.purchase(job(1))
    put_back = harm(file)
    with pytest.raises(JournalUnavailable, match=reason):
        await writing.intend(intent(2))
    with pytest.raises(DatabaseUnavailable, match=reason):
        await books.purchase(job(1))
    with pytest.raises(DatabaseUnavailable, match=reason):
        await opened.read_reserved(lambda _connection: None)
    assert writing.trouble == opened.trouble == reason
    # Payment updates are kept meanwhile.
    writing.record(job(1), State.SETTLED, NOW)
    put_back()
    await written(writing)
    assert (await books.purchase(job(1))).state is State.SETTLED
    assert writing.trouble is opened.trouble is None
    await writing.intend(intent(3))
    assert await books.purchase(job(2)) is None
    assert [problem.kind for problem in problems] == [JournalProblemKind.UNAVAILABLE, JournalProblemKind.AVAILABLE]


async def test_the_log_of_a_journal_that_was_made_just_now_is_watched_too(tmp_path):
    database = await open_database(tmp_path / "new.db")
    (tmp_path / "new.db-wal").unlink()
    with pytest.raises(DatabaseUnavailable, match="write-ahead log"):
        await database.write(lambda _connection: None)
    await database.close()


async def test_a_deleted_file_is_noticed_by_the_next_read_or_write(opened, file):
    await Books(opened).purchase(job(1))
    assert opened.trouble is None
    file.unlink()
    with pytest.raises(DatabaseUnavailable):
        await Accounts(opened).get("acct_1")
    assert opened.trouble == "its file was deleted or moved"


async def test_a_file_that_takes_the_place_of_a_deleted_one_is_not_written(writing, file):
    file.unlink()
    with closing(sqlite3.connect(file)) as other:
        other.execute("CREATE TABLE mine (x)")
    content = file.read_bytes()
    with pytest.raises(JournalUnavailable):
        await writing.intend(intent(2))
    assert file.read_bytes() == content


async def test_other_processes_come_and_go_without_harm(writing, opened, file):
    """SQLite creates and deletes the write-ahead log beside the file, with the first and the last connection."""
    for number in range(2, 5):
        other = await open_database(file)
        await Books(other).purchase(job(1))
        await other.write(lambda connection: connection.execute(select(purchases)).all())
        await other.close()
        await writing.intend(intent(number))
    with closing(sqlite3.connect(file)) as other:
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    await writing.intend(intent(7))
    opened._drop_writer()
    await opened._reader.run(opened._readers[0].drop)
    other = await open_database(file)
    await other.close()
    await writing.intend(intent(8))
    assert (await Books(opened).purchase(job(8))).state is State.PAYING


async def test_a_process_that_ends_in_order_saves_the_content_of_a_deleted_log(file):
    database = await open_database(file)
    journal = JournalWriter(database, on_problem=print)
    journal.start()
    await journal.intend(intent(1))
    log_of(file).unlink()
    with pytest.raises(JournalUnavailable):
        await journal.intend(intent(2))
    await journal.close()
    await database.close()
    again = await open_database(file)
    assert (await Books(again).purchase(job(1))).state is State.PAYING
    await again.close()


# -- after a restart ----------------------------------------------------------------------------------


async def test_the_first_start_and_later_ones_with_the_same_journal_say_nothing(file):
    for _ in range(2):
        database = await open_database(file)
        assert database.replaced is None
        await database.close()


@pytest.mark.parametrize("how", ["empty", "another"])
async def test_a_start_with_another_journal_than_before_is_reported_until_an_operator_decides(file, tmp_path, how):
    """Regression: after a restart there were no accounts and no purchases, and the audit reported no problem."""
    first = await open_database(file)
    await first.close()
    file.rename(tmp_path / "aside.db")
    if how == "another":
        other = await open_database(tmp_path / "other.db")
        await other.close()
        shutil.copy(tmp_path / "other.db", file)
    for _ in range(2):
        database = await open_database(file)
        assert "another journal was kept here before" in database.replaced
        audit = await Ledger(database).audit()
        assert not audit.ok and audit.problems[0] == database.replaced
        await database.close()
    (tmp_path / "aside.db").replace(file)
    database = await open_database(file)
    assert database.replaced is None and (await Ledger(database).audit()).ok
    await database.close()


async def test_an_operator_accepts_another_journal_by_deleting_the_file_with_the_old_one_s_name(file):
    first = await open_database(file)
    await first.close()
    file.unlink()
    second = await open_database(file)
    assert second.replaced is not None
    await second.close()
    file.with_name("journal.db.identity").unlink()
    for _ in range(2):
        third = await open_database(file)
        assert third.replaced is None
        await third.close()


async def test_the_secret_of_repeat_keys_stays_beside_the_journal_for_its_owner_alone(file):
    first = await open_database(file)
    secret = first.secret
    await first.close()
    kept = file.with_name("journal.db.secret")
    assert kept.read_bytes() == secret and len(secret) == 32
    for name in ("journal.db.secret", "journal.db.identity"):
        assert file.with_name(name).stat().st_mode & 0o777 == 0o600
        assert file.with_name(name).stat().st_uid == file.stat().st_uid
    again = await open_database(file)
    assert again.secret == secret
    await again.close()
    for path in file.parent.iterdir():
        if path.is_file() and path != kept:
            assert secret not in path.read_bytes()


async def test_a_new_secret_is_made_where_there_is_none_of_the_right_size(file):
    file.with_name("journal.db.secret").write_bytes(b"short")
    database = await open_database(file)
    assert len(database.secret) == 32
    assert file.with_name("journal.db.secret").read_bytes() == database.secret
    await database.close()


# -- on a server --------------------------------------------------------------------------------------


async def test_another_database_behind_the_same_address_is_neither_written_nor_read(postgres, migrated_database):
    """Each new PostgreSQL session is checked for the journal identity that was found at the start."""
    with postgres.fresh_database(migrated_database) as url, postgres.fresh_database() as other_url:
        await (await open_database(other_url)).close()
        database = await open_database(url)
        journal = JournalWriter(database, on_problem=print, limits=IMPATIENT)
        journal.start()
        await journal.intend(keyed(1, "k"))
        names = [address.rpartition("/")[2] for address in (url, other_url)]

        async def swap():
            for old, new in ((names[0], "aside"), (names[1], names[0]), ("aside", names[1])):
                postgres.rename_database(old, new)

        await swap()
        for _ in range(3):
            with pytest.raises(JournalUnavailable):
                await journal.intend(intent(2))
        with pytest.raises(DatabaseUnavailable, match="another database answers at its address"):
            await database.read(lambda _connection: None)
        with pytest.raises(DatabaseUnavailable, match="another database answers at its address"):
            await database.read_reserved(lambda _connection: None)
        assert database.trouble == "another database answers at its address"
        await swap()
        await written(journal)
        for _ in range(100):
            try:
                await journal.intend(intent(3, at=NOW + timedelta(seconds=1)))
                break
            except JournalUnavailable:
                continue
        assert (await Books(database).purchase(job(3))).state is State.PAYING
        assert await Books(database).purchase(job(2)) is None
        assert database.trouble is None
        await journal.close()
        await database.close()
