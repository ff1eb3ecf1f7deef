import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from lcp_gateway.purchase.money import Msat
from lcp_gateway.store.accounts.accounts import Accounts
from lcp_gateway.store.accounts.ledger import Ledger
from lcp_gateway.store.accounts.topups import Topups
from lcp_gateway.store.database.engines import Database, open_database
from lcp_gateway.store.journal.queries import Books
from lcp_gateway.store.journal.writer import JournalLimits, JournalWriter
from tests.store.journals import NOW
from tests.support.postgres import RunningPostgres, postgres  # noqa: F401 - a fixture


async def _migrate(where: str) -> None:
    await (await open_database(where)).close()


async def _no_check(*_arguments: object) -> None:
    """Skip the check for a pooler."""


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory) -> Path:
    """A migrated SQLite file without rows, to be copied."""
    path = tmp_path_factory.mktemp("migrated") / "journal.db"
    asyncio.run(_migrate(str(path)))
    return path


@pytest.fixture(scope="session")
def migrated_database(postgres: RunningPostgres) -> Iterator[str]:  # noqa: F811 - the fixture
    """The name of a migrated PostgreSQL database without rows, to be copied."""
    with postgres.fresh_database() as url:
        asyncio.run(_migrate(url))
        yield url.rpartition("/")[2]


@pytest.fixture
def sqlite_where(tmp_path: Path, migrated_file: Path) -> str:
    return str(shutil.copy(migrated_file, tmp_path / "journal.db"))


@pytest.fixture
def postgres_where(
    postgres: RunningPostgres,  # noqa: F811 - the fixture
    migrated_database: str,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[str]:
    # The check opens three sessions per database; test_postgres_sessions tests it with poolers.
    monkeypatch.setattr("lcp_gateway.store.database.postgres.check_sessions_are_own", _no_check)
    with postgres.lent_database(migrated_database) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def where(request) -> str:
    """The address of an empty database; a test that uses it runs on SQLite and PostgreSQL."""
    kind = "sqlite_where" if request.param == "sqlite" else "postgres_where"
    return request.getfixturevalue(kind)


@pytest.fixture
async def database(where: str) -> AsyncIterator[Database]:
    # On PostgreSQL one look at a lock suffices here; test_postgres_owners tests the waiting time.
    database = await open_database(where, write_timeout_s=60.0, gone_after_s=0)
    yield database
    await database.close()


@pytest.fixture
def problems() -> list:
    return []


@pytest.fixture
async def journal(database: Database, problems: list) -> AsyncIterator[JournalWriter]:
    journal = JournalWriter(database, on_problem=problems.append, limits=JournalLimits(wait_s=60.0))
    journal.start()
    yield journal
    await journal.close()


@pytest.fixture
def books(database: Database) -> Books:
    return Books(database)


@pytest.fixture
def accounts(database: Database) -> Accounts:
    return Accounts(database)


@pytest.fixture
def ledger(database: Database) -> Ledger:
    return Ledger(database)


@pytest.fixture
def topups(database: Database) -> Topups:
    return Topups(database)


@pytest.fixture
def customer(accounts: Accounts, ledger: Ledger):
    """Make a customer with a balance; return the account's id."""

    async def make(balance_msat: int = 10_000) -> str:
        account = await accounts.create("a customer", actor="test", at=NOW)
        if balance_msat:
            await ledger.adjust(account.id, Msat(balance_msat), reason="to begin with", actor="test", at=NOW)
        return account.id

    return make
