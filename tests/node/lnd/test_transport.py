"""The transport over lnd: peers and messages as they come, and a break that is always noticed."""

import asyncio
from contextlib import aclosing

import grpc
import pytest

from lcp_gateway.lightning.lnd.channel import LndAddress
from lcp_gateway.node.lnd.transport import LndTransport
from lcp_gateway.node.ports import LightningAway, MessageReceived, PeerConnected, PeerDisconnected
from tests.support.frozen_proxy import FreezingProxy
from tests.support.lnd_standin import ELSEWHERE, Trouble

MANIFEST = 42_081


@pytest.fixture
async def transport(buyer):
    async with LndTransport(buyer.address) as made:
        yield made


@pytest.fixture
async def remote(seller):
    async with LndTransport(seller.address) as made:
        yield made


async def next_of(events):
    async with asyncio.timeout(60):
        return await anext(events)


async def test_the_identity_comes_with_the_prefix_of_the_networks_invoices(transport, buyer):
    assert await transport.identity() == (buyer.identity, "bcrt")
    buyer.info.chains[0].network = "moon"
    with pytest.raises(LightningAway, match="'moon'"):
        await transport.identity()


async def test_peers_that_are_connected_come_first(transport, seller):
    async with aclosing(transport.events()) as events:
        assert await next_of(events) == PeerConnected(seller.identity, "127.0.0.1:9735")


async def test_subscriptions_are_made_before_the_peers_are_listed(transport, buyer):
    async with aclosing(transport.events()) as events:
        await next_of(events)
    assert set(buyer.calls[1:3]) == {"SubscribeCustomMessages", "SubscribePeerEvents"}
    assert buyer.calls[3:] == ["GetInfo", "ListPeers"]


async def test_peers_go_and_come_back_with_their_address(transport, network, buyer, seller):
    async with aclosing(transport.events()) as events:
        await next_of(events)
        network.disconnect(buyer, seller)
        assert await next_of(events) == PeerDisconnected(seller.identity)
        network.connect(buyer, seller)
        assert await next_of(events) == PeerConnected(seller.identity, "127.0.0.1:9735")


async def test_messages_arrive_in_the_order_of_the_calls(transport, remote, buyer, seller):
    async with aclosing(transport.events()) as events:
        await next_of(events)
        sent = [bytes([at]) * 65_533 for at in range(100)]
        for payload in sent:
            await remote.send(buyer.identity, MANIFEST, payload)
        received = [await next_of(events) for _ in sent]
    assert received == [MessageReceived(seller.identity, MANIFEST, payload) for payload in sent]


async def test_a_message_for_a_peer_that_is_away_is_not_taken(transport, network, buyer, seller):
    network.disconnect(buyer, seller)
    with pytest.raises(LightningAway, match="peer is not connected"):
        await transport.send(seller.identity, MANIFEST, b"")
    await buyer.stop()
    with pytest.raises(LightningAway):
        await transport.send(seller.identity, MANIFEST, b"")


async def test_a_peer_is_disconnected_unless_lnd_has_channels_with_it(transport, network, buyer, seller):
    buyer.channel_peers = {seller.identity}
    with pytest.raises(LightningAway, match="has channels"):
        await transport.disconnect(seller.identity)
    assert network.peers(buyer) == [seller]
    buyer.channel_peers = {ELSEWHERE.public_key.format().hex()}
    await transport.disconnect(seller.identity)
    assert not network.peers(buyer)


async def test_a_peer_is_connected_and_one_that_is_already_is_no_error(transport, network, buyer, seller):
    network.disconnect(buyer, seller, forever=True)
    for _ in range(2):
        await transport.connect(seller.identity, "127.0.0.1:9735")
        assert network.peers(buyer) == [seller]


async def test_why_a_peer_is_not_connected_is_said(transport, network, buyer, seller):
    await seller.stop()
    with pytest.raises(LightningAway, match="connection refused"):
        await transport.connect(seller.identity, "127.0.0.1:9735")
    other = LndAddress(buyer.address.target, buyer.address.tls_cert, buyer.bake("less", "GetInfo"))
    async with LndTransport(other) as refused:
        with pytest.raises(LightningAway, match="permission denied"):
            await refused.connect(seller.identity, "127.0.0.1:9735")


@pytest.mark.parametrize("end", ["stop", "kill"])
async def test_the_end_of_lnd_breaks_the_iterator_and_another_begins_anew(transport, buyer, seller, end):
    async with aclosing(transport.events()) as events:
        await next_of(events)
        await getattr(buyer, end)()
        with pytest.raises(LightningAway):
            await next_of(events)
    async with aclosing(transport.events()) as events:
        with pytest.raises(LightningAway):
            await next_of(events)
    await buyer.start()

    async def begun():
        async with aclosing(transport.events()) as events:
            return await next_of(events)

    async with asyncio.timeout(60):
        while True:
            try:
                assert await begun() == PeerConnected(seller.identity, "127.0.0.1:9735")
                break
            except LightningAway:
                await asyncio.sleep(0.05)


async def test_one_subscription_that_ends_alone_breaks_the_iterator(transport, buyer):
    async with aclosing(transport.events()) as events:
        await next_of(events)
        # In good order, as lnd ends the peer events; the custom messages go on.
        for inbox in buyer.event_inboxes:
            inbox.put_nowait(None)
        with pytest.raises(LightningAway, match="ended the subscription"):
            await next_of(events)


async def test_a_peer_list_that_cannot_be_read_breaks_the_iterator(transport, network, buyer, seller):
    async with aclosing(transport.events()) as events:
        await next_of(events)
        network.disconnect(buyer, seller)
        await next_of(events)
        buyer.troubles["ListPeers"] = Trouble(grpc.StatusCode.UNKNOWN, "server is still in the process of starting")
        network.connect(buyer, seller)
        with pytest.raises(LightningAway, match="in the process of starting"):
            await next_of(events)


async def test_a_connection_that_is_dead_without_an_error_is_noticed(buyer):
    address = buyer.address
    async with FreezingProxy(buyer.port) as proxy:
        through = LndAddress(f"127.0.0.1:{proxy.port}", address.tls_cert, address.macaroon)
        async with LndTransport(through, keepalive_s=5.0) as transport, aclosing(transport.events()) as events:
            await next_of(events)
            proxy.freeze()
            with pytest.raises(LightningAway):
                await next_of(events)


async def test_no_call_stays_open_when_the_iterator_is_closed(transport, buyer):
    async with aclosing(transport.events()) as events:
        await next_of(events)
        assert buyer.message_inboxes and buyer.event_inboxes
    async with asyncio.timeout(60):
        while buyer.message_inboxes or buyer.event_inboxes:
            await asyncio.sleep(0.01)
