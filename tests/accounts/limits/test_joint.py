"""A job and its request counted in one call of Redis: the same limits as when each is counted by itself, and both or neither."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from lcp_gateway.accounts.callers import Caller, KeyRules
from lcp_gateway.accounts.limits.concurrency import ConcurrencyLimits, RedisLeases, TooManyConcurrentJobs
from lcp_gateway.accounts.limits.joint import JointLimits
from lcp_gateway.accounts.limits.rates import RateLimited, RateLimits, RedisCounters
from lcp_gateway.accounts.shared.calls import RedisCalls
from lcp_gateway.accounts.shared.outage import LimitsUnavailable, Outage
from tests.support.redis import RunningRedis, running_redis

LEFT = "x-ratelimit-remaining-requests"


def caller(**rules: int) -> Caller:
    return Caller("key_1", "acct_1", KeyRules(**rules))


@dataclass
class Worker:
    """One of the processes that share a Redis."""

    calls: RedisCalls
    jobs: ConcurrencyLimits
    rates: RateLimits
    joint: JointLimits


def worker(url: str, *, allows: bool = True) -> Worker:
    calls, outage = RedisCalls(url), Outage(allows=allows)
    leases = RedisLeases(calls)
    jobs = ConcurrencyLimits(leases, outage=outage)
    rates = RateLimits(RedisCounters(calls), outage=outage)
    return Worker(calls, jobs, rates, JointLimits(calls, leases, jobs, rates, outage))


@pytest.fixture(scope="module")
def redis() -> Iterator[RunningRedis]:
    with running_redis() as server:
        yield server


@pytest.fixture
async def workers(redis):
    await redis.forget()
    made = worker(redis.url), worker(redis.url)
    yield made
    for each in made:
        await each.calls.aclose()


@pytest.mark.parametrize(
    ("rules", "applies"),
    [
        ({"concurrent_jobs": 1, "requests_per_minute": 1}, True),
        ({"concurrent_jobs": 1}, False),
        ({"tokens_per_minute": 1}, False),
    ],
)
async def test_it_is_for_callers_whose_jobs_and_rates_are_limited(workers, rules, applies):
    assert workers[0].joint.apply_to(caller(**rules)) is applies
    assert not workers[0].joint.apply_to(None)


async def test_of_many_at_one_time_as_many_run_as_may_and_only_they_are_counted(workers):
    who = caller(concurrent_jobs=5, requests_per_minute=1_000)

    async def take(number: int):
        try:
            return await workers[number % 2].joint.take(who, 1)
        except TooManyConcurrentJobs:
            return None

    taken = [one for one in await asyncio.gather(*map(take, range(40))) if one is not None]
    assert len(taken) == 5
    for lease, _ in taken:
        await lease.release()
    lease, allowance = await workers[0].joint.take(who, 1)
    await lease.release()
    # A minute that ends meanwhile makes it more.
    assert int(allowance.headers[LEFT]) >= 994


async def test_leases_taken_alone_and_jointly_are_counted_together(workers):
    who = caller(concurrent_jobs=2, requests_per_minute=1_000)
    lease, _ = await workers[0].joint.take(who, 1)
    async with await workers[1].jobs.take(who), lease:
        for attempt in (workers[1].joint.take(who, 1), workers[0].jobs.take(who)):
            with pytest.raises(TooManyConcurrentJobs):
                await attempt
    async with (await workers[1].joint.take(who, 1))[0]:
        pass


async def test_a_request_over_its_rate_holds_no_place_among_the_jobs(workers):
    who = caller(concurrent_jobs=1, tokens_per_minute=100)
    with pytest.raises(RateLimited) as refused:
        await workers[0].joint.take(who, 101)
    assert refused.value.retry_after_s is None
    lease, allowance = await workers[1].joint.take(who, 60)
    assert lease.is_counted and allowance.headers["x-ratelimit-remaining-tokens"] == "40"
    await lease.release()


async def test_what_was_counted_can_be_settled_as_ever(workers):
    who = caller(concurrent_jobs=1, tokens_per_minute=100, requests_per_minute=10)
    lease, allowance = await workers[0].joint.take(who, 50)
    await lease.release()
    assert (allowance.tokens, allowance.counted) == (50, workers[0].rates.limits_of(who, 50))


async def test_while_redis_is_away_requests_pass_uncounted_or_not_at_all():
    who = caller(concurrent_jobs=1, requests_per_minute=1)
    with running_redis() as server:
        generous, strict = worker(server.url), worker(server.url, allows=False)
        server.stop()
        for _ in range(2):
            lease, allowance = await generous.joint.take(who, 1)
            assert not allowance.counted
            await lease.release()
            with pytest.raises(LimitsUnavailable):
                await strict.joint.take(who, 1)
        for each in (generous, strict):
            await each.calls.aclose()


async def test_a_request_over_its_rate_holds_no_place_where_an_outage_ends_between_its_two_calls(redis):
    await redis.forget()

    class Ending(Outage):
        """It ends after it was asked once."""

        asked = False

        @property
        def is_on(self) -> bool:
            asked, self.asked = self.asked, True
            return not asked

    calls, outage = RedisCalls(redis.url), Ending()
    leases = RedisLeases(calls)
    jobs, rates = ConcurrencyLimits(leases, outage=outage), RateLimits(RedisCounters(calls), outage=outage)
    who = caller(concurrent_jobs=1, tokens_per_minute=100)
    with pytest.raises(RateLimited):
        await JointLimits(calls, leases, jobs, rates, outage).take(who, 101)
    async with await jobs.take(who) as lease:
        assert lease.is_counted
    await calls.aclose()
