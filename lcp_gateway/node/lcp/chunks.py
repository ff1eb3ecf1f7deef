"""Streams: bytes cut into messages that a peer takes, and put together again with their hash checked."""

import hashlib
from collections.abc import Callable, Iterator
from typing import Final

from lcp_gateway.lightning.error_codes import ErrorCode
from lcp_gateway.lightning.terms import bigsize, tu64
from lcp_gateway.node.lcp.messages import (
    IDENTITY,
    Message,
    Protocol,
    Result,
    StreamBegin,
    StreamChunk,
    StreamEnd,
    StreamKind,
)
from lcp_gateway.node.lcp.table import MAX_PAYLOAD_BYTES, chunk_msg_id, write_message

_SEQ_TYPE: Final = 96
_DATA_TYPE: Final = bytes((97,))
_SEQ_AND_DATA_BYTES: Final = 4
"""The last bytes of an empty chunk with the number 0: two types with the length 0."""

_ONE_BYTE_LENGTHS: Final = 0xFD
_LONGER_LENGTH_BYTES: Final = 2


class StreamError(Exception):
    """A stream that is not as it should be; ``code`` is what a peer is told, or a caller."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def _too_long(kind: StreamKind) -> str:
    return f"{kind.name.lower()} stream exceeds local limits"


class StreamWriter:
    """Writes one stream as messages (type, payload), none of them longer than ``max_payload_bytes``.

    ``expiry`` is that of all its messages, in Unix seconds; ``new_id`` returns 32 random bytes for the msg_id of its begin and
    its end. The same arguments and the same calls of ``chunks`` make the same chunks again, as a peer expects of a stream
    that was interrupted.
    """

    def __init__(
        self,
        protocol: Protocol,
        *,
        protocol_version: int,
        job_id: bytes,
        expiry: int,
        stream_id: bytes,
        kind: StreamKind,
        content_type: str,
        content_encoding: str = IDENTITY,
        max_payload_bytes: int,
        new_id: Callable[[], bytes],
    ) -> None:
        self.sent_bytes = 0
        self._protocol = protocol
        self._version = protocol_version
        self._job_id = job_id
        self._expiry = expiry
        self._stream_id = stream_id
        self._kind = kind
        self._content_type = content_type
        self._content_encoding = content_encoding
        # A Lightning message has its own bound, whatever a peer says that it takes.
        self._most = min(max_payload_bytes, MAX_PAYLOAD_BYTES)
        self._new_id = new_id
        self._seq = 0
        self._template = _ChunkTemplate(protocol, protocol_version, job_id, expiry, stream_id)
        # The room of a chunk whose number takes so many bytes.
        self._room_for = (-1, 0)
        self._hash = hashlib.sha256()

    def begin(self, *, total_len: int | None = None, sha256: bytes | None = None) -> tuple[int, bytes]:
        """Return the head of the stream, with its length and hash where they are known already.

        Raises:
            StreamError: PAYLOAD_TOO_LARGE: the peer takes no message that long.
        """
        return self._write(
            StreamBegin(
                protocol_version=self._version,
                job_id=self._job_id,
                msg_id=self._new_id(),
                expiry=self._expiry,
                stream_id=self._stream_id,
                stream_kind=self._kind,
                content_type=self._content_type,
                content_encoding=self._content_encoding,
                total_len=total_len,
                sha256=sha256,
            )
        )

    def chunks(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Cut bytes into as few chunks as the peer's limit allows; no bytes are no chunk.

        Raises:
            StreamError: PAYLOAD_TOO_LARGE: the peer's limit leaves no room for a single byte.
        """
        at = 0
        while at < len(data):
            piece = data[at : at + self._room()]
            at += len(piece)
            payload = self._template.write(self._seq, piece)
            self._seq += 1
            self._hash.update(piece)
            self.sent_bytes += len(piece)
            yield payload

    @property
    def digest(self) -> bytes:
        """The hash of the bytes that were cut."""
        return self._hash.digest()

    def end(self) -> tuple[int, bytes]:
        """Return the end of the stream.

        Raises:
            StreamError: PAYLOAD_TOO_LARGE: the peer takes no message that long.
        """
        return self._write(
            StreamEnd(
                protocol_version=self._version,
                job_id=self._job_id,
                msg_id=self._new_id(),
                expiry=self._expiry,
                stream_id=self._stream_id,
                total_len=self.sent_bytes,
                sha256=self.digest,
            )
        )

    def _room(self) -> int:
        """Return how many bytes the next chunk can carry: what its other fields leave of the limit.

        Of those fields only the number takes more bytes from one chunk to the next.
        """
        number_bytes = (self._seq.bit_length() + 7) // 8
        if number_bytes == self._room_for[0]:
            return self._room_for[1]
        room = self._most - len(self._template.write(self._seq, b"")[1])
        if room >= _ONE_BYTE_LENGTHS:
            room = max(room - _LONGER_LENGTH_BYTES, _ONE_BYTE_LENGTHS - 1)
        if room < 1:
            raise StreamError(
                ErrorCode.PAYLOAD_TOO_LARGE, f"the peer's max_payload_bytes of {self._most} fits no chunk"
            )
        self._room_for = number_bytes, room
        return room

    def _write(self, message: Message) -> tuple[int, bytes]:
        number, payload = write_message(self._protocol, message)
        if len(payload) > self._most:
            raise StreamError(
                ErrorCode.PAYLOAD_TOO_LARGE,
                f"a message of {len(payload)} bytes: the peer's max_payload_bytes is {self._most}",
            )
        return number, payload


class _ChunkTemplate:
    """The chunks of one stream as ``write_message`` writes them. Most messages are chunks: what is the same in all is written once."""

    def __init__(self, protocol: Protocol, protocol_version: int, job_id: bytes, expiry: int, stream_id: bytes) -> None:
        self._stream_id = stream_id
        first = StreamChunk(
            protocol_version=protocol_version,
            job_id=job_id,
            msg_id=chunk_msg_id(stream_id, 0),
            expiry=expiry,
            stream_id=stream_id,
            seq=0,
            data=b"",
        )
        self._number, payload = write_message(protocol, first)
        self._before_id, _, rest = payload.partition(first.msg_id)
        self._before_seq = rest[:-_SEQ_AND_DATA_BYTES]

    def write(self, seq: int, data: bytes) -> tuple[int, bytes]:
        """Return the type and the payload of a chunk."""
        number = tu64(seq)
        payload = b"".join((
            self._before_id, chunk_msg_id(self._stream_id, seq), self._before_seq,
            bytes((_SEQ_TYPE, len(number))), number,
            _DATA_TYPE, bigsize(len(data)), data,
        ))  # fmt: skip
        return self._number, payload


class StreamReader:
    """Reads one stream, whose head has come. It keeps no bytes: what is new in a chunk goes to the caller at once.

    An error leaves it as it was: the chunk that was expected can still come.
    """

    def __init__(self, begin: StreamBegin, *, max_bytes: int) -> None:
        """Begin to read.

        Raises:
            StreamError: UNSUPPORTED_ENCODING for an encoding but identity; PAYLOAD_TOO_LARGE for a stream that
                announces more than ``max_bytes``.
        """
        if begin.content_encoding != IDENTITY:
            raise StreamError(ErrorCode.UNSUPPORTED_ENCODING, "unsupported content_encoding")
        if begin.total_len is not None and begin.total_len > max_bytes:
            raise StreamError(ErrorCode.PAYLOAD_TOO_LARGE, _too_long(begin.stream_kind))
        self.stream_id = begin.stream_id
        self.content_type = begin.content_type
        self.received_bytes = 0
        self.ended = False
        self._begin = begin
        self._most = max_bytes if begin.total_len is None else begin.total_len
        self._seq = 0
        self._hash = hashlib.sha256()

    def chunk(self, chunk: StreamChunk) -> bytes:
        """Return the bytes that are new; none for a repeated chunk, a later one than the end, and one of another stream.

        Raises:
            StreamError: CHUNK_OUT_OF_ORDER for one that skips others; PAYLOAD_TOO_LARGE for one byte too many.
        """
        if self.ended or chunk.stream_id != self.stream_id or chunk.seq < self._seq:
            return b""
        if chunk.seq > self._seq:
            raise StreamError(ErrorCode.CHUNK_OUT_OF_ORDER, "chunk out of order")
        if self.received_bytes + len(chunk.data) > self._most:
            raise StreamError(ErrorCode.PAYLOAD_TOO_LARGE, _too_long(self._begin.stream_kind))
        self._seq += 1
        self.received_bytes += len(chunk.data)
        self._hash.update(chunk.data)
        return chunk.data

    def end(self, end: StreamEnd) -> bool:
        """Take the end of the stream; False for one of another stream or a repeated one.

        Raises:
            StreamError: CHECKSUM_MISMATCH: length or hash are not those of the bytes, or not those of the head.
        """
        if self.ended or end.stream_id != self.stream_id:
            return False
        if end.total_len != self.received_bytes or self._begin.total_len not in {None, end.total_len}:
            raise StreamError(ErrorCode.CHECKSUM_MISMATCH, "stream total_len mismatch")
        if end.sha256 != self._hash.digest() or self._begin.sha256 not in {None, end.sha256}:
            raise StreamError(ErrorCode.CHECKSUM_MISMATCH, "stream sha256 mismatch")
        self.ended = True
        return True

    def check_result(self, result: Result) -> None:
        """Check that a result is about this stream, once it has ended.

        Raises:
            StreamError: CHECKSUM_MISMATCH: id, hash, length, type or encoding are not the stream's.
        """
        if not self.ended:
            raise StreamError(ErrorCode.CHECKSUM_MISMATCH, "the result's stream has not ended")
        told = {
            "stream_id": (result.stream_id, self.stream_id),
            "hash": (result.sha256, self._hash.digest()),
            "len": (result.total_len, self.received_bytes),
            "content_type": (result.content_type, self.content_type),
            "content_encoding": (result.content_encoding, IDENTITY),
        }
        for field, (stated, true) in told.items():
            if stated != true:
                raise StreamError(ErrorCode.CHECKSUM_MISMATCH, f"result_{field} mismatch")
