"""Messages between workers: encrypted, in order, to all others and not to their sender."""

import asyncio

import pytest
from redis.asyncio import Redis

from lcp_gateway.accounts.shared.calls import RedisCalls
from lcp_gateway.accounts.shared.events import BatchedEvents, RedisEvents
from lcp_gateway.accounts.shared.outage import Outage
from lcp_gateway.encryption import Encryption
from tests.support.redis import running_redis


@pytest.fixture(scope="module")
def server():
    with running_redis() as it:
        yield it


async def heard(queue, count):
    async with asyncio.timeout(60):
        return [await queue.get() for _ in range(count)]


async def subscribed(server, count):
    client = Redis.from_url(server.url)
    async with asyncio.timeout(60):
        while sum(number for _, number in await client.pubsub_numsub(*await client.pubsub_channels())) < count:
            await asyncio.sleep(0.01)
    await client.aclose()


async def test_each_worker_hears_all_others_in_order_and_not_itself(server):
    queues, workers, opened, tasks = [], [], [], []
    for _ in range(3):
        queue = asyncio.Queue()
        redis = RedisEvents(RedisCalls(server.url), "run", Encryption(b"s" * 32), Outage())
        worker = BatchedEvents(redis, {"told": queue.put_nowait})
        tasks.append(asyncio.create_task(worker.run()))
        queues.append(queue)
        workers.append(worker)
        opened.append(redis)
    stranger = RedisEvents(RedisCalls(server.url), "run", Encryption(b"t" * 32), Outage())
    await subscribed(server, 3)
    stranger.publish(b"learnt", b"[]")
    for number in range(50):
        workers[0].tell("told", [number])
        if number % 7 == 0:
            await asyncio.sleep(0.006)
    workers[1].tell("unknown kind", [1])
    for queue in queues[1:]:
        assert await heard(queue, 50) == [[number] for number in range(50)]
    workers[1].tell("told", ["a secret"])
    assert await heard(queues[0], 1) == [["a secret"]]
    assert queues[1].empty()
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    for redis in (*opened, stranger):
        await redis._calls.aclose()


async def test_it_hears_again_after_redis_was_away():
    with running_redis() as server:
        queue, outage = asyncio.Queue(), Outage()
        listener = RedisEvents(RedisCalls(server.url), "run", Encryption(b"s" * 32), outage)
        task = asyncio.create_task(listener.run({b"a": queue.put_nowait}))
        await subscribed(server, 1)
        server.stop()
        server.start()
        await subscribed(server, 1)
        teller = RedisEvents(RedisCalls(server.url), "run", Encryption(b"s" * 32), Outage())
        teller.publish(b"a", b"1")
        assert await heard(queue, 1) == [b"1"]
        task.cancel()
        await asyncio.wait([task])
        await listener._calls.aclose()
        await teller._calls.aclose()
