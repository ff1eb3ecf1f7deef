"""The background tasks for lnd."""

import asyncio
import contextlib
from contextlib import AsyncExitStack
from types import SimpleNamespace

import pytest

from lcp_gateway.app.background_tasks import BackgroundTasks, Backoff
from lcp_gateway.app.wiring.lnd import LndParts, reconciler_by_node
from lcp_gateway.lightning.lnd.records import LndBalance, LndInfo
from lcp_gateway.lightning.lnd.watcher import LndWatcher
from lcp_gateway.lightning.reconcile import Reconciler, ReconcilerTiming
from lcp_gateway.purchase.money import Msat
from lcp_gateway.routing.peer_trust import PeerTrust, TrustRules
from lcp_gateway.telemetry.logs import get_logger
from lcp_gateway.telemetry.metrics import Metrics
from lcp_gateway.telemetry.observers import LndObserver
from lcp_gateway.upstreams.lcpd.adapter import LocalInfo
from lcp_gateway.upstreams.lcpd.payment_report import PAYMENT_LOOKUP, Software

DAEMON = "02" + "aa" * 32


async def test_an_answer_that_cannot_be_read_ends_neither_the_watch_nor_the_reconciler():
    """Regression: the watcher, the reader of fees and the reconciler were in one task group; any error ended all three for good."""

    class Broken:
        asked = 0

        async def info(self):
            self.asked += 1
            return LndInfo(DAEMON, "a", "0.20", "regtest", True, True, 1, 1, 1, 0, 0)

        async def balance(self):
            if self.asked == 1:
                raise OverflowError("timestamp out of range")
            return LndBalance(Msat(1), Msat(1), Msat(0), Msat(0))

    passes, restarts = [], []

    async def open_payments():
        passes.append(1)
        for payment in ():
            yield payment

    async def unused(*_):
        raise AssertionError("there is no open payment")

    tasks = BackgroundTasks(get_logger("test"), on_restart=restarts.append, backoff=Backoff(first_s=0.01, steady_s=0.0))
    log = get_logger("test")
    watcher = LndWatcher(Broken(), daemon_node_id=lambda: DAEMON, log=log, interval_s=0.01)
    reconciler = Reconciler(
        lookup=unused,
        open_payments=open_payments,
        resolve=unused,
        lnd_pays=lambda: watcher.pays,
        timing=ReconcilerTiming(interval_s=0.01),
    )
    parts = LndParts(watcher, LndObserver(Metrics(), PeerTrust(TrustRules()), log), reconciler=reconciler)
    async with AsyncExitStack() as stack:
        for task in parts.tasks():
            await stack.enter_async_context(tasks.running(task))
        async with asyncio.timeout(60):
            while not parts.report()["reachable"] or len(passes) < 3:
                await asyncio.sleep(0.001)
        assert restarts == ["lnd"]
        assert tasks.report()["reconciler"] == {"up": True, "restarts": 0}


OF_LCPD_GRPCD = LocalInfo(DAEMON, 2)
OLDER = LocalInfo(DAEMON, 2, Software("lcp-gateway", "0.1", frozenset({"payment-report"})))
OURS = LocalInfo(DAEMON, 2, Software("lcp-gateway", "0.2", frozenset({PAYMENT_LOOKUP})))


@pytest.mark.parametrize(
    ("info", "asks"), [(None, False), (OF_LCPD_GRPCD, False), (OLDER, False), (OURS, True)], ids=str
)
async def test_only_a_node_that_knows_payments_is_asked_about_them(info, asks):
    reads = []

    class Books:
        async def unknowns(self, *, limit):
            reads.append(limit)
            return []

    class Counted(Metrics):
        def reconciled(self, outcome):
            raise AssertionError(outcome)

    journal = SimpleNamespace(database=object(), books=Books(), refund_limits=None, on_refund=None)
    parts = {"trust": PeerTrust(TrustRules()), "timeout_s": 1, "metrics": Counted(), "log": get_logger("test")}
    peers = SimpleNamespace(info=info)
    task = reconciler_by_node(None, peers, journal, interval_s=3_600, **parts)

    running = asyncio.create_task(task.run())
    # The first pass waits for nothing.
    for _ in range(20):
        await asyncio.sleep(0)
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    assert bool(reads) is asks


def test_without_a_journal_nothing_is_looked_up():
    journal = SimpleNamespace(database=None, books=None)
    parts = {"trust": None, "timeout_s": 1, "metrics": None, "log": None}
    assert reconciler_by_node(None, None, journal, interval_s=1, **parts) is None
