import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from lcp_gateway.store.engine import Database, open_database
from lcp_gateway.store.journal import StoredJournal
from lcp_gateway.store.queries import Books
from tests.support.postgres import RunningPostgres, postgres  # noqa: F401 - a fixture


async def _migrate(where: str) -> None:
    await (await open_database(where)).close()


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory) -> Path:
    """A SQLite file with its tables and nothing in them, to be copied."""
    path = tmp_path_factory.mktemp("migrated") / "journal.db"
    asyncio.run(_migrate(str(path)))
    return path


@pytest.fixture(scope="session")
def migrated_database(postgres: RunningPostgres) -> Iterator[str]:  # noqa: F811 - the fixture
    """The name of a PostgreSQL database with its tables and nothing in them, to be copied."""
    with postgres.fresh_database() as url:
        asyncio.run(_migrate(url))
        yield url.rpartition("/")[2]


@pytest.fixture
def sqlite_where(tmp_path: Path, migrated_file: Path) -> str:
    return str(shutil.copy(migrated_file, tmp_path / "journal.db"))


@pytest.fixture
def postgres_where(postgres: RunningPostgres, migrated_database: str) -> Iterator[str]:  # noqa: F811 - the fixture
    with postgres.fresh_database(migrated_database) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def where(request) -> str:
    """The address of a database without purchases; a test that takes it runs on both kinds."""
    kind = "sqlite_where" if request.param == "sqlite" else "postgres_where"
    return request.getfixturevalue(kind)


@pytest.fixture
async def database(where: str) -> AsyncIterator[Database]:
    database = await open_database(where)
    yield database
    await database.close()


@pytest.fixture
def problems() -> list:
    return []


@pytest.fixture
async def journal(database: Database, problems: list) -> AsyncIterator[StoredJournal]:
    journal = StoredJournal(database, on_problem=problems.append)
    journal.start()
    yield journal
    await journal.close()


@pytest.fixture
def books(database: Database) -> Books:
    return Books(database)
