"""The links of a node: manifests that heal, a Lightning node that breaks off, messages that are no use."""

import asyncio
from unittest.mock import AsyncMock

import pytest

from lcp_gateway.node.lcp.manifests import Limits, own_manifest
from lcp_gateway.node.lcp.messages import Error, Protocol
from lcp_gateway.node.lcp.table import write_message
from lcp_gateway.node.memory.hooks import Hooks
from lcp_gateway.node.ports import LightningAway
from lcp_gateway.node.runtime.bounds import Bounds, Delays
from lcp_gateway.node.runtime.calls import CallFailed
from lcp_gateway.upstream_status import UpstreamStatus
from tests.support import virtual_time
from tests.support.lcp_nodes import RESULT, SOLD, Pair, ScriptedCompute, Side, settle

V02, V03 = Protocol
MANIFESTS = {42081, 42101}


class Wire(Hooks):
    """Keeps the messages that pass, and loses those of ``lost`` types."""

    def __init__(self):
        self.passed, self.lost = [], set()

    def deliveries(self, message):
        self.passed.append(message)
        return () if message.message_type in self.lost else (0.0,)

    def count(self, sender, types=MANIFESTS):
        return sum(one.sender == sender.node_id and one.message_type in types for one in self.passed)


@pytest.mark.parametrize("protocol", Protocol)
@pytest.mark.parametrize("side", ["buyer", "seller"])
def test_a_restart_of_either_side_while_the_link_stays_heals(side, protocol):
    async def scenario():
        async with Pair() as pair:
            await pair.buy(protocol)
            await getattr(pair, side).restart()
            await settle()
            assert (await pair.buy(protocol))[1] == RESULT

    virtual_time.run(scenario())


def test_manifests_do_not_go_on_forever():
    async def scenario():
        wire = Wire()
        async with Pair(hooks=wire) as pair:
            await settle(3_600)
            # One of each version at the start, and the answer to the other's.
            assert wire.count(pair.buyer) <= 4 and wire.count(pair.seller) <= 4

    virtual_time.run(scenario())


def _resending(resend_s):
    return {"delays": Delays(manifest_resend_s=resend_s)}


@pytest.mark.parametrize(("resend_s", "expected"), [(0, 0), (10, 60), (0.001, 600)])
def test_manifests_are_sent_again_as_often_as_the_operator_wants(resend_s, expected):
    async def scenario():
        wire = Wire()
        async with Pair(hooks=wire, seller=_resending(resend_s)) as pair:
            await settle(60)
            wire.passed.clear()
            await settle(600)
            assert wire.count(pair.seller) == expected * len(Protocol)
            # Each of them has one answer, but for those that come as soon as one.
            assert wire.count(pair.buyer) <= wire.count(pair.seller)
            pair.disconnect()
            wire.passed.clear()
            await settle(600)
            assert not wire.passed

    virtual_time.run(scenario())


def test_a_daemon_that_lost_our_manifest_and_says_nothing_gets_it_again():
    async def scenario():
        wire = Wire()
        async with Pair(hooks=wire, buyer=_resending(60)) as pair:
            wire.lost = set(MANIFESTS)
            await pair.seller.stop()
            pair.seller.store._manifests.clear()
            await pair.seller.start()
            await settle(600)
            assert pair.seller.node.ready_peers(V02) == []
            wire.lost = set()
            await settle(60)
            assert len(pair.seller.node.ready_peers(V02)) == 1

    virtual_time.run(scenario())


def test_manifests_that_a_peer_does_not_take_do_not_pile_up():
    async def scenario():
        async with Pair(seller=_resending(10)) as pair:
            pair.seller.lightning.transport.send = AsyncMock(side_effect=LightningAway("the peer takes nothing"))
            await settle(600)
            assert pair.seller.node.figures().queued_messages <= len(Protocol)

    virtual_time.run(scenario())


def test_a_seller_that_sends_its_manifest_from_time_to_time_has_its_time_for_a_quote():
    class Slow(Hooks):
        def deliveries(self, message):
            return (25.0,) if message.message_type == 42085 else (0.0,)

    async def scenario():
        async with Pair(hooks=Slow(), seller=_resending(10)) as pair:
            await settle(60)
            assert (await pair.buy())[1] == RESULT

    virtual_time.run(scenario())


def test_a_peer_that_says_nothing_gets_the_manifest_three_times():
    async def scenario():
        wire = Wire()
        pair = Pair(hooks=wire)
        async with pair:
            await pair.seller.stop()
            wire.passed.clear()
            await pair.buyer.restart()
            await settle(3_600)
            assert wire.count(pair.buyer) == 3 * len(Protocol)

    virtual_time.run(scenario())


def test_a_seller_without_our_manifest_gets_it_and_is_asked_again():
    async def scenario():
        wire = Wire()
        async with Pair(hooks=wire) as pair:
            # The seller's manifests and those of the buyer are lost, as when lcpd-grpcd restarts.
            wire.lost = set(MANIFESTS)
            await pair.seller.stop()
            pair.seller.store._manifests.clear()
            await pair.seller.start()
            await settle(60)
            assert pair.seller.node.ready_peers(V02) == []
            wire.lost = set()
            assert (await pair.buy())[1] == RESULT
            assert pair.seller.seen.refused

    virtual_time.run(scenario())


def test_manifests_are_kept_for_the_next_run_until_the_peer_is_gone():
    async def scenario():
        wire = Wire()
        async with Pair(hooks=wire) as pair:
            wire.lost = set(MANIFESTS)
            await pair.buyer.restart()
            await settle()
            assert [one.peer_id for one in pair.buyer.node.ready_peers(V02)] == [pair.seller.node_id]
            await pair.buyer.stop()
            pair.disconnect()
            await pair.buyer.start()
            await settle(60)
            assert await pair.buyer.store.manifests() == {}
            pair.connect()
            await settle()
            assert pair.buyer.node.ready_peers(V02) == []

    virtual_time.run(scenario())


def test_a_request_that_a_restarting_seller_did_not_hear_is_made_again():
    async def scenario():
        async with Pair() as pair:
            await settle(60)
            await pair.seller.stop()
            asking = asyncio.create_task(pair.quote())
            await settle(3)
            await pair.seller.start()
            before = asyncio.get_running_loop().time()
            await asking
            assert asyncio.get_running_loop().time() - before < 1

    virtual_time.run(scenario())


def test_a_lightning_node_that_restarts_is_listened_to_again():
    async def scenario():
        async with Pair() as pair:
            pair.buyer.lightning.stop()
            await settle(1)
            with pytest.raises(CallFailed) as failed:
                await pair.buyer.node.local_info(V02)
            assert failed.value.status is UpstreamStatus.UNAVAILABLE
            assert not pair.buyer.node.figures().lightning_up
            pair.buyer.lightning.start()
            pair.connect()
            await settle(10)
            assert (await pair.buy())[1] == RESULT
            assert pair.buyer.node.figures().lightning_up

    virtual_time.run(scenario())


def test_a_stream_that_ends_cleanly_is_asked_for_again_and_links_stay():
    async def scenario():
        wire = Wire()
        async with Pair(hooks=wire) as pair:
            for side in (pair.buyer, pair.seller):
                side.lightning.transport.break_streams()
                side.lightning.invoices.break_streams()
            # Nothing of the peers' manifests is heard again.
            wire.lost = set(MANIFESTS)
            await settle(1)
            assert (await pair.buy())[1] == RESULT

    virtual_time.run(scenario())


def test_a_peer_that_left_while_the_stream_was_broken_is_gone():
    async def scenario():
        async with Pair() as pair:
            pair.buyer.lightning.transport.break_streams()
            pair.disconnect()
            await settle(30)
            assert pair.buyer.node.ready_peers(V02) == []
            assert await pair.buyer.store.manifests() == {}

    virtual_time.run(scenario())


def test_messages_that_are_no_use_are_dropped():
    async def scenario():
        async with Pair() as pair:
            send, peer = pair.buyer.lightning.transport.send, pair.seller.node_id
            await send(peer, 42083, b"\xff")
            await send(peer, 42999, b"")
            late = {"protocol_version": 2, "job_id": b"j" * 32, "msg_id": b"m" * 32, "expiry": 1}
            await send(peer, *write_message(V02, Error(**late, code=10, message="no input stream for job")))
            await settle()
            assert pair.seller.seen.dropped == ["undecodable", "unknown type", "unknown job"]
            assert (await pair.buy())[1] == RESULT

    virtual_time.run(scenario())


def test_a_peer_that_cannot_be_sent_away_is_not_sent_away_for_each_message():
    """lnd keeps peers that it has channels with: each message would cost it two calls."""

    async def scenario():
        async with Pair() as pair:
            gate = asyncio.Event()

            async def refuse(_peer_id):
                await gate.wait()
                raise LightningAway("lnd has channels with the peer")

            disconnect = pair.buyer.lightning.transport.disconnect = AsyncMock(side_effect=refuse)
            for _ in range(100):
                await pair.seller.lightning.transport.send(pair.buyer.node_id, 42_080, b"")
            await settle()
            assert disconnect.await_count == 1
            gate.set()
            await settle()
            await pair.seller.lightning.transport.send(pair.buyer.node_id, 42_080, b"")
            await settle()
            assert disconnect.await_count == 2

    virtual_time.run(scenario())


def test_an_unknown_even_type_ends_the_connection():
    async def scenario():
        async with Pair() as pair:
            await pair.buyer.lightning.transport.send(pair.seller.node_id, 42000, b"")
            await settle()
            assert pair.network.peers(pair.seller.node_id) == []

    virtual_time.run(scenario())


def test_a_seller_that_buys_shows_no_models_to_the_peer_that_it_buys_from():
    async def scenario():
        both = {"models": SOLD, "compute": ScriptedCompute()}
        wire = Wire()
        async with Pair(buyer=both, hooks=wire) as pair:
            (seen,) = pair.seller.node.ready_peers(V02)
            assert seen.manifest.tasks
            wire.passed.clear()
            await pair.buy()
            shown = own_manifest(V02, Limits())
            ours = [(one.message_type, one.payload) for one in wire.passed if one.sender == pair.buyer.node_id]
            assert ours[0] == write_message(V02, shown)
            (seen,) = pair.seller.node.ready_peers(V02)
            assert not seen.manifest.tasks
            # Version 0.3 compares methods alone, which both list.
            assert pair.seller.node.ready_peers(V03)[0].manifest.tasks

    virtual_time.run(scenario())


def test_a_manifest_of_another_version_is_told():
    async def scenario():
        async with Pair() as pair:
            other = own_manifest(V02, Limits())
            payload = write_message(V02, other)[1].replace(b"\x01\x02\x00\x02", b"\x01\x02\x00\x07")
            await pair.seller.lightning.transport.send(pair.buyer.node_id, 42081, payload)
            await settle()
            with pytest.raises(CallFailed) as failed:
                await pair.quote()
            assert failed.value.details == "peer protocol_version mismatch"
            assert await pair.quote(V03)

    virtual_time.run(scenario())


def test_a_peer_that_talks_without_pause_does_not_stop_the_node():
    async def scenario():
        async with Pair() as pair:
            stop = asyncio.Event()

            async def talk():
                while not stop.is_set():
                    await pair.buyer.lightning.transport.send(pair.seller.node_id, 42999, b"")
                    await asyncio.sleep(0)

            talking = asyncio.create_task(talk())
            assert (await pair.buy())[1] == RESULT
            stop.set()
            await talking

    virtual_time.run(scenario())


def _manifest_bytes():
    return sum(len(write_message(one, own_manifest(one, Limits(), tuple(SOLD)))[1]) for one in Protocol)


@pytest.mark.parametrize("restarts", [False, True])
def test_manifests_of_all_peers_together_are_bounded(restarts):
    async def scenario():
        buyer = {"bounds": Bounds(manifest_bytes=_manifest_bytes())}
        async with Pair(buyer=buyer) as pair:
            assert (await pair.buy())[1] == RESULT
            if restarts:
                await pair.buyer.restart()
                await settle()
            other = Side(pair.network.node("other", "10.0.0.3:9735"), models=SOLD, compute=ScriptedCompute())
            await other.start()
            pair.network.connect(pair.buyer.lightning, other.lightning)
            await settle()
            ready = [peer.peer_id for protocol in Protocol for peer in pair.buyer.node.ready_peers(protocol)]
            assert ready == [pair.seller.node_id] * len(Protocol)
            assert pair.buyer.seen.dropped == ["too many manifests"] * len(pair.buyer.seen.dropped) != []
            # One that has left makes room.
            pair.disconnect()
            await settle()
            await other.restart()
            await settle()
            ready = [peer.peer_id for protocol in Protocol for peer in pair.buyer.node.ready_peers(protocol)]
            assert ready == [other.node_id] * len(Protocol)
            await other.stop()

    virtual_time.run(scenario())
