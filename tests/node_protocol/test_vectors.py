"""The dialogue of tests/vectors/node_protocol.json, which other languages can check themselves against."""

import json
from pathlib import Path

from lcp_gateway.node_protocol import gateway_side, node_side
from lcp_gateway.node_protocol.frames import FrameKind, read_frame
from lcp_gateway.node_protocol.gateway_side import GatewaySide
from lcp_gateway.node_protocol.messages import SUBPROTOCOL, Goodbye, Request, read_hello, read_request, read_welcome
from lcp_gateway.node_protocol.node_side import NodeSide

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "node_protocol.json").read_text())


def test_both_sides_read_the_dialogue_as_it_is_meant():
    assert VECTORS["subprotocol"] == SUBPROTOCOL
    frames = [(one["from"], one["frame"], bytes.fromhex(one["hex"])) for one in VECTORS["dialogue"]]
    for _, what, frame in frames:
        kind, _, _ = read_frame(frame)
        assert kind is FrameKind[what.upper()]
    hello = read_hello(frames[0][2][5:])
    node, gateway = NodeSide(hello), GatewaySide()
    seen = []
    for sender, what, frame in frames:
        if sender == "node":
            if what == "body":
                node.body(1, frame[5:])
            elif what == "error":
                node.error(2, node_side.CANCELLED)
            seen.append(gateway.receive(frame))
        else:
            seen.append(node.receive(frame))
            _send_same(gateway, what, frame)
    assert [type(event).__name__ for event in seen if event is not None] == [
        "Hello",
        "Welcome",
        "Offered",
        "PingCame",
        "RequestCame",
        "HeadCame",
        "BodyCame",
        "CreditCame",
        "BodyCame",
        "EndCame",
        "ReceiptCame",
        "RequestCame",
        "Cancelled",
        "Released",
        "ModelsCame",
        "Goodbye",
    ]
    came = next(event for event in seen if isinstance(event, node_side.RequestCame))
    assert came.request.kind == "chat" and came.body.startswith(b'{"model":"llama3.2:3b"')
    ended = next(event for event in seen if isinstance(event, gateway_side.EndCame))
    assert (ended.end.length, ended.end.input_tokens, ended.end.output_tokens) == (65, 9, 1)
    assert seen[-1] == Goodbye("draining")


def test_a_writer_and_a_reader_agree_on_every_field():
    hello = read_hello(bytes.fromhex(VECTORS["dialogue"][0]["hex"])[5:])
    assert hello.models and read_hello(read_frame(NodeSide(hello).hello())[2]) == hello


def _send_same(gateway, what, frame):
    """Bring the gateway's side to where it has sent this frame."""
    _, request_id, payload = read_frame(frame)
    if what == "welcome":
        assert gateway.welcome(read_welcome(payload)) == frame
    elif what == "request":
        request: Request = read_request(payload)
        opened, frames = gateway.request(request, bytes(request.body_bytes))
        assert (opened, next(frames)) == (request_id, frame)
    elif what == "credit":
        assert gateway.grant(request_id, 64) == frame
    elif what == "cancel":
        assert gateway.cancel(request_id) == frame
