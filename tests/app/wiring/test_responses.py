import asyncio

import pytest

from lcp_gateway.app.wiring.journal import JournalParts
from lcp_gateway.app.wiring.responses import open_stored_state, store_limits
from lcp_gateway.app.wiring.shared_results import SharedResults
from lcp_gateway.app.workers import purge
from lcp_gateway.config import Settings
from lcp_gateway.http.gateway.api_limits import ApiLimits
from lcp_gateway.http.openai.admission import JobsInFlight
from lcp_gateway.purchase.ports import start_unsupervised
from lcp_gateway.responses.items import Item, ItemKind
from lcp_gateway.responses.store import StoreLimits
from lcp_gateway.store.journal.writer import NullJournal
from lcp_gateway.telemetry.logs import get_logger
from lcp_gateway.telemetry.metrics import Metrics
from tests.support.scripted_peers import world


def kept(**settings):
    metrics = Metrics()
    made = open_stored_state(
        Settings(**settings),
        service=world().service,
        journal=JournalParts(NullJournal()),
        jobs=JobsInFlight(0, metrics),
        metrics=metrics,
        api_limits=ApiLimits(8, 32),
        sharing=SharedResults(None, "", JournalParts(NullJournal()), metrics, start_unsupervised, get_logger("test")),
        log=get_logger("test"),
    )
    return made, metrics


def item(number):
    return Item(ItemKind.RESPONSE, f"resp_{number}", 7, "m", (b"{}",), stream=False)


def value(metrics, name, **labels):
    return metrics.registry.get_sample_value(f"lcpgateway_{name}", labels)


def test_the_settings_say_how_much_is_stored():
    settings = Settings(max_stored_items=3, max_stored_bytes=70_000, stored_for_s=60)
    assert store_limits(settings) == StoreLimits(3, 70_000, 60)
    assert store_limits(Settings()) == StoreLimits(1_000, 67_108_864, 86_400)


async def test_stored_and_dropped_objects_are_counted():
    made, metrics = kept(max_stored_items=2)
    for number in range(3):
        made.store.put("key_1", item(number))
    assert value(metrics, "stored_items") == 2
    assert value(metrics, "stored_bytes") == made.store.held_bytes
    assert value(metrics, "stored_removed_total", why="count") == 1


async def test_without_a_journal_jobs_in_the_background_are_not_written_down():
    made, _ = kept()
    assert await made.background.left("key_1", "resp_bg_1") is None
    assert not await made.background.forget("key_1", "resp_bg_1")


async def test_old_objects_are_dropped_without_a_request(monkeypatch):
    monkeypatch.setattr("lcp_gateway.app.workers._PURGE_EVERY_S", 0.01)
    made, metrics = kept(stored_for_s=1)
    made.store.put("key_1", item(1))
    made.store.use(StoreLimits(10, 10**6, 0.02))
    working = asyncio.ensure_future(purge(made.store))
    async with asyncio.timeout(60):
        while len(made.store):
            await asyncio.sleep(0.005)
    assert value(metrics, "stored_items") == 0
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working
