"""Requests and tokens per minute, for a key, its account and the whole gateway: checked before anything is quoted.

Each limit has a sliding window of a minute, kept as two counts: that of the last minute of the clock weighs as much as of it
still lies within the last sixty seconds. A list of times would need an entry for every token.
"""

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Final, Protocol

from lcp_gateway.accounts.callers import Caller
from lcp_gateway.accounts.shared.calls import RedisCalls
from lcp_gateway.accounts.shared.outage import REDIS_KEY_PREFIX, Outage
from lcp_gateway.purchase.errors import Refused
from lcp_gateway.values import value

WINDOW_S: Final = 60
_MARGIN_S = 0.001
_MS_PER_S = 1_000


class RateKind(StrEnum):
    """The unit of a limit."""

    REQUESTS = "requests"
    TOKENS = "tokens"


class LimitedBy(StrEnum):
    """The subject of a limit."""

    GATEWAY = "gateway"
    ACCOUNT = "account"
    KEY = "key"


@dataclass(frozen=True, slots=True)
class Rates:
    """Limits per minute; 0 means no limit."""

    requests_per_minute: int = 0
    tokens_per_minute: int = 0


NO_LIMITS: Final = Rates()


@dataclass(frozen=True, slots=True)
class RateLimit:
    """One limit as a request meets it: ``amount`` is the request's share of it."""

    kind: RateKind
    limited_by: LimitedBy
    name: str
    limit: int
    amount: int

    @property
    def key(self) -> str:
        """The key of its window."""
        return f"{self.kind}:{self.limited_by}:{self.name}:{self.limit}"


@dataclass(frozen=True, slots=True)
class RateWindow:
    """The counts of the last window and of this one, which becomes the last in ``left_s``."""

    last: int
    this: int
    left_s: float

    @property
    def used(self) -> int:
        """How much counts now."""
        return max(0, math.floor(self.last * self.left_s / WINDOW_S + self.this))

    def wait_s(self, amount: int, limit: int) -> float:
        """Return the seconds until an amount fits under the limit, if nothing else is counted: 0 when it fits now.

        The amount must not be above the limit.
        """
        room = limit - amount + 1
        if self.used < room:
            return 0.0
        if self.this < room:
            return self.left_s - (room - self.this) * WINDOW_S / self.last + _MARGIN_S
        return self.left_s + WINDOW_S * (1 - room / self.this) + _MARGIN_S

    def reset_s(self, limit: int) -> float:
        """Return the seconds until nothing counts any more."""
        return self.wait_s(limit, limit)


class RateLimited(Refused):
    """A limit is reached. Nothing was counted, and no provider was asked.

    ``retry_after_s`` is when the request fits, if no other comes before; None when it is larger than the limit and
    never fits. ``headers`` are OpenAI's ``x-ratelimit-…``.
    """

    code = "rate_limit_exceeded"

    def __init__(
        self,
        kind: RateKind,
        limited_by: LimitedBy,
        limit: int,
        *,
        retry_after_s: float | None,
        headers: Mapping[str, str],
    ) -> None:
        described = f"{limit} {kind} a minute for this {limited_by}"
        if retry_after_s is None:
            message = f"the request is larger than the limit of {described}; nothing was paid"
        else:
            message = f"the limit of {described} is reached; nothing was paid"
        super().__init__(message)
        self.may_pass_later = retry_after_s is not None
        self.kind = kind
        self.limited_by = limited_by
        self.limit = limit
        self.retry_after_s = retry_after_s
        self.headers = headers


@value
class Allowance:
    """An admitted request: the tokens and limits that were counted for it, and the headers of its answer."""

    tokens: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    counted: Sequence[RateLimit] = field(default=(), repr=False)


class RateCounters(Protocol):
    """Where windows are kept; ``errors`` are those of counters that cannot be reached."""

    errors: tuple[type[Exception], ...]

    async def count(self, limits: Sequence[RateLimit]) -> tuple[bool, Sequence[RateWindow]]:
        """Count a request in every window if it fits into all; return whether, and the windows as they were before."""
        ...

    async def add(self, amounts: Mapping[str, int]) -> None:
        """Add amounts to windows, by their keys, whatever the limits are; a window never goes below zero."""
        ...


class MemoryCounters:
    """Keeps the windows of this process, in the order of their use: each use drops a few that have run out."""

    errors: tuple[type[Exception], ...] = ()

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        # By key: the number of the window since 1970, the count of the one before, and its own.
        self._windows: OrderedDict[str, tuple[int, int, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._windows)

    async def count(self, limits: Sequence[RateLimit]) -> tuple[bool, Sequence[RateWindow]]:
        """Count a request in every window if it fits into all."""
        before = [self._read(limit.key)[1] for limit in limits]
        fits = all(window.used + limit.amount <= limit.limit for limit, window in zip(limits, before, strict=True))
        if fits:
            await self.add({limit.key: limit.amount for limit in limits})
        return fits, before

    async def add(self, amounts: Mapping[str, int]) -> None:
        """Add amounts to windows."""
        for key, amount in amounts.items():
            number, window = self._read(key)
            self._windows[key] = (number, window.last, max(0, window.this + amount))
            self._windows.move_to_end(key)
            self._drop_expired(number)

    def _read(self, key: str) -> tuple[int, RateWindow]:
        number, passed = divmod(self._clock() / WINDOW_S, 1)
        now = int(number)
        then, last, this = self._windows.get(key, (now, 0, 0))
        if now - then == 1:
            last, this = this, 0
        elif now != then:
            last, this = 0, 0
        return now, RateWindow(last, this, (1 - passed) * WINDOW_S)

    def _drop_expired(self, now: int) -> None:
        for _ in range(2):
            oldest, (number, _, _) = next(iter(self._windows.items()))
            if now - number <= 1:
                return
            del self._windows[oldest]


# A window is a hash: its number since 1970 by Redis's own clock, its count, and that of the window before.
_WINDOWS = f"""
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local window_ms = {WINDOW_S * _MS_PER_S}
local number = math.floor(now_ms / window_ms)
local left_ms = (number + 1) * window_ms - now_ms
local function read(key)
  local held = redis.call('HMGET', key, 'number', 'last', 'this')
  local age = held[1] and number - held[1]
  if age == 0 then return tonumber(held[2]), tonumber(held[3]) end
  if age == 1 then return tonumber(held[3]), 0 end
  return 0, 0
end
local function add(key, last, this, amount)
  redis.call('HSET', key, 'number', number, 'last', last, 'this', math.max(0, this + amount))
  redis.call('PEXPIRE', key, left_ms + window_ms)
end
"""
# Counts a request in all windows if it fits into each. The windows are the last of KEYS, from the place ``first``; the amounts
# for them stand in ARGV from the place ``amounts``, and after these their limits.
COUNT_WINDOWS: Final = f"""{_WINDOWS}
local function count(first, amounts)
  local fits, found, size = 1, {{}}, #KEYS - first + 1
  for i = 1, size do
    local last, this = read(KEYS[first + i - 1])
    found[i] = {{last, this}}
    local amount, limit = ARGV[amounts + i - 1], tonumber(ARGV[amounts + size + i - 1])
    if math.floor(last * left_ms / window_ms + this) + amount > limit then fits = 0 end
  end
  if fits == 1 then
    for i = 1, size do add(KEYS[first + i - 1], found[i][1], found[i][2], ARGV[amounts + i - 1]) end
  end
  return {{fits, left_ms, found}}
end
"""
"""A script's beginning: ``now_ms`` by Redis's own clock, and a function ``count``."""
_COUNT = f"{COUNT_WINDOWS}\nreturn count(1, 1)"
# KEYS: the windows. ARGV: the amount for each.
_ADD = f"""{_WINDOWS}
for i, key in ipairs(KEYS) do
  local last, this = read(key)
  add(key, last, this, ARGV[i])
end
"""


class RedisCounters:
    """Keeps the windows of all gateways that share a Redis."""

    def __init__(self, calls: RedisCalls) -> None:
        self.errors = calls.errors
        self._count = calls.script(_COUNT)
        self._add = calls.script(_ADD)

    async def count(self, limits: Sequence[RateLimit]) -> tuple[bool, Sequence[RateWindow]]:
        """Count a request in every window if it fits into all, at once for all gateways."""
        return _read_counted(await self._count(*windows_of(limits)))

    async def add(self, amounts: Mapping[str, int]) -> None:
        """Add amounts to windows."""
        await self._add([_redis_key(key) for key in amounts], list(amounts.values()))


class RateLimits:
    """Counts requests and tokens of the last minute against every limit that holds for a caller.

    ``gateway`` holds for all together, ``account`` for each account, ``key`` for each key that has no limit of its own.
    While a Redis that keeps the windows is unreachable, ``outage`` decides; by default requests pass without a limit, and
    it is reported.
    """

    def __init__(
        self,
        counters: RateCounters,
        *,
        gateway: Rates = NO_LIMITS,
        account: Rates = NO_LIMITS,
        key: Rates = NO_LIMITS,
        outage: Outage | None = None,
    ) -> None:
        self._counters = counters
        self._gateway = gateway
        self._account = account
        self._key = key
        self._outage = outage or Outage()

    def apply_to(self, caller: Caller | None) -> bool:
        """Return whether a limit holds for a caller; None is one without a key."""
        return any(self._each_limit(caller, 0))

    async def check(self, caller: Caller | None, tokens: int) -> Allowance:
        """Count a request of about so many tokens, unless one of the limits is reached; None is a caller without a key.

        Raises:
            RateLimited: a limit is reached; the request counts against none.
            LimitsUnavailable: Redis is unreachable, and no request may pass without it.
        """
        limits = self.limits_of(caller, tokens)
        if not limits:
            return Allowance()
        if not self._outage.is_on:
            try:
                fits, windows = await self._counters.count(limits)
            except self._counters.errors as error:
                self._outage.begin(error)
            else:
                return _allowance(limits, tokens, fits, windows)
        self._outage.admit_or_refuse()
        return Allowance()

    def limits_of(self, caller: Caller | None, tokens: int) -> Sequence[RateLimit]:
        """Return the limits that hold for a request of a caller."""
        return list(self._each_limit(caller, max(0, tokens)))

    def allowance(self, limits: Sequence[RateLimit], tokens: int, counted: Sequence[Any]) -> Allowance:
        """Return the allowance of a request that a script has counted, which begins with ``COUNT_WINDOWS``.

        Raises:
            RateLimited: it has not, since a limit is reached.
        """
        return _allowance(limits, tokens, *_read_counted(counted))

    async def settle(self, allowance: Allowance, tokens: int) -> None:
        """Count the tokens that a request really used in place of the estimate.

        Where fewer were used, this minute's window is reduced by no more than its count: the last one expires by
        itself. While Redis is unreachable nothing happens.
        """
        counted = [limit for limit in allowance.counted if limit.kind is RateKind.TOKENS]
        more = tokens - allowance.tokens
        if not counted or not more or self._outage.is_on:
            return
        try:
            await self._counters.add({limit.key: more for limit in counted})
        except self._counters.errors as error:
            self._outage.begin(error)

    def _each_limit(self, caller: Caller | None, tokens: int) -> Iterable[RateLimit]:
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
            if rates.requests_per_minute:
                yield RateLimit(RateKind.REQUESTS, limited_by, name, rates.requests_per_minute, 1)
            if rates.tokens_per_minute:
                yield RateLimit(RateKind.TOKENS, limited_by, name, rates.tokens_per_minute, tokens)


def _redis_key(key: str) -> str:
    return f"{REDIS_KEY_PREFIX}:rates:{key}"


def windows_of(limits: Sequence[RateLimit]) -> tuple[Sequence[str], Sequence[int]]:
    """Return the keys and the arguments of windows as ``COUNT_WINDOWS`` takes them."""
    return [_redis_key(limit.key) for limit in limits], [
        *(limit.amount for limit in limits),
        *(limit.limit for limit in limits),
    ]


def _read_counted(counted: Sequence[Any]) -> tuple[bool, Sequence[RateWindow]]:
    fits, left_ms, windows = counted
    return bool(fits), [RateWindow(last, this, left_ms / _MS_PER_S) for last, this in windows]


def _allowance(limits: Sequence[RateLimit], tokens: int, fits: bool, windows: Sequence[RateWindow]) -> Allowance:
    """Return the allowance of a request by its windows as they were before; raises where it does not fit."""
    if not fits:
        raise _refusal(limits, windows)
    after = [replace(window, this=window.this + limit.amount) for limit, window in zip(limits, windows, strict=True)]
    return Allowance(max(0, tokens), _headers(limits, after), limits)


def _refusal(limits: Sequence[RateLimit], windows: Sequence[RateWindow]) -> RateLimited:
    """Name the limit that the request has to wait for longest."""
    waits = [
        math.inf if limit.amount > limit.limit else window.wait_s(limit.amount, limit.limit)
        for limit, window in zip(limits, windows, strict=True)
    ]
    longest_s = max(waits)
    limit = limits[waits.index(longest_s)]
    return RateLimited(
        limit.kind,
        limit.limited_by,
        limit.limit,
        retry_after_s=None if math.isinf(longest_s) else longest_s,
        headers=_headers(limits, windows),
    )


def _headers(limits: Sequence[RateLimit], windows: Sequence[RateWindow]) -> Mapping[str, str]:
    """Return OpenAI's headers, for each kind those of the limit of which the least is left."""
    headers: dict[str, str] = {}
    for kind in RateKind:
        left = [
            (max(0, limit.limit - window.used), limit.limit, window)
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
    """Write a duration as OpenAI's headers do: ``12ms``, ``1s``, ``59.5s``, ``6m0s``."""
    total_ms = math.ceil(seconds * _MS_PER_S)
    if total_ms < _MS_PER_S:
        return f"{total_ms}ms"
    minutes, left_ms = divmod(total_ms, WINDOW_S * _MS_PER_S)
    text = f"{left_ms // _MS_PER_S}.{left_ms % _MS_PER_S:03d}".rstrip("0").rstrip(".")
    return f"{minutes}m{text}s" if minutes else f"{text}s"
