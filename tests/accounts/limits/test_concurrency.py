import asyncio
import contextlib
from collections.abc import Iterator

import pytest

from lcp_gateway.accounts.callers import Caller, KeyRules
from lcp_gateway.accounts.limits.concurrency import (
    ConcurrencyLimits,
    Lease,
    MemoryLeases,
    RedisLeases,
    TooManyConcurrentJobs,
    lease_key,
)
from lcp_gateway.accounts.shared.calls import RedisCalls
from lcp_gateway.accounts.shared.outage import LimitsUnavailable, Outage, RedisNotInstalled, ShieldedCalls, connect
from lcp_gateway.app.background_tasks import BackgroundTasks, Backoff
from lcp_gateway.telemetry.logs import get_logger
from tests.support.redis import RunningRedis, running_redis


def caller(key_id: str = "key_1", jobs: int = 0) -> Caller:
    return Caller(key_id, "acct_1", KeyRules(concurrent_jobs=jobs))


@pytest.fixture(scope="module")
def redis() -> Iterator[RunningRedis]:
    with running_redis() as server:
        yield server


@pytest.fixture(params=["memory", "redis"])
async def leases(request):
    if request.param == "memory":
        yield MemoryLeases()
        return
    kept = RedisLeases(RedisCalls(request.getfixturevalue("redis").url))
    await kept._calls.client.flushdb()
    yield kept
    await kept._calls.aclose()


async def test_a_key_runs_as_many_jobs_at_once_as_its_rules_say(leases):
    jobs = ConcurrencyLimits(leases)
    who = caller(jobs=2)
    first, second = await jobs.take(who), await jobs.take(who)

    with pytest.raises(TooManyConcurrentJobs, match="2 jobs") as refused:
        await jobs.take(who)
    assert refused.value.code == "rate_limit_exceeded"

    await first.release()
    third = await jobs.take(who)
    other = await jobs.take(caller("key_2", jobs=1))
    for lease in (second, third, other):
        await lease.release()


async def test_a_lease_counts_once_however_often_it_is_released(leases):
    jobs = ConcurrencyLimits(leases, default=2)
    first, second = await jobs.take(caller()), await jobs.take(caller())

    await first.release()
    await first.release()
    async with await jobs.take(caller()):
        with pytest.raises(TooManyConcurrentJobs):
            await jobs.take(caller())
    await second.release()


async def test_an_error_or_a_cancellation_gives_the_lease_back(leases):
    jobs = ConcurrencyLimits(leases, default=1)

    with pytest.raises(RuntimeError, match="gone"):
        async with await jobs.take(caller()):
            raise RuntimeError("gone")

    taken = asyncio.Event()

    async def run() -> None:
        async with await jobs.take(caller()):
            taken.set()
            await asyncio.Event().wait()

    running = asyncio.create_task(run())
    await taken.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    async with await jobs.take(caller()):
        pass


async def test_without_a_limit_or_a_key_nothing_is_counted(leases):
    jobs = ConcurrencyLimits(leases)
    held = [await jobs.take(who) for who in (None, caller()) for _ in range(20)]
    for lease in held:
        await lease.release()

    limited = ConcurrencyLimits(leases, default=1)
    held = [await limited.take(None) for _ in range(3)]


async def test_of_many_at_once_as_many_run_as_may(leases):
    jobs = ConcurrencyLimits(leases, default=5)

    tried = await asyncio.gather(*(jobs.take(caller()) for _ in range(60)), return_exceptions=True)

    running = [lease for lease in tried if not isinstance(lease, BaseException)]
    assert len(running) == 5
    assert {type(one) for one in tried} == {Lease, TooManyConcurrentJobs}
    for lease in running:
        await lease.release()


async def test_memory_keeps_nothing_of_keys_that_run_nothing():
    leases = MemoryLeases()
    jobs = ConcurrencyLimits(leases, default=1)
    for number in range(100):
        async with await jobs.take(caller(f"key_{number}")):
            with pytest.raises(TooManyConcurrentJobs):
                await jobs.take(caller(f"key_{number}"))

    assert not leases._running


async def test_replicas_share_the_count_and_a_dead_ones_jobs_run_out(redis):
    dead, living = (RedisLeases(RedisCalls(redis.url)) for _ in range(2))
    # It is renewed as often as a short lease; were it as short, it could run out while this process stands still.
    dead.lease_s = 0.06
    await dead._calls.client.flushdb()
    lost = await ConcurrencyLimits(dead, default=1).take(caller())
    jobs = ConcurrencyLimits(living, default=1)

    async def ends_at_ms() -> float:
        ((_, at_ms),) = await dead._calls.client.zrange(lease_key("key_1"), 0, -1, withscores=True)
        return at_ms

    # For as long as its gateway lives.
    begun_ms = await ends_at_ms()
    async with asyncio.timeout(60):
        while await ends_at_ms() < begun_ms + 300:
            await asyncio.sleep(0.01)
    with pytest.raises(TooManyConcurrentJobs):
        await jobs.take(caller())

    lost._renewing.cancel()
    dead._lease_ms = 100
    await dead.renew("key_1", lost._lease_id)
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(TooManyConcurrentJobs):
                async with await jobs.take(caller()):
                    break
            await asyncio.sleep(0.05)
    for kept in (dead, living):
        await kept._calls.aclose()


async def test_a_job_that_ends_during_its_renewal_is_not_renewed_after_its_end(redis, monkeypatch):
    # A renewal that takes longer than this is cancelled, and may go on all the same.
    monkeypatch.setattr("lcp_gateway.accounts.limits.concurrency._RENEWAL_S", 60.0)
    kept = RedisLeases(RedisCalls(redis.url), lease_s=0.3)
    await kept._calls.client.flushdb()
    lease = await ConcurrencyLimits(kept, default=1).take(caller())
    script, under_way = kept._renew, asyncio.Event()

    async def slow(*arguments: object) -> None:
        under_way.set()
        # Like the Redis client, it may continue although it was cancelled.
        for _ in range(2):
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.1)
        await script(*arguments)

    kept._renew = slow
    await under_way.wait()
    await lease.release()
    await asyncio.sleep(0.25)
    assert await kept._calls.client.zcard("lcp-gateway:jobs:key_1") == 0
    await kept._calls.aclose()


async def test_a_lease_whose_reply_was_lost_is_released_at_the_end_of_its_job(redis):
    kept = RedisLeases(RedisCalls(redis.url))
    await kept._calls.client.flushdb()
    take = kept._take

    async def lost(*arguments: object) -> None:
        await take(*arguments)
        raise TimeoutError

    kept._take = lost
    async with await ConcurrencyLimits(kept, default=1).take(caller()):
        assert await kept._calls.client.zcard("lcp-gateway:jobs:key_1") == 1
    assert await kept._calls.client.zcard("lcp-gateway:jobs:key_1") == 0
    await kept._calls.aclose()


async def test_a_client_that_disconnects_during_the_redis_call_leaves_no_lease(redis):
    kept = RedisLeases(RedisCalls(redis.url))
    await kept._calls.client.flushdb()
    calls = ShieldedCalls()
    jobs = ConcurrencyLimits(kept, default=1)
    await kept._calls.client.client_pause(60_000, all=False)
    taking = asyncio.create_task(calls.run(jobs.take(caller()), Lease.release))
    await asyncio.sleep(0.05)
    taking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await taking
    await kept._calls.client.client_unpause()
    await calls.close()
    assert await kept._calls.client.zcard("lcp-gateway:jobs:key_1") == 0
    async with await jobs.take(caller()):
        pass
    await kept._calls.aclose()


async def test_while_redis_is_away_jobs_run_uncounted_or_not_at_all():
    reports: list[str] = []
    with running_redis() as server:
        kept = RedisLeases(RedisCalls(server.url))
        jobs = ConcurrencyLimits(kept, default=1, outage=Outage(report=reports.append, clock=lambda: 0.0))
        lease = await jobs.take(caller())
        server.stop()

        await lease.release()
        async with await jobs.take(caller()), await jobs.take(caller()):
            pass
        assert len(reports) == 1

        closed = ConcurrencyLimits(kept, default=1, outage=Outage(allows=False))
        with pytest.raises(LimitsUnavailable):
            await closed.take(caller())
        await kept._calls.aclose()


def test_without_its_client_redis_is_refused_in_words_that_help(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "redis.asyncio", None)

    with pytest.raises(RedisNotInstalled, match=r"lcp-gateway\[redis\]"):
        connect("redis://127.0.0.1:1")


async def test_a_lease_is_still_renewed_after_an_unexpected_error():
    """Regression: a renewal task that ended let the lease expire, and the key ran more jobs than allowed."""

    class Short(MemoryLeases):
        lease_s = 0.03

        def __init__(self) -> None:
            super().__init__()
            self.renewed = 0

        async def renew(self, key_id, lease_id):
            self.renewed += 1
            if self.renewed == 1:
                raise OverflowError

    leases, restarts = Short(), []
    tasks = BackgroundTasks(get_logger("test"), on_restart=restarts.append, backoff=Backoff(first_s=0.001))
    jobs = ConcurrencyLimits(leases, default=1, start_task=tasks.starter("leases"))
    async with await jobs.take(Caller("k", "acct_1", KeyRules())), asyncio.timeout(60):
        while leases.renewed < 3:
            await asyncio.sleep(0.005)
    assert restarts == ["leases"]
