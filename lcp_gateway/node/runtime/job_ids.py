"""Ids of jobs that a node knows again: after a restart it can say that it never paid one of which it has no record.

A job's id is random bytes, the time of its quote, and a code over both that only the node's store can make. To peers it is 32
bytes, as any other. Without the code a job could be one of another node, whose payments this one does not know.
"""

import hmac
import os
from collections.abc import Callable
from typing import Final

_ID_BYTES: Final = 32
_TIME_BYTES: Final = 4
_HEAD_BYTES: Final = 16
_TIMES: Final = 256**_TIME_BYTES


def random_id() -> bytes:
    """Return 32 random bytes."""
    return os.urandom(_ID_BYTES)


class JobIds:
    """Makes ids of jobs with a store's key; ``clock`` returns Unix seconds."""

    def __init__(self, key: bytes, clock: Callable[[], float]) -> None:
        self._key = key
        self._clock = clock

    def new(self) -> bytes:
        """Return the id of a new job, 32 bytes."""
        time = (int(self._clock()) % _TIMES).to_bytes(_TIME_BYTES, "big")
        # Random bytes first: where an id is shortened, its beginning is shown.
        head = os.urandom(_HEAD_BYTES - _TIME_BYTES) + time
        return head + self._code(head)

    def made_at(self, job_id: bytes) -> int | None:
        """Return when an id was made here, in Unix seconds; None for the id of another node's job."""
        head, code = job_id[:_HEAD_BYTES], job_id[_HEAD_BYTES:]
        if not hmac.compare_digest(code, self._code(head)):
            return None
        return int.from_bytes(head[-_TIME_BYTES:], "big")

    def _code(self, head: bytes) -> bytes:
        return hmac.digest(self._key, b"job " + head, "sha256")[:_HEAD_BYTES]
