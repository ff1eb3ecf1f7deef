"""One peer: its links in both versions, and what waits to be sent to it."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Final

from lcp_gateway.node.lcp.effects import Send, TimerFired
from lcp_gateway.node.lcp.link import KeepManifest, Link, LinkEvent, ManifestDue, NewManifest, PeerRestarted
from lcp_gateway.node.lcp.messages import Manifest, Protocol
from lcp_gateway.node.lcp.table import MESSAGE_TYPES
from lcp_gateway.node.ports import LightningAway
from lcp_gateway.node.runtime.outbox import LINK, Outbox
from lcp_gateway.node.runtime.parts import NodeParts
from lcp_gateway.node.runtime.tasks import Backoff, Timer

_MAX_WAITING_ERRORS: Final = 1_000
"""How many messages may wait when an error is added to them: a peer can ask for errors without end."""

_SEND_BACKOFF: Final = Backoff(first_s=0.05, most_s=1.0)


class Peer:
    """A peer that was connected once. ``own`` returns the manifest that it gets in a version.

    ``on_link`` is called when it becomes ready in a version (True) or has sent another manifest, ``on_restarted`` when
    it seems to have forgotten what was asked of it, ``on_gone`` when its connection has ended, ``on_lost`` for each job of which a message could not be sent:
    where that returns True, the job's other messages are dropped; otherwise they are tried again.
    """

    def __init__(
        self,
        peer_id: str,
        parts: NodeParts,
        *,
        own: Callable[[Protocol], Manifest],
        kept: dict[Protocol, Manifest],
        keep: Callable[[str, Protocol, Manifest | None], None],
        on_link: Callable[["Peer", Protocol, bool], None],
        on_restarted: Callable[["Peer", Protocol], None],
        on_gone: Callable[["Peer"], None],
        on_lost: Callable[["Peer", bytes], bool],
    ) -> None:
        self.peer_id = peer_id
        self.address = ""
        self.connected = False
        self.lost_at = 0.0
        """When the last connection ended, in Unix seconds."""
        self.unsent: set[bytes] = set()
        """The jobs of which messages waited then."""
        self.outbox = Outbox()
        self.links = {one: Link(one, own(one), kept.get(one)) for one in Protocol}
        self._parts = parts
        self._own = own
        self._keep = keep
        self._on_link = on_link
        self._on_restarted = on_restarted
        self._on_gone = on_gone
        self._on_lost = on_lost
        self._was_ready: set[Protocol] = set()
        self._timers = {one: Timer(parts.clock, partial(self.on, one, TimerFired())) for one in Protocol}
        self._failures = 0

    def on(self, protocol: Protocol, event: LinkEvent) -> None:
        """Take an event of the link in one version, and carry out its effects."""
        link, has_news, has_restarted = self.links[protocol], False, False
        for effect in link.on(self._parts.clock(), event):
            match effect:
                case KeepManifest(manifest):
                    self._keep(self.peer_id, protocol, manifest)
                    has_news = manifest is not None
                case Send():
                    self.outbox.put(LINK, [effect])
                case PeerRestarted():
                    has_restarted = True
                case _:
                    self._timers[protocol].set(effect.at)
        changed = link.ready != (protocol in self._was_ready)
        if changed:
            self._was_ready ^= {protocol}
            self._parts.log.link(self.peer_id, protocol, ready=link.ready)
        if link.ready and (changed or has_news):
            self._on_link(self, protocol, changed)
        if has_restarted:
            self._on_restarted(self, protocol)

    def show(self, protocol: Protocol) -> None:
        """Send the manifest that this peer gets, if it is another than the last one."""
        self.on(protocol, NewManifest(self._own(protocol)))

    def resend_manifests(self) -> None:
        """Send the last manifests again, unless some wait already: lnd may take none for long."""
        if self.connected and not self.outbox.waiting_bytes(LINK):
            for protocol in self.links:
                self.on(protocol, ManifestDue())

    def put(self, job_id: bytes, messages: list[Send]) -> bool:
        """Send messages of a job after those that wait; False where the peer is not connected, and they are lost."""
        if not self.connected:
            return False
        self.outbox.put(job_id, messages)
        return True

    def answer(self, job_id: bytes, message: Send) -> None:
        """Send an error, unless so many messages wait that the peer seems to read none."""
        if self.outbox.messages < _MAX_WAITING_ERRORS:
            self.put(job_id, [message])

    def gone(self) -> None:
        """Drop what waits to be sent: the connection has ended."""
        self.connected = False
        self.lost_at = self._parts.clock()
        self.unsent = self.outbox.clear()
        self.stop()
        self._on_gone(self)

    def stop(self) -> None:
        """End its timers."""
        for timer in self._timers.values():
            timer.cancel()

    async def send(self) -> None:
        """Send what waits, as long as the node runs."""
        await self.outbox.run(self._send)

    async def _send(self, lane_id: bytes, message: Send) -> bool:
        try:
            await self._parts.transport.send(self.peer_id, message.message_type, message.payload)
        except LightningAway as error:
            if lane_id != LINK and self._on_lost(self, lane_id):
                self.outbox.drop(lane_id)
                return True
            self._failures += 1
            pause_s = _SEND_BACKOFF.pause_s(self._failures)
            self._parts.log.problem("send", error, again_in_s=pause_s)
            await asyncio.sleep(pause_s)
            return False
        except Exception as error:  # noqa: BLE001 - the messages behind it must not wait for one that can never be sent
            self._parts.log.problem("send", error)
            return True
        self._failures = 0
        protocol, _ = MESSAGE_TYPES[message.message_type]
        self._parts.observer.message(sent=True, protocol=protocol.value, byte_count=len(message.payload))
        return True
