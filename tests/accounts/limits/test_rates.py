import asyncio
import math
import re
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcp_gateway.accounts.callers import Caller, KeyRules
from lcp_gateway.accounts.limits import rates
from lcp_gateway.accounts.limits.rates import (
    WINDOW_S,
    LimitedBy,
    MemoryCounters,
    RateKind,
    RateLimit,
    RateLimited,
    RateLimits,
    Rates,
    RateWindow,
    RedisCounters,
    format_reset,
)
from lcp_gateway.accounts.shared.calls import RedisCalls
from lcp_gateway.accounts.shared.outage import LimitsUnavailable, Outage
from tests.support.operations import lines_executed
from tests.support.redis import RunningRedis, running_redis


def caller(key_id: str = "key_1", account_id: str | None = "acct_1", **rules) -> Caller:
    return Caller(key_id, account_id, KeyRules(**rules))


class Clock:
    def __init__(self, at: float = 600_000.0) -> None:
        self.at = at

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="module")
def redis() -> Iterator[RunningRedis]:
    with running_redis() as server:
        yield server


def standing_still(calls: RedisCalls) -> RedisCounters:
    """Return counters in a Redis whose clock stands still: in a new minute more would pass."""
    kept = RedisCounters(calls)
    for name, script in (("_count", rates._COUNT), ("_add", rates._ADD)):
        setattr(kept, name, calls.script(script.replace("redis.call('TIME')", "{600000, 0}")))
    return kept


@pytest.fixture(params=["memory", "redis"])
async def counters(request):
    if request.param == "memory":
        yield MemoryCounters(Clock())
        return
    server = request.getfixturevalue("redis")
    await server.forget()
    calls = RedisCalls(server.url)
    yield standing_still(calls)
    await calls.aclose()


async def passed(limits: RateLimits, who: Caller | None, times: int, tokens: int = 0) -> int:
    count = 0
    for _ in range(times):
        try:
            await limits.check(who, tokens)
        except RateLimited:
            continue
        count += 1
    return count


async def test_without_limits_everything_passes_and_no_header_is_made(counters):
    limits = RateLimits(counters)

    assert (await limits.check(None, 10)).headers == {}
    assert (await limits.check(caller(), 10)).headers == {}


async def test_a_key_may_send_as_many_requests_a_minute_as_its_rules_say(counters):
    limits = RateLimits(counters)

    assert await passed(limits, caller(requests_per_minute=5), 8) == 5
    assert await passed(limits, caller("key_2", requests_per_minute=5), 8) == 5


async def test_a_key_without_rules_of_its_own_has_those_of_all_keys(counters):
    limits = RateLimits(counters, key=Rates(requests_per_minute=3))

    assert await passed(limits, caller(), 5) == 3
    assert await passed(limits, caller("key_2", requests_per_minute=4), 5) == 4


async def test_the_keys_of_an_account_share_its_limit(counters):
    limits = RateLimits(counters, account=Rates(requests_per_minute=4))

    assert await passed(limits, caller("key_1"), 3) == 3
    assert await passed(limits, caller("key_2"), 3) == 1
    assert await passed(limits, caller("key_3", "acct_2"), 3) == 3


async def test_the_gateways_limit_holds_for_everyone_with_and_without_a_key(counters):
    limits = RateLimits(counters, gateway=Rates(requests_per_minute=4))

    assert await passed(limits, None, 2) == 2
    assert await passed(limits, caller("key_1", None), 1) == 1
    assert await passed(limits, caller("key_2"), 3) == 1


async def test_tokens_are_counted_too(counters):
    limits = RateLimits(counters)
    who = caller(tokens_per_minute=1_000)

    assert await passed(limits, who, 5, tokens=400) == 2
    assert await passed(limits, who, 1, tokens=200) == 1


async def test_a_refused_request_counts_against_nothing(counters):
    limits = RateLimits(counters, gateway=Rates(requests_per_minute=6, tokens_per_minute=10_000))
    tight = caller("key_1", requests_per_minute=2, tokens_per_minute=100)

    assert await passed(limits, tight, 20, tokens=50) == 2
    assert await passed(limits, caller("key_2"), 10, tokens=1) == 4


async def test_requests_at_once_never_pass_more_than_the_limit_and_leave_nothing_behind(counters):
    limits = RateLimits(counters, gateway=Rates(requests_per_minute=100), account=Rates(requests_per_minute=7))

    results = await asyncio.gather(*(limits.check(caller(), 0) for _ in range(60)), return_exceptions=True)

    let_through = [r for r in results if not isinstance(r, Exception)]
    assert {type(r) for r in results if isinstance(r, Exception)} == {RateLimited}
    assert 1 <= len(let_through) <= 7
    # The withdrawn request counts for neither limit.
    assert await passed(limits, caller(), 10) == 7 - len(let_through)
    assert await passed(limits, caller("key_2", "acct_2"), 7) == 7
    last = await limits.check(caller("key_3", "acct_3"), 0)
    assert last.headers["x-ratelimit-remaining-requests"] == "6"


async def test_a_refusal_says_which_limit_and_when_it_fits(counters):
    limits = RateLimits(counters, gateway=Rates(requests_per_minute=1_000))
    who = caller(requests_per_minute=1)
    await limits.check(who, 0)

    with pytest.raises(RateLimited) as refused:
        await limits.check(who, 0)

    error = refused.value
    assert (error.kind, error.limited_by, error.limit) == (RateKind.REQUESTS, LimitedBy.KEY, 1)
    assert error.code == "rate_limit_exceeded" and error.may_pass_later
    assert error.retry_after_s is not None and 0 < error.retry_after_s <= 120
    assert error.headers["x-ratelimit-limit-requests"] == "1"
    assert error.headers["x-ratelimit-remaining-requests"] == "0"
    assert "key_1" not in error.message


async def test_a_request_larger_than_the_limit_is_not_told_to_come_again(counters):
    limits = RateLimits(counters)

    with pytest.raises(RateLimited, match="larger than the limit") as refused:
        await limits.check(caller(tokens_per_minute=100), 101)

    assert refused.value.retry_after_s is None and not refused.value.may_pass_later


async def test_headers_are_openais_and_show_the_tightest_limit(counters):
    limits = RateLimits(
        counters,
        gateway=Rates(requests_per_minute=100, tokens_per_minute=50_000),
        account=Rates(requests_per_minute=3, tokens_per_minute=90_000),
    )

    allowance = await limits.check(caller(requests_per_minute=10), 1_000)

    headers = dict(allowance.headers)
    assert re.fullmatch(r"(\d+m)?\d+(\.\d+)?s|\d+ms", headers.pop("x-ratelimit-reset-requests"))
    assert re.fullmatch(r"(\d+m)?\d+(\.\d+)?s|\d+ms", headers.pop("x-ratelimit-reset-tokens"))
    assert headers == {
        "x-ratelimit-limit-requests": "3",
        "x-ratelimit-remaining-requests": "2",
        "x-ratelimit-limit-tokens": "50000",
        "x-ratelimit-remaining-tokens": "49000",
    }


async def test_the_tokens_that_were_used_replace_the_estimate(counters):
    limits = RateLimits(counters)
    who = caller(tokens_per_minute=1_000)

    cheap = await limits.check(who, 900)
    await limits.settle(cheap, 100)
    assert (await limits.check(who, 500)).headers["x-ratelimit-remaining-tokens"] == "400"


async def test_more_than_estimated_is_counted_even_above_the_limit(counters):
    limits = RateLimits(counters)
    who = caller(tokens_per_minute=1_000)

    dear = await limits.check(who, 10)
    await limits.settle(dear, 5_000)

    with pytest.raises(RateLimited) as refused:
        await limits.check(who, 1)
    assert refused.value.headers["x-ratelimit-remaining-tokens"] == "0"
    # After 5,000 in this minute, 1,000 more pass only when four fifths of the next one are over.
    assert refused.value.retry_after_s is not None and refused.value.retry_after_s > 48


async def test_tokens_that_are_given_back_late_never_let_more_than_the_limit_pass(clock):
    limits = RateLimits(MemoryCounters(clock))
    who = caller(tokens_per_minute=1_000)
    early = await limits.check(who, 1_000)
    clock.at += 60

    await limits.settle(early, 0)
    clock.at += 59.99

    assert await passed(limits, who, 5, tokens=500) == 2


async def test_a_request_fits_after_the_time_that_was_told_and_not_before(clock):
    limits = RateLimits(MemoryCounters(clock))
    who = caller(requests_per_minute=10)
    assert await passed(limits, who, 11) == 10
    with pytest.raises(RateLimited) as refused:
        await limits.check(who, 0)
    wait_s = refused.value.retry_after_s
    assert wait_s is not None

    clock.at += wait_s - 0.01
    assert await passed(limits, who, 1) == 0
    clock.at += 0.01
    assert await passed(limits, who, 1) == 1


async def test_limits_of_many_keys_cost_no_more_than_those_of_one():
    async def lines_of_a_check(keys):
        limits = RateLimits(MemoryCounters(Clock()))
        for number in range(keys):
            await limits.check(caller(f"key_{number}", requests_per_minute=5), 0)
        check = limits.check(caller("key_0", requests_per_minute=5), 0)

        def run():
            # It waits for nothing: its first step is its last.
            with pytest.raises(StopIteration):
                check.send(None)

        return lines_executed(run)

    assert await lines_of_a_check(20_000) < 1.1 * await lines_of_a_check(20)


async def test_replicas_on_one_redis_share_every_limit(redis):
    calls = RedisCalls(redis.url), RedisCalls(redis.url)
    await redis.forget()
    first, second = (RateLimits(standing_still(each)) for each in calls)
    who = caller(requests_per_minute=6)

    assert await passed(first, who, 4) + await passed(second, who, 4) == 6
    for each in calls:
        await each.aclose()


async def test_while_redis_is_unreachable_requests_pass_and_it_is_reported_once_a_second(clock):
    reports: list[str] = []
    with running_redis() as server:
        calls = RedisCalls(server.url)
        limits = RateLimits(standing_still(calls), outage=Outage(report=reports.append, clock=clock))
        who = caller(requests_per_minute=2)
        assert await passed(limits, who, 3) == 2

        server.stop()
        # One report: the other nineteen did not try Redis.
        assert await passed(limits, who, 20) == 20
        assert len(reports) == 1 and "127.0.0.1" not in reports[0]
        allowance = await limits.check(who, 0)
        await limits.settle(allowance, 10)
        assert allowance.headers == {}

        clock.at += 1.1
        assert await passed(limits, who, 1) == 1
        assert len(reports) == 2

        server.start()
        clock.at += 1.1
        assert await passed(limits, who, 3) == 2
        await calls.aclose()


async def test_a_settlement_while_redis_is_unreachable_is_dropped_and_reported(clock):
    reports: list[str] = []
    with running_redis() as server:
        calls = RedisCalls(server.url)
        kept = RedisCounters(calls)
        limits = RateLimits(kept, outage=Outage(report=reports.append, clock=clock))
        allowance = await limits.check(caller(tokens_per_minute=100), 10)
        server.stop()

        await limits.settle(allowance, 20)
        await limits.settle(allowance, 30)

        assert len(reports) == 1
        await calls.aclose()


async def test_an_operator_may_have_all_requests_refused_while_redis_is_unreachable(clock):
    with running_redis() as server:
        calls = RedisCalls(server.url)
        kept = RedisCounters(calls)
        server.stop()
        limits = RateLimits(kept, outage=Outage(allows=False, clock=clock))

        for _ in range(2):
            with pytest.raises(LimitsUnavailable):
                await limits.check(caller(requests_per_minute=2), 0)
        # A caller without a limit needs no Redis.
        await limits.check(caller(), 0)
        await calls.aclose()


@pytest.mark.parametrize("url", ["http://127.0.0.1", "redis://user:secret", "nonsense"])
def test_a_url_that_is_not_one_of_redis_is_refused_without_being_quoted(url):
    with pytest.raises(ValueError, match="not a URL of Redis") as refused:
        RedisCalls(url)
    assert refused.value.__suppress_context__


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0ms"),
        (0.0115, "12ms"),
        (0.9991, "1s"),
        (1, "1s"),
        (59.5, "59.5s"),
        (59.9999, "1m0s"),
        (61.25, "1m1.25s"),
        (360, "6m0s"),
        (10.04, "10.04s"),
        (20, "20s"),
    ],
)
def test_times_are_written_as_openai_writes_them(seconds, text):
    assert format_reset(seconds) == text


def counted(window: RateWindow, in_s: float) -> float:
    """Return what counts after a time, if nothing is added: the definition in plain steps."""
    if in_s < window.left_s:
        return window.last * (window.left_s - in_s) / WINDOW_S + window.this
    return window.this * max(0.0, WINDOW_S - (in_s - window.left_s)) / WINDOW_S


windows = st.builds(RateWindow, st.integers(0, 500), st.integers(0, 500), st.floats(0.01, WINDOW_S))


@given(windows, st.integers(1, 300), st.integers(0, 300))
def test_an_amount_fits_after_the_wait_and_not_before(window, limit, amount):
    amount = min(amount, limit)

    wait_s = window.wait_s(amount, limit)

    assert math.floor(counted(window, wait_s) + 1e-9) + amount <= limit
    if wait_s > 0.01:
        assert math.floor(counted(window, wait_s - 0.01) + 1e-9) + amount >= limit
        assert window.used + amount > limit


@given(windows, st.integers(1, 300))
def test_nothing_counts_after_the_reset(window, limit):
    assert math.floor(counted(window, window.reset_s(limit)) + 1e-9) == 0


async def counts(counters, key: str, amount: int, limit: int = 10) -> bool:
    return (await counters.count([of(key, amount, limit)]))[0]


def of(key: str, amount: int, limit: int = 10) -> RateLimit:
    return RateLimit(RateKind.TOKENS, LimitedBy.KEY, key, limit, amount)


async def test_a_window_slides_and_runs_out(clock):
    counters = MemoryCounters(clock)

    assert await counts(counters, "a", 10)
    assert not await counts(counters, "a", 1)
    clock.at += 60 + 30
    assert not await counts(counters, "a", 6)
    assert await counts(counters, "a", 5)
    assert not await counts(counters, "a", 1)
    clock.at += 120
    assert await counts(counters, "a", 10)


async def test_of_several_windows_all_count_or_none(counters):
    assert await counts(counters, "a", 9)

    fits, before = await counters.count([of("b", 5), of("a", 5)])

    assert not fits
    assert [window.used for window in before] == [0, 9]
    assert await counts(counters, "b", 10)


async def test_windows_go_below_zero_never(counters):
    await counters.add({of("a", 1).key: -5})

    assert await counts(counters, "a", 10)
    assert not await counts(counters, "a", 1)


async def test_expired_windows_are_dropped_as_others_are_used(clock):
    counters = MemoryCounters(clock)
    for number in range(1_000):
        await counts(counters, f"old{number}", 1)
    clock.at += 130

    for number in range(600):
        await counts(counters, f"new{number}", 1)

    assert len(counters) == 600


@given(st.lists(st.tuples(st.floats(0, 50), st.integers(1, 6)), max_size=60))
async def test_no_sixty_seconds_hold_much_more_than_the_limit(steps):
    """The window assumes that the previous minute's requests were spread evenly: at worst twice the limit passes."""
    clock = Clock()
    counters = MemoryCounters(clock)
    hits = []
    for pause_s, amount in steps:
        clock.at += pause_s
        if await counts(counters, "a", amount):
            hits.append((clock.at, amount))

    for at, _ in hits:
        assert sum(amount for then, amount in hits if at - 60 < then <= at) <= 20


async def test_the_minute_before_counts_on_after_another_window_was_used(clock):
    """A window that has expired only in part must not be dropped."""
    counters = MemoryCounters(clock)
    assert await counts(counters, "a", 10)
    clock.at += 61
    assert await counts(counters, "b", 1)

    assert not await counts(counters, "a", 2)
    assert len(counters) == 2


async def test_memory_and_redis_count_alike(redis):
    """The same steps at the same times; Redis uses the wall clock, so they are repeated if the minute turns meanwhile."""
    for _ in range(3):
        await redis.forget()
        calls = RedisCalls(redis.url)
        kept = RedisCounters(calls)
        memory = MemoryCounters()
        begun = int(time.time() // WINDOW_S)
        results = []
        for counters in (memory, kept):
            results.append(
                [
                    await counts(counters, "a", 7),
                    await counts(counters, "a", 4),
                    await counts(counters, "a", 3),
                    await counters.add({of("a", 0).key: -2}),
                    await counts(counters, "a", 3),
                    await counts(counters, "a", 2),
                    await counts(counters, "a", 0),
                ]
            )
        await calls.aclose()
        if begun == int(time.time() // WINDOW_S):
            break
    assert results[0] == results[1] == [True, False, True, None, False, True, True]
