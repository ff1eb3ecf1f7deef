from hypothesis import given
from hypothesis import strategies as st

from lcp_gateway.node.lcp.effects import MessageCame, Send, SetTimer, TimerFired
from lcp_gateway.node.lcp.link import (
    KeepManifest,
    Link,
    ManifestMissed,
    NewManifest,
    PeerDown,
    PeerRestarted,
    PeerUp,
    StreamBroken,
)
from lcp_gateway.node.lcp.manifests import Limits, own_manifest
from lcp_gateway.node.lcp.messages import Cancel, Manifest, Protocol
from lcp_gateway.node.lcp.table import read_message, write_message
from tests.support import lcp_vectors

V02 = Protocol.V02
OURS = own_manifest(V02, Limits())
THEIRS = own_manifest(V02, Limits(), ["model-a"])
SEND = Send(*write_message(V02, OURS))
CANCEL = Cancel(protocol_version=2, job_id=bytes(32), msg_id=bytes(32), expiry=1)


class Daemon:
    """What lcpd-grpcd does about manifests, for one peer: it is never told of its own restart by the connection."""

    def __init__(self, *, sells=True):
        self.own = THEIRS if sells else OURS
        self.kept = None
        self.sent = False

    def start(self):
        self.kept, self.sent = None, True
        return [self.own]

    def came(self, manifest):
        answers = self.kept is None or not self.sent
        self.kept = manifest
        self.sent |= answers
        return [self.own] if answers else []


def _sent(effects):
    return [read_message(one.message_type, one.payload)[1] for one in effects if isinstance(one, Send)]


def _talk(link, daemon, now, effects):
    """Carry messages until both are silent; return how many there were."""
    count = 0
    towards = _sent(effects)
    while towards:
        answers = [answer for manifest in towards for answer in daemon.came(manifest)]
        count += len(towards) + len(answers)
        towards = [sent for answer in answers for sent in _sent(link.on(now, MessageCame(answer)))]
        assert count < 20
    return count


def test_manifests_go_both_ways_and_the_peer_is_ready():
    link, daemon = Link(V02, OURS), Daemon()

    assert not link.ready
    effects = link.on(100, PeerUp())
    assert effects == [SEND, SetTimer(105)]
    assert not link.ready
    assert _talk(link, daemon, 100, effects) == 2
    assert link.ready and link.sells and not link.stale
    assert link.on(105, TimerFired()) == []


def test_what_we_send_first_is_what_the_recorded_requester_sent():
    for protocol in Protocol:
        dialogue = lcp_vectors.dialogues(protocol)["dialogues"][0]
        recorded = next(one for one in dialogue["messages"] if one.get("frm") == "requester")
        link = Link(protocol, own_manifest(protocol, Limits()))
        assert link.on(0, PeerUp())[0] == Send(recorded["type"], bytes.fromhex(recorded["hex"]))


def test_after_our_restart_the_kept_manifest_serves_since_the_daemon_does_not_say_its_own_again():
    daemon = Daemon()
    daemon.came(OURS)
    link = Link(V02, OURS, kept=THEIRS)

    assert not link.ready
    assert _talk(link, daemon, 100, link.on(100, PeerUp())) == 1
    assert link.ready and link.stale


def test_after_its_restart_the_daemon_gets_our_manifest_again():
    link, daemon = Link(V02, OURS), Daemon()
    _talk(link, daemon, 100, link.on(100, PeerUp()))

    for now in (160, 161):
        for manifest in daemon.start():
            effects = link.on(now, MessageCame(manifest))
        _talk(link, daemon, now, effects)
        if now == 160:
            assert daemon.kept == OURS
    # The second restart came a second after our answer, which went to the daemon before: its refusal makes us say it again.
    assert daemon.kept is None
    _talk(link, daemon, 162, link.on(162, ManifestMissed()))
    assert daemon.kept == OURS
    assert link.ready and not link.stale


def test_a_first_manifest_that_was_lost_is_said_again_after_5_and_30_seconds():
    link, daemon = Link(V02, OURS), Daemon()
    link.on(100, PeerUp())

    effects = link.on(105, TimerFired())
    assert effects == [SEND, SetTimer(130)]
    effects = link.on(130, TimerFired())
    assert effects == [SEND]
    _talk(link, daemon, 130, effects)
    assert link.ready
    assert link.on(200, TimerFired()) == []


def test_a_peer_that_has_spoken_is_not_told_again():
    link = Link(V02, OURS)
    link.on(100, PeerUp())

    assert link.on(101, MessageCame(CANCEL)) == []
    assert link.on(105, TimerFired()) == []


def test_any_message_shows_that_the_peer_is_connected():
    link = Link(V02, OURS)

    assert SEND in link.on(100, MessageCame(CANCEL))
    assert link.connected and not link.ready
    other = Link(V02, OURS)
    assert other.on(100, MessageCame(THEIRS)).count(SEND) == 1
    assert other.ready


def test_a_lost_connection_forgets_both_manifests():
    link = Link(V02, OURS)
    link.on(100, PeerUp())
    assert link.on(100, MessageCame(THEIRS)) == [KeepManifest(THEIRS)]

    assert link.on(200, PeerDown()) == [KeepManifest(None)]
    assert not link.ready and link.manifest is None
    assert link.on(205, TimerFired()) == []
    assert link.on(206, ManifestMissed()) == []
    assert SEND in link.on(210, PeerUp())
    assert not link.ready


def test_a_peer_that_says_its_connection_twice_is_told_once():
    link = Link(V02, OURS)
    link.on(100, PeerUp())

    assert link.on(101, PeerUp()) == []


def test_a_later_manifest_replaces_the_first_and_the_same_is_not_written_again():
    link = Link(V02, OURS)
    link.on(100, PeerUp())
    link.on(101, MessageCame(THEIRS))

    assert link.on(102, MessageCame(THEIRS)) == []
    assert link.on(103, MessageCame(OURS)) == [KeepManifest(OURS)]
    assert link.manifest == OURS


def test_a_peer_of_another_version_is_ready_and_sells_nothing():
    link = Link(V02, OURS)
    link.on(100, PeerUp())
    link.on(100, MessageCame(Manifest(protocol_version=9, max_payload_bytes=1, max_stream_bytes=1, max_job_bytes=1)))

    assert link.ready and not link.sells


class Pair:
    """Two of our links with each other, and what each has made durable."""

    def __init__(self):
        self.now, self.up = 0.0, False
        self.kept = [None, None]
        self.links = [Link(V02, OURS), Link(V02, THEIRS)]

    def both(self, event, *, lose=False):
        for number in (0, 1):
            self.carry(number, event, lose=lose)

    def restart(self, number):
        self.links[number] = Link(V02, (OURS, THEIRS)[number], self.kept[number])
        if self.up:
            self.carry(number, PeerUp())

    def connect(self, *, lose=False):
        self.up = True
        self.both(PeerUp(), lose=lose)

    def disconnect(self):
        self.up = False
        self.both(PeerDown())

    def reconnect_and_lose_manifests(self):
        self.disconnect()
        self.connect(lose=True)

    def carry(self, number, event, *, lose=False):
        """Give one of them an event, and carry what follows between them until both are silent."""
        waiting, count = [(number, event)], 0
        while waiting:
            number, event = waiting.pop()
            for effect in self.links[number].on(self.now, event):
                if isinstance(effect, KeepManifest):
                    self.kept[number] = effect.manifest
                elif isinstance(effect, Send) and self.up and not lose:
                    _, message = read_message(effect.message_type, effect.payload)
                    waiting.append((1 - number, MessageCame(message)))
                    count += 1
                    assert count <= 4


STEPS = {
    "up": Pair.connect,
    "down": Pair.disconnect,
    "lose": Pair.reconnect_and_lose_manifests,
    "timer": lambda pair: pair.both(TimerFired()),
    "restart the first": lambda pair: pair.restart(0),
    "restart the second": lambda pair: pair.restart(1),
}


@given(st.lists(st.tuples(st.sampled_from(sorted(STEPS)), st.integers(0, 40)), max_size=30))
def test_two_of_our_links_never_talk_forever_and_become_ready(steps):
    pair = Pair()
    for step, later in steps:
        pair.now += later
        STEPS[step](pair)
    if pair.up:
        for later in (5, 30):
            pair.now += later
            pair.both(TimerFired())
        assert all(link.ready for link in pair.links)


def _ready(now=100):
    link = Link(V02, OURS)
    link.on(now, PeerUp())
    link.on(now, MessageCame(THEIRS))
    assert link.ready
    return link


def test_a_stream_that_broke_leaves_the_manifest_and_a_connection_that_ended_does_not():
    link = _ready()
    assert link.on(200, StreamBroken()) == []
    assert not link.ready and link.manifest == THEIRS and link.stale
    assert link.on(201, PeerUp())[0] == SEND
    assert link.ready
    assert link.on(202, PeerDown()) == [KeepManifest(None)]
    link.on(203, PeerUp())
    assert not link.ready


def test_another_manifest_of_ours_is_sent_to_a_connected_peer_once():
    link = _ready()
    other = NewManifest(THEIRS)
    assert link.on(101, other) == [Send(*write_message(V02, THEIRS))]
    assert link.on(102, other) == []
    link.on(103, PeerDown())
    assert link.on(104, NewManifest(OURS)) == []
    assert link.on(105, PeerUp())[0] == SEND


def test_a_manifest_that_was_not_asked_for_tells_of_a_restart():
    link = _ready()
    assert PeerRestarted() not in link.on(104, MessageCame(THEIRS))
    assert link.on(200, MessageCame(THEIRS)) == [PeerRestarted(), SEND]
    waiting = Link(V02, OURS)
    waiting.on(100, PeerUp())
    assert PeerRestarted() not in waiting.on(200, MessageCame(THEIRS))
