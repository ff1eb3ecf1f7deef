import asyncio
import re
import time
from collections.abc import Iterator

import pytest

from lcp_gateway.accounts.callers import Caller, KeyRules
from lcp_gateway.accounts.limits.rate_counters import (
    MemoryWindows,
    RateLimits,
    RedisWindows,
    format_reset,
)
from lcp_gateway.accounts.limits.rates import LimitedBy, RateKind, RateLimited, Rates
from lcp_gateway.accounts.shared.outage import LimitsUnavailable, Outage
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


@pytest.fixture(params=["memory", "redis"])
async def windows(request):
    if request.param == "memory":
        yield MemoryWindows()
        return
    server = request.getfixturevalue("redis")
    kept = RedisWindows(server.url)
    await kept.reset()
    yield kept
    await kept.aclose()


async def passed(limits: RateLimits, who: Caller | None, times: int, tokens: int = 0) -> int:
    count = 0
    for _ in range(times):
        try:
            await limits.check(who, tokens)
        except RateLimited:
            continue
        count += 1
    return count


async def test_without_limits_everything_passes_and_no_header_is_made(windows):
    limits = RateLimits(windows)

    assert (await limits.check(None, 10)).headers == {}
    assert (await limits.check(caller(), 10)).headers == {}


async def test_a_key_may_send_as_many_requests_a_minute_as_its_rules_say(windows):
    limits = RateLimits(windows)

    assert await passed(limits, caller(requests_per_minute=5), 8) == 5
    assert await passed(limits, caller("key_2", requests_per_minute=5), 8) == 5


async def test_a_key_without_rules_of_its_own_has_those_of_all_keys(windows):
    limits = RateLimits(windows, key=Rates(requests_per_minute=3))

    assert await passed(limits, caller(), 5) == 3
    assert await passed(limits, caller("key_2", requests_per_minute=4), 5) == 4


async def test_the_keys_of_an_account_share_its_limit(windows):
    limits = RateLimits(windows, account=Rates(requests_per_minute=4))

    assert await passed(limits, caller("key_1"), 3) == 3
    assert await passed(limits, caller("key_2"), 3) == 1
    assert await passed(limits, caller("key_3", "acct_2"), 3) == 3


async def test_the_gateways_limit_holds_for_everyone_with_and_without_a_key(windows):
    limits = RateLimits(windows, gateway=Rates(requests_per_minute=4))

    assert await passed(limits, None, 2) == 2
    assert await passed(limits, caller("key_1", None), 1) == 1
    assert await passed(limits, caller("key_2"), 3) == 1


async def test_tokens_are_counted_too(windows):
    limits = RateLimits(windows)
    who = caller(tokens_per_minute=1_000)

    assert await passed(limits, who, 5, tokens=400) == 2
    assert await passed(limits, who, 1, tokens=200) == 1


async def test_a_refused_request_counts_against_nothing(windows):
    limits = RateLimits(windows, gateway=Rates(requests_per_minute=6, tokens_per_minute=10_000))
    tight = caller("key_1", requests_per_minute=2, tokens_per_minute=100)

    assert await passed(limits, tight, 20, tokens=50) == 2
    assert await passed(limits, caller("key_2"), 10, tokens=1) == 4


async def test_requests_at_once_never_pass_more_than_the_limit_and_leave_nothing_behind(windows):
    limits = RateLimits(
        windows, gateway=Rates(requests_per_minute=100), account=Rates(requests_per_minute=7)
    )

    results = await asyncio.gather(
        *(limits.check(caller(), 0) for _ in range(60)), return_exceptions=True
    )

    let_through = [r for r in results if not isinstance(r, Exception)]
    assert {type(r) for r in results if isinstance(r, Exception)} == {RateLimited}
    assert 1 <= len(let_through) <= 7
    # What was taken back counts nowhere: the rest of both limits is still there.
    assert await passed(limits, caller(), 10) == 7 - len(let_through)
    assert await passed(limits, caller("key_2", "acct_2"), 7) == 7
    last = await limits.check(caller("key_3", "acct_3"), 0)
    assert last.headers["x-ratelimit-remaining-requests"] == "6"


async def test_a_refusal_says_which_limit_and_when_it_fits(windows):
    limits = RateLimits(windows, gateway=Rates(requests_per_minute=1_000))
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


async def test_a_request_larger_than_the_limit_is_not_told_to_come_again(windows):
    limits = RateLimits(windows)

    with pytest.raises(RateLimited, match="larger than the limit") as refused:
        await limits.check(caller(tokens_per_minute=100), 101)

    assert refused.value.retry_after_s is None and not refused.value.may_pass_later


async def test_headers_are_openais_and_show_the_tightest_limit(windows):
    limits = RateLimits(
        windows,
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


async def test_what_was_really_used_replaces_what_was_reckoned_with(windows):
    limits = RateLimits(windows)
    who = caller(tokens_per_minute=1_000)

    cheap = await limits.check(who, 900)
    await limits.settle(cheap, 100)
    assert (await limits.check(who, 500)).headers["x-ratelimit-remaining-tokens"] == "400"


async def test_more_than_reckoned_is_counted_even_above_the_limit(windows):
    limits = RateLimits(windows)
    who = caller(tokens_per_minute=1_000)

    dear = await limits.check(who, 10)
    await limits.settle(dear, 5_000)

    with pytest.raises(RateLimited) as refused:
        await limits.check(who, 1)
    assert refused.value.headers["x-ratelimit-remaining-tokens"] == "0"
    # 5,000 of this minute let 1,000 pass only when four fifths of the next have gone by.
    assert refused.value.retry_after_s is not None and refused.value.retry_after_s > 48


async def test_a_request_can_be_given_back_whole(windows):
    limits = RateLimits(windows)
    who = caller(requests_per_minute=1, tokens_per_minute=100)

    await limits.give_back(await limits.check(who, 100))

    assert await passed(limits, who, 3, tokens=100) == 1


async def test_what_is_given_back_late_never_lets_more_than_the_limit_pass(clock):
    limits = RateLimits(MemoryWindows(clock))
    who = caller(tokens_per_minute=1_000)
    early = await limits.check(who, 1_000)
    clock.at += 60

    await limits.settle(early, 0)
    clock.at += 59.99

    assert await passed(limits, who, 5, tokens=500) == 2


async def test_a_request_fits_after_the_time_that_was_told_and_not_before(clock):
    limits = RateLimits(MemoryWindows(clock))
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
    limits = RateLimits(MemoryWindows())
    for number in range(20_000):
        await limits.check(caller(f"key_{number}", requests_per_minute=5), 0)

    start = time.process_time()
    for number in range(200):
        await limits.check(caller(f"key_{number}", requests_per_minute=5), 0)

    assert (time.process_time() - start) / 200 < 1e-3


async def test_replicas_on_one_redis_share_every_limit(redis):
    one, two = RedisWindows(redis.url), RedisWindows(redis.url)
    await one.reset()
    first, second = RateLimits(one), RateLimits(two)
    who = caller(requests_per_minute=6)

    assert await passed(first, who, 4) + await passed(second, who, 4) == 6
    for kept in (one, two):
        await kept.aclose()


async def test_while_redis_is_away_requests_pass_and_it_is_reported_once_a_second(clock):
    reports: list[str] = []
    with running_redis() as server:
        kept = RedisWindows(server.url)
        limits = RateLimits(kept, outage=Outage(report=reports.append, clock=clock))
        who = caller(requests_per_minute=2)
        assert await passed(limits, who, 3) == 2

        server.stop()
        start = time.monotonic()
        assert await passed(limits, who, 20) == 20
        assert time.monotonic() - start < 5
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
        await kept.aclose()


async def test_what_cannot_be_settled_while_redis_is_away_is_left_and_reported(clock):
    reports: list[str] = []
    with running_redis() as server:
        kept = RedisWindows(server.url)
        limits = RateLimits(kept, outage=Outage(report=reports.append, clock=clock))
        allowance = await limits.check(caller(tokens_per_minute=100), 10)
        server.stop()

        await limits.settle(allowance, 20)
        await limits.give_back(allowance)

        assert len(reports) == 1
        await kept.aclose()


async def test_an_operator_may_have_everything_refused_while_redis_is_away(clock):
    with running_redis() as server:
        kept = RedisWindows(server.url)
        server.stop()
        limits = RateLimits(kept, outage=Outage(allows=False, clock=clock))

        for _ in range(2):
            with pytest.raises(LimitsUnavailable):
                await limits.check(caller(requests_per_minute=2), 0)
        # Who has no limit needs no Redis.
        await limits.check(caller(), 0)
        await kept.aclose()


@pytest.mark.parametrize("url", ["http://127.0.0.1", "redis://user:secret", "nonsense"])
def test_a_url_that_is_none_of_redis_is_refused_without_being_quoted(url):
    with pytest.raises(ValueError, match="not a URL of Redis") as refused:
        RedisWindows(url)
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
