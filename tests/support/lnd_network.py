"""Several small lnds that are each other's peers: custom messages, payments between them, hold invoices.

Built on ``LndStandin``; each can be stopped, killed and started again, and keeps its data. A peer that an lnd was connected
with is connected again when both run, as lnd does for those it has channels with.
"""

import asyncio
import contextlib
import hashlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from coincurve import PrivateKey

from tests.support.lnd_standin import (
    CANCELED,
    FAILED,
    LN,
    OPEN,
    SETTLED,
    STUBS,
    LightningCalls,
    LndStandin,
    RouterCalls,
    settled,
    unfinished,
)

INVOICES = STUBS.invoices
ACCEPTED = 3
NO_ROUTE = 2
INCORRECT_PAYMENT_DETAILS = 4
FIRST_CUSTOM_TYPE = 32_768
LONGEST_MESSAGE = 65_533


@dataclass
class LndNode(LndStandin):
    """One lnd of a network; ``channel_peers`` are the ids of the peers that it has channels with."""

    network: "LndNetwork | None" = None
    channel_peers: set[str] = field(default_factory=set)

    def __post_init__(self):
        super().__post_init__()
        self.message_inboxes: set[asyncio.Queue] = set()
        self.event_inboxes: set[asyncio.Queue] = set()
        # What goes on with a payment that is held: True to deliver it, False to fail it.
        self.released: dict[bytes, asyncio.Future[bool]] = {}

    def add_services(self, server) -> None:
        STUBS.lightning_grpc.add_LightningServicer_to_server(
            type("Lightning", (_Lightning, STUBS.lightning_grpc.LightningServicer), {})(self), server
        )
        STUBS.invoices_grpc.add_InvoicesServicer_to_server(
            type("Invoices", (_Invoices, STUBS.invoices_grpc.InvoicesServicer), {})(self), server
        )
        STUBS.router_grpc.add_RouterServicer_to_server(
            type("Router", (RouterCalls, STUBS.router_grpc.RouterServicer), {})(self), server
        )

    async def start(self) -> None:
        await super().start()
        self.network.join(self)

    async def stop(self) -> None:
        self.network.leave(self)
        for inbox in (*self.message_inboxes, *self.event_inboxes):
            inbox.put_nowait(None)
        await super().stop()

    async def kill(self) -> None:
        self.network.leave(self)
        await super().kill()

    def release(self, payment_hash: bytes, *, settle: bool) -> None:
        """Let a payment that is held go on to the payee, or fail it."""
        self.released[payment_hash].set_result(settle)

    async def _go(self, asked, way: str) -> None:
        payee = self.network.by_identity.get(asked.payee)
        if payee is None or way not in {"settle", "answer_lost", "hold"}:
            await super()._go(asked, way)
            return
        payment_hash = asked.payment_hash
        await asyncio.sleep(self.payment_delay_s)
        if way == "hold":
            self.released[payment_hash] = asyncio.get_running_loop().create_future()
            if not await self.released[payment_hash]:
                self.fail(payment_hash, NO_ROUTE)
                return
        if not payee._running:
            self.fail(payment_hash, NO_ROUTE)
            return
        preimage = await payee.take(payment_hash, asked.amount_msat)
        if preimage is None:
            self.fail(payment_hash, INCORRECT_PAYMENT_DETAILS)
        else:
            self.payments[payment_hash] = settled(
                preimage, value_msat=asked.amount_msat, fee_msat=self.payment_fee_msat
            )

    def fail(self, payment_hash: bytes, reason: int) -> None:
        value_msat = self.payments[payment_hash].value_msat
        self.payments[payment_hash] = unfinished(
            payment_hash, status=FAILED, failure_reason=reason, value_msat=value_msat
        )

    async def take(self, payment_hash: bytes, amount_msat: int) -> bytes | None:
        """Take a payment for one of its invoices: the preimage; None where it turns it down."""
        invoice = self.invoice(payment_hash)
        if invoice is None or invoice.state != OPEN or amount_msat < invoice.value_msat:
            return None
        if invoice.r_preimage:
            await self.settle(payment_hash, paid_msat=amount_msat)
            return invoice.r_preimage
        invoice.state = ACCEPTED
        invoice.amt_paid_msat = amount_msat
        await self._announce()
        async with self._changed:
            await self._changed.wait_for(lambda: invoice.state != ACCEPTED)
        return invoice.r_preimage if invoice.state == SETTLED else None

    async def decide(self, invoice, *, preimage: bytes | None) -> None:
        """Settle a hold invoice, or cancel an invoice."""
        if preimage is None:
            invoice.state = CANCELED
        else:
            invoice.settle_index = 1 + max(it.settle_index for it in self.invoices)
            invoice.settle_date = int(time.time())
            invoice.r_preimage = preimage
            invoice.state = SETTLED
        await self._announce()


@dataclass
class LndNetwork:
    """The lnds and their connections. ``lost`` decides of a message that was sent whether it is lost on its way.

    ``run`` runs a coroutine of theirs for a test without a loop, while they live ``in_a_thread``.
    """

    directory: Path
    by_identity: dict[str, LndNode] = field(default_factory=dict)
    wanted: set[frozenset[str]] = field(default_factory=set)
    connected: set[frozenset[str]] = field(default_factory=set)
    lost: Callable[[LndNode, LndNode, int, bytes], bool] = lambda *_message: False
    sent: Counter[int] = field(default_factory=Counter)
    run: Callable[[Coroutine[Any, Any, Any]], Any] | None = None

    async def add(self, name: str) -> LndNode:
        """Make an lnd and start it."""
        directory = self.directory / name
        directory.mkdir()
        key = PrivateKey(hashlib.sha256(name.encode()).digest())
        node = LndNode(directory, key=key, network=self)
        node.info.alias = name
        self.by_identity[node.identity] = node
        await node.start()
        return node

    def connect(self, one: LndNode, other: LndNode, *, permanent: bool = True) -> None:
        """Make two of them peers, now if both run, and if it is ``permanent`` whenever they do."""
        link = frozenset((one.identity, other.identity))
        if permanent:
            self.wanted.add(link)
        if one._running and other._running and link not in self.connected:
            self.connected.add(link)
            self._tell(one, other, online=True)
            self._tell(other, one, online=True)

    def disconnect(self, one: LndNode, other: LndNode, *, forever: bool = False) -> None:
        """Drop their connection, until ``connect`` or, unless ``forever``, a restart of one of them."""
        link = frozenset((one.identity, other.identity))
        if forever:
            self.wanted.discard(link)
        if link in self.connected:
            self.connected.remove(link)
            self._tell(one, other, online=False)
            self._tell(other, one, online=False)

    def join(self, node: LndNode) -> None:
        for peer in self._linked(node, self.wanted):
            self.connect(node, peer)

    def leave(self, node: LndNode) -> None:
        """Take an lnd that stops from its peers; it tells its own clients nothing of that any more."""
        for peer in self._linked(node, self.connected):
            self.connected.remove(frozenset((node.identity, peer.identity)))
            self._tell(peer, node, online=False)

    def peers(self, node: LndNode) -> list[LndNode]:
        """Return the peers that it is connected with."""
        return self._linked(node, self.connected)

    def _linked(self, node: LndNode, links: set[frozenset[str]]) -> list[LndNode]:
        mine = [link for link in links if node.identity in link]
        return [self.by_identity[other] for link in mine for other in link if other != node.identity]

    @staticmethod
    def _tell(node: LndNode, peer: LndNode, *, online: bool) -> None:
        kind = LN.PeerEvent.PEER_ONLINE if online else LN.PeerEvent.PEER_OFFLINE
        for inbox in node.event_inboxes:
            inbox.put_nowait(LN.PeerEvent(pub_key=peer.identity, type=kind))


class _Lightning(LightningCalls):
    async def ListPeers(self, request, context):  # noqa: N802 - lnd's name
        await self._lnd.admit("ListPeers", context)
        peers = self._lnd.network.peers(self._lnd)
        return LN.ListPeersResponse(peers=[LN.Peer(pub_key=it.identity, address="127.0.0.1:9735") for it in peers])

    async def SubscribePeerEvents(self, request, context):  # noqa: N802 - lnd's name
        await self._lnd.admit("SubscribePeerEvents", context)
        async for event in _follow(self._lnd.event_inboxes):
            yield event

    async def SubscribeCustomMessages(self, request, context):  # noqa: N802 - lnd's name
        await self._lnd.admit("SubscribeCustomMessages", context)
        async for message in _follow(self._lnd.message_inboxes):
            yield message
        await context.abort(grpc.StatusCode.UNKNOWN, "shutdown")

    async def SendCustomMessage(self, request, context):  # noqa: N802 - lnd's name
        lnd = self._lnd
        await lnd.admit("SendCustomMessage", context)
        if len(request.peer) != 33:
            text = f"invalid vertex length of {len(request.peer)}, want 33"
            await context.abort(grpc.StatusCode.UNKNOWN, text)
        peer = next((it for it in lnd.network.peers(lnd) if it.identity == request.peer.hex()), None)
        if peer is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "peer is not connected")
        if request.type < FIRST_CUSTOM_TYPE or len(request.data) > LONGEST_MESSAGE:
            await context.abort(grpc.StatusCode.UNKNOWN, "msg type not in custom range, or too long")
        lnd.network.sent[request.type] += 1
        if not lnd.network.lost(lnd, peer, request.type, request.data):
            message = LN.CustomMessage(peer=bytes.fromhex(lnd.identity), type=request.type, data=request.data)
            for inbox in peer.message_inboxes:
                inbox.put_nowait(message)
        return LN.SendCustomMessageResponse()

    async def ListChannels(self, request, context):  # noqa: N802 - lnd's name
        await self._lnd.admit("ListChannels", context)
        peers = [it for it in self._lnd.channel_peers if request.peer.hex() in {"", it}]
        return LN.ListChannelsResponse(channels=[LN.Channel(remote_pubkey=it, active=True) for it in peers])

    async def ConnectPeer(self, request, context):  # noqa: N802 - lnd's name
        lnd = self._lnd
        await lnd.admit("ConnectPeer", context)
        peer = lnd.network.by_identity.get(request.addr.pubkey)
        if peer is None or not peer._running:
            await context.abort(grpc.StatusCode.UNKNOWN, "dial tcp: connect: connection refused")
        if peer in lnd.network.peers(lnd):
            await context.abort(grpc.StatusCode.UNKNOWN, f"already connected to peer: {peer.identity}")
        # Without a channel: a restart of either of them ends it.
        lnd.network.connect(lnd, peer, permanent=False)
        return LN.ConnectPeerResponse()

    async def DisconnectPeer(self, request, context):  # noqa: N802 - lnd's name
        lnd = self._lnd
        await lnd.admit("DisconnectPeer", context)
        peer = next((it for it in lnd.network.peers(lnd) if it.identity == request.pub_key), None)
        if peer is None:
            text = f"unable to disconnect peer: peer {request.pub_key} is not connected"
            await context.abort(grpc.StatusCode.UNKNOWN, text)
        # Channels or not: and it does not connect again by itself.
        lnd.network.disconnect(lnd, peer, forever=True)
        return LN.DisconnectPeerResponse()


class _Invoices:
    def __init__(self, lnd: LndNode):
        self._lnd = lnd

    async def AddHoldInvoice(self, request, context):  # noqa: N802 - lnd's name
        await self._lnd.admit("AddHoldInvoice", context)
        await _check_hash(request.hash, context)
        if request.value and request.value_msat:
            await context.abort(grpc.StatusCode.UNKNOWN, "value and value_msat are mutually exclusive")
        if self._lnd.invoice(request.hash) is not None:
            await context.abort(grpc.StatusCode.UNKNOWN, "invoice with payment hash already exists")
        invoice = await self._lnd.add(request, held_hash=request.hash)
        return INVOICES.AddHoldInvoiceResp(payment_request=invoice.payment_request, add_index=invoice.add_index)

    async def SettleInvoice(self, request, context):  # noqa: N802 - lnd's name
        await self._lnd.admit("SettleInvoice", context)
        await _check_hash(request.preimage, context)
        invoice = await self._find(hashlib.sha256(request.preimage).digest(), context)
        if invoice.state == OPEN:
            await context.abort(grpc.StatusCode.UNKNOWN, "invoice still open")
        if invoice.state == CANCELED:
            await context.abort(grpc.StatusCode.UNKNOWN, "invoice already canceled")
        if invoice.state == ACCEPTED:
            await self._lnd.decide(invoice, preimage=request.preimage)
        return INVOICES.SettleInvoiceResp()

    async def CancelInvoice(self, request, context):  # noqa: N802 - lnd's name
        await self._lnd.admit("CancelInvoice", context)
        await _check_hash(request.payment_hash, context)
        invoice = await self._find(request.payment_hash, context)
        if invoice.state == SETTLED:
            await context.abort(grpc.StatusCode.UNKNOWN, "invoice already settled")
        if invoice.state != CANCELED:
            await self._lnd.decide(invoice, preimage=None)
        return INVOICES.CancelInvoiceResp()

    async def SubscribeSingleInvoice(self, request, context):  # noqa: N802 - lnd's name
        """Send an invoice's state and its changes, until it is settled or canceled, by its expiry too."""
        lnd = self._lnd
        await lnd.admit("SubscribeSingleInvoice", context)
        await _check_hash(request.r_hash, context)
        state = None
        async with lnd._changed:
            while lnd._running and (invoice := lnd.invoice(request.r_hash)) is None:
                await lnd._changed.wait()
        while lnd._running:
            if invoice.state != state:
                state = invoice.state
                yield invoice
            if state in {SETTLED, CANCELED}:
                return
            async with lnd._changed:
                left_s = invoice.creation_date + invoice.expiry - time.time() if state == OPEN else None
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(left_s):
                        if invoice.state == state and lnd._running:
                            await lnd._changed.wait()
            lnd.invoice(request.r_hash)

    async def _find(self, payment_hash, context):
        invoice = self._lnd.invoice(payment_hash)
        if invoice is None:
            await context.abort(grpc.StatusCode.UNKNOWN, "unable to locate invoice")
        return invoice


async def _check_hash(value, context):
    if len(value) != 32:
        await context.abort(grpc.StatusCode.UNKNOWN, f"invalid hash length of {len(value)}, want 32")


async def _follow(inboxes):
    """Yield what comes into an inbox, until lnd stops."""
    inbox = asyncio.Queue()
    inboxes.add(inbox)
    try:
        while (item := await inbox.get()) is not None:
            yield item
    finally:
        inboxes.discard(inbox)


@contextlib.contextmanager
def in_a_thread(directory: Path, *names: str) -> Iterator[LndNetwork]:
    """Run a network of lnds, all peers of each other, for a test without a loop of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="lnds", daemon=True)
    thread.start()
    network = LndNetwork(directory)

    def run(work):
        return asyncio.run_coroutine_threadsafe(work, loop).result(60)

    network.run = run
    try:
        nodes = [run(network.add(name)) for name in names]

        async def connect():
            for at, node in enumerate(nodes):
                for peer in nodes[at + 1 :]:
                    network.connect(node, peer)

        run(connect())
        try:
            yield network
        finally:
            for node in nodes:
                if node._running:
                    run(node.stop())
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(60)
        loop.close()
