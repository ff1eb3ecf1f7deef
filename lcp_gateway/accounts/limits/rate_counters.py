"""One limit's window of a minute: how much of it is used, and when there will be room.

The window slides: what was counted in the minute before weighs as much as of it still lies within the last sixty
seconds. That is the ``limits`` library's sliding window counter, which needs two numbers where a list of times would
need one for every token.
"""

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from limits.errors import StorageError

from lcp_gateway.accounts.callers import Caller
from lcp_gateway.accounts.limits.rates import (
    NO_LIMITS,
    Allowance,
    LimitedBy,
    RateKind,
    RateLimited,
    Rates,
)
from lcp_gateway.accounts.shared.outage import REDIS_KEY_PREFIX, Outage, connect

WINDOW_S: Final = 60

_MARGIN_S = 0.001


@dataclass(frozen=True, slots=True)
class RateWindow:
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

    def plus(self, amount: int) -> "RateWindow":
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
            key_prefix=f"{REDIS_KEY_PREFIX}:rates",
            connection_pool=pool,
        )

    async def aclose(self) -> None:
        """Close the connections."""
        await self._pool.disconnect()


T = TypeVar("T")

# What has been used is counted even where the limit did not foresee it.
_WHATEVER_IT_IS: Final = 1 << 53
_MS_PER_S = 1_000
_S_PER_MINUTE = 60


@dataclass(frozen=True, slots=True)
class _Limit:
    """One limit as a request meets it: ``amount`` is what the request counts for in it."""

    kind: RateKind
    limited_by: LimitedBy
    item: RateLimitItemPerMinute
    name: str
    amount: int

    @property
    def key(self) -> str:
        return self.item.key_for(self.kind, self.limited_by, self.name)

    @property
    def most(self) -> int:
        return self.item.amount


class RateLimits:
    """Counts requests and tokens of the last minute against every limit that holds for a caller.

    ``gateway`` holds for all together, ``account`` for each account, ``key`` for each key whose own rules say nothing
    else. While a Redis that keeps the windows is away, ``outage`` says what happens; by default requests pass without
    limit, and it is reported.
    """

    def __init__(
        self,
        windows: MemoryWindows | RedisWindows,
        *,
        gateway: Rates = NO_LIMITS,
        account: Rates = NO_LIMITS,
        key: Rates = NO_LIMITS,
        outage: Outage | None = None,
    ) -> None:
        self._windows = windows
        self._limiter = SlidingWindowCounterRateLimiter(windows)
        self._is_remote = isinstance(windows, RedisWindows)
        self._gateway = gateway
        self._account = account
        self._key = key
        self._outage = outage or Outage()

    async def check(self, caller: Caller | None, tokens: int) -> Allowance:
        """Count a request of about so many tokens, unless one of the limits is reached; None is a caller without a key.

        Raises:
            RateLimited: one is; the request counts against none.
            LimitsAway: Redis is away, and nothing may pass without it.
        """
        tokens = max(0, tokens)
        limits = list(self._limits_of(caller, tokens))
        if not limits:
            return Allowance()
        if not self._outage.is_on:
            try:
                return await self._count(limits, tokens)
            except (StorageError, OSError) as error:
                self._outage.begin(error)
        self._outage.let_pass()
        return Allowance()

    async def settle(self, allowance: Allowance, tokens: int) -> None:
        """Count what a request really used in place of what it was reckoned with.

        Too much that was counted is given back only as far as this minute's window holds it: what has moved into the
        last one is running out by itself. While Redis is away nothing happens.
        """
        more = tokens - allowance.tokens
        counted = [limit for limit in allowance.counted if limit.kind is RateKind.TOKENS]
        if more and counted:
            await self._add(counted, [more] * len(counted))

    async def give_back(self, allowance: Allowance) -> None:
        """Count a request as if it had not been: it was refused for another reason."""
        if allowance.counted:
            await self._add(allowance.counted, [-limit.amount for limit in allowance.counted])

    def _limits_of(self, caller: Caller | None, tokens: int) -> Iterable[_Limit]:
        found = [(LimitedBy.GATEWAY, "", self._gateway)]
        if caller is not None:
            own = Rates(
                caller.rules.requests_per_minute or self._key.requests_per_minute,
                caller.rules.tokens_per_minute or self._key.tokens_per_minute,
            )
            found.append((LimitedBy.KEY, caller.key_id, own))
            if caller.account_id is not None:
                found.append((LimitedBy.ACCOUNT, caller.account_id, self._account))
        for limited_by, name, rates in found:
            for kind, most, amount in (
                (RateKind.REQUESTS, rates.requests_per_minute, 1),
                (RateKind.TOKENS, rates.tokens_per_minute, tokens),
            ):
                if most:
                    yield _Limit(kind, limited_by, RateLimitItemPerMinute(most), name, amount)

    async def _count(self, limits: Sequence[_Limit], tokens: int) -> Allowance:
        """Look at every limit first, so that a refused request touches none; then count, and take back if one was faster."""
        windows = await self._each(self._read(limit) for limit in limits)
        _refuse_what_does_not_fit(limits, windows)
        were_counted = await self._each(
            self._limiter.hit(
                limit.item, limit.kind, limit.limited_by, limit.name, cost=limit.amount
            )
            for limit in limits
        )
        if not all(were_counted):
            taken = [limit for limit, was in zip(limits, were_counted, strict=True) if was]
            await self._add(taken, [-limit.amount for limit in taken])
            full = [limit for limit, was in zip(limits, were_counted, strict=True) if not was]
            _refuse_what_does_not_fit(full, await self._each(self._read(limit) for limit in full))
            # Whatever filled it has been taken back in the meantime; the next try will fit.
            raise _refusal(full[0], 0.0, {})
        after = [window.plus(limit.amount) for limit, window in zip(limits, windows, strict=True)]
        return Allowance(tokens, _headers(limits, after), limits)

    async def _read(self, limit: _Limit) -> RateWindow:
        return RateWindow(*await self._windows.get_sliding_window(limit.key, WINDOW_S))

    async def _add(self, limits: Sequence[_Limit], amounts: Sequence[int]) -> None:
        if self._outage.is_on:
            return
        try:
            windows = await self._each(self._read(limit) for limit in limits)
            # Below nothing a window must not go: that would let more pass than its limit.
            bounded = [
                max(amount, -max(0, window.this))
                for amount, window in zip(amounts, windows, strict=True)
            ]
            await self._each(
                self._windows.acquire_sliding_window_entry(
                    limit.key, _WHATEVER_IT_IS, WINDOW_S, amount
                )
                for limit, amount in zip(limits, bounded, strict=True)
                if amount
            )
        except (StorageError, OSError) as error:
            self._outage.begin(error)

    async def _each(self, calls: Iterable[Coroutine[Any, Any, T]]) -> Sequence[T]:
        """Make calls at once where each is a journey, and one by one, with no other in between, where none is."""
        if self._is_remote:
            return await asyncio.gather(*calls)
        return [await call for call in calls]


def _refuse_what_does_not_fit(limits: Sequence[_Limit], windows: Sequence[RateWindow]) -> None:
    """Let a request pass that fits under every limit; else name the one that it has to wait for longest.

    Raises:
        RateLimited: it does not fit.
    """
    waits = [
        math.inf if limit.amount > limit.most else window.wait_s(limit.amount, limit.most)
        for limit, window in zip(limits, windows, strict=True)
    ]
    longest_s = max(waits)
    if longest_s > 0:
        raise _refusal(limits[waits.index(longest_s)], longest_s, _headers(limits, windows))


def _refusal(limit: _Limit, wait_s: float, headers: Mapping[str, str]) -> RateLimited:
    return RateLimited(
        limit.kind,
        limit.limited_by,
        limit.most,
        retry_after_s=None if math.isinf(wait_s) else wait_s,
        headers=headers,
    )


def _headers(limits: Sequence[_Limit], windows: Sequence[RateWindow]) -> Mapping[str, str]:
    """Give OpenAI's headers, for each kind those of the limit of which the least is left."""
    headers: dict[str, str] = {}
    for kind in RateKind:
        left = [
            (max(0, limit.most - window.used), limit.most, window)
            for limit, window in zip(limits, windows, strict=True)
            if limit.kind is kind
        ]
        if left:
            remaining, most, window = min(left, key=lambda one: one[:2])
            headers[f"x-ratelimit-limit-{kind}"] = str(most)
            headers[f"x-ratelimit-remaining-{kind}"] = str(remaining)
            headers[f"x-ratelimit-reset-{kind}"] = format_reset(window.reset_s(most))
    return headers


def format_reset(seconds: float) -> str:
    """Write a time as OpenAI's headers do: ``12ms``, ``1s``, ``59.5s``, ``6m0s``."""
    total_ms = math.ceil(seconds * _MS_PER_S)
    if total_ms < _MS_PER_S:
        return f"{total_ms}ms"
    minutes, left_ms = divmod(total_ms, _S_PER_MINUTE * _MS_PER_S)
    text = f"{left_ms // _MS_PER_S}.{left_ms % _MS_PER_S:03d}".rstrip("0").rstrip(".")
    return f"{minutes}m{text}s" if minutes else f"{text}s"
