"""What the gateway says of its lnd while it runs."""

import asyncio
from contextlib import AsyncExitStack, suppress

import pytest
from structlog.testing import CapturingLogger

from lcp_gateway.app import lnd as lnd_module
from lcp_gateway.app.background_tasks import BackgroundTasks, Backoff
from lcp_gateway.app.lnd import LndWatch
from lcp_gateway.app.wiring.journal import Ledgers
from lcp_gateway.lightning.lnd.client import LndBalance, LndInfo
from lcp_gateway.lightning.lnd.records import LndError
from lcp_gateway.purchase.money import Msat
from lcp_gateway.routing.peer_trust import PeerTrust, TrustRules
from lcp_gateway.store.journal.writer import NullJournal
from lcp_gateway.telemetry.logs import get_logger
from lcp_gateway.telemetry.metrics import Metrics

DAEMON = "02" + "aa" * 32
OTHER = "03" + "bb" * 32


class Node:
    """An lnd that answers as it is told, one answer for each question; the last one for ever."""

    def __init__(self, *identities):
        self.identities = list(identities)
        self.asked = 0

    async def info(self):
        self.asked += 1
        identity = self.identities.pop(0) if len(self.identities) > 1 else self.identities[0]
        if identity is None:
            raise LndError("UNAVAILABLE", "away", retryable=True)
        return LndInfo(identity, "a", "0.20", "regtest", True, True, 1, 1, 1, 0, 0)

    async def balance(self):
        return LndBalance(Msat(1), Msat(1), Msat(0), Msat(0))


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(lnd_module, "_WATCH_S", 0.0)


async def watched(node, *, questions, daemon=lambda: DAEMON):
    """Watch until lnd was asked so often; gives the watch and what it logged."""
    log = CapturingLogger()
    watch = LndWatch(
        node,
        Ledgers(NullJournal()),
        daemon_node_id=daemon,
        standings=PeerTrust(TrustRules()),
        interval_s=30,
        metrics=Metrics(),
        log=log,
    )
    (task,) = watch.tasks()
    running = asyncio.create_task(task.run())
    async with asyncio.timeout(5):
        while node.asked < questions:
            await asyncio.sleep(0)
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    return watch, [call for call in log.calls if call.method_name == "warning"]


async def test_an_lnd_of_another_node_is_warned_about_once_each_time_that_it_becomes_one():
    watch, warnings = await watched(Node(OTHER), questions=5)
    assert watch.report()["pays"] is False
    assert len(warnings) == 1
    assert warnings[0].kwargs == {"lnd_node_id": OTHER, "daemon_node_id": DAEMON}
    _, warnings = await watched(Node(OTHER, OTHER, DAEMON, OTHER, OTHER), questions=6)
    assert len(warnings) == 2


async def test_the_lnd_that_pays_and_one_that_is_away_are_no_warning():
    watch, warnings = await watched(Node(DAEMON), questions=3)
    assert watch.report()["pays"] is True and not warnings
    watch, warnings = await watched(Node(None), questions=3)
    assert watch.report() == {"reachable": False, "problem": "UNAVAILABLE"} and not warnings


async def test_while_the_daemon_is_not_known_nothing_is_said_of_the_node():
    watch, warnings = await watched(Node(OTHER), questions=3, daemon=lambda: "")
    assert watch.report()["pays"] is False and not warnings


async def test_an_answer_that_cannot_be_understood_ends_neither_the_watch_nor_the_reconciler():
    """A2: one group held what watches lnd, what learns fees and the reconciler; any error ended all three for good."""

    class Broken(Node):
        async def balance(self):
            if self.asked == 1:
                raise OverflowError("timestamp out of range")
            return await super().balance()

        async def payment(self, payment_hash):
            raise AssertionError("there is none to ask about")

    class Books:
        """Books without a purchase whose end is open."""

        passes = 0

        async def unknowns(self, *, limit):
            self.passes += 1
            return []

    node, books, restarts = Broken(DAEMON), Books(), []
    tasks = BackgroundTasks(
        get_logger("test"), on_restart=restarts.append, backoff=Backoff(first_s=0.01, steady_s=0.0)
    )
    watch = LndWatch(
        node,
        Ledgers(NullJournal(), books=books),
        daemon_node_id=lambda: DAEMON,
        standings=PeerTrust(TrustRules()),
        interval_s=0.01,
        metrics=Metrics(),
        log=get_logger("test"),
    )
    async with AsyncExitStack() as stack:
        for task in watch.tasks():
            await stack.enter_async_context(tasks.running(task))
        async with asyncio.timeout(5):
            while not watch.report()["reachable"] or books.passes < 3:
                await asyncio.sleep(0.001)
        assert restarts == ["lnd"]
        assert tasks.report()["reconciler"] == {"up": True, "restarts": 0}
