"""The messages of the protocol as values: the same classes for both versions.

Version 0.3 says call for job, method for task kind, complete for result, request for input and response for result; a field
that only one version has says so. Times are Unix seconds.
"""

import enum
from typing import Final

from lcp_gateway.values import value

CHAT: Final = "openai.chat_completions.v1"
RESPONSES: Final = "openai.responses.v1"
JSON: Final = "application/json; charset=utf-8"
SSE: Final = "text/event-stream; charset=utf-8"
IDENTITY: Final = "identity"


class Protocol(enum.IntEnum):
    """A version of the protocol: which message types carry it, and the number that its messages bear."""

    V02 = 2
    V03 = 3


class StreamKind(enum.IntEnum):
    """Whose bytes a stream carries."""

    INPUT = 1
    RESULT = 2


class Status(enum.IntEnum):
    """How a job ended."""

    OK = 0
    FAILED = 1
    CANCELLED = 2


@value(kw_only=True)
class TaskTemplate:
    """A task that a provider offers: in 0.2 a kind and its params, in 0.3 a method and its description.

    Absent and empty ``params`` differ.
    """

    task_kind: str
    params: bytes | None = None
    """0.2 only."""
    request_content_types: tuple[str, ...] = ()
    """0.3 only, as are the following."""
    response_content_types: tuple[str, ...] = ()
    docs_uri: str | None = None
    docs_sha256: bytes | None = None
    policy_notice: str | None = None


@value(kw_only=True)
class Manifest:
    """What a peer takes and offers; the first message of each side."""

    protocol_version: int
    max_payload_bytes: int
    max_stream_bytes: int
    max_job_bytes: int
    tasks: tuple[TaskTemplate, ...] = ()
    max_inflight_jobs: int | None = None


@value(kw_only=True)
class JobMessage:
    """A message of a job. ``job_id`` and ``msg_id`` are 32 bytes; the message is void after ``expiry``."""

    protocol_version: int
    job_id: bytes
    msg_id: bytes
    expiry: int


@value(kw_only=True)
class QuoteRequest(JobMessage):
    """Ask for a quote; the input follows as a stream. Absent and empty ``params`` differ."""

    task_kind: str
    params: bytes | None = None
    params_content_type: str | None = None
    """0.3 only."""


@value(kw_only=True)
class QuoteResponse(JobMessage):
    """A quote. ``terms_hash`` is 32 bytes, ``payment_request`` a BOLT 11 invoice."""

    price_msat: int
    quote_expiry: int
    terms_hash: bytes
    payment_request: str
    response_content_type: str | None = None
    """0.3 only: comes with ``response_content_encoding`` or not at all."""
    response_content_encoding: str | None = None


@value(kw_only=True)
class Result(JobMessage):
    """The end of a job. The five fields of the result's stream come together, and always when the status is OK.

    Version 0.2 allows them with no other status.
    """

    status: Status
    message: str | None = None
    stream_id: bytes | None = None
    sha256: bytes | None = None
    total_len: int | None = None
    content_type: str | None = None
    content_encoding: str | None = None


@value(kw_only=True)
class StreamBegin(JobMessage):
    """The head of a stream. Length and hash are absent where they are not known yet."""

    stream_id: bytes
    stream_kind: StreamKind
    content_type: str
    content_encoding: str
    total_len: int | None = None
    sha256: bytes | None = None


@value(kw_only=True)
class StreamChunk(JobMessage):
    """A piece of a stream. Its ``msg_id`` is ``chunk_msg_id(stream_id, seq)``."""

    stream_id: bytes
    seq: int
    data: bytes


@value(kw_only=True)
class StreamEnd(JobMessage):
    """The end of a stream, with the length and the hash of all of its bytes."""

    stream_id: bytes
    total_len: int
    sha256: bytes


@value(kw_only=True)
class Cancel(JobMessage):
    """The requester no longer wants the job."""

    reason: str | None = None


@value(kw_only=True)
class Error(JobMessage):
    """A refusal; ``code`` is the number on the wire, which means another thing in the other version: ``codes``."""

    code: int
    message: str | None = None


AnyJobMessage = QuoteRequest | QuoteResponse | Result | StreamBegin | StreamChunk | StreamEnd | Cancel | Error
Message = Manifest | AnyJobMessage
