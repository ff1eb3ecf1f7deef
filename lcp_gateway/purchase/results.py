"""What comes back for a task: a whole result, or the events of a stream."""

import enum
from dataclasses import dataclass, field

from lcp_gateway.purchase.money import Msat
from lcp_gateway.purchase.outcome import Judge


class ResultStatus(enum.StrEnum):
    """What a provider says of its own work."""

    UNSPECIFIED = "unspecified"
    OK = "ok"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Result:
    """A result, or after a stream its terminal message (``body`` may then be empty: the chunks carried it).

    ``charged_msat`` is what it came to, where the quote's price was only the most that it could.
    """

    status: ResultStatus
    body: bytes = field(repr=False)
    sha256: bytes
    length: int
    content_type: str
    content_encoding: str
    message: str
    charged_msat: Msat | None = None


@dataclass(frozen=True, slots=True)
class StreamBegin:
    """The head of a streamed result.

    ``judge`` is given by an upstream that reads the chunks itself before it hands them over.
    """

    content_type: str
    content_encoding: str
    judge: Judge | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class StreamEnd:
    """The provider's word on what it streamed; hash and length are checked against what came."""

    sha256: bytes
    length: int


StreamEvent = StreamBegin | bytes | StreamEnd | Result
"""One event of a streamed result; plain ``bytes`` is a chunk, which is nearly all of them."""
