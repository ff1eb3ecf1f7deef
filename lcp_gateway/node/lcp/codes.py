"""The codes of errors. The same number means another thing in the other version, so a code is read by its version first."""

import enum
from typing import Final

from lcp_gateway.node.lcp.messages import Protocol


class ErrorCode(enum.Enum):
    """What an error message says, whatever its version; the value holds its numbers in 0.2 and in 0.3.

    Where a version has no number of its own for it, the number is that of the nearest meaning.
    """

    UNSUPPORTED_VERSION = (1, 1)
    UNSUPPORTED_TASK = (2, 3)
    QUOTE_EXPIRED = (3, 4)
    PAYMENT_REQUIRED = (4, 5)
    PAYMENT_INVALID = (5, 6)
    PAYLOAD_TOO_LARGE = (6, 7)
    RATE_LIMITED = (7, 8)
    UNSUPPORTED_PARAMS = (8, 3)
    UNSUPPORTED_ENCODING = (9, 9)
    INVALID_STATE = (10, 10)
    CHUNK_OUT_OF_ORDER = (11, 11)
    CHECKSUM_MISMATCH = (12, 12)
    MANIFEST_REQUIRED = (10, 2)
    STREAM_LIMIT_EXCEEDED = (6, 13)

    def number(self, protocol: Protocol) -> int:
        """Return the number that says it in that version."""
        return self.value[_PLACE[protocol]]


_PLACE: Final = {Protocol.V02: 0, Protocol.V03: 1}
_READ: Final = {
    (protocol, code.number(protocol)): code
    # The first member that has a number is its meaning.
    for code in reversed(ErrorCode)
    for protocol in Protocol
}


def read_code(protocol: Protocol, number: int) -> ErrorCode | None:
    """Return what a number means in that version; None for one that the version does not know."""
    return _READ.get((protocol, number))
