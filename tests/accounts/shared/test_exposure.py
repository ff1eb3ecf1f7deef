"""What is out with a peer is exact over all workers: of several payments at one time, as many go out as fit."""

import asyncio
from dataclasses import replace

import pytest

from lcp_gateway.accounts.shared.calls import RedisCalls, RedisUnavailable
from lcp_gateway.accounts.shared.exposure import ExposureFull, RedisExposure, SharedExposure
from lcp_gateway.accounts.shared.outage import Outage
from lcp_gateway.encryption import Encryption
from lcp_gateway.purchase.errors import PeerNotTrusted
from tests.support.purchases import quote
from tests.support.redis import running_redis

PRICE = 5_000


@pytest.fixture(scope="module")
def server():
    with running_redis() as it:
        yield it


@pytest.fixture
async def workers(server):
    await server.forget()
    made = [RedisExposure(RedisCalls(server.url), "run", Encryption(b"s" * 32), Outage()) for _ in range(4)]
    yield made
    for one in made:
        await one._calls.aclose()


def job(number):
    return number.to_bytes(32)


async def reserved(worker, number, most, groups=("peer",)):
    try:
        await worker.reserve(list(groups), list(most), job(number), PRICE, 60.0)
    except ExposureFull as full:
        return full
    return None


async def test_of_many_at_one_time_as_many_go_out_as_fit(workers):
    results = await asyncio.gather(*(reserved(workers[n % 4], n, [7 * PRICE + 1]) for n in range(40)))
    assert sum(one is None for one in results) == 7
    assert {one.out_msat for one in results if one is not None} == {7 * PRICE}


async def test_a_job_is_counted_once_however_often_it_is_reserved(workers):
    for worker in workers:
        assert await reserved(worker, 1, [PRICE]) is None
    assert (await reserved(workers[0], 2, [PRICE])).place == 0


async def test_all_groups_have_to_have_room_and_none_is_counted_otherwise(workers):
    assert await reserved(workers[0], 1, [PRICE, PRICE], ("a", "")) is None
    assert (await reserved(workers[1], 2, [PRICE, PRICE], ("b", ""))).place == 1
    assert await reserved(workers[2], 3, [PRICE, -1], ("b", "")) is None


async def sent(worker):
    """Wait until what has ended is in Redis."""
    worker.close()
    await worker._calls.settled()


async def test_what_ended_makes_room_once_the_others_know(workers, monkeypatch):
    monkeypatch.setattr("lcp_gateway.accounts.shared.exposure._SETTLES_MS", 0)
    assert await reserved(workers[0], 1, [PRICE]) is None
    assert await reserved(workers[1], 2, [PRICE]) is not None
    workers[0].release(["peer", ""], job(1))
    await sent(workers[0])
    assert await reserved(workers[1], 2, [PRICE]) is None
    workers[1].keep(["peer"], job(2), 3_600.0)
    await sent(workers[1])
    assert await reserved(workers[0], 3, [PRICE]) is not None


async def test_the_check_names_the_peer_or_all_unproven_ones_and_lets_nodes_pass(workers, monkeypatch):
    monkeypatch.setattr("lcp_gateway.accounts.shared.exposure._SETTLES_MS", 0)
    allowed = {"p1": (PRICE, None), "p2": (PRICE, 0), "p3": (None, None)}
    check = SharedExposure(workers[0], lambda peer_id: allowed[peer_id], 60.0)
    first = replace(quote(), peer_id="p1", price_msat=PRICE, job_id=job(1))
    await check.reserve(first)
    with pytest.raises(PeerNotTrusted, match="the peer is trusted with 5000 msat now; 5000 msat are out"):
        await check.reserve(replace(first, job_id=job(2)))
    with pytest.raises(PeerNotTrusted, match="all peers that have not proven themselves"):
        await check.reserve(replace(first, peer_id="p2", job_id=job(3)))
    await check.reserve(replace(first, peer_id="p3", job_id=job(4)))
    check.apply("hold", "p1", job(1).hex(), "")
    check.apply("released", "p1", job(1).hex(), "unknown")
    await sent(workers[0])
    with pytest.raises(PeerNotTrusted):
        # An unknown payment is out.
        await check.reserve(replace(first, job_id=job(5)))
    check.apply("resolved", "p1", job(1).hex(), "not_paid")
    await sent(workers[0])
    await check.load([("p1", job(9), PRICE)])
    with pytest.raises(PeerNotTrusted):
        await check.reserve(replace(first, job_id=job(5)))
    check.apply("resolved", "p1", job(9).hex(), "delivered")
    await sent(workers[0])
    await check.reserve(replace(first, job_id=job(5)))


async def test_a_check_reads_what_is_out_in_all_and_not_every_job(workers, server):
    """Regression: each payment read all jobs that were out or had just ended, most of the work of a busy Redis."""
    for number in range(50):
        assert await reserved(workers[0], number, [-1]) is None
    async with server.counting() as commands:
        assert (await reserved(workers[1], 50, [50 * PRICE])).out_msat == 50 * PRICE
    assert commands.total < 10
    assert "hgetall" not in commands.by_name


async def test_what_ended_before_and_after_a_check_is_counted_off_once(workers, monkeypatch):
    monkeypatch.setattr("lcp_gateway.accounts.shared.exposure._SETTLES_MS", 0)
    for number in range(4):
        assert await reserved(workers[number], number, [4 * PRICE]) is None
    for number in range(4):
        # Twice, as where a worker and the message of another say it.
        workers[0].release(["peer"], job(number))
        workers[1].release(["peer"], job(number))
    await sent(workers[0])
    await sent(workers[1])
    assert await reserved(workers[2], 4, [PRICE]) is None
    assert (await reserved(workers[3], 5, [PRICE])).out_msat == PRICE


async def test_without_redis_each_worker_is_on_its_own():
    made = RedisExposure(RedisCalls("redis://127.0.0.1:1/0"), "run", Encryption(b"s" * 32), Outage())
    with pytest.raises(RedisUnavailable):
        await made.reserve(["p"], [1], job(1), PRICE, 60.0)
    await SharedExposure(made, lambda _peer: (0, 0), 60.0).reserve(quote())
    await made._calls.aclose()
