"""The tasks that keep a gateway's lock, and resolve the purchases of dead gateways."""

import asyncio
from unittest.mock import Mock

import pytest
import structlog

from lcp_gateway.app.wiring.journal import JournalParts, journal_tasks
from lcp_gateway.purchase.states import State
from lcp_gateway.routing.peer_trust import PeerTrust, TrustRules
from lcp_gateway.store.database.engines import DatabaseUnavailable, open_database
from lcp_gateway.store.journal.queries import Books
from lcp_gateway.store.journal.writer import JournalWriter
from lcp_gateway.telemetry.metrics import Metrics
from tests.store.journals import NOW, PEER, intent, job, written


@pytest.fixture
async def opened(tmp_path):
    """A journal in which another gateway died with one purchase open and one settled."""
    where = tmp_path / "journal.db"
    database = await open_database(where)
    dead = await open_database(where)
    left = JournalWriter(dead, on_problem=print)
    left.start()
    for number in (1, 2):
        await left.intend(intent(number))
    left.record(job(2), State.SETTLED, NOW)
    await written(left)
    await left.close()
    await dead.close()
    stored = JournalWriter(database, on_problem=print)
    stored.start()
    yield JournalParts(stored, Books(database), database, stored)
    await stored.close()
    await database.close()


def tasks_of(journal, trust, log=None):
    log = log or structlog.get_logger()
    return {task.name: task.run for task in journal_tasks(journal, lambda: (), trust, Metrics(), log)}


async def test_purchases_that_a_sweep_moves_on_count_for_their_peer(opened):
    """On PostgreSQL that is after the start, at which each peer's exposure was read from the journal."""
    trust = PeerTrust(TrustRules(), clock=lambda: 0.0)
    sweep = asyncio.create_task(tasks_of(opened, trust)["sweep"]())
    async with asyncio.timeout(60):
        while not trust.standing(PEER).undelivered_msat:
            await asyncio.sleep(0.02)
    sweep.cancel()
    standing = trust.standing(PEER)
    assert (standing.out_msat, standing.undelivered_msat) == (1_000, 1_000)
    assert (await opened.books.purchase(job(1))).state is State.UNKNOWN


async def test_a_replaced_session_is_logged_and_an_unavailable_database_is_suspected(opened, monkeypatch):
    monkeypatch.setattr("lcp_gateway.app.workers._ALIVE_EVERY_S", 0.0)
    beats = iter([False, True, DatabaseUnavailable("the connection was lost"), False])
    done = asyncio.Event()

    async def keep_alive():
        beat = next(beats, None)
        if beat is None:
            done.set()
            return False
        if isinstance(beat, Exception):
            raise beat
        return beat

    log = Mock()
    opened.database = Mock(keep_alive=keep_alive)
    opened.writer = Mock()
    run = tasks_of(opened, PeerTrust(TrustRules()), log)["owner_lock"]
    task = asyncio.create_task(run())
    await asyncio.wait_for(done.wait(), 60)
    task.cancel()
    assert log.warning.call_count == 1
    opened.writer.suspect.assert_called_once_with("the connection was lost")
