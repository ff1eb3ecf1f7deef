"""What each side refuses: a stranger's frames are bounded before they are believed."""

import json

import pytest

from lcp_gateway.node_protocol.frames import Dead, FrameKind, Heartbeat, read_frame, write_frame
from lcp_gateway.node_protocol.gateway_side import BodyCame, GatewaySide, Released
from lcp_gateway.node_protocol.messages import (
    End,
    Failure,
    Head,
    Hello,
    NodeModel,
    ProtocolError,
    Request,
    Welcome,
    read_failure,
    read_hello,
)
from lcp_gateway.node_protocol.node_side import CANCELLED, Cancelled, NodeSide, RequestCame, RequestTooMuch
from tests.support.cases import each_case

HELLO = Hello(name="gpu", instance="i", agent="agent", models=(NodeModel("m"),), concurrent=2, request_bytes=1_000_000)
OF = {"kind": "chat", "model": "m", "stream": True, "timeout_ms": 1_000, "result_bytes": 1_000}


def pair():
    node, gateway = NodeSide(HELLO), GatewaySide()
    gateway.receive(node.hello())
    node.receive(gateway.welcome(Welcome("gpu", 5.0, 100)))
    return node, gateway


def ask(node, gateway, body=b"{}", credit=100):
    request_id, frames = gateway.request(Request(**OF, body_bytes=len(body), credit_bytes=credit), body)
    return request_id, [node.receive(frame) for frame in frames][-1]


def refused(side, frame) -> str:
    with pytest.raises(ProtocolError) as caught:
        side.receive(frame)
    return caught.value.code


def test_a_long_body_comes_in_frames_and_is_whole():
    node, gateway = pair()
    body = bytes(range(256)) * 1_000
    _, event = ask(node, gateway, body)
    assert isinstance(event, RequestCame) and event.body == body


def test_bytes_beyond_the_credit_break_the_protocol():
    node, gateway = pair()
    request_id, _ = ask(node, gateway, credit=10)
    gateway.receive(node.head(request_id, Head("a/b")))
    assert gateway.receive(node.body(request_id, b"x" * 10)) == BodyCame(request_id, b"x" * 10)
    assert refused(gateway, write_frame(FrameKind.BODY, request_id, b"y")) == "no_credit"
    with pytest.raises(RuntimeError):
        node.body(request_id, b"y")


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (b"", "bad_frame"),
        (b"\x7f\0\0\0\0", "bad_frame"),
        (write_frame(FrameKind.PING, 1), "bad_frame"),
        (write_frame(FrameKind.BODY, 1, b"x" * 65_537), "too_long"),
        (write_frame(FrameKind.MODELS, 0, b"x" * 262_145), "too_long"),
        (write_frame(FrameKind.BODY, 7, b"x"), "unknown_request"),
        (write_frame(FrameKind.END, 7, b"{}"), "unknown_request"),
        (write_frame(FrameKind.WELCOME, 0, b"{}"), "bad_order"),
        (write_frame(FrameKind.HELLO, 0, b"{}"), "bad_order"),
        (write_frame(FrameKind.MODELS, 0, b"[]"), "bad_message"),
    ],
)
def test_frames_that_a_node_may_not_send(frame, code):
    _, gateway = pair()
    assert refused(gateway, frame) == code


def test_nothing_is_said_before_hello_and_welcome():
    gateway, node = GatewaySide(), NodeSide(HELLO)
    assert refused(gateway, write_frame(FrameKind.MODELS, 0, b'{"models":[]}')) == "no_hello"
    assert refused(node, write_frame(FrameKind.CREDIT, 1, b"\0\0\0\1")) == "bad_order"


def test_an_extension_is_ignored():
    _, gateway = pair()
    assert gateway.receive(b"\x90\0\0\0\0hello") is None


def test_frames_of_a_cancelled_request_are_ignored_until_the_node_ends_it():
    node, gateway = pair()
    request_id, _ = ask(node, gateway)
    head, data = node.head(request_id, Head("a/b")), node.body(request_id, b"late")
    assert node.receive(gateway.cancel(request_id)) == Cancelled(request_id)
    assert gateway.receive(head) is None and gateway.receive(data) is None
    assert gateway.open_requests == 1
    assert gateway.receive(node.error(request_id, CANCELLED)) == Released(request_id)
    assert gateway.open_requests == 0
    assert gateway.cancel(request_id) is None


def test_a_node_refuses_what_is_beyond_its_limits_and_keeps_nothing_of_it():
    node, gateway = pair()
    _, event = ask(node, gateway, b"x" * 1_000_001)
    assert event is None and node.open_requests == 0
    ask(node, gateway)
    ask(node, gateway)
    request_id, frames = gateway.request(Request(**OF, body_bytes=2, credit_bytes=1), b"{}")
    event = node.receive(next(frames))
    assert isinstance(event, RequestTooMuch) and event.failure.code == "busy"
    gateway.receive(node.error(request_id, event.failure))
    # The gateway has more of the body to send, and says that it will not come.
    last = list(frames)
    assert [read_frame(frame)[0] for frame in last] == [FrameKind.CANCEL]
    assert node.receive(last[0]) is None


def test_an_end_without_a_head_breaks_the_protocol():
    node, gateway = pair()
    request_id, _ = ask(node, gateway)
    assert refused(gateway, node.end(request_id, End(bytes(32), 0))) == "bad_order"


@each_case(
    "change",
    [
        {"name": "../../etc"},
        {"name": "x" * 41},
        {"concurrent": 0},
        {"concurrent": True},
        {"request_bytes": 2**60},
        {"models": [{"id": f"m{n}"} for n in range(257)]},
        {"models": [{"id": "auto"}]},
        {"models": [{"id": "auto:free"}]},
        {"models": [{"id": " m"}]},
        {"models": [{"id": "m\x1b[2J"}]},
        {"models": [{"id": "m" * 257}]},
        {"models": [{"id": "m"}, {"id": "m"}]},
        {"models": [{"id": "m", "kinds": ["root"]}]},
        {"models": [{"id": "m", "price": {"request_msat": -1}}]},
        {"models": [{"id": "m", "price": {"request_msat": 10**14}}]},
        {"models": [{"id": "m", "price": {"minute_msat": 0.5}}]},
    ],
)
def test_a_hello_that_is_not_taken(change):
    fields = {"name": "gpu", "instance": "i", "agent": "a", "concurrent": 1, "request_bytes": 1, "models": []}
    assert read_hello(json.dumps(fields).encode()).name == "gpu"
    with pytest.raises(ProtocolError):
        read_hello(json.dumps(fields | change).encode())


def test_the_text_of_a_failure_is_bounded_and_printable():
    failure = read_failure(
        json.dumps({"status": 500, "code": "NOT A WORD", "message": "\x1b[31m" + "x" * 9_000}).encode()
    )
    assert failure == Failure(500, "", "[31m" + "x" * 495)


def test_a_heartbeat_pings_each_interval_and_gives_up_after_three():
    heart = Heartbeat(5.0, now=0.0)
    assert heart.tick(4.9) is None
    assert heart.tick(5.0) == write_frame(FrameKind.PING, 0)
    assert heart.tick(6.0) is None
    heart.heard(9.0)
    assert heart.tick(23.9) is not None
    with pytest.raises(Dead):
        heart.tick(24.0)
