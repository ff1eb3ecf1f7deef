"""The keys in memory: refreshed every second, accepted only while that succeeds, and fully reloaded after the database went back in time."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from structlog.testing import capture_logs

from lcp_gateway.accounts import key_sync
from lcp_gateway.accounts.callers import KeyRules, Scope
from lcp_gateway.accounts.key_sync import KeySync
from lcp_gateway.accounts.keys import KeyCache, KeysStale, generate_key
from lcp_gateway.accounts.models import KeyChanges, KeyKind, KeyRecord
from lcp_gateway.store.database.engines import DatabaseUnavailable
from lcp_gateway.telemetry.logs import get_logger

NOW = datetime.now(UTC)
STATIC = "sk-the-operators-own"


class KeyStore:
    """Stands in for the key repository; ``problem`` is raised if set, and a read waits for ``gate``."""

    def __init__(self) -> None:
        self.records: dict[str, KeyRecord] = {}
        self.upto = 0
        self.problem: Exception | None = None
        self.gate: asyncio.Event | None = None
        self.whole_reads = 0

    def make(self) -> str:
        fresh = generate_key()
        self.upto += 1
        key_id = f"key_{self.upto}"
        self.records[key_id] = KeyRecord(
            id=key_id,
            account_id="acct_1",
            key_hash=fresh.hash,
            prefix=fresh.prefix,
            name="k",
            kind=KeyKind.API,
            rules=KeyRules(scopes=frozenset({Scope.INFERENCE})),
            created_at=NOW,
            revoked_at=None,
            change=self.upto,
        )
        return fresh.text

    def revoke(self, key_id: str) -> None:
        self.upto += 1
        self.records[key_id] = replace(self.records[key_id], revoked_at=NOW, change=self.upto)

    async def load_all(self):
        self.whole_reads += 1
        return await self._read(lambda record: record.revoked_at is None)

    async def changed_since(self, number):
        return await self._read(lambda record: record.change > number)

    async def _read(self, wanted):
        found = KeyChanges([record for record in self.records.values() if wanted(record)], self.upto)
        if self.gate is not None:
            await self.gate.wait()
        if self.problem is not None:
            raise self.problem
        return found


@pytest.fixture
def book():
    return KeyStore()


@pytest.fixture
def clock():
    return SimpleNamespace(now=100.0)


@pytest.fixture
def sync(book, clock):
    cache = KeyCache([STATIC], KeyRules(scopes=frozenset({Scope.INFERENCE})))
    return KeySync(
        book, cache, get_logger("test"), unavailable=(DatabaseUnavailable,), stale_s=5.0, clock=lambda: clock.now
    )


async def test_keys_are_accepted_for_the_configured_time_after_the_last_read(sync, book, clock):
    """Regression: a revoked key worked until the next restart, since the age of the list was not checked."""
    key = book.make()
    await sync.load()
    clock.now += 5.0
    assert sync.find(key).account_id == "acct_1"
    clock.now += 0.1
    with pytest.raises(KeysStale, match="5 s ago, and are accepted for 5 s"):
        sync.find(key)
    await sync.refresh()
    assert sync.find(key).account_id == "acct_1"


async def test_a_key_that_is_not_known_may_be_a_new_one_while_the_list_is_old(sync, clock):
    await sync.load()
    assert sync.find("lcpg_none") is None
    clock.now += 6.0
    with pytest.raises(KeysStale):
        sync.find("lcpg_none")


async def test_the_operators_own_keys_need_no_list(sync, clock):
    await sync.load()
    clock.now += 3_600.0
    assert sync.find(STATIC).account_id is None


async def test_before_the_first_read_no_key_of_an_account_is_accepted(sync):
    with pytest.raises(KeysStale):
        sync.find("lcpg_none")


async def test_a_list_is_as_old_as_the_beginning_of_its_read(sync, book, clock):
    """A revocation during the read may be missing from its result."""
    await sync.load()
    book.gate = asyncio.Event()
    reading = asyncio.create_task(sync.refresh())
    await asyncio.sleep(0)
    clock.now += 4.0
    book.gate.set()
    await reading
    assert sync.age_s == 4.0


async def test_the_reason_why_no_key_is_accepted_is_reported(sync, book, clock, monkeypatch):
    monkeypatch.setattr(key_sync, "_READ_EVERY_S", 0.001)
    await sync.load()
    assert list(sync.problems()) == []
    book.problem = DatabaseUnavailable("the database does not answer in time")
    with capture_logs() as logs:
        sync._log = get_logger("test")
        running = asyncio.create_task(sync.run())
        clock.now += 7.0
        async with asyncio.timeout(60):
            while "in time" not in "".join(sync.problems()):
                await asyncio.sleep(0.001)
        (problem,) = sync.problems()
        assert problem == (
            "the keys of accounts were last read 7 s ago, and are accepted for 5 s (keys_stale_s): "
            "the database does not answer in time"
        )
        book.problem = None
        async with asyncio.timeout(60):
            while list(sync.problems()):
                await asyncio.sleep(0.001)
        running.cancel()
    told = [line["event"] for line in logs]
    assert told == ["keys cannot be refreshed", "keys are read again"], "once each"


async def test_an_error_that_is_no_absence_ends_the_task_for_its_supervisor(sync, book, monkeypatch):
    monkeypatch.setattr(key_sync, "_READ_EVERY_S", 0.001)
    book.problem = OverflowError()
    with pytest.raises(OverflowError):
        await asyncio.wait_for(sync.run(), 60)


async def test_after_the_database_went_back_in_time_all_keys_are_read_again(sync, book):
    """Regression: after a failover to a standby that lagged behind, change numbers were reused, and a revocation was missed."""
    first = book.make()
    lost = [book.make() for _ in range(3)]
    await sync.load()
    for key_id in ("key_2", "key_3", "key_4"):
        del book.records[key_id]
    book.upto = 1
    book.revoke("key_1")
    await sync.refresh()
    assert book.whole_reads == 2
    assert [sync.find(key) for key in (first, *lost)] == [None] * 4


async def test_other_settings_hold_at_once(sync, book, clock):
    key = book.make()
    await sync.load()
    clock.now += 8.0
    sync.use(["another"], 10.0)
    assert sync.find(key) is not None
    assert sync.find("another") is not None and sync.find(STATIC) is None


async def test_a_change_made_here_is_told_once_it_is_read_and_one_made_elsewhere_is_read_at_once(book, monkeypatch):
    """Regression: a key that one worker had made was unknown to the others for up to a second."""
    monkeypatch.setattr(key_sync, "_READ_EVERY_S", 3_600.0)
    sync = KeySync(book, KeyCache([], None), get_logger("test"), unavailable=(DatabaseUnavailable,), stale_s=60.0)
    await sync.load()
    told = []
    sync.on_change = lambda: told.append(sync.find(fresh) is not None)
    fresh = book.make()
    await sync.changed()
    assert told == [True]
    reading = asyncio.create_task(sync.run())
    other = book.make()
    sync.refresh_soon()
    async with asyncio.timeout(60):
        while sync.find(other) is None:
            await asyncio.sleep(0.001)
    reading.cancel()
    await asyncio.wait([reading])
    assert told == [True]
