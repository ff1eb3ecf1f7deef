"""Selection together with quoting: quotes are free, so that an unexpectedly high price is compared before it is paid."""

import asyncio
from collections import Counter

import pytest

from lcp_gateway.purchase.errors import UpstreamError
from lcp_gateway.purchase.money import Msat
from lcp_gateway.purchase.quote import ProviderSource
from lcp_gateway.purchase.quoting import QuoteRequester, QuotingRules
from lcp_gateway.routing.averages import request_size
from lcp_gateway.routing.measurements import Mode
from tests.routing.offering import provider
from tests.routing.test_selection import SelectorUnderTest, order, task
from tests.support.purchases import ScriptedInspector
from tests.support.scripted_peers import Peer, ScriptedPeers


class PricedUpstream(ScriptedPeers):
    """Peers and nodes with prices; a node's quote says that its source is a node."""

    async def request_quote(self, task, peer_id, timeout_s):
        quote = await super().request_quote(task, peer_id, timeout_s)
        if peer_id.startswith("node:"):
            object.__setattr__(quote, "source", ProviderSource.NODE)
        return quote


class QuotedSelection:
    """Providers, the selector and the quote requester; nothing is paid."""

    def __init__(self, *providers, asking=None, cards=None, **prices) -> None:
        self.choosing = SelectorUnderTest(providers, cards or {})
        self.upstream = PricedUpstream({one.peer_id: Peer(_price(one, prices)) for one in providers})
        self.background: list = []
        self.requester = QuoteRequester(
            self.upstream,
            asking or QuotingRules(),
            inspector=ScriptedInspector(inspect=lambda _order, _quote: b""),
            background=lambda coroutine: self.background.append(asyncio.ensure_future(coroutine)),
            cancel_timeout_s=1,
            on_quote=self._quoted,
        )

    def _quoted(self, order, quote, _duration_s):
        self.choosing.records.quoted(quote.peer_id, order.task.model, quote.price_msat, request_size(order.task))

    async def offer(self, model="auto", draw=0.0):
        self.choosing.draw = draw
        wanted = order(task(model))
        try:
            return await self.requester.request(wanted, await self.choosing.selector(wanted))
        finally:
            await asyncio.gather(*self.background)

    async def buy(self, draw=0.0, seconds=1.0, model="auto"):
        """Take an offer and record its delivery."""
        offer = await self.offer(model, draw)
        self.choosing.records.delivered(
            offer.quote.peer_id, offer.order.task.model, Mode.WHOLE, first_byte_s=None, tokens_per_s=100 / seconds
        )
        self.choosing.now += 0.5
        return offer

    @property
    def cancelled(self) -> list[str]:
        return sorted(peer for peer, _ in self.upstream.cancelled)


def _price(one, prices) -> int:
    return prices.get(one.peer_id.removeprefix("node:"), one.list_price_msat or 0)


def free(name="node:n", model="small-1b", **more):
    return provider(name, model, list_price_msat=0, **more)


PEERS = tuple(provider(name, "best-14b") for name in ("a", "b", "c", "d", "e", "f", "g"))
PRICES = dict(zip("abcdefg", range(17_901, 68_084, 7_169), strict=False))


@pytest.mark.parametrize("seconds", [0.1, 1, 8])
async def test_beside_a_free_node_fifty_of_fifty_first_requests_cost_nothing(seconds):
    """For any random draw, and although every peer's model fits better."""
    for seed in range(10):
        selection = QuotedSelection(*PEERS, free(), **PRICES)
        for number in range(50):
            offer = await selection.buy(draw=(seed * 0.37 + number * 0.618034) % 1, seconds=seconds)
            assert offer.quote.price_msat == 0, (seed, number, offer.candidate.routing)


@pytest.mark.parametrize("price_msat", [1, 300, 900, 17_901])
async def test_a_free_node_beside_a_peer_wins_however_little_the_peer_asks(price_msat):
    for number in range(50):
        selection = QuotedSelection(provider("a", "best-14b"), free(), a=price_msat)
        offer = await selection.offer(draw=number / 50)
        assert offer.candidate.provider_id == "node:n"


async def test_a_named_model_that_a_free_node_offers_too_costs_nothing_at_first():
    """Where several providers offer the named model, the gateway chooses among them."""
    for number in range(20):
        selection = QuotedSelection(provider("a", "m"), free(model="m"), a=5_000)
        offer = await selection.offer("m", draw=number / 20)
        assert offer.candidate.provider_id == "node:n" and offer.candidate.routing is None


async def test_the_first_price_of_a_peer_is_not_paid_before_another_one_is_seen():
    selection = QuotedSelection(provider("a", "m"), provider("b", "m"), a=68_084, b=17_901)
    offer = await selection.offer()
    assert selection.upstream.asked == ["a", "b"]
    assert offer.candidate.provider_id == "b" and offer.runner_up_msat == 68_084
    assert selection.cancelled == ["a"]
    assert [one.provider_id for one in offer.rest] == ["a"]


async def test_the_reported_choice_describes_the_quote_that_is_taken():
    selection = QuotedSelection(provider("a", "m"), provider("b", "m"), a=68_084, b=17_901)
    offer = await selection.offer()
    assert offer.candidate.routing["peer"] == "b"
    assert offer.candidate.routing["reason"] == "best score of 2: cheapest, not yet measured"
    assert offer.candidate.comparison is None


async def test_a_quote_as_expected_is_taken_without_asking_another_provider():
    selection = QuotedSelection(provider("a", "m"), provider("b", "m"), a=5_000, b=5_000)
    await selection.buy()
    await selection.buy()
    selection.upstream.asked.clear()
    for number in range(20):
        await selection.buy(draw=number / 20)
    assert len(selection.upstream.asked) == 20
    assert len(set(selection.upstream.asked)) == 2


async def test_a_price_that_has_risen_is_compared_before_it_is_paid():
    selection = QuotedSelection(provider("a", "m"), provider("b", "m"), a=5_000, b=6_000)
    for number in range(8):
        await selection.buy(draw=number / 8)
    selection.upstream.peers["a"].price_msat = Msat(50_000)
    selection.upstream.asked.clear()
    offer = await selection.offer(draw=0.0)
    assert selection.upstream.asked == ["a", "b"] and offer.candidate.provider_id == "b"


async def test_the_number_of_calls_to_peers_keeps_its_limit_and_a_node_needs_none():
    one_call = QuotingRules(at_most=1)
    selection = QuotedSelection(provider("a", "m"), provider("b", "m"), asking=one_call, a=9_000, b=1_000)
    assert (await selection.offer()).candidate.provider_id == "a"
    selection = QuotedSelection(provider("a", "best-14b"), free(), asking=one_call, a=9_000)
    for number in range(10):
        assert (await selection.offer(draw=number / 10)).candidate.provider_id == "node:n"


async def test_one_that_fails_in_the_comparison_leaves_the_quote_that_is_there():
    selection = QuotedSelection(provider("a", "m"), provider("b", "m"), a=9_000)
    selection.upstream.peers["b"].error = UpstreamError("UNAVAILABLE", "gone")
    offer = await selection.offer()
    assert offer.candidate.provider_id == "a" and offer.rest == ()


async def test_peers_of_like_prices_are_all_tried():
    """Selection still explores: the first prices are seen, and no provider is left out because it is unknown."""
    selection = QuotedSelection(*(provider(name, "m") for name in "abcd"), a=5_000, b=5_200, c=4_900, d=5_100)
    seen = Counter()
    for number in range(40):
        seen[(await selection.buy(draw=(number * 0.618034) % 1)).quote.peer_id] += 1
    assert set(seen) == set("abcd"), seen


async def test_a_peer_that_was_measured_to_be_better_is_bought_beside_a_free_node():
    selection = QuotedSelection(provider("a", "best-14b"), free(), a=1_500)
    for _ in range(3):
        await selection.buy(seconds=20)
        await selection.buy(seconds=0.5, model="best-14b")
    taken = Counter([(await selection.offer("auto:fast", n / 20)).quote.peer_id for n in range(20)])
    assert taken["a"] > 15, taken


async def test_the_same_draws_and_quotes_lead_to_the_same_choices():
    async def run() -> list[str]:
        selection = QuotedSelection(*PEERS, **PRICES)
        return [(await selection.buy(draw=(number * 0.618034) % 1)).quote.peer_id for number in range(30)]

    assert await run() == await run()
