"""The peers of a node, and the loop that reads the Lightning node's stream: it decodes messages and hands them over."""

import asyncio
import contextlib
from collections.abc import Callable
from functools import partial
from typing import Final

from lcp_gateway.node.lcp.effects import MessageCame
from lcp_gateway.node.lcp.link import PeerDown, PeerUp, StreamBroken
from lcp_gateway.node.lcp.messages import AnyJobMessage, Manifest, Protocol
from lcp_gateway.node.lcp.table import MESSAGE_TYPES, read_message, write_message
from lcp_gateway.node.lcp.tlv import WireError
from lcp_gateway.node.ports import LightningAway, MessageReceived, PeerConnected, PeerDisconnected, TransportEvent
from lcp_gateway.node.runtime.parts import NodeParts
from lcp_gateway.node.runtime.peer import Peer

_PAUSE_AFTER: Final = 32
"""How many events are read before other tasks get their turn: a stream that never pauses would stop them all."""

_LEAST_RESEND_S: Final = 1.0
"""Manifests are not sent again more often than this: each is a message to every peer, and most peers answer it."""


class Peers:
    """All peers that were connected since the start, and those whose manifests were kept.

    ``own`` returns the manifest that a peer gets; ``on_message`` takes each message of a job; ``on_link``, ``on_restarted``, ``on_gone`` and
    ``on_lost`` are those of ``Peer``.
    """

    def __init__(
        self,
        parts: NodeParts,
        *,
        own: Callable[[str, Protocol], Manifest],
        on_message: Callable[[Peer, Protocol, AnyJobMessage], None],
        on_link: Callable[[Peer, Protocol, bool], None],
        on_restarted: Callable[[Peer, Protocol], None],
        on_gone: Callable[[Peer], None],
        on_lost: Callable[[Peer, bytes], bool],
    ) -> None:
        self.node_id = ""
        self.network = ""
        """The prefix of the network's invoices; empty until the Lightning node has answered once."""
        self.is_listening = False
        """Whether messages are received now."""
        self._parts = parts
        self._own = own
        self._on_message = on_message
        self._on_link = on_link
        self._on_restarted = on_restarted
        self._on_gone = on_gone
        self._on_lost = on_lost
        self._peers: dict[str, Peer] = {}
        self._kept: dict[tuple[str, Protocol], Manifest] = {}
        self._manifest_bytes: dict[tuple[str, Protocol], int] = {}
        self._unwritten: dict[tuple[str, Protocol], Manifest | None] = {}
        self._write = asyncio.Event()
        self._senders: dict[str, asyncio.Task[None]] = {}
        self._disconnecting: set[str] = set()
        # Peers that were connected when the stream broke, or before the start, and were not named since.
        self._missing: set[str] = set()

    async def load(self) -> None:
        """Read the kept manifests."""
        self._kept = await self._parts.store.manifests()
        self._manifest_bytes = {
            key: len(write_message(key[1], manifest)[1])
            for key, manifest in self._kept.items()
            if manifest.protocol_version
        }
        self._missing = {peer_id for peer_id, _ in self._kept}

    def start(self) -> None:
        """Begin to listen."""
        self._parts.tasks.keep("manifests", self._write_manifests)
        if self._parts.delays.manifest_resend_s > 0:
            self._parts.tasks.keep("resend_manifests", self._resend_manifests)
        self._parts.tasks.keep("listen", self._listen)

    def stop(self) -> None:
        """End all timers."""
        for peer in self._peers.values():
            peer.stop()

    def get(self, peer_id: str) -> Peer | None:
        """Return a peer that was connected once."""
        return self._peers.get(peer_id)

    def ready(self, protocol: Protocol) -> list[Peer]:
        """Return the peers that are ready in a version, by id."""
        return [peer for _, peer in sorted(self._peers.items()) if peer.links[protocol].ready]

    def is_missing(self, peer_id: str) -> bool:
        """Return whether a peer is known not to be connected; while the Lightning node is away that is not known."""
        peer = self._peers.get(peer_id)
        return self.is_listening and not (peer is not None and peer.connected)

    def all(self) -> list[Peer]:
        """Return all peers."""
        return list(self._peers.values())

    def kept(self, peer_id: str, protocol: Protocol) -> Manifest | None:
        """Return the last known manifest of a peer."""
        peer = self._peers.get(peer_id)
        manifest = peer.links[protocol].manifest if peer is not None else None
        return manifest or self._kept.get((peer_id, protocol))

    async def identity(self) -> tuple[str, str]:
        """Return this node's id and the network's prefix, as the Lightning node has them now.

        Raises:
            LightningAway: it does not answer.
        """
        self.node_id, self.network = await self._parts.transport.identity()
        return self.node_id, self.network

    async def _listen(self) -> None:
        await self.identity()
        forget = asyncio.get_running_loop().call_later(self._parts.delays.regone_s, self._forget_missing)
        self.is_listening = True
        self._parts.log.lightning(connected=True)
        try:
            async with contextlib.aclosing(self._parts.transport.events()) as events:
                count = 0
                async for event in events:
                    self._took(event)
                    count += 1
                    if count % _PAUSE_AFTER == 0:
                        await asyncio.sleep(0)
        finally:
            forget.cancel()
            self.is_listening = False
            self._parts.log.lightning(connected=False)
            self._broken()

    def _took(self, event: TransportEvent) -> None:
        match event:
            case PeerConnected(peer_id, address):
                peer = self._up(peer_id)
                peer.address = address or peer.address
            case PeerDisconnected(peer_id):
                if (gone := self._peers.get(peer_id)) is not None:
                    self._down(gone, PeerDown())
                self._missing.discard(peer_id)
            case MessageReceived(peer_id, message_type, payload):
                self._received(peer_id, message_type, payload)

    def _up(self, peer_id: str) -> Peer:
        self._missing.discard(peer_id)
        peer = self._peers.get(peer_id)
        if peer is None:
            self._forget_oldest()
            peer = self._peers[peer_id] = self._made(peer_id)
        if not peer.connected:
            peer.connected = True
            self._senders[peer_id] = self._parts.tasks.keep("send", peer.send)
            for protocol in Protocol:
                peer.on(protocol, PeerUp())
        return peer

    def _made(self, peer_id: str) -> Peer:
        return Peer(
            peer_id,
            self._parts,
            own=lambda protocol: self._own(peer_id, protocol),
            kept={one: manifest for one in Protocol if (manifest := self._kept.get((peer_id, one))) is not None},
            keep=self._keep,
            on_link=self._on_link,
            on_restarted=self._on_restarted,
            on_gone=self._on_gone,
            on_lost=self._on_lost,
        )

    def _down(self, peer: Peer, event: PeerDown | StreamBroken) -> None:
        sender = self._senders.pop(peer.peer_id, None)
        if sender is not None:
            sender.cancel()
        if peer.connected:
            peer.gone()
        for protocol in Protocol:
            peer.on(protocol, event)

    def _received(self, peer_id: str, message_type: int, payload: bytes) -> None:
        known = MESSAGE_TYPES.get(message_type)
        if known is None:
            self._parts.log.message_dropped(peer_id, "unknown type")
            if message_type % 2 == 0 and peer_id not in self._disconnecting:
                self._disconnecting.add(peer_id)
                self._parts.tasks.once("disconnect", partial(self._disconnect, peer_id))
            return
        # A message shows that its peer is connected, whatever was heard of it before.
        peer = self._up(peer_id)
        protocol, _ = known
        try:
            read = read_message(message_type, payload)
        except WireError:
            self._parts.log.message_dropped(peer_id, "undecodable")
            return
        if read is None:
            return
        self._parts.observer.message(sent=False, protocol=protocol.value, byte_count=len(payload))
        message = read[1]
        if isinstance(message, Manifest):
            if self._has_room(key := (peer_id, protocol), len(payload)):
                self._manifest_bytes[key] = len(payload)
                peer.on(protocol, MessageCame(message))
            else:
                self._parts.log.message_dropped(peer_id, "too many manifests")
            return
        if not peer.links[protocol].expects_nothing:
            peer.on(protocol, MessageCame(message))
        self._on_message(peer, protocol, message)

    def _has_room(self, key: tuple[str, Protocol], size: int) -> bool:
        others = sum(self._manifest_bytes.values()) - self._manifest_bytes.get(key, 0)
        return others + size <= self._parts.bounds.manifest_bytes

    async def _disconnect(self, peer_id: str) -> None:
        try:
            await self._parts.transport.disconnect(peer_id)
        except LightningAway:
            # Its next such message is the next occasion.
            pass
        finally:
            self._disconnecting.discard(peer_id)

    def _broken(self) -> None:
        """Nothing is heard any more: whether peers are connected is known again once the stream works."""
        for peer in self._peers.values():
            if peer.connected:
                self._missing.add(peer.peer_id)
                self._down(peer, StreamBroken())

    def _forget_missing(self) -> None:
        for peer_id in self._missing:
            if (peer := self._peers.get(peer_id)) is not None:
                self._down(peer, PeerDown())
            for protocol in Protocol:
                if (peer_id, protocol) in self._kept:
                    self._keep(peer_id, protocol, None)
        self._missing.clear()

    def _forget_oldest(self) -> None:
        if len(self._peers) < self._parts.bounds.peers:
            return
        gone = next((peer_id for peer_id, peer in self._peers.items() if not peer.connected), None)
        if gone is not None:
            del self._peers[gone]

    def _keep(self, peer_id: str, protocol: Protocol, manifest: Manifest | None) -> None:
        if manifest is None:
            self._kept.pop((peer_id, protocol), None)
            self._manifest_bytes.pop((peer_id, protocol), None)
        self._unwritten[peer_id, protocol] = manifest
        self._write.set()

    async def _resend_manifests(self) -> None:
        while True:
            await asyncio.sleep(max(self._parts.delays.manifest_resend_s, _LEAST_RESEND_S))
            for peer in self.all():
                peer.resend_manifests()

    async def _write_manifests(self) -> None:
        while True:
            while self._unwritten:
                (peer_id, protocol), manifest = next(iter(self._unwritten.items()))
                await self._parts.store.keep_manifest(peer_id, protocol, manifest)
                # A later one may have come meanwhile.
                if self._unwritten.get((peer_id, protocol), manifest) is manifest:
                    self._unwritten.pop((peer_id, protocol), None)
            self._write.clear()
            await self._write.wait()
