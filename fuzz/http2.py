"""``python -m fuzz.http2``: bytes that no server should send, put to the HTTP/2 core by the hundred thousand.

Inputs are sequences of valid frames that are then cut, repeated, swapped and flipped. Whatever comes, the core answers with
events or with ``Http2Error``, keeps no more than a frame and a header block, and sends a bounded reply.
"""

import argparse
import random
import sys
import time

import hpack

from lcp_gateway.upstreams.lcpd.http2_protocol import Http2Connection, Http2Error, header_block

_MAX_TAIL_BYTES = 16_384 + 9
_MAX_REPLY_BYTES = 200_000
_BLOCK = header_block([(b":method", b"POST"), (b":path", b"/s/m")])


def _frame(kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
    head = len(payload).to_bytes(3, "big") + bytes((kind, flags & 0xFF))
    return head + stream_id.to_bytes(4, "big") + payload


def _blocks() -> list[bytes]:
    encoder = hpack.Encoder()
    return [
        encoder.encode([(":status", "200"), ("content-type", "application/grpc")]),
        encoder.encode([("grpc-status", "0")]),
        encoder.encode([("x-long", "v" * 500), ("grpc-status", "13")]),
        encoder.encode([(":status", "103")]),
    ]


_HEADER_BLOCKS = _blocks()


def _random_frame(rng: random.Random) -> bytes:
    kind = rng.choice((0, 0, 0, 1, 1, 2, 3, 4, 6, 7, 8, 9, 9, rng.randrange(256)))
    flags = rng.choice((0, 1, 4, 5, 8, 9, 12, 13, 36, rng.randrange(256)))
    stream_id = rng.choice((0, 1, 1, 1, 3, 3, 5, 2, 2**31 - 1, 2**32 - 1))
    if kind in {1, 9}:
        payload = rng.choice(_HEADER_BLOCKS)
    else:
        size = rng.choice((0, 1, 4, 5, 6, 8, 12, rng.randrange(64), rng.randrange(2_000)))
        payload = rng.randbytes(size)
    return _frame(kind, flags, stream_id, payload)


def _mutated(rng: random.Random, data: bytes) -> bytes:
    if not data:
        return data
    work = bytearray(data)
    for _ in range(rng.choice((0, 0, 1, 1, 2, 4))):
        at = rng.randrange(len(work))
        match rng.randrange(4):
            case 0:
                work[at] ^= 1 << rng.randrange(8)
            case 1:
                del work[at : at + rng.randrange(1, 20)]
            case 2:
                work[at:at] = rng.randbytes(rng.randrange(1, 12))
            case _:
                work[at:at] = work[at : at + rng.randrange(1, 40)]
        if not work:
            break
    return bytes(work)


def _one(rng: random.Random) -> int:
    """Put one input to a connection; return how many bytes it took."""
    connection = Http2Connection()
    connection.receive(_frame(4, 0, 0, b""))
    for _ in range(rng.randrange(4)):
        connection.open(_BLOCK, rng.randbytes(rng.choice((0, 10, 70_000))))
    connection.take_output()
    data = _mutated(rng, b"".join(_random_frame(rng) for _ in range(rng.randrange(1, 12))))
    position = 0
    try:
        while position < len(data):
            step = rng.choice((1, 3, 9, 50, 4_000))
            connection.receive(data[position : position + step])
            position += step
            tail = len(connection._tail)  # noqa: SLF001 - the bound is what is tested
            if tail > _MAX_TAIL_BYTES or len(connection.take_output()) > _MAX_REPLY_BYTES:
                raise AssertionError("not bounded")
    except Http2Error:
        if connection.can_open:
            raise AssertionError("a connection that broke goes on") from None
    return len(data)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m fuzz.http2", description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**32)
    arguments = parser.parse_args()
    started, total = time.process_time(), 0
    for number in range(arguments.inputs):
        try:
            total += _one(random.Random(arguments.seed * 2**32 + number))
        except Exception:
            print(f"input {number} of --seed {arguments.seed}", file=sys.stderr)
            raise
    used_s = time.process_time() - started
    print(f"{arguments.inputs:,} inputs, {total:,} bytes, {used_s:.0f} s of CPU, no failure (--seed {arguments.seed})")


if __name__ == "__main__":
    main()
