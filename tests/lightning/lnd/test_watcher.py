"""The state of lnd while the gateway runs."""

import asyncio
from contextlib import suppress

import pytest
from structlog.testing import CapturingLogger

from lcp_gateway.lightning.lnd.records import LndBalance, LndError, LndInfo
from lcp_gateway.lightning.lnd.watcher import LndState, LndWatcher
from lcp_gateway.purchase.money import Msat

DAEMON = "02" + "aa" * 32
OTHER = "03" + "bb" * 32


class Node:
    """An lnd with scripted answers, one for each call; the last one is repeated."""

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


async def watched(node, *, questions, daemon=lambda: DAEMON):
    """Watch until lnd was called so often; return the watch and its log."""
    log = CapturingLogger()
    watch = LndWatcher(node, daemon_node_id=daemon, log=log, interval_s=0.0)
    running = asyncio.create_task(watch.run())
    async with asyncio.timeout(60):
        while node.asked < questions:
            await asyncio.sleep(0)
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    return watch, [call for call in log.calls if call.method_name == "warning"]


async def test_an_lnd_of_another_node_is_warned_about_once_each_time_that_it_becomes_one():
    watch, warnings = await watched(Node(OTHER), questions=5)
    assert watch.state.report()["pays"] is False
    assert len(warnings) == 1
    assert warnings[0].kwargs == {"lnd_node_id": OTHER, "daemon_node_id": DAEMON}
    _, warnings = await watched(Node(OTHER, OTHER, DAEMON, OTHER, OTHER), questions=6)
    assert len(warnings) == 2


async def test_the_lnd_that_pays_and_one_that_is_away_are_no_warning():
    watch, warnings = await watched(Node(DAEMON), questions=3)
    assert watch.state.report()["pays"] is True and not warnings
    watch, warnings = await watched(Node(None), questions=3)
    assert watch.state.report() == {"reachable": False, "problem": "UNAVAILABLE"} and not warnings


async def test_while_the_daemon_is_not_known_nothing_is_said_of_the_node():
    watch, warnings = await watched(Node(OTHER), questions=3, daemon=lambda: "")
    assert watch.state.report()["pays"] is False and not warnings


async def test_an_answer_that_cannot_be_read_makes_the_state_unknown_and_is_raised():
    class Broken(Node):
        async def balance(self):
            raise OverflowError("timestamp out of range")

    states = []
    watch = LndWatcher(
        Broken(DAEMON), daemon_node_id=lambda: DAEMON, log=CapturingLogger(), on_state=states.append, interval_s=0.0
    )
    with pytest.raises(OverflowError):
        await watch.run()
    assert states == [LndState(problem="OverflowError")]
    assert watch.state.report() == {"reachable": False, "problem": "OverflowError"}
