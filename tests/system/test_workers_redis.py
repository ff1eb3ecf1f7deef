"""What the purchases of several workers ask of the Redis that they share: counted, so that it does not grow unnoticed."""

import asyncio
import time

import pytest

from tests.support.gateway import gateway
from tests.support.redis import running_redis
from tests.support.wire import CHAT, document, post

pytestmark = pytest.mark.slow

PURCHASES = 16
# What ends late of purchases before, and what workers do at times: fewer than one call a purchase.
BESIDE = 8
# The claim, what is out with the peer, the result, and the end of what is out.
CALLS = 4
# Quoted, held, paying, paid and measured; those of one moment go together.
MESSAGES = 6
KEY = "a-key-of-one-customer"
LIMITED = {
    "LCP_GATEWAY_API_KEYS": KEY,
    "LCP_GATEWAY_KEY_REQUESTS_PER_MINUTE": "1000",
    "LCP_GATEWAY_KEY_TOKENS_PER_MINUTE": "10000000",
    "LCP_GATEWAY_KEY_CONCURRENT_JOBS": "100",
}


@pytest.fixture
def redis():
    with running_redis() as it:
        yield it


def counted(server, port, **headers):
    """Return the calls of Redis for some purchases, and those of scripts among them."""

    def buy(number):
        answer = post(port, CHAT, document(CHAT, seed=number), {"Authorization": f"Bearer {KEY}", **headers})
        assert answer.status == 200, answer.body

    async def count():
        async with server.counting() as commands:
            for number in range(PURCHASES):
                await asyncio.to_thread(buy, number)
        return commands.by_name

    # Scripts are loaded, and connections are opened, once for each worker.
    for number in range(PURCHASES):
        buy(1_000 + number)
    return asyncio.run(count())


@pytest.mark.parametrize(
    ("settings", "most"),
    [
        ({}, CALLS),
        # A lease together with the rates before; the tokens that were used. The end of the lease is no script.
        (LIMITED, CALLS + 2),
    ],
    ids=["without limits", "with limits of the key"],
)
def test_a_purchase_makes_so_many_calls_of_redis_and_no_more(redis, settings, most):
    env = {"LCP_GATEWAY_REDIS_URL": redis.url, **settings}
    with gateway(args=["--workers", "2"], env=env) as running:
        began_at = time.monotonic()
        commands = counted(redis, running.port)
        # Each worker drops old objects every five seconds, and a lease is renewed every few.
        at_times = time.monotonic() - began_at
    assert PURCHASES <= commands["evalsha"] <= most * PURCHASES + BESIDE + at_times
    assert commands["publish"] <= MESSAGES * PURCHASES + BESIDE
    assert commands["script"] <= 2 * most
