"""Opening a database: tables are created once, migrated, and never by two processes at a time."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text

from lcp_gateway.store.database.engines import BadDatabaseUrl, DatabaseUnavailable, open_database
from lcp_gateway.store.database.schema import HEAD, TooNew, metadata
from lcp_gateway.store.database.sqlite_files import OwnerLocks

ROOT = Path(__file__).parents[3]

OPEN = """
import asyncio, sys
from lcp_gateway.store.database.engines import open_database

async def main():
    database = await open_database(sys.argv[1], busy_timeout_s=60.0, write_timeout_s=60.0)
    await database.close()
    print("alembic" if "alembic" in sys.modules else "plain")

asyncio.run(main())
"""


def opener(where: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", OPEN, where], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_where(request, tmp_path):
    if request.param == "sqlite":
        yield str(tmp_path / "new" / "journal.db")
    else:
        with request.getfixturevalue("postgres").fresh_database() as url:
            yield url


def test_the_newest_step_is_the_one_that_the_tables_name():
    config = Config()
    config.set_main_option("script_location", "lcp_gateway.store.database:migrations")
    assert ScriptDirectory.from_config(config).get_current_head() == HEAD


async def test_the_steps_lead_to_the_tables_of_the_program(empty_where):
    database = await open_database(empty_where)
    differences = await database.read(
        lambda connection: compare_metadata(MigrationContext.configure(connection), metadata)
    )
    await database.close()
    assert differences == []


def test_processes_that_start_at_once_do_not_collide(empty_where):
    processes = [opener(empty_where) for _ in range(4)]
    outcomes = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, outcomes


def test_a_start_with_nothing_to_migrate_does_not_import_alembic(where):
    out, err = opener(where).communicate(timeout=240)
    assert out.startswith("plain"), err


async def test_tables_of_a_newer_gateway_are_left_alone(where):
    database = await open_database(where)
    await database.write(lambda connection: connection.execute(text("UPDATE alembic_version SET version_num='9999'")))
    await database.close()
    with pytest.raises(TooNew, match="9999"):
        await open_database(where)


async def test_a_failed_transaction_leaves_nothing(database):
    def work(connection):
        connection.execute(text("INSERT INTO budget_spend VALUES ('s', 1, 'day', 5)"))
        raise KeyError("work")

    with pytest.raises(KeyError):
        await database.write(work)
    count = await database.read(
        lambda connection: connection.execute(text("SELECT count(*) FROM budget_spend")).scalar()
    )
    assert count == 0


async def test_a_sqlite_file_is_for_its_owner_alone_and_commits_to_the_disk(tmp_path):
    path = tmp_path / "state" / "journal.db"
    database = await open_database(f"sqlite:///{path}")
    pragmas = await database.write(
        lambda connection: [
            connection.execute(text(f"PRAGMA {name}")).scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        ]
    )
    assert pragmas == ["wal", 2, 1]
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    await database.close()


async def test_a_folder_that_cannot_be_written_is_a_clear_error():
    # Not a folder without permission, since root could write to it.
    with pytest.raises(DatabaseUnavailable):
        await open_database("/proc/self/journal.db")


@pytest.mark.parametrize("address", ["mysql://localhost/x", "sqlite://", "sqlite:///:memory:", "://", "foo://%%"])
async def test_an_address_that_cannot_be_used_is_a_clear_error(address):
    with pytest.raises(BadDatabaseUrl):
        await open_database(address)


async def test_tls_is_asked_for_by_its_usual_name(postgres):
    # The tests' server has no TLS: any other value of ssl would be an error as well.
    database = await open_database(f"{postgres.url()}?sslmode=prefer")
    await database.close()
    with pytest.raises(DatabaseUnavailable):
        await open_database(f"{postgres.url()}?sslmode=require")


def test_a_lock_is_free_when_its_holder_releases_it(tmp_path):
    mine, yours = OwnerLocks(tmp_path, "a" * 16), OwnerLocks(tmp_path, "b" * 16)
    mine.hold()
    yours.hold()
    assert not mine.is_gone("a" * 16)
    assert not mine.is_gone("b" * 16)
    yours.drop()
    assert mine.is_gone("b" * 16)
    assert mine.is_gone("../../etc/passwd")
    mine.drop()
    assert list(tmp_path.iterdir()) == []


def test_lock_files_of_dead_processes_are_removed_and_those_of_living_ones_are_not(tmp_path):
    mine, yours = OwnerLocks(tmp_path, "a" * 16), OwnerLocks(tmp_path, "b" * 16)
    mine.hold()
    yours.hold()
    (tmp_path / f"{'c' * 16}.lock").write_text("")
    mine.forget_gone()
    assert {path.stem for path in tmp_path.iterdir()} == {"a" * 16, "b" * 16}
    mine.drop()
    yours.drop()


async def test_work_in_the_background_goes_on_while_a_transaction_runs(database):
    ticks = 0

    async def tick():
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    ticking = asyncio.create_task(tick())
    await database.write(lambda connection: connection.execute(text("SELECT 1")).scalar())
    ticking.cancel()
    assert ticks > 1
