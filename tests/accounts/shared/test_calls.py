"""Calls of Redis: those of one moment go together and in order, and each ends whatever happens to the task that made it."""

import asyncio
from collections.abc import Iterator

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from lcp_gateway.accounts.shared.calls import RedisCalls, unawaited
from lcp_gateway.accounts.shared.outage import Outage
from tests.support.redis import RunningRedis, running_redis

APPEND = "redis.call('RPUSH', KEYS[1], ARGV[1]) return redis.call('LLEN', KEYS[1])"


@pytest.fixture(scope="module")
def server() -> Iterator[RunningRedis]:
    with running_redis() as it:
        yield it


@pytest.fixture
async def calls(server):
    await server.forget()
    made = RedisCalls(server.url)
    yield made
    await made.aclose()


@pytest.fixture
def pipelines(calls, monkeypatch):
    """The numbers of commands that went out together."""
    sent, send = [], calls._send

    async def recorded(together):
        sent.append(len(together))
        return await send(together)

    monkeypatch.setattr(calls, "_send", recorded)
    return sent


async def test_calls_of_one_moment_go_together_and_those_that_come_meanwhile_in_the_next(calls, pipelines):
    append = calls.script(APPEND)
    await append(["other"], [0])
    pipelines.clear()

    async def two(number: int) -> list[int]:
        return [await append(["list"], [number]), await append(["list"], [number])]

    found = await asyncio.gather(*map(two, range(10)))
    assert [one[0] for one in found] == list(range(1, 11))
    assert pipelines == [10, 10]


async def test_a_script_is_loaded_once_and_again_in_a_redis_that_lost_it(calls, server):
    append = calls.script(APPEND)
    async with server.counting() as commands:
        for number in range(5):
            await append(["list"], [number])
        await calls.client.script_flush()
        assert await asyncio.gather(*(append(["list"], [number]) for number in (5, 6))) == [6, 7]
    assert await calls.client.lrange("list", 0, -1) == [str(number).encode() for number in range(7)]
    assert commands.by_name["script"] <= 4


async def test_a_call_ends_although_the_task_that_awaited_it_was_cancelled(calls):
    append = calls.script(APPEND)

    async def ask() -> None:
        await append(["list"], ["a"])

    asked = asyncio.create_task(ask())
    await asyncio.sleep(0)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    assert await append(["list"], ["b"]) == 2
    assert await calls.client.lrange("list", 0, -1) == [b"a", b"b"]


async def test_an_error_of_one_call_is_that_call_s_alone(calls):
    append, wrong = calls.script(APPEND), calls.script("return redis.call('GET')")
    before, bad, after = append(["list"], [1]), wrong([], []), append(["list"], [2])
    with pytest.raises(ResponseError):
        await bad
    assert [await before, await after] == [1, 2]


async def test_much_goes_beside_the_small_calls_and_does_not_hold_them_up(calls, pipelines):
    small = [calls.command("ECHO", "small") for _ in range(3)]
    large = calls.command("SET", "large", b"x" * 100_000)
    reading = calls.command("GET", "large", alone=True)
    assert await asyncio.gather(*small) == [b"small"] * 3
    await asyncio.gather(large, reading)
    assert sorted(pipelines) == [1, 1, 3]


async def test_without_redis_all_that_wait_are_told_at_once_and_an_outage_begins():
    calls, reports = RedisCalls("redis://127.0.0.1:1/0"), []
    outage = Outage(report=reports.append)
    replies = [calls.command("PING") for _ in range(500)]
    unawaited(calls.command("PING"), outage)
    assert {type(error) for error in await asyncio.gather(*replies, return_exceptions=True)} == {RedisConnectionError}
    await calls.aclose()
    assert reports == ["ConnectionError"]
