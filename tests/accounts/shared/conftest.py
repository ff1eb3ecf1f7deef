"""A Redis, and gateways that share their results in it."""

import asyncio
from collections.abc import Iterator

import pytest

from lcp_gateway.accounts.shared.calls import RedisCalls
from lcp_gateway.accounts.shared.claims import RedisClaims
from lcp_gateway.accounts.shared.orders import RedisOrders
from lcp_gateway.accounts.shared.outage import Outage
from lcp_gateway.accounts.shared.results import RedisResults
from lcp_gateway.encryption import Encryption
from lcp_gateway.purchase.idempotency import CacheLimits
from tests.accounts.shared.replica import SECRET
from tests.accounts.shared.sharing import Journals
from tests.support.redis import RunningRedis, running_redis
from tests.support.scripted_peers import world


@pytest.fixture(scope="module")
def redis() -> Iterator[RunningRedis]:
    with running_redis() as server:
        yield server


@pytest.fixture
def journals():
    return Journals()


@pytest.fixture
async def replica(redis, journals):
    """Make a gateway that shares its results; its world also has its reports about Redis and repeats.

    ``found`` is set once it has found a claim of another gateway.
    """
    opened = []

    async def make(*, lease_s=600.0, renew_s=None, wait_s=60.0, secret=SECRET, keep=None, max_bytes=1_000, **more):
        reports, joined, found = [], [], asyncio.Event()
        calls = RedisCalls(redis.url)
        claims = RedisClaims(calls, Outage(report=reports.append), lease_s)
        if renew_s is not None:
            # By this it is renewed; in Redis it lasts for as long as it was made for.
            claims.lease_s = 3 * renew_s
        take = claims.take

        async def recorded(*arguments):
            theirs = await take(*arguments)
            if theirs is not None:
                found.set()
            return theirs

        claims.take = recorded
        if not opened:
            await calls.client.flushdb()
        opened.append(calls)
        w = world(**more)
        w.service._shared = RedisResults(
            claims,
            RedisOrders(calls, Outage()),
            Encryption(secret),
            state_of=journals,
            limits=keep or CacheLimits(),
            wait_s=wait_s,
            max_bytes=max_bytes,
            on_joined=joined.append,
        )
        w.claims, w.reports, w.joined, w.found = claims, reports, joined, found
        return w

    yield make
    for calls in opened:
        await calls.aclose()
