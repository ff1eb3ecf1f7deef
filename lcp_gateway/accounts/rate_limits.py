"""Requests and tokens per minute, for a key, its account and the whole gateway: asked before anything is quoted."""

import asyncio
import math
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from limits import RateLimitItemPerMinute
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from limits.errors import StorageError

from lcp_gateway.accounts.caller import Caller
from lcp_gateway.accounts.rates import NO_LIMITS, Allowance, Kind, LimitedBy, RateLimited, Rates
from lcp_gateway.accounts.replicas import Outage
from lcp_gateway.accounts.windows import WINDOW_S, MemoryWindows, RedisWindows, Window

T = TypeVar("T")

# What has been used is counted even where the limit did not foresee it.
_WHATEVER_IT_IS: Final = 1 << 53
_MS_PER_S = 1_000
_S_PER_MINUTE = 60


@dataclass(frozen=True, slots=True)
class _Limit:
    """One limit as a request meets it: ``amount`` is what the request counts for in it."""

    kind: Kind
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
        counted = [limit for limit in allowance.counted if limit.kind is Kind.TOKENS]
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
                (Kind.REQUESTS, rates.requests_per_minute, 1),
                (Kind.TOKENS, rates.tokens_per_minute, tokens),
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

    async def _read(self, limit: _Limit) -> Window:
        return Window(*await self._windows.get_sliding_window(limit.key, WINDOW_S))

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


def _refuse_what_does_not_fit(limits: Sequence[_Limit], windows: Sequence[Window]) -> None:
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


def _headers(limits: Sequence[_Limit], windows: Sequence[Window]) -> Mapping[str, str]:
    """Give OpenAI's headers, for each kind those of the limit of which the least is left."""
    headers: dict[str, str] = {}
    for kind in Kind:
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
