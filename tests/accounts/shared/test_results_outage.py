"""Gateways that share results while their Redis is away, and after it has lost its data."""

import asyncio

from lcp_gateway.accounts.shared.calls import RedisCalls
from lcp_gateway.accounts.shared.claims import RedisClaims
from lcp_gateway.accounts.shared.orders import RedisOrders
from lcp_gateway.accounts.shared.outage import Outage
from lcp_gateway.accounts.shared.results import RedisResults
from lcp_gateway.encryption import Encryption
from lcp_gateway.purchase.idempotency import CacheLimits, RepeatKeys
from tests.accounts.shared.replica import SECRET
from tests.accounts.shared.sharing import KEY, bought, claimed, spawn, work_of
from tests.support.redis import running_redis
from tests.support.scripted_peers import ordered, world


async def test_without_redis_each_is_on_its_own_and_says_so(journals):
    with running_redis() as server:
        reports = []
        w = world()
        calls = RedisCalls(server.url)
        claims = RedisClaims(calls, Outage(report=reports.append, clock=lambda: 0.0), 600.0)
        w.service._shared = RedisResults(
            claims,
            RedisOrders(calls, Outage()),
            Encryption(SECRET),
            state_of=journals,
            limits=CacheLimits(),
            wait_s=60.0,
        )
        assert await bought(w) == b"answer"
        server.stop()
        assert await bought(w, ordered(), RepeatKeys(key="l")) == b"answer"
        assert await w.ask(ordered(), RepeatKeys(key="l")) == b"answer"
        assert len(reports) == 1 and server.url not in reports[0]
        server.start()
        claims._outage._until = 0
        assert await bought(w, ordered(), RepeatKeys(key="m")) == b"answer"
        await calls.aclose()
    assert len(w.upstream.works) == 3


async def test_running_orders_are_claimed_again_in_a_redis_that_lost_its_data(replica):
    one, other = await replica(renew_s=0.1), await replica()
    asked = spawn(one.ask(ordered(), KEY))
    work = await work_of(one)
    await one.claims._calls.client.flushdb()
    await claimed(one)
    waiting = spawn(other.ask(ordered(), KEY))
    await asyncio.sleep(0.1)
    work.deliver()
    assert await asked == await waiting == b"answer"
    assert not other.upstream.asked


async def test_a_claim_that_was_made_without_redis_is_made_when_it_is_back(replica):
    one, other = await replica(renew_s=0.1), await replica()
    one.claims._outage._until = float("inf")
    asked = spawn(one.ask(ordered(), KEY))
    work = await work_of(one)
    one.claims._outage._until = 0
    await claimed(one)
    waiting = spawn(other.ask(ordered(), KEY))
    await asyncio.sleep(0.05)
    work.deliver()
    assert await asked == await waiting == b"answer"
    assert not other.upstream.asked


async def test_a_waiting_repeat_does_not_buy_because_redis_is_unreachable_for_a_moment(replica):
    one, other = await replica(), await replica()
    asked = spawn(one.ask(ordered(), KEY))
    work = await work_of(one)
    waiting = spawn(other.ask(ordered(), KEY))
    async with asyncio.timeout(60):
        await other.found.wait()
    other.claims._outage._until = float("inf")
    await asyncio.sleep(0.1)
    work.deliver()
    await asked
    other.claims._outage._until = 0
    assert await waiting == b"answer"
    assert not other.upstream.asked
