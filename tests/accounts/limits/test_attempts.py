"""Attempts by address: the same rule in this process and in Redis, for all gateways there, and without it while it is away."""

import asyncio

import pytest

from lcp_gateway.accounts.limits.attempts import AttemptLimit, Attempts
from lcp_gateway.accounts.shared.calls import RedisCalls
from lcp_gateway.accounts.shared.outage import Outage
from tests.support.redis import RunningRedis, running_redis

# Each fills up so slowly that it does not in the middle of a test: Redis counts by the time of day.
TEN = AttemptLimit("sign_in", 10, 600.0)
FIVE = AttemptLimit("register", 5, 3_600.0)
IN_ALL = AttemptLimit("in_all", 3, 600.0)


@pytest.fixture(scope="module")
def redis():
    with running_redis() as server:
        yield server


@pytest.fixture(params=["memory", "redis"])
async def attempts(request):
    if request.param == "memory":
        yield Attempts(clock=lambda: 0.0)
        return
    server: RunningRedis = request.getfixturevalue("redis")
    await server.forget()
    made = Attempts(RedisCalls(server.url))
    yield made
    await made._calls.aclose()


async def test_so_many_attempts_of_an_address_and_no_more(attempts):
    waits = [await attempts.take("192.0.2.1", TEN) for _ in range(11)]
    assert waits[:10] == [0.0] * 10 and 0 < waits[10] <= 60
    assert await attempts.take("192.0.2.2", TEN) == 0.0
    assert await attempts.take("192.0.2.1", FIVE) == 0.0, "another limit"


async def test_a_limit_of_an_hour_fills_within_an_hour(attempts):
    waits = [await attempts.take("192.0.2.1", FIVE) for _ in range(6)]
    assert waits[:5] == [0.0] * 5 and 660 < waits[5] <= 720


async def test_an_ipv6_network_counts_as_one_address(attempts):
    for number in range(10):
        assert await attempts.take(f"2001:db8::{number:x}", TEN) == 0.0
    assert await attempts.take("2001:db8::ff", TEN) > 0
    assert await attempts.take("2001:db8:0:1::1", TEN) == 0.0


async def test_all_clients_share_one_limit(attempts):
    assert [await attempts.take_of_all(IN_ALL) > 0 for _ in range(4)] == [False, False, False, True]


async def test_gateways_on_one_redis_count_together(redis):
    await redis.forget()
    one, other = Attempts(RedisCalls(redis.url)), Attempts(RedisCalls(redis.url))
    found = await asyncio.gather(*(each.take("192.0.2.1", TEN) for each in (one, other) for _ in range(10)))
    assert found.count(0.0) == 10
    await one._calls.aclose()
    await other._calls.aclose()


async def test_an_address_is_not_stored(redis):
    from redis.asyncio import Redis

    await redis.forget()
    one = Attempts(RedisCalls(redis.url))
    await one.take("192.0.2.77", TEN)
    client = Redis.from_url(redis.url)
    (key,) = await client.keys("*")
    assert b"192.0.2" not in key and key.startswith(b"lcp-gateway:attempts:sign_in:")
    assert 0 < await client.pttl(key) <= 60_001
    await client.aclose()
    await one._calls.aclose()


async def test_while_redis_is_away_each_process_counts_for_itself():
    reported = []
    outage = Outage(report=reported.append, clock=lambda: 0.0)
    one = Attempts(RedisCalls("redis://127.0.0.1:1/0"), outage=outage, clock=lambda: 0.0)
    waits = [await one.take("192.0.2.1", TEN) for _ in range(11)]
    assert waits[:10] == [0.0] * 10 and waits[10] == 60.0
    assert reported == ["ConnectionError"]
    await one._calls.aclose()
