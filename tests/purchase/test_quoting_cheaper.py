"""Quotes that are cancelled while the service looks for one that the customer's balance covers."""

import asyncio

import pytest

from lcp_gateway.purchase.errors import PeerNotTrusted
from lcp_gateway.purchase.journal import InsufficientBalance
from lcp_gateway.purchase.limits import SpendingLimits
from lcp_gateway.purchase.money import Msat
from tests.support.scripted_peers import NO_REPEAT, Peer, PlainJournal, ScriptedPeers, ordered, settle, world

NOT_TAKEN = "another quote was taken"


class BalanceJournal(PlainJournal):
    """A journal whose customer has this balance."""

    def __init__(self, available_msat: int) -> None:
        super().__init__()
        self.available_msat = available_msat

    async def intend(self, intent, budgets):
        if intent.quote.price_msat > self.available_msat:
            asked = Msat(intent.quote.price_msat)
            raise InsufficientBalance(intent.quote, asked, Msat(self.available_msat))
        await super().intend(intent, budgets)


def upstream_of(**prices: int) -> ScriptedPeers:
    return ScriptedPeers({name: Peer(price) for name, price in prices.items()})


async def test_a_provider_that_asks_less_is_bought_from_and_the_others_are_cancelled():
    w = world(upstream=upstream_of(first=5_000, same=5_000, dearer=9_000, less=3_000), journal=BalanceJournal(4_000))
    asked = asyncio.ensure_future(w.ask(ordered()))
    (await w.work()).deliver()
    assert await asked == b"answer"
    await settle()
    assert w.upstream.works[0].quote.peer_id == "less"
    assert sorted(w.upstream.cancelled) == [(name, NOT_TAKEN) for name in ("dearer", "first", "same")]


async def test_a_quote_that_is_too_dear_even_so_is_dropped_when_another_is_taken():
    w = world(upstream=upstream_of(first=9_000, second=6_000, third=3_000), journal=BalanceJournal(4_000))
    asked = asyncio.ensure_future(w.ask(ordered()))
    (await w.work()).deliver()
    await asked
    await settle()
    assert w.upstream.cancelled == [("first", NOT_TAKEN), ("second", NOT_TAKEN)]


async def test_where_no_provider_asks_less_the_first_quote_is_held_for_the_client_and_no_other():
    w = world(upstream=upstream_of(first=5_000, dearer=6_000, same=5_000), journal=BalanceJournal(1_000))
    with pytest.raises(InsufficientBalance) as caught:
        await w.ask(ordered())
    await settle()
    assert caught.value.quote.peer_id == "first"
    assert sorted(w.upstream.cancelled) == [("dearer", NOT_TAKEN), ("same", NOT_TAKEN)]
    # After a top-up the client takes the held quote.
    w.journal.available_msat = 5_000
    name = f"quote_{caught.value.quote.job_id.hex()}"
    answer = w.service.start(ordered(), NO_REPEAT, name)
    (await w.work()).deliver()
    assert await w.read(answer) == b"answer"


async def test_the_cheapest_of_those_that_are_all_too_dear_is_held():
    w = world(upstream=upstream_of(first=5_000, less=3_000), journal=BalanceJournal(1_000))
    with pytest.raises(InsufficientBalance) as caught:
        await w.ask(ordered())
    await settle()
    assert caught.value.quote.peer_id == "less"
    assert w.upstream.cancelled == [("first", NOT_TAKEN)]


async def test_a_quote_beyond_the_limit_is_dropped_on_the_way_to_a_cheaper_one():
    limits = SpendingLimits(max_price_msat=Msat(6_000))
    w = world(upstream=upstream_of(first=5_000, beyond=7_000, less=3_000), journal=BalanceJournal(4_000), limits=limits)
    asked = asyncio.ensure_future(w.ask(ordered()))
    (await w.work()).deliver()
    await asked
    await settle()
    assert sorted(w.upstream.cancelled) == [("beyond", NOT_TAKEN), ("first", NOT_TAKEN)]


async def test_a_quote_that_is_refused_for_good_is_dropped():
    w = world()

    def refuse(quote):
        raise PeerNotTrusted("owes too much", quote=quote)

    w.exposure.check = refuse
    with pytest.raises(PeerNotTrusted):
        await w.ask(ordered())
    await settle()
    assert w.upstream.cancelled == [("p1", NOT_TAKEN)]
