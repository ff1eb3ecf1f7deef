"""Peers that the operator names: a node keeps the Lightning node connected with them."""

import asyncio

import pytest

from lcp_gateway.node.ports import LightningAway
from lcp_gateway.node.runtime.connector import Connector
from lcp_gateway.node.runtime.tasks import Tasks
from tests.support import virtual_time
from tests.support.lcp_nodes import RESULT, Pair, Problems, settle


class Calls:
    """A transport that connects with no peer until it is ``open``; it keeps when it was asked."""

    def __init__(self):
        self.times, self.open, self.connected = [], False, False

    async def connect(self, peer_id, address):
        self.times.append(asyncio.get_running_loop().time())
        if not self.open:
            raise LightningAway("connection refused")
        self.connected = True

    @property
    def pauses_s(self):
        return [round(after - before, 3) for before, after in zip(self.times, self.times[1:], strict=False)]


async def connecting(calls, *, chance=0.5):
    """Run a connector for one peer; return its tasks and what it logs."""
    log = Problems()
    tasks = Tasks(log)
    connector = Connector(
        {"peer": "host:1"},
        transport=calls,
        tasks=tasks,
        log=log,
        is_missing=lambda _peer_id: not calls.connected,
        chance=lambda: chance,
    )
    connector.start()
    return tasks, log


@pytest.mark.parametrize("chance", [0.0, 0.5, 1.0])
def test_a_peer_that_cannot_be_reached_is_called_at_longer_and_longer_intervals(chance):
    async def scenario():
        calls = Calls()
        tasks, log = await connecting(calls, chance=chance)
        await settle(1_000)
        factor = 0.5 + chance
        assert calls.times[0] == factor
        assert calls.pauses_s[:8] == [factor * pause for pause in (2, 4, 8, 16, 32, 60, 60, 60)]
        assert log.unreached == [("peer", "connection refused")] * len(calls.times)
        await tasks.close()

    virtual_time.run(scenario())


def test_after_a_connection_the_pauses_begin_anew():
    async def scenario():
        calls = Calls()
        tasks, _ = await connecting(calls)
        await settle(1_000)
        calls.open = True
        await settle(200)
        assert calls.connected
        calls.connected = calls.open = False
        calls.times.clear()
        lost_at = asyncio.get_running_loop().time()
        await settle(20)
        assert calls.times[0] - lost_at <= 1 and calls.pauses_s[:2] == [2, 4]
        await tasks.close()

    virtual_time.run(scenario())


def test_a_call_that_connects_with_no_peer_is_not_repeated_without_pause():
    async def scenario():
        calls = Calls()
        calls.open = True
        tasks, _ = await connecting(calls)
        await settle(1)
        # It says that they are connected, and no such event comes.
        calls.connected = False
        connect = calls.connect

        async def without_effect(peer_id, address):
            await connect(peer_id, address)
            calls.connected = False

        calls.connect = without_effect
        calls.times.clear()
        await settle(1_000)
        assert calls.pauses_s[:6] == [2, 4, 8, 16, 32, 60]
        await tasks.close()

    virtual_time.run(scenario())


def named(pair):
    pair.buyer.settings["connect_with"] = {pair.seller.node_id: pair.seller.lightning.address}
    return pair


def test_a_node_connects_with_a_peer_at_its_start_and_after_each_loss():
    async def scenario():
        pair = named(Pair())
        await pair.seller.start()
        await pair.buyer.start()
        try:
            await settle(3)
            assert (await pair.buy())[1] == RESULT
            pair.disconnect()
            await settle(3)
            assert (await pair.buy())[1] == RESULT
        finally:
            await pair.__aexit__()

    virtual_time.run(scenario())


def test_a_peer_is_connected_again_when_the_lightning_node_is_back():
    async def scenario():
        async with named(Pair()) as pair:
            pair.buyer.lightning.stop()
            await settle(600)
            # It is not called while it is away.
            assert pair.buyer.seen.unreached == []
            pair.buyer.lightning.start()
            await settle(10)
            assert (await pair.buy())[1] == RESULT

    virtual_time.run(scenario())


def test_a_peer_that_comes_back_late_is_found():
    async def scenario():
        async with named(Pair()) as pair:
            pair.seller.lightning.stop()
            await settle(600)
            assert {reason for _, reason in pair.buyer.seen.unreached} == {"connection refused"}
            pair.seller.lightning.start()
            await settle(100)
            assert (await pair.buy())[1] == RESULT

    virtual_time.run(scenario())


def test_peers_that_are_not_named_are_left_to_the_operator():
    async def scenario():
        async with Pair() as pair:
            pair.disconnect()
            await settle(600)
            assert pair.network.peers(pair.buyer.node_id) == []

    virtual_time.run(scenario())
