"""Two sides in memory, with drops, repeats and reorderings at every frame: what ends well is what was sent."""

import hashlib

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from lcp_gateway.node_protocol import gateway_side, node_side
from lcp_gateway.node_protocol.gateway_side import GatewaySide
from lcp_gateway.node_protocol.messages import End, Head, Hello, NodeModel, ProtocolError, Request, Welcome
from lcp_gateway.node_protocol.node_side import CANCELLED, NodeSide

CONCURRENT, WINDOW = 3, 20
HELLO = Hello(
    name="gpu", instance="i", agent="agent", models=(NodeModel("m"),), concurrent=CONCURRENT, request_bytes=200_000
)


class Dialogue(RuleBasedStateMachine):
    """The model: the bytes that the node means to send, and those that the gateway took.

    A transport that loses, repeats or swaps frames is none that WebSocket has; whatever it does, a request may only end
    well with its right bytes, a body may only reach the node whole, and what is kept stays bounded.
    """

    asked = Bundle("asked")

    def __init__(self):
        super().__init__()
        self.honest = True
        self.broken = False
        self.node, self.gateway = NodeSide(HELLO), GatewaySide()
        self.to_node, self.to_gateway = [], []
        self.bodies, self.sent, self.taken, self.ended = {}, {}, {}, {}
        self.gateway.receive(self.node.hello())
        self.node.receive(self.gateway.welcome(Welcome("gpu", 5.0, WINDOW)))

    @rule(target=asked, size=st.integers(0, 150_000))
    def ask(self, size):
        if self.broken or self.gateway.open_requests >= CONCURRENT + 1:
            return None
        body = hashlib.sha256(str(len(self.bodies)).encode()).digest() * (size // 32 + 1)
        request = Request("chat", "m", True, len(body), WINDOW, 1_000, 10_000)
        request_id, frames = self.gateway.request(request, body)
        self.bodies[request_id], self.taken[request_id] = body, b""
        self.to_node += list(frames)
        return request_id

    @rule(count=st.integers(1, 6))
    def node_reads(self, count):
        for _ in range(min(count, len(self.to_node))):
            if self.broken:
                return
            try:
                event = self.node.receive(self.to_node.pop(0))
            except ProtocolError:
                self.break_off()
                return
            match event:
                case node_side.RequestCame(request_id=request_id, body=body):
                    if self.honest:
                        assert body == self.bodies[request_id]
                    self.sent[request_id] = None
                case node_side.RequestTooMuch(request_id=request_id, failure=failure):
                    self.to_gateway.append(self.node.error(request_id, failure))
                case node_side.Cancelled(request_id=request_id):
                    self.sent.pop(request_id, None)
                    self.to_gateway.append(self.node.error(request_id, CANCELLED))

    @rule(data=st.data(), part=st.binary(min_size=1, max_size=30))
    def node_answers(self, data, part):
        if self.broken or not self.sent:
            return
        request_id = data.draw(st.sampled_from(sorted(self.sent)))
        if self.sent[request_id] is None:
            self.to_gateway.append(self.node.head(request_id, Head("text/event-stream")))
            self.sent[request_id] = b""
        elif (part := part[: self.node.credit_bytes(request_id)]) != b"":
            self.to_gateway.append(self.node.body(request_id, part))
            self.sent[request_id] += part

    @rule(data=st.data())
    def node_ends(self, data):
        begun = sorted(one for one, sent in self.sent.items() if sent is not None)
        if self.broken or not begun:
            return
        request_id = data.draw(st.sampled_from(begun))
        whole = self.sent.pop(request_id)
        self.ended[request_id] = whole
        self.to_gateway.append(self.node.end(request_id, End(hashlib.sha256(whole).digest(), len(whole))))

    @rule(count=st.integers(1, 6))
    def gateway_reads(self, count):
        for _ in range(min(count, len(self.to_gateway))):
            if self.broken:
                return
            try:
                event = self.gateway.receive(self.to_gateway.pop(0))
            except ProtocolError:
                self.break_off()
                return
            match event:
                case gateway_side.BodyCame(request_id=request_id, data=data):
                    self.taken[request_id] += data
                    if (credit := self.gateway.grant(request_id, len(data))) is not None:
                        self.to_node.append(credit)
                case gateway_side.EndCame(request_id=request_id, end=end):
                    taken = self.taken[request_id]
                    is_right = hashlib.sha256(taken).digest() == end.sha256 and len(taken) == end.length
                    # A wrong order can only be seen by the hash; with it nothing wrong passes.
                    assert is_right is (taken == self.ended[request_id])
                    if self.honest:
                        assert is_right

    @rule(request_id=consumes(asked))
    def gateway_cancels(self, request_id):
        if not self.broken and request_id is not None and (frame := self.gateway.cancel(request_id)) is not None:
            self.to_node.append(frame)

    @rule(data=st.data(), towards_node=st.booleans(), how=st.sampled_from(("lose", "repeat", "swap")))
    def bad_transport(self, data, towards_node, how):
        line = self.to_node if towards_node else self.to_gateway
        if not line:
            return
        self.honest = False
        at = data.draw(st.integers(0, len(line) - 1))
        match how:
            case "lose":
                del line[at]
            case "repeat":
                line.insert(at, line[at])
            case "swap":
                line[at], line[-1] = line[-1], line[at]

    def break_off(self):
        assert not self.honest, "two sides that lose nothing never break the protocol"
        self.broken = True

    @invariant()
    def bounded(self):
        assert self.node.open_requests <= CONCURRENT
        assert self.gateway.open_requests <= CONCURRENT + 1


TestDialogue = Dialogue.TestCase
