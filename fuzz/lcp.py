"""``python -m fuzz.lcp``: broken messages of the Lightning Compute Protocol, put to its codec and to a stream's reader.

Inputs are the encodings of the vectors, cut, flipped, repeated and spliced. Whatever comes is a message or ``WireError``; what
was read is written to bytes that read as the same message; a stream's reader takes what comes next or ``StreamError``.
"""

import argparse
import contextlib
import hashlib
import json
import lzma
import random
import sys
import time
from dataclasses import replace
from pathlib import Path

from lcp_gateway.node.lcp.chunks import StreamError, StreamReader
from lcp_gateway.node.lcp.messages import IDENTITY, JSON, StreamBegin, StreamChunk, StreamEnd, StreamKind
from lcp_gateway.node.lcp.table import (
    MESSAGE_TYPES,
    chunk_msg_id,
    read_message,
    read_params,
    write_message,
    write_params,
)
from lcp_gateway.node.lcp.tlv import BYTES_LIST, TEXT_LIST, WireError

_VECTORS = Path(__file__).parents[1] / "tests" / "vectors" / "lcp"
_JOB = {"protocol_version": 2, "job_id": bytes(32), "expiry": 1}
_IDS = (b"s" * 32, b"o" * 32)
_MOST = 60


def seeds() -> tuple[tuple[int, bytes], ...]:
    found: set[tuple[int, bytes]] = set()
    for name in ("wire_vectors", "wire_vectors_v03"):
        with lzma.open(_VECTORS / f"{name}.json.xz", "rt", encoding="utf-8") as file:
            vectors = json.load(file)
        for part in ("valid", "lenient", "invalid"):
            found |= {(one["num"], bytes.fromhex(one["hex"])) for one in vectors[part] if "num" in one}
    return tuple(sorted(one for one in found if len(one[1]) < 2_000))


def mutated(rng: random.Random, payload: bytes, other: bytes) -> bytes:
    work = bytearray(payload)
    for _ in range(rng.choice((0, 1, 1, 2, 6))):
        at = rng.randrange(len(work) + 1)
        match rng.randrange(6):
            case 0 if at < len(work):
                work[at] ^= 1 << rng.randrange(8)
            case 1:
                del work[at : at + rng.choice((1, 2, 34, 10_000))]
            case 2:
                work[at:at] = rng.choice((b"\xfd", b"\xfe", b"\xff", b"\x00", rng.randbytes(rng.randrange(40))))
            case 3:
                work[at:] = other[rng.randrange(len(other) + 1) :]
            case 4:
                work += work[at : at + 40]
            case _ if at < len(work):
                work[at] = rng.choice((0, 1, 2, 32, 0xFC, 0xFD, 0xFE, 0xFF))
    return bytes(work[:70_000])


def _check(words: str) -> None:
    if not words.isprintable():
        raise AssertionError(f"an error that cannot be told: {words!r}")


def _codec_survives(rng: random.Random, known: tuple[tuple[int, bytes], ...]) -> bool:
    number, payload = rng.choice(known)
    payload = mutated(rng, payload, rng.choice(known)[1])
    if rng.random() < 0.1:
        number = rng.choice((*MESSAGE_TYPES, 42082, 42099, 0, 65_535))
    for read, write in ((read_params, lambda made: write_params(made[0])), (BYTES_LIST.read, BYTES_LIST.write),
                        (TEXT_LIST.read, TEXT_LIST.write)):  # fmt: skip
        try:
            made = read(payload)
        except WireError:
            continue
        if read is read_params:
            assert read(write(made)) == (made[0], ())
        else:
            assert write(made) == payload
    try:
        found = read_message(number, payload)
    except WireError as error:
        _check(str(error))
        return False
    if found is None:
        assert number not in MESSAGE_TYPES
        return False
    protocol, message = found
    if message.protocol_version:
        again, written = write_message(protocol, message)
        assert again == number
        assert len(written) <= len(payload)
        assert read_message(again, written) == found
    return True


def _stream_survives(rng: random.Random) -> None:
    begin = StreamBegin(
        **_JOB,
        msg_id=bytes(32),
        stream_id=_IDS[0],
        stream_kind=StreamKind.INPUT,
        content_type=JSON,
        content_encoding=IDENTITY,
        total_len=rng.choice((None, None, 0, 10, _MOST)),
    )
    reader, taken = StreamReader(begin, max_bytes=_MOST), b""
    for seq in sorted(rng.randrange(8) for _ in range(20)):
        stream_id = rng.choice((*_IDS[:1] * 9, _IDS[1]))
        data = rng.randbytes(rng.choice((0, 1, 5, 10, 61)))
        chunk = StreamChunk(**_JOB, msg_id=chunk_msg_id(stream_id, seq), stream_id=stream_id, seq=seq, data=data)
        try:
            taken += reader.chunk(chunk)
        except StreamError as error:
            _check(error.message)
        assert reader.received_bytes == len(taken) <= _MOST
    end = StreamEnd(
        **_JOB, msg_id=bytes(32), stream_id=_IDS[0], total_len=len(taken), sha256=hashlib.sha256(taken).digest()
    )
    wrong = replace(end, sha256=bytes(32)) if rng.random() < 0.5 else replace(end, total_len=len(taken) + 1)
    with contextlib.suppress(StreamError):
        assert not reader.end(wrong)
    if begin.total_len in {None, len(taken)}:
        assert reader.end(end)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m fuzz.lcp", description=__doc__)
    parser.add_argument("--inputs", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    found = seeds()
    started, messages = time.monotonic(), 0
    for number in range(arguments.inputs):
        seed = arguments.seed + number
        rng = random.Random(seed)
        try:
            if number % 10:
                messages += _codec_survives(rng, found)
            else:
                _stream_survives(rng)
        except Exception:
            print(f"failed with --seed {seed} --inputs 1", file=sys.stderr)
            raise
    print(f"{arguments.inputs} inputs, {messages} of them messages, {time.monotonic() - started:.0f} s: nothing broke")


if __name__ == "__main__":
    main()
