import asyncio

import pytest

from lcp_gateway.purchase.errors import PriceLimitExceeded, Refused, UpstreamError
from lcp_gateway.purchase.limits import SpendingLimits
from lcp_gateway.purchase.money import Msat
from lcp_gateway.purchase.quoting import QuoteRequester, QuotingRules
from tests.support.purchases import HASH, ScriptedInspector
from tests.support.scripted_peers import Peer, ScriptedPeers, ordered, settle

GONE = UpstreamError("UNAVAILABLE", "gone")


class Quoting:
    """A quote requester with scripted peers, and what it did."""

    def __init__(self, asking=None, limits=None, refuse=None, **peers) -> None:
        self.upstream = ScriptedPeers({name: _peer(said) for name, said in peers.items()})
        self.failures: list[tuple[str, Exception]] = []
        self.background: list = []
        limits = limits or SpendingLimits()

        def inspect(order, quote):
            limits.check_price(order, quote)
            if refuse is not None:
                refuse(quote)
            return HASH

        self.requester = QuoteRequester(
            self.upstream,
            asking or QuotingRules(),
            inspector=ScriptedInspector(inspect=inspect),
            background=lambda coroutine: self.background.append(asyncio.ensure_future(coroutine)),
            cancel_timeout_s=1,
            on_failure=lambda peer, error: self.failures.append((peer, error)),
        )

    async def offer(self, order=None):
        try:
            return await self.requester.request(order or ordered(), self.upstream.candidates())
        finally:
            await asyncio.gather(*self.background)

    @property
    def cancelled(self) -> list[str]:
        return sorted(peer for peer, _ in self.upstream.cancelled)


def _peer(said) -> Peer:
    if isinstance(said, Peer):
        return said
    return Peer(error=said) if isinstance(said, Exception) else Peer(said)


def at_once(number, **more) -> QuotingRules:
    return QuotingRules(at_once=number, **more)


async def test_one_peer_is_asked_when_its_quote_is_good():
    quoting = Quoting(p1=5_000, p2=1)
    offer = await quoting.offer()
    assert offer.quote.peer_id == "p1"
    assert offer.payment_hash == HASH and offer.runner_up_msat is None
    assert quoting.upstream.asked == ["p1"] and quoting.cancelled == [] and quoting.failures == []


async def test_a_quote_that_fails_moves_on_to_the_next_peer():
    quoting = Quoting(p1=GONE, p2=5_000)
    assert (await quoting.offer()).quote.peer_id == "p2"
    assert quoting.failures == [("p1", GONE)]


async def test_a_quote_that_is_too_dear_moves_on_and_is_cancelled():
    quoting = Quoting(limits=SpendingLimits(max_price_msat=6_000), p1=7_000, p2=5_000)
    assert (await quoting.offer()).quote.peer_id == "p2"
    assert quoting.cancelled == ["p1"]
    assert [peer for peer, _ in quoting.failures] == ["p1"]


async def test_a_quote_that_is_refused_moves_on_and_is_cancelled():
    def refuse(quote):
        if quote.peer_id == "p1":
            raise Refused("not what it says", quote=quote)

    quoting = Quoting(refuse=refuse, p1=5_000, p2=6_000)
    assert (await quoting.offer()).quote.peer_id == "p2"
    assert quoting.cancelled == ["p1"]


async def test_no_more_peers_are_asked_than_allowed():
    quoting = Quoting(QuotingRules(at_most=2), p1=GONE, p2=GONE, p3=5_000)
    with pytest.raises(UpstreamError):
        await quoting.offer()
    assert quoting.upstream.asked == ["p1", "p2"]


async def test_of_several_the_cheapest_is_taken_and_the_others_are_cancelled():
    quoting = Quoting(at_once(3), p1=5_000, p2=3_000, p3=4_000)
    offer = await quoting.offer()
    assert offer.quote.peer_id == "p2" and offer.runner_up_msat == 4_000
    assert quoting.cancelled == ["p1", "p3"]
    assert len(quoting.upstream.quotes) == 3


async def test_of_two_that_ask_the_same_the_first_choice_is_taken():
    quoting = Quoting(at_once(2), p1=5_000, p2=5_000)
    offer = await quoting.offer()
    assert offer.quote.peer_id == "p1" and offer.runner_up_msat == 5_000


async def test_the_second_group_is_asked_only_when_the_first_has_nothing():
    quoting = Quoting(at_once(2), p1=GONE, p2=GONE, p3=5_000)
    assert (await quoting.offer()).quote.peer_id == "p3"
    quoting = Quoting(at_once(2), p1=GONE, p2=5_000, p3=1)
    assert (await quoting.offer()).quote.peer_id == "p2"
    assert quoting.upstream.asked == ["p1", "p2"]


async def test_a_late_provider_is_not_waited_for():
    late = Peer(1, ready=asyncio.Event())
    quoting = Quoting(at_once(2, patience_s=0.02), p1=late, p2=5_000)
    offer = await asyncio.wait_for(quoting.offer(), 60)
    assert offer.quote.peer_id == "p2" and offer.runner_up_msat is None
    await settle()
    assert len(quoting.upstream.quotes) == 1, "the late peer's call was cancelled"


async def test_a_quote_that_arrives_within_patience_s_counts():
    late = Peer(1_000, ready=asyncio.Event())
    quoting = Quoting(at_once(2, patience_s=60), p1=5_000, p2=late)
    asked = asyncio.ensure_future(quoting.offer())
    await settle()
    late.ready.set()
    offer = await asyncio.wait_for(asked, 60)
    assert offer.quote.peer_id == "p2" and offer.runner_up_msat == 5_000
    assert quoting.cancelled == ["p1"]


async def test_an_error_is_not_an_offer_and_starts_no_clock():
    late = Peer(5_000, ready=asyncio.Event())
    quoting = Quoting(at_once(2, patience_s=0.01), p1=GONE, p2=late)
    asked = asyncio.ensure_future(quoting.offer())
    await asyncio.sleep(0.05)
    assert not asked.done()
    late.ready.set()
    assert (await asyncio.wait_for(asked, 60)).quote.peer_id == "p2"


async def test_a_request_that_gives_up_ends_every_call_for_a_quote():
    late = [Peer(ready=asyncio.Event()) for _ in range(2)]
    quoting = Quoting(at_once(2), p1=late[0], p2=late[1])
    asked = asyncio.ensure_future(quoting.offer())
    await settle()
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    for peer in late:
        peer.ready.set()
    await settle()
    assert quoting.upstream.quotes == []


@pytest.mark.parametrize("number", [1, 3])
async def test_when_all_are_too_dear_the_cheapest_stays_and_the_others_are_cancelled(number):
    limits = SpendingLimits(max_price_msat=1_000)
    quoting = Quoting(at_once(number), limits=limits, p1=5_000, p2=3_000, p3=4_000)
    with pytest.raises(PriceLimitExceeded) as caught:
        await quoting.offer()
    assert caught.value.quote.peer_id == "p2" and caught.value.limit_msat == 1_000
    assert quoting.cancelled == ["p1", "p3"]


async def test_the_client_s_own_limit_moves_on_too():
    quoting = Quoting(p1=7_000, p2=5_000)
    offer = await quoting.offer(ordered(limit_msat=Msat(6_500)))
    assert offer.quote.peer_id == "p2"


async def test_too_dear_says_more_than_refused_and_refused_more_than_unreachable():
    def refuse(quote):
        if quote.peer_id == "p2":
            raise Refused("not what it says", quote=quote)

    limits = SpendingLimits(max_price_msat=4_000)
    quoting = Quoting(limits=limits, refuse=refuse, p1=5_000, p2=3_000, p3=GONE)
    with pytest.raises(PriceLimitExceeded):
        await quoting.offer()
    assert quoting.cancelled == ["p2"], "the dearer quote can still be taken"
    quoting = Quoting(refuse=refuse, p2=3_000, p3=GONE)
    with pytest.raises(Refused, match="not what it says"):
        await quoting.offer()
    assert quoting.cancelled == ["p2"]


async def test_the_last_error_is_raised_when_no_provider_could_be_reached():
    last = UpstreamError("RESOURCE_EXHAUSTED", "busy")
    quoting = Quoting(p1=GONE, p2=last)
    with pytest.raises(UpstreamError, match="busy"):
        await quoting.offer()
    assert [error for _, error in quoting.failures] == [GONE, last]


async def test_a_bug_is_not_taken_for_a_failing_peer():
    quoting = Quoting(at_once(2), p1=RuntimeError("bug"), p2=Peer(ready=asyncio.Event()))
    with pytest.raises(RuntimeError):
        await asyncio.wait_for(quoting.offer(), 60)
