"""The one table of the protocol's messages, for versions 0.2 and 0.3, and what reads and writes by it."""

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

from lcp_gateway.node.lcp.layout import Field, Layout
from lcp_gateway.node.lcp.messages import (
    Cancel,
    Error,
    Manifest,
    Message,
    Protocol,
    QuoteRequest,
    QuoteResponse,
    Result,
    Status,
    StreamBegin,
    StreamChunk,
    StreamEnd,
    StreamKind,
    TaskTemplate,
)
from lcp_gateway.node.lcp.tlv import (
    B32,
    BYTES,
    TEXT,
    TEXT_LIST,
    TU32,
    TU64,
    U16,
    Form,
    WireError,
    list_of,
    read_records,
)

MAX_PAYLOAD_BYTES: Final = 65_533
"""The longest payload of a custom message: a Lightning message has 65,535 bytes, two of which are its type."""

V02: Final = Protocol.V02
V03: Final = Protocol.V03


def chunk_msg_id(stream_id: bytes, seq: int) -> bytes:
    """Return the msg_id of a chunk: it is the same each time that the chunk is sent."""
    return sha256(stream_id + seq.to_bytes(4, "big")).digest()


def _of(members: type[enum.IntEnum]) -> Form:
    def read(value: bytes) -> enum.IntEnum:
        number = U16.read(value)
        try:
            return members(number)
        except ValueError:
            raise WireError(f"{number} is not known") from None

    return Form(read, U16.write)


_ENVELOPE: Final = (
    Field(1, "protocol_version", U16),
    Field(2, "job_id", B32),
    Field(3, "msg_id", B32),
    Field(4, "expiry", TU64),
)

_TEMPLATE: Final = (
    Field(20, "task_kind", TEXT, filled=True),
    Field(22, "params", BYTES, required=False, only=V02),
    Field(23, "request_content_types", TEXT_LIST, required=False, only=V03),
    Field(24, "response_content_types", TEXT_LIST, required=False, only=V03),
    Field(26, "docs_uri", TEXT, required=False, filled=True, only=V03),
    Field(27, "docs_sha256", B32, required=False, only=V03),
    Field(28, "policy_notice", TEXT, required=False, filled=True, only=V03),
)

TEMPLATES: Final = {
    V02: Layout("task template", TaskTemplate, _TEMPLATE, V02),
    V03: Layout("method descriptor", TaskTemplate, _TEMPLATE, V03),
}


def _check_version(message: Message) -> None:
    # Only what is written is checked: a peer's version is judged by the machine, which answers it.
    if not message.protocol_version:
        raise WireError("protocol_version (type 1) is zero")


def _check_quote(message: QuoteResponse) -> None:
    if (message.response_content_type is None) != (message.response_content_encoding is None):
        raise WireError("quote: response_content_type (type 34) and response_content_encoding (type 35) come together")


def _check_chunk(message: StreamChunk) -> None:
    if message.msg_id != chunk_msg_id(message.stream_id, message.seq):
        raise WireError("stream_chunk: msg_id (type 3) is not that of the stream and the number")


def _check_result(message: Result, *, stream_after_failure: bool) -> None:
    stream = (message.stream_id, message.sha256, message.total_len, message.content_type, message.content_encoding)
    held = sum(one is not None for one in stream)
    if held not in {0, len(stream)}:
        raise WireError("result: types 101 to 105 come together")
    if message.status is Status.OK:
        if not held:
            raise WireError("result: types 101 to 105 are missing")
        if message.message is not None:
            raise WireError("result: a message (type 81) beside the status OK")
    elif held and not stream_after_failure:
        raise WireError("result: types 101 to 105 beside a status that is not OK")


def _check_result_v02(message: Result) -> None:
    _check_result(message, stream_after_failure=False)


def _check_result_v03(message: Result) -> None:
    _check_result(message, stream_after_failure=True)


def _drop_message(values: dict[str, Any]) -> None:
    if values["status"] is Status.OK:
        values.pop("message", None)


@dataclass(frozen=True, slots=True)
class _Entry:
    """A message: its class, its type and name in each version, and its fields."""

    made: Callable[..., Message]
    v02: tuple[int, str]
    v03: tuple[int, str]
    rows: tuple[Field, ...]
    forbidden: frozenset[int] = frozenset()
    prepare: Mapping[Protocol, Callable[[dict[str, Any]], None]] | None = None
    check: Mapping[Protocol, Callable[[Any], None]] | None = None


_TABLE: Final = (
    _Entry(
        Manifest, (42081, "manifest"), (42101, "manifest"),
        (
            Field(1, "protocol_version", U16),
            Field(11, "max_payload_bytes", TU32, filled=True),
            Field(12, "tasks", list_of(TEMPLATES[V02].form), required=False, only=V02),
            Field(12, "tasks", list_of(TEMPLATES[V03].form), required=False, only=V03),
            Field(14, "max_stream_bytes", TU64, filled=True),
            Field(15, "max_job_bytes", TU64, filled=True),
            Field(16, "max_inflight_jobs", U16, required=False),
        ),
        forbidden=frozenset({2, 3, 4}),
    ),
    _Entry(
        QuoteRequest, (42083, "quote_request"), (42103, "call"),
        (
            *_ENVELOPE,
            Field(20, "task_kind", TEXT, filled=True),
            Field(22, "params", BYTES, required=False),
            Field(25, "params_content_type", TEXT, required=False, filled=True, only=V03),
        ),
    ),
    _Entry(
        QuoteResponse, (42085, "quote_response"), (42105, "quote"),
        (
            *_ENVELOPE,
            Field(30, "price_msat", TU64),
            Field(31, "quote_expiry", TU64),
            Field(32, "terms_hash", B32),
            Field(33, "payment_request", TEXT, filled=True),
            Field(34, "response_content_type", TEXT, required=False, filled=True, only=V03),
            Field(35, "response_content_encoding", TEXT, required=False, filled=True, only=V03),
        ),
        check={V03: _check_quote},
    ),
    _Entry(
        Result, (42087, "result"), (42107, "complete"),
        (
            *_ENVELOPE,
            Field(81, "message", TEXT, required=False),
            Field(100, "status", _of(Status)),
            Field(101, "stream_id", B32, required=False),
            Field(102, "sha256", B32, required=False),
            Field(103, "total_len", TU64, required=False),
            Field(104, "content_type", TEXT, required=False, filled=True),
            Field(105, "content_encoding", TEXT, required=False, filled=True),
        ),
        prepare={V02: _drop_message},
        check={V02: _check_result_v02, V03: _check_result_v03},
    ),
    _Entry(
        StreamBegin, (42089, "stream_begin"), (42109, "stream_begin"),
        (
            *_ENVELOPE,
            Field(90, "stream_id", B32),
            Field(91, "stream_kind", _of(StreamKind)),
            Field(92, "total_len", TU64, required=False),
            Field(93, "sha256", B32, required=False),
            Field(94, "content_type", TEXT, filled=True),
            Field(95, "content_encoding", TEXT, filled=True),
        ),
    ),
    _Entry(
        StreamChunk, (42091, "stream_chunk"), (42111, "stream_chunk"),
        (*_ENVELOPE, Field(90, "stream_id", B32), Field(96, "seq", TU32), Field(97, "data", BYTES)),
        check={V02: _check_chunk, V03: _check_chunk},
    ),
    _Entry(
        StreamEnd, (42093, "stream_end"), (42113, "stream_end"),
        (*_ENVELOPE, Field(90, "stream_id", B32), Field(92, "total_len", TU64), Field(93, "sha256", B32)),
    ),
    _Entry(
        Cancel, (42095, "cancel"), (42115, "cancel"),
        (*_ENVELOPE, Field(70, "reason", TEXT, required=False)),
    ),
    _Entry(
        Error, (42097, "error"), (42117, "error"),
        (*_ENVELOPE, Field(80, "code", U16, filled=True), Field(81, "message", TEXT, required=False)),
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Params:
    model: str


_PARAMS: Final = Layout("params", _Params, (Field(1, "model", TEXT, filled=True),), V02)

_READERS: Final[dict[int, tuple[Protocol, Layout[Message]]]] = {}
_WRITERS: Final[dict[tuple[Protocol, object], tuple[int, Layout[Message]]]] = {}
for _entry in _TABLE:
    for _protocol, (_number, _name) in ((V02, _entry.v02), (V03, _entry.v03)):
        _layout = Layout(
            _name,
            _entry.made,
            _entry.rows,
            _protocol,
            forbidden=_entry.forbidden,
            prepare=(_entry.prepare or {}).get(_protocol),
            check=(_entry.check or {}).get(_protocol),
        )
        _READERS[_number] = (_protocol, _layout)
        _WRITERS[_protocol, _entry.made] = (_number, _layout)

MESSAGE_TYPES: Final[Mapping[int, tuple[Protocol, str]]] = {
    number: (protocol, layout.name) for number, (protocol, layout) in _READERS.items()
}
"""Each type of custom message that belongs to the protocol: its version and its name there."""


def read_message(message_type: int, payload: bytes) -> tuple[Protocol, Message] | None:
    """Read a custom message; None for a type that is not the protocol's.

    ``protocol_version`` of the message may be any number: the type alone decides how it is read.

    Raises:
        WireError: the payload is no valid message of its type. A peer that sent it gets no answer.
    """
    reader = _READERS.get(message_type)
    if reader is None:
        return None
    protocol, layout = reader
    return protocol, layout.read(payload)


def write_message(protocol: Protocol, message: Message) -> tuple[int, bytes]:
    """Return the type and the payload of a message. Whether the payload is short enough for its reader is not checked.

    Raises:
        WireError: the message has no valid bytes in that version.
    """
    number, layout = _WRITERS[protocol, type(message)]
    _check_version(message)
    return number, layout.write(message)


def read_params(params: bytes) -> tuple[str, tuple[int, ...]]:
    """Read the params of OpenAI's kinds: the model, and the types that are not known here, which a provider refuses.

    Raises:
        WireError: they are no TLV stream, or name no model.
    """
    return _PARAMS.read(params).model, _PARAMS.unknown(params)


def write_params(model: str) -> bytes:
    """Write the params of OpenAI's kinds.

    Raises:
        WireError: the model is empty, too long, or not valid Unicode.
    """
    return _PARAMS.write(_Params(model))


def hash_params(protocol: Protocol, params: bytes | None) -> bytes:
    """Hash a request's params for its terms; absent and empty ones hash alike.

    Raises:
        WireError: version 0.2, and they are no TLV stream. (0.3 does not look into them.)
    """
    if params and protocol is V02:
        # Version 0.2 hashes the params decoded and encoded again: the same bytes, as each record has one encoding only.
        read_records(params)
    return sha256(params or b"").digest()
