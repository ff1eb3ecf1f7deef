from dataclasses import replace
from datetime import timedelta

import pytest

from lcp_gateway.purchase import held_quotes as book_module
from lcp_gateway.purchase.errors import QuoteExpired
from lcp_gateway.purchase.held_quotes import HeldQuote, HeldQuotes, QuoteForAnotherBody, UnknownQuote, quote_for
from lcp_gateway.purchase.order import Order, Task, TaskKind
from lcp_gateway.purchase.quote import Candidate
from lcp_gateway.purchase.quoting import Offer
from tests.support.purchases import HASH, NOW, quote
from tests.support.scripted_peers import BODY, OTHER_BODY, ordered


class QuotesUnderTest:
    def __init__(self) -> None:
        self.now = NOW
        self.quotes = HeldQuotes(lambda: self.now)

    def hold(self, order=None, **changes) -> HeldQuote:
        made = replace(quote(), **changes)
        asked = (order or ordered()).without_body()
        held = quote_for(asked, Offer(asked, Candidate(made.peer_id), made, HASH))
        self.quotes.keep(held)
        return held


def test_a_quote_is_named_after_its_job():
    assert QuotesUnderTest().hold(job_id=b"\x01" * 32).id == "quote_" + "01" * 32


def test_a_quote_can_be_taken_once():
    held_quotes = QuotesUnderTest()
    held = held_quotes.hold()
    taken = held_quotes.quotes.take(ordered(), held.id)
    # It keeps the request's body, and is inspected again.
    assert taken == replace(held.offer, order=ordered(), payment_hash=None)
    with pytest.raises(UnknownQuote):
        held_quotes.quotes.take(ordered(), held.id)


@pytest.mark.parametrize("name", ["", "quote_", "quote_" + "00" * 32, "x" * 10_000])
def test_a_quote_that_is_not_held_cannot_be_taken(name):
    held_quotes = QuotesUnderTest()
    held_quotes.hold()
    with pytest.raises(UnknownQuote):
        held_quotes.quotes.take(ordered(), name)


def test_another_credential_learns_nothing_and_takes_nothing():
    held_quotes = QuotesUnderTest()
    held = held_quotes.hold(ordered(key_id="one"))
    for thief in (ordered(key_id="other"), ordered(), ordered(OTHER_BODY, key_id="other")):
        with pytest.raises(UnknownQuote):
            held_quotes.quotes.take(thief, held.id)
    assert held_quotes.quotes.take(ordered(key_id="one"), held.id)


def test_another_body_or_kind_leaves_the_quote_where_it_is():
    held_quotes = QuotesUnderTest()
    held = held_quotes.hold()
    task = Task(TaskKind.RESPONSES, "m", BODY, stream=False)
    other_kind = Order.of(task, request_id="r", key_id="", limit_msat=None)
    for wrong in (ordered(OTHER_BODY), other_kind):
        with pytest.raises(QuoteForAnotherBody):
            held_quotes.quotes.take(wrong, held.id)
    assert held_quotes.quotes.take(ordered(), held.id)


def test_a_quote_holds_until_the_moment_it_expires():
    held_quotes = QuotesUnderTest()
    held = held_quotes.hold()
    held_quotes.now = NOW + timedelta(seconds=300) - timedelta(microseconds=1)
    assert held_quotes.quotes.take(ordered(), held.id)
    held = held_quotes.hold()
    held_quotes.now = NOW + timedelta(seconds=300)
    with pytest.raises(QuoteExpired):
        held_quotes.quotes.take(ordered(), held.id)


def test_past_the_bound_the_oldest_is_dropped(monkeypatch):
    monkeypatch.setattr(book_module, "_MAX_QUOTES", 3)
    held_quotes = QuotesUnderTest()
    held = [held_quotes.hold(job_id=bytes([at]) * 32) for at in range(4)]
    with pytest.raises(UnknownQuote):
        held_quotes.quotes.take(ordered(), held[0].id)
    for one in held[1:]:
        assert held_quotes.quotes.take(ordered(), one.id)
