"""``python -m fuzz.node_protocol``: frames that no node should send, put to both sides of the node protocol by the hundred thousand.

Inputs are valid dialogues whose frames are then cut, repeated, swapped and flipped. Whatever comes, a side answers with an
event or with ``ProtocolError``, and keeps no more than its limits allow.
"""

import argparse
import hashlib
import random
import sys
import time

from lcp_gateway.node_protocol.frames import FrameKind, write_credit, write_frame
from lcp_gateway.node_protocol.gateway_side import GatewaySide
from lcp_gateway.node_protocol.messages import (
    End,
    Failure,
    Goodbye,
    Head,
    Hello,
    NodeModel,
    Offered,
    ProtocolError,
    Receipt,
    Request,
    Welcome,
    write,
    write_models,
)
from lcp_gateway.node_protocol.node_side import NodeSide

_HELLO = Hello(
    name="gpu",
    instance="i",
    agent="fuzz",
    models=(NodeModel("m", ("chat", "embeddings")),),
    concurrent=4,
    request_bytes=10_000,
)
_CREDIT = 1_000
_OPEN = 4
_MOST_KEPT_BYTES = 4 * 10_000


def _request(size: int) -> Request:
    return Request("chat", "m", True, size, _CREDIT, 1_000, 10_000)


def _of_node(rng: random.Random) -> bytes:
    request_id = rng.choice((1, 1, 2, 3, 4, 5, 0, 2**32 - 1))
    match rng.randrange(9):
        case 0:
            return write_frame(FrameKind.HEAD, request_id, write(Head("text/event-stream")))
        case 1 | 2 | 3:
            return write_frame(FrameKind.BODY, request_id, rng.randbytes(rng.choice((0, 1, 50, 900, 70_000))))
        case 4:
            digest = hashlib.sha256(b"").digest()
            return write_frame(FrameKind.END, request_id, write(End(digest, 0, 1, 2)))
        case 5:
            return write_frame(FrameKind.ERROR, request_id, write(Failure(500, "x", "y")))
        case 6:
            return write_frame(FrameKind.MODELS, 0, write_models((NodeModel("m"),)))
        case 7:
            return write_frame(FrameKind.GOODBYE, 0, write(Goodbye("draining")))
        case _:
            return write_frame(rng.choice(list(FrameKind)), rng.choice((0, 1)), rng.randbytes(rng.randrange(40)))


def _of_gateway(rng: random.Random) -> bytes:
    request_id = rng.choice((1, 2, 3, 4, 5, 6, 0, 2**32 - 1))
    match rng.randrange(9):
        case 0 | 1:
            return write_frame(FrameKind.REQUEST, request_id, write(_request(rng.choice((0, 9, 500, 20_000)))))
        case 2 | 3:
            return write_frame(FrameKind.REQUEST_BODY, request_id, rng.randbytes(rng.choice((0, 9, 491, 70_000))))
        case 4:
            return write_credit(request_id, rng.choice((1, 500, 2**32 - 1)))
        case 5:
            return write_frame(FrameKind.CANCEL, request_id)
        case 6:
            return write_frame(FrameKind.RECEIPT, request_id, write(Receipt("delivered", 1, 1)))
        case 7:
            return write_frame(FrameKind.OFFERED, 0, write(Offered(("m",))))
        case _:
            return write_frame(rng.choice(list(FrameKind)), rng.choice((0, 1)), rng.randbytes(rng.randrange(40)))


def _mutated(rng: random.Random, frame: bytes) -> bytes:
    if not frame or rng.random() < 0.6:
        return frame
    work = bytearray(frame)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(work))
        match rng.randrange(4):
            case 0:
                work[at] ^= 1 << rng.randrange(8)
            case 1:
                del work[at:]
            case 2:
                work[at:at] = rng.randbytes(rng.randrange(8))
            case _:
                work += work[at:]
        if not work:
            break
    return bytes(work[:80_000])


def _check(error: ProtocolError) -> None:
    if not error.code or not error.message.isprintable():
        raise AssertionError(f"an error that cannot be told: {error!r}")


def _gateway_survives(rng: random.Random) -> int:
    side, node = GatewaySide(), NodeSide(_HELLO)
    if rng.random() < 0.95:
        side.receive(node.hello())
        side.welcome(Welcome("gpu", 5.0, _CREDIT))
        for _ in range(_OPEN):
            list(side.request(_request(2), b"{}")[1])
    for count in range(rng.randrange(40)):
        if rng.random() < 0.1:
            side.cancel(rng.randrange(6))
        if rng.random() < 0.1:
            side.grant(rng.randrange(6), 10)
        try:
            side.receive(_mutated(rng, _of_node(rng)))
        except ProtocolError as error:
            _check(error)
            return count
        assert side.open_requests <= _OPEN
    return 40


def _node_survives(rng: random.Random) -> int:
    side = NodeSide(_HELLO)
    if rng.random() < 0.95:
        side.receive(write_frame(FrameKind.WELCOME, 0, write(Welcome("gpu", 5.0, _CREDIT))))
    for count in range(rng.randrange(40)):
        try:
            event = side.receive(_mutated(rng, _of_gateway(rng)))
        except ProtocolError as error:
            _check(error)
            return count
        if event is not None and hasattr(event, "failure"):
            side.error(event.request_id, event.failure)
        assert side.open_requests <= _HELLO.concurrent
        assert side.kept_bytes <= _MOST_KEPT_BYTES
    return 40


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m fuzz.node_protocol", description=__doc__)
    parser.add_argument("--inputs", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    started, frames = time.monotonic(), 0
    for number in range(arguments.inputs):
        seed = arguments.seed + number
        rng = random.Random(seed)
        try:
            frames += _gateway_survives(rng) if number % 2 else _node_survives(rng)
        except Exception:
            print(f"failed with --seed {seed} --inputs 1", file=sys.stderr)
            raise
    print(f"{arguments.inputs} dialogues, {frames} frames, {time.monotonic() - started:.0f} s: nothing broke")


if __name__ == "__main__":
    main()
