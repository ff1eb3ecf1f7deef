"""The link with one peer in one version: both manifests, and whether jobs can be exchanged now.

lcpd-grpcd sends its manifest once a connection and answers ours at most once, so a restart of either side while the connection
stays leaves it without the other's manifest, for good. A link heals that from our side: it answers each manifest, says its own
again to a silent peer, and uses the peer's last manifest after a restart of our own.
"""

from dataclasses import dataclass
from typing import Final

from lcp_gateway.node.lcp.effects import MessageCame, Send, SetTimer, TimerFired
from lcp_gateway.node.lcp.messages import Manifest, Protocol
from lcp_gateway.node.lcp.table import write_message

ANSWER_GAP_S: Final = 5
"""A manifest that comes this soon after one of ours is its answer, and gets none: two such links do not go on forever."""

RESEND_AFTER_S: Final = (5, 30)
"""When our manifest is sent again to a peer that has said nothing since, counted from the first time."""


@dataclass(frozen=True, slots=True)
class PeerUp:
    """The peer is connected. Messages are received already: an answer that comes at once is not lost."""


@dataclass(frozen=True, slots=True)
class PeerDown:
    """The connection with the peer has ended."""


@dataclass(frozen=True, slots=True)
class ManifestMissed:
    """The peer says that it has no manifest of ours, or did not answer a request: what we know of it may be old."""


@dataclass(frozen=True, slots=True)
class StreamBroken:
    """Messages cannot be received for now; whether the connection with the peer has ended is not known."""


@dataclass(frozen=True, slots=True)
class NewManifest:
    """The peer gets this manifest from now on."""

    own: Manifest


@dataclass(frozen=True, slots=True)
class KeepManifest:
    """Make the peer's manifest durable, for the next start; None removes it."""

    manifest: Manifest | None


@dataclass(frozen=True, slots=True)
class PeerRestarted:
    """The peer sent its manifest unasked, though it was connected and had sent one: what was asked of it before is lost."""


@dataclass(frozen=True, slots=True)
class ManifestDue:
    """The operator wants our manifest to be sent from time to time, and it is time."""


LinkEvent = PeerUp | PeerDown | StreamBroken | NewManifest | MessageCame | ManifestMissed | ManifestDue | TimerFired
LinkEffect = KeepManifest | PeerRestarted | Send | SetTimer


class Link:
    """One peer's link. ``own`` is the manifest that it gets, ``kept`` its last one as it was made durable.

    Times are seconds of one clock, which the caller reads.
    """

    def __init__(self, protocol: Protocol, own: Manifest, kept: Manifest | None = None) -> None:
        self.connected = False
        self.manifest = kept
        """The peer's manifest; None while it has sent none on this connection."""
        self.stale = kept is not None
        """Whether the manifest may be out of date: it is of an earlier run, or the peer has restarted since."""
        self._protocol = protocol
        self._own = write_message(protocol, own)
        self._sent_at: float | None = None
        self._due: list[float] = []

    @property
    def ready(self) -> bool:
        """Whether jobs can be exchanged: the peer is connected and either side's manifest has gone to the other."""
        return self.connected and self._sent_at is not None and self.manifest is not None

    @property
    def sells(self) -> bool:
        """Whether requests can be sent: it is ready, and speaks the same version."""
        return self.ready and self.manifest is not None and self.manifest.protocol_version == self._protocol.value

    @property
    def expects_nothing(self) -> bool:
        """Whether a message other than a manifest changes nothing here."""
        return self.connected and not self._due

    def on(self, now: float, event: LinkEvent) -> list[LinkEffect]:
        """Take an event; the effects are carried out in their order."""
        match event:
            case PeerUp():
                return self._up(now)
            case PeerDown():
                return self._down()
            case MessageCame(message):
                effects = self._up(now) if not self.connected else []
                # It has said something: nothing is sent again.
                self._due.clear()
                if isinstance(message, Manifest):
                    effects = [*self._took(now, message), *effects]
                return effects
            case StreamBroken():
                self.connected, self.stale, self._sent_at = False, self.manifest is not None, None
                self._due.clear()
                return []
            case NewManifest(own):
                return self._changed(now, own)
            case ManifestMissed():
                self.stale = self.manifest is not None
                return self._say(now) if self.connected else []
            case ManifestDue():
                return self._say(now) if self.connected else []
            case TimerFired():
                return self._again(now)

    def _up(self, now: float) -> list[LinkEffect]:
        if self.connected and self._sent_at is not None:
            return []
        self.connected = True
        self._due = [now + after for after in RESEND_AFTER_S]
        return [*self._say(now), SetTimer(self._due[0])]

    def _down(self) -> list[LinkEffect]:
        had = self.manifest is not None
        self.connected, self.manifest, self.stale, self._sent_at = False, None, False, None
        self._due.clear()
        return [KeepManifest(None)] if had else []

    def _took(self, now: float, manifest: Manifest) -> list[LinkEffect]:
        effects: list[LinkEffect] = [KeepManifest(manifest)] if manifest != self.manifest else []
        if self.ready and now - (self._sent_at or now) >= ANSWER_GAP_S:
            effects.append(PeerRestarted())
        self.manifest, self.stale = manifest, False
        if self._sent_at is None or now - self._sent_at >= ANSWER_GAP_S:
            effects += self._say(now)
        return effects

    def _again(self, now: float) -> list[LinkEffect]:
        if not self.connected or not self._due or now < self._due[0]:
            return []
        self._due = [at for at in self._due if at > now]
        effects: list[LinkEffect] = [*self._say(now)]
        if self._due:
            effects.append(SetTimer(self._due[0]))
        return effects

    def _changed(self, now: float, own: Manifest) -> list[LinkEffect]:
        written = write_message(self._protocol, own)
        if written == self._own:
            return []
        self._own = written
        return self._say(now) if self.connected else []

    def _say(self, now: float) -> list[LinkEffect]:
        self._sent_at = now
        return [Send(*self._own)]
