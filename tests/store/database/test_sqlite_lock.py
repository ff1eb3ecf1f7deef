"""The write lock of a file that several processes write: it is asked for so often that another's writes leave a gap for it."""

import sqlite3

import pytest

from lcp_gateway.store.database import sqlite
from lcp_gateway.store.database.engines import DatabaseUnavailable, open_database
from lcp_gateway.store.database.sqlite import SqliteDatabase


@pytest.fixture
def file(tmp_path):
    return tmp_path / "journal.db"


@pytest.fixture
async def other(file):
    """The lock, held by another connection."""
    await (await open_database(file)).close()
    connection = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    connection.execute("BEGIN IMMEDIATE")
    yield connection
    connection.close()


@pytest.fixture
def pauses(other, monkeypatch):
    """The pauses between the tries, of which the other connection ends its transaction in the hundredth."""
    found = []

    def pause(seconds):
        found.append(seconds)
        if len(found) == 100:
            other.execute("ROLLBACK")

    monkeypatch.setattr(sqlite, "_pause", pause)
    return found


async def test_a_gateway_starts_beside_one_that_writes_all_the_time(file, pauses):
    """Regression: SQLite's own waiting tries ten times a second at most, and another gateway under load kept a start from it."""
    await (await open_database(file, busy_timeout_s=60)).close()
    assert len(pauses) == 100
    assert max(pauses) <= 0.002


async def test_a_write_waits_for_its_time_out_and_no_longer(file, other, monkeypatch):
    clock = [1_000.0]
    monkeypatch.setattr(sqlite, "_clock", lambda: clock[0])

    def pause(_seconds):
        clock[0] += 0.5

    monkeypatch.setattr(sqlite, "_pause", pause)
    began_at = clock[0]
    with pytest.raises(DatabaseUnavailable, match="locked"):
        await SqliteDatabase.open(file, busy_timeout_s=3.0)
    assert clock[0] - began_at == 3.0
