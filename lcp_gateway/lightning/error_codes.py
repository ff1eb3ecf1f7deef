"""The codes of a peer's errors. The same number means another thing in the other version, so a code is read by its version first."""

import enum
from typing import Final


class ErrorCode(enum.Enum):
    """The meaning of a peer's error, in any version; the value holds its numbers in versions 2 and 3 of the protocol.

    Where a version has no number of its own for a meaning, the number is that of the nearest one.
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

    def number(self, protocol: int) -> int:
        """Return the number for it in version ``protocol`` (2 or 3)."""
        return self.value[_PLACE[protocol]]


_PLACE: Final = {2: 0, 3: 1}
_READ: Final = {
    (protocol, code.number(protocol)): code
    # The first member that has a number is its meaning.
    for code in reversed(ErrorCode)
    for protocol in _PLACE
}


def read_code(protocol: int, number: int) -> ErrorCode | None:
    """Return the meaning of a number in version ``protocol``; None for one that the version does not know."""
    return _READ.get((protocol, number))
