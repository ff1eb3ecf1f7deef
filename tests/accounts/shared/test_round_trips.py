"""How often a purchase waits for Redis: once before its payment, and once more where it may repeat another or is limited."""

import asyncio
from collections.abc import Iterator

import pytest

from lcp_gateway.accounts.shared.calls import RedisCalls
from lcp_gateway.accounts.shared.claims import RedisClaims
from lcp_gateway.accounts.shared.exposure import RedisExposure, SharedExposure
from lcp_gateway.accounts.shared.orders import RedisOrders
from lcp_gateway.accounts.shared.outage import Outage
from lcp_gateway.accounts.shared.results import RedisResults
from lcp_gateway.encryption import Encryption
from lcp_gateway.purchase.idempotency import CacheLimits, RepeatKeys
from tests.support.redis import RunningRedis, running_redis
from tests.support.scripted_peers import ordered, world

ENCRYPTION = Encryption(b"a secret of this deployment")
PLAIN, KEYED = RepeatKeys(), RepeatKeys(key="k")


@pytest.fixture(scope="module")
def server() -> Iterator[RunningRedis]:
    with running_redis() as it:
        yield it


class Watched(RedisCalls):
    """Records how many calls went out together."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.pipelines: list[int] = []

    async def _send(self, calls):
        self.pipelines.append(len(calls))
        return await super()._send(calls)


@pytest.fixture
async def worker(server):
    """A worker that shares its purchases and what is out with its peers."""
    await server.forget()
    opened = []

    def make(per_minute=0):
        calls = Watched(server.url)
        opened.append(calls)
        w = world(per_minute=per_minute)
        w.service._shared = RedisResults(
            RedisClaims(calls, Outage(), 600.0),
            RedisOrders(calls, Outage()),
            ENCRYPTION,
            state_of=None,
            limits=CacheLimits(),
            wait_s=60.0,
        )
        exposure = SharedExposure(RedisExposure(calls, "run", ENCRYPTION, Outage()), lambda _peer: (10**9, 10**9), 60.0)
        w.service._executor._reserve = exposure.reserve
        w.calls = calls
        return w

    yield make
    for calls in opened:
        await calls.aclose()


async def paid(w, repeat):
    """Return the request, once its provider has been paid and works."""
    asked = asyncio.ensure_future(w.ask(ordered(), repeat))
    async with asyncio.timeout(60):
        while not w.upstream.works:
            await asyncio.sleep(0)
    return asked


@pytest.mark.parametrize(("repeat", "per_minute"), [(PLAIN, 0), (KEYED, 0), (PLAIN, 5), (KEYED, 5)])
async def test_a_purchase_calls_redis_twice_before_its_payment_and_once_after(worker, repeat, per_minute):
    w = worker(per_minute)
    asked = await paid(w, repeat)
    assert w.calls.pipelines == [1, 1], "the claim, and what is out with the peer"
    w.upstream.works[0].deliver()
    assert await asked == b"answer"
    await w.service.wait_idle()
    await w.calls.settled()
    assert w.calls.pipelines == [1, 1, 1], "the result"


async def test_purchases_of_one_moment_share_their_calls(worker):
    w = worker()
    asked = [asyncio.ensure_future(w.ask(ordered(b'{"number": %d}' % number), PLAIN)) for number in range(20)]
    async with asyncio.timeout(60):
        while len(w.upstream.works) < 20:
            await asyncio.sleep(0)
    assert sum(w.calls.pipelines) == 40
    assert len(w.calls.pipelines) <= 10
    for work in w.upstream.works:
        work.deliver()
    await asyncio.gather(*asked)
