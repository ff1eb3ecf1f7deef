"""Which owners of purchases count as gone on PostgreSQL: those whose locks were free for long enough.

A live gateway loses its lock with its session: the server was restarted, a pooler or the network ended the connection. It
notices within a second or a write's time-out and takes the lock again. So one look that finds a lock free proves nothing.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from lcp_gateway.store.database import GONE_AFTER_S

_MOST_BETWEEN_LOOKS_S: Final = 5.0
_WATCHED_S: Final = 120.0
_MOST_WATCHED: Final = 256


@dataclass(slots=True)
class _Absence:
    free_since: float
    looked_at: float
    asked_at: float


class Absences:
    """The owners whose locks were found free, and since when.

    An owner is gone once every look at its lock found it free for ``gone_after_s``. The looks have to be close to each
    other, and on one session: while the server cannot be asked, the owner cannot take its lock again either.
    """

    def __init__(
        self, gone_after_s: float = GONE_AFTER_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """``clock`` is a monotonic clock in seconds."""
        self._gone_after_s = gone_after_s
        self._clock = clock
        self._absent: dict[str, _Absence] = {}

    def found_free(self, owner: str, *, asked: bool = True) -> bool:
        """Note a look that found the lock free; true once the owner counts as gone.

        ``asked`` says that the answer is needed, so that the owner is watched on for a while.
        """
        now = self._clock()
        found = self._absent.get(owner)
        if found is None:
            self._make_room()
            found = self._absent[owner] = _Absence(now, now, now)
        elif now - found.looked_at > _MOST_BETWEEN_LOOKS_S:
            found.free_since = now
        found.looked_at = now
        if asked:
            found.asked_at = now
        return now - found.free_since >= self._gone_after_s

    def found_held(self, owner: str) -> None:
        """Note a look that found the lock held: the owner lives."""
        self._absent.pop(owner, None)

    def is_watched(self, owner: str) -> bool:
        """Return whether the owner's lock was free at the last look."""
        return owner in self._absent

    def to_look_at(self) -> Sequence[str]:
        """Return the owners to be looked at again, so that no look is too long after the last."""
        now = self._clock()
        for owner in [
            owner for owner, found in self._absent.items() if now - found.asked_at > _WATCHED_S
        ]:
            del self._absent[owner]
        return tuple(self._absent)

    def begin_again(self) -> None:
        """Count from the next look on: the session that looked was lost, and the owners' may have been with it."""
        now = self._clock()
        for found in self._absent.values():
            found.free_since = found.looked_at = now

    def _make_room(self) -> None:
        # Those that nothing has asked for the longest; a look of theirs that counts would be the first again.
        while len(self._absent) >= _MOST_WATCHED:
            del self._absent[min(self._absent, key=lambda owner: self._absent[owner].asked_at)]
