"""One limit's window of a minute: how much of it is used, and when there will be room.

The window slides: what was counted in the minute before weighs as much as of it still lies within the last sixty
seconds. That is the ``limits`` library's sliding window counter, which needs two numbers where a list of times would
need one for every token.
"""

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

from limits.aio.storage import MemoryStorage, RedisStorage

from lcp_gateway.accounts.replicas import KEY_PREFIX, connect

WINDOW_S: Final = 60

_MARGIN_S = 0.001


@dataclass(frozen=True, slots=True)
class Window:
    """What was counted in the last window and in this one, and for how many seconds each still counts.

    This window becomes the last one when ``this_left_s`` has come down to one window's length.
    """

    last: int
    last_left_s: float
    this: int
    this_left_s: float

    @property
    def used(self) -> int:
        """How much counts now."""
        return max(0, math.floor(self.last * self.last_left_s / WINDOW_S + self.this))

    def plus(self, amount: int) -> "Window":
        """Give the window as it is once an amount more is counted."""
        return replace(
            self, this=self.this + amount, this_left_s=self.this_left_s or 2.0 * WINDOW_S
        )

    def wait_s(self, amount: int, limit: int) -> float:
        """Give the seconds until an amount fits under the limit, if nothing else is counted: 0 when it fits now.

        The amount must not be above the limit.
        """
        room = limit - amount + 1
        if self.used < room:
            return 0.0
        if self.this < room:
            return self.last_left_s - (room - self.this) * WINDOW_S / self.last + _MARGIN_S
        turns_in_s = max(0.0, self.this_left_s - WINDOW_S)
        return turns_in_s + WINDOW_S * (1 - room / self.this) + _MARGIN_S

    def reset_s(self, limit: int) -> float:
        """Give the seconds until nothing counts any more."""
        return self.wait_s(limit, limit)


class MemoryWindows(MemoryStorage):
    """The library's storage in memory, with sliding windows that cost the same however many there are.

    The library's own looks at every counter on each hit, to find those that have run out. Here the windows lie in
    the order of their use, and each hit drops a few that have run out from the front.
    """

    STORAGE_SCHEME: list[str] = []  # noqa: RUF012 - the library's word for: found by no URL

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        super().__init__()
        self._clock = clock
        self._windows: OrderedDict[str, tuple[int, int, int]] = OrderedDict()
        """By key: the window's number since 1970, what was counted in the one before, and in it."""

    @property
    def count(self) -> int:
        """How many windows are kept."""
        return len(self._windows)

    async def acquire_sliding_window_entry(
        self, key: str, limit: int, expiry: int, amount: int = 1
    ) -> bool:
        """Count an amount if the window then holds no more than the limit; tell whether it was counted."""
        number, last, this, passed = self._read(key, expiry)
        if math.floor(last * (1 - passed) + this) + amount > limit:
            return False
        self._windows[key] = (number, last, this + amount)
        self._windows.move_to_end(key)
        self._drop_what_ran_out(number)
        return True

    async def get_sliding_window(self, key: str, expiry: int) -> tuple[int, float, int, float]:
        """Give the last window's count and the seconds that it still counts, and the same of this window."""
        _, last, this, passed = self._read(key, expiry)
        return last, (1 - passed) * expiry, this, (2 - passed) * expiry

    async def clear_sliding_window(self, key: str, expiry: int) -> None:  # noqa: ARG002 - the library's signature
        """Forget what was counted."""
        self._windows.pop(key, None)

    def _read(self, key: str, expiry: int) -> tuple[int, int, int, float]:
        """Give the window's number, both counts as of now, and the share of this window that has passed."""
        number, passed = divmod(self._clock() / expiry, 1)
        now = int(number)
        then, last, this = self._windows.get(key, (now, 0, 0))
        if now - then == 1:
            last, this = this, 0
        elif now != then:
            last, this = 0, 0
        return now, last, this, passed

    def _drop_what_ran_out(self, now: int) -> None:
        for _ in range(2):
            oldest, (number, _, _) = next(iter(self._windows.items()))
            if now - number <= 1:
                return
            del self._windows[oldest]


class RedisWindows(RedisStorage):
    """The library's storage in a Redis, for all replicas that are given the same.

    Raises:
        RedisNotInstalled: the extra is not there.
        ValueError: the URL is none of Redis.
    """

    STORAGE_SCHEME: list[str] = []  # noqa: RUF012 - the library's word for: found by no URL

    def __init__(self, url: str) -> None:
        pool: Any = connect(url)
        self._pool = pool
        super().__init__(
            # The library gets connections instead of an address, which it would read in a way of its own.
            "async+redis://",
            wrap_exceptions=True,
            implementation="redispy",
            key_prefix=f"{KEY_PREFIX}:rates",
            connection_pool=pool,
        )

    async def aclose(self) -> None:
        """Close the connections."""
        await self._pool.disconnect()
