"""Claims in Redis: from when a lease counts, and what a gateway can still do after another took over its claim."""

import asyncio
import time
from contextlib import suppress

import pytest

from lcp_gateway.accounts.shared.calls import RedisCalls
from lcp_gateway.accounts.shared.claims import ClaimNames, OrderCount, OwnClaim, RedisClaims, TooManyOrders
from lcp_gateway.accounts.shared.outage import Outage
from lcp_gateway.accounts.shared.results import _Claim
from lcp_gateway.encryption import Encryption
from lcp_gateway.purchase.ports import start_unsupervised

MARK, NAME = b"mark", b"name"


@pytest.fixture
async def gateways(redis):
    """Two gateways on one empty Redis, with a short lease."""
    found = [RedisClaims(RedisCalls(redis.url), Outage(), 0.05) for _ in range(2)]
    await found[0]._calls.client.flushdb()
    yield found
    for claims in found:
        await claims._calls.aclose()


def own_claim() -> OwnClaim:
    return OwnClaim(ClaimNames(MARK, [NAME], [NAME], [60_000]), description=b"about")


def unrepeated() -> OwnClaim:
    return OwnClaim(ClaimNames(MARK, [], [NAME], [60_000]), description=b"about")


class Slow:
    """A Redis script whose reply is delayed; it records when it was sent and when the reply came."""

    def __init__(self, script) -> None:
        self._script = script
        self.sent_at = self.answered_at = 0.0

    async def __call__(self, keys, values):
        self.sent_at = time.monotonic()
        answer = await self._script(keys, values)
        await asyncio.sleep(0.02)
        self.answered_at = time.monotonic()
        return answer


async def taken_over(a, b) -> tuple[OwnClaim, OwnClaim]:
    """Let a claim of one gateway expire, and the other take it over."""
    first, second = own_claim(), own_claim()
    assert await a.take(first, b"") is None
    await asyncio.sleep(2 * a.lease_s)
    assert await b.take(second, first.id) is None
    return first, second


async def ended(claims, *arguments) -> None:
    claims.end(*arguments)
    await claims._calls.settled()


async def released(claims, claim) -> None:
    claims.release(claim)
    await claims._calls.settled()


async def what_a_third_finds(claims):
    return await claims.take(own_claim(), b"")


async def test_a_lease_counts_from_the_question_and_not_from_its_answer(gateways):
    """Redis counts from when it received the request; a gateway that counted from a late reply would pay after its lease."""
    claims, mine = gateways[0], own_claim()
    claims._take = taking = Slow(claims._take)
    await claims.take(mine, b"")
    assert mine.renewed_at <= taking.sent_at < taking.answered_at
    claims._renew = renewing = Slow(claims._renew)
    await claims.renew(mine)
    assert taking.answered_at < mine.renewed_at <= renewing.sent_at


async def test_a_claim_that_was_taken_over_never_writes_its_end(gateways):
    a, b = gateways
    first, second = await taken_over(a, b)
    await ended(a, first, b"facts of the first", b"answer of the first", 60.0)
    found = await what_a_third_finds(b)
    assert (found.claim_id, found.has_ended) == (second.id, False)
    assert await b.body(first.id) is None
    await ended(b, second, b"facts of the second", b"answer of the second", 60.0)
    found = await what_a_third_finds(a)
    assert (found.claim_id, found.facts) == (second.id, b"facts of the second")
    assert await a.body(second.id) == b"answer of the second"


async def test_a_claim_counts_its_order_and_is_not_made_where_there_were_too_many(gateways, redis):
    a, b = gateways
    count = OrderCount(b"body", 2, 60.0)
    async with redis.counting() as commands:
        for claims in gateways:
            assert await claims.take(unrepeated(), b"", count) is None
    assert commands.by_name["evalsha"] <= 4
    with pytest.raises(TooManyOrders) as found:
        await a.take(unrepeated(), b"", count)
    assert 0 < found.value.wait_s <= 60
    assert await b.take(unrepeated(), b"", OrderCount(b"another body", 2, 60.0)) is None


async def test_an_order_no_longer_counts_after_the_window(gateways):
    count = OrderCount(b"body", 1, 0.05)
    assert await gateways[0].take(unrepeated(), b"", count) is None
    async with asyncio.timeout(60):
        while True:
            with suppress(TooManyOrders):
                assert await gateways[1].take(unrepeated(), b"", count) is None
                break
            await asyncio.sleep(0.01)


async def test_a_repeat_that_finds_its_answer_is_not_counted(gateways):
    a, b = gateways
    count = OrderCount(b"body", 1, 60.0)
    first = own_claim()
    assert await a.take(first, b"", count) is None
    await ended(a, first, b"facts", b"answer", 60.0)
    for _ in range(3):
        assert (await b.take(own_claim(), b"", count)).facts == b"facts"


async def test_a_claim_whose_reply_was_lost_is_made_by_the_next_call_for_it(gateways):
    """Regression: redis-py sends a call again whose reply was lost, and it found its own claim as another gateway's."""
    mine = own_claim()
    for _ in range(2):
        assert await gateways[0].take(mine, b"") is None
    assert (await what_a_third_finds(gateways[1])).claim_id == mine.id


@pytest.mark.parametrize("has_ended", [False, True])
async def test_a_claim_that_could_not_be_made_stands_beside_another_order_of_the_same_body(gateways, has_ended):
    """Regression: where Redis was back between the claim and the payment, one of two like orders was refused."""
    a, b = gateways
    first, second = unrepeated(), unrepeated()
    assert await b.take(second, b"") is None
    if has_ended:
        await ended(b, second, b"facts", b"answer", 60.0)
    await a.renew(first)
    assert not first.is_lost
    # A repeat finds the one that was claimed.
    assert (await what_a_third_finds(b)).claim_id == second.id
    await a.renew(first)
    assert not first.is_lost


async def test_a_claim_that_could_not_be_made_is_lost_to_a_repeat_which_did_not_find_it(gateways):
    a, b = gateways
    first, its_repeat = unrepeated(), own_claim()
    assert await b.take(its_repeat, b"") is None
    await a.renew(first)
    assert first.is_lost
    assert (await what_a_third_finds(b)).claim_id == its_repeat.id


@pytest.mark.parametrize("is_left", [False, True])
async def test_a_like_order_in_between_does_not_hide_a_repeat(gateways, is_left):
    """The name belongs to the newest claim, or to none: the repeat still buys."""
    a, b = gateways
    first, third = unrepeated(), unrepeated()
    assert await b.take(own_claim(), b"") is None
    assert await b.take(third, b"") is None
    if is_left:
        await released(b, third)
    await a.renew(first)
    assert first.is_lost


@pytest.mark.parametrize("has_ended", [False, True])
async def test_a_repeat_that_could_not_be_claimed_is_lost_to_what_it_repeats(gateways, has_ended):
    a, b = gateways
    first, its_repeat = unrepeated(), own_claim()
    assert await a.take(first, b"") is None
    if has_ended:
        await ended(a, first, b"facts", b"answer", 60.0)
    await b.renew(its_repeat)
    assert its_repeat.is_lost


async def test_a_repeat_that_bought_nothing_is_in_nobodys_way(gateways):
    a, b = gateways
    first, its_repeat = unrepeated(), own_claim()
    assert await b.take(its_repeat, b"") is None
    await released(b, its_repeat)
    await a.renew(first)
    assert not first.is_lost


async def test_of_two_repeats_that_could_not_be_claimed_one_is(gateways):
    a, b = gateways
    first, second = own_claim(), own_claim()
    await a.renew(first)
    await b.renew(second)
    assert not first.is_lost and second.is_lost


async def test_an_order_with_an_idempotency_key_is_no_repeat_of_another_with_its_body(gateways):
    a, b = gateways
    first, keyed = unrepeated(), OwnClaim(ClaimNames(MARK, [b"key"], [NAME, b"key"], [60_000, 60_000]))
    assert await b.take(keyed, b"") is None
    await a.renew(first)
    assert not first.is_lost


@pytest.mark.parametrize("late", ["renew", "release"])
async def test_a_late_call_does_not_change_the_claim_of_the_gateway_that_took_over(gateways, late):
    a, b = gateways
    first, second = await taken_over(a, b)
    await (a.renew(first) if late == "renew" else released(a, first))
    assert first.is_lost is (late == "renew")
    assert (await what_a_third_finds(b)).claim_id == second.id


async def test_a_gateway_whose_renewal_was_slow_does_not_pay_once_another_took_over(gateways):
    a, b = gateways
    first, second = own_claim(), own_claim()
    assert await a.take(first, b"") is None
    claim = _Claim(a, Encryption(b"s" * 32), first, 60.0, 1_000, start_unsupervised)
    claim._timer.cancel()
    await asyncio.sleep(2 * a.lease_s)
    renew = a._renew

    async def overtaken(keys, values):
        # Between its request and Redis's reply another gateway finds the lease expired.
        await b.take(second, first.id)
        return await renew(keys, values)

    a._renew = overtaken
    assert not await claim.may_pay()
    assert (await what_a_third_finds(b)).claim_id == second.id


async def test_a_claim_whose_client_left_while_it_was_made_is_released(gateways):
    a, b = gateways
    await a._calls.client.client_pause(60_000, all=False)
    taking = asyncio.create_task(a.take(own_claim(), b""))
    await asyncio.sleep(0.02)
    taking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await taking
    await a._calls.client.client_unpause()
    await a._calls.settled()
    assert await what_a_third_finds(b) is None
