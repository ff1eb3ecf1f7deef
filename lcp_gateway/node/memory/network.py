"""The network in which simulated Lightning nodes meet: links between them, messages on the links, payments."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from typing import Final

from coincurve import PrivateKey

from lcp_gateway.node.config import derive_key
from lcp_gateway.node.memory.hooks import Hooks, PassingMessage
from lcp_gateway.node.memory.invoices import MemoryInvoices
from lcp_gateway.node.memory.payments import MemoryPayments
from lcp_gateway.node.ports import LightningAway, MessageReceived, PeerConnected, PeerDisconnected, TransportEvent

MAX_WAITING: Final = 100_000
"""How many events wait for a reader; its stream breaks beyond it."""


class MemoryTransport:
    """The transport port of one node: what no stream of events reads is lost, as with lnd."""

    def __init__(self, network: "Network", node_id: str) -> None:
        self.is_away = False
        self._network = network
        self._node_id = node_id
        # None breaks a stream.
        self._streams: set[asyncio.Queue[TransportEvent | None]] = set()

    async def identity(self) -> tuple[str, str]:
        """Return the node's id and the prefix of the network's invoices."""
        self._check()
        return self._node_id, self._network.prefix

    async def events(self) -> AsyncGenerator[TransportEvent, None]:
        """Return peers and messages as they come, those connected already first."""
        self._check()
        stream: asyncio.Queue[TransportEvent | None] = asyncio.Queue()
        for peer_id in self._network.peers(self._node_id):
            stream.put_nowait(PeerConnected(peer_id, self._network.nodes[peer_id].address))
        self._streams.add(stream)
        try:
            while (event := await stream.get()) is not None:
                yield event
        finally:
            self._streams.discard(stream)
        raise LightningAway("the stream of messages has ended")

    async def send(self, peer_id: str, message_type: int, payload: bytes) -> None:
        """Send a message over the link with a peer."""
        self._check()
        if not self._network.carry(PassingMessage(self._node_id, peer_id, message_type, payload)):
            raise LightningAway("the peer is not connected")

    async def connect(self, peer_id: str, address: str) -> None:
        """Link with a node that is at that address."""
        self._check()
        nodes = self._network.nodes
        peer = nodes.get(peer_id)
        if peer is None or peer.address != address or peer.transport.is_away:
            raise LightningAway("connection refused")
        self._network.connect(nodes[self._node_id], peer)

    async def disconnect(self, peer_id: str) -> None:
        """End the link with a peer."""
        self._check()
        self._network.disconnect(self._node_id, peer_id)

    def break_streams(self) -> None:
        """End all streams of events, as a Lightning node does that restarts cleanly; its links stay."""
        for stream in self._streams:
            stream.put_nowait(None)
        self._streams.clear()

    def stop(self) -> None:
        """End all links and streams, and fail every call from now on."""
        for peer_id in self._network.peers(self._node_id):
            self._network.disconnect(self._node_id, peer_id)
        self.is_away = True
        self.break_streams()

    def connected(self, peer_id: str, address: str) -> None:
        """Report a new link."""
        self._report(PeerConnected(peer_id, address))

    def disconnected(self, peer_id: str) -> None:
        """Report a link that has ended."""
        self._report(PeerDisconnected(peer_id))

    def arrived(self, message: PassingMessage) -> None:
        """Report a message."""
        self._report(MessageReceived(message.sender, message.message_type, message.payload))

    def _report(self, event: TransportEvent) -> None:
        for stream in tuple(self._streams):
            if stream.qsize() < MAX_WAITING:
                stream.put_nowait(event)
            else:
                self._streams.discard(stream)
                stream.put_nowait(None)

    def _check(self) -> None:
        if self.is_away:
            raise LightningAway("the Lightning node is away")


class MemoryNode:
    """One Lightning node of a network, with the three ports of a compute node.

    It lives as long as the network: a compute node that restarts finds its links, invoices and payments again.
    """

    def __init__(self, network: "Network", key: PrivateKey, address: str) -> None:
        self.address = address
        self.key = key
        self.invoices = MemoryInvoices(key, network.prefix, network.clock)
        self.node_id = self.invoices.node_id
        self.transport = MemoryTransport(network, self.node_id)
        self.payments = MemoryPayments(network, self.node_id)

    def stop(self) -> None:
        """Take the Lightning node away: its links end, its streams break, its calls fail. Payments that were begun go on."""
        self.transport.stop()
        self.invoices.stop()
        self.payments.is_away = True

    def start(self) -> None:
        """Bring the Lightning node back; its links have to be connected again."""
        self.transport.is_away = self.invoices.is_away = self.payments.is_away = False


class Network:
    """A simulated Lightning network. ``prefix`` is that of its invoices, ``clock`` returns Unix seconds."""

    def __init__(
        self, *, prefix: str = "bcrt", clock: Callable[[], float] = time.time, hooks: Hooks | None = None
    ) -> None:
        self.prefix = prefix
        self.clock = clock
        self.hooks = hooks or Hooks()
        self.nodes: dict[str, MemoryNode] = {}
        # Each link by its two ids; the number tells a link from an earlier one between the same nodes.
        self._links: dict[frozenset[str], int] = {}
        self._link_count = 0

    def node(self, seed: str, address: str = "", *, name: str = "node") -> MemoryNode:
        """Add a node; its id follows from ``seed`` and ``name``."""
        made = MemoryNode(self, derive_key(seed, name), address)
        if made.node_id in self.nodes:
            raise ValueError("the network has a node of this seed already")
        self.nodes[made.node_id] = made
        return made

    def connect(self, one: MemoryNode, other: MemoryNode) -> None:
        """Link two nodes; two that are linked already stay so."""
        pair = frozenset({one.node_id, other.node_id})
        if pair in self._links or one.transport.is_away or other.transport.is_away:
            return
        self._link_count += 1
        self._links[pair] = self._link_count
        one.transport.connected(other.node_id, other.address)
        other.transport.connected(one.node_id, one.address)

    def disconnect(self, one: str, other: str) -> None:
        """End the link of two nodes, by their ids; messages that have not arrived are lost."""
        if self._links.pop(frozenset({one, other}), None) is None:
            return
        for node_id, peer_id in ((one, other), (other, one)):
            self.nodes[node_id].transport.disconnected(peer_id)

    def peers(self, node_id: str) -> list[str]:
        """Return the ids of the nodes that are linked with a node."""
        return [other for pair in self._links if node_id in pair for other in pair if other != node_id]

    def are_linked(self, one: str, other: str) -> bool:
        """Return whether two nodes are linked, by their ids."""
        return frozenset({one, other}) in self._links

    def carry(self, message: PassingMessage) -> bool:
        """Take a message to the other end of a link; False where there is none."""
        link = self._links.get(frozenset({message.sender, message.receiver}))
        if link is None:
            return False
        for delay_s in self.hooks.deliveries(message):
            if delay_s <= 0:
                self.nodes[message.receiver].transport.arrived(message)
            else:
                asyncio.get_running_loop().call_later(delay_s, self._arrive, message, link)
        return True

    def _arrive(self, message: PassingMessage, link: int) -> None:
        if self._links.get(frozenset({message.sender, message.receiver})) == link:
            self.nodes[message.receiver].transport.arrived(message)
