"""Custom messages of a simulated node."""

import asyncio
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Final

from lcp_gateway.node.memory.hooks import PassingMessage
from lcp_gateway.node.ports import LightningAway, MessageReceived, PeerConnected, PeerDisconnected, TransportEvent

if TYPE_CHECKING:
    from lcp_gateway.node.memory.network import Network

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
