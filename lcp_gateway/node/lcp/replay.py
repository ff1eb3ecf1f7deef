"""Messages that came before: each msg_id of a job is taken once while its message is valid."""

import heapq
from typing import Final

MAX_WINDOW_S: Final = 600
"""How long a msg_id is remembered at most, however late its message expires."""

MAX_ENTRIES: Final = 1024

_Key = tuple[str, bytes, bytes]


def is_expired(now: int, expiry: int) -> bool:
    """Return whether a message is void; both are Unix seconds. It is still valid in the second of its expiry."""
    return expiry < now


class ReplayWindow:
    """Remembers (peer, job, msg_id) until the message expires, within a bound: the first to expire is forgotten first.

    Chunks are not remembered: their numbers tell repeats.
    """

    def __init__(self, *, max_entries: int = MAX_ENTRIES, max_window_s: int = MAX_WINDOW_S) -> None:
        self._max_entries = max_entries
        self._max_window_s = max_window_s
        self._kept: set[_Key] = set()
        self._by_end: list[tuple[int, _Key]] = []

    def __len__(self) -> int:
        return len(self._kept)

    def is_new(self, now: int, peer_id: str, job_id: bytes, msg_id: bytes, expiry: int) -> bool:
        """Return whether a message that is not expired comes for the first time, and remember it."""
        while self._by_end and self._by_end[0][0] < now:
            self._forget_first()
        key = (peer_id, job_id, msg_id)
        if key in self._kept:
            return False
        self._kept.add(key)
        heapq.heappush(self._by_end, (min(expiry, now + self._max_window_s), key))
        if len(self._kept) > self._max_entries:
            self._forget_first()
        return True

    def _forget_first(self) -> None:
        _, key = heapq.heappop(self._by_end)
        self._kept.discard(key)
