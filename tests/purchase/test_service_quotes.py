"""Quotes that the service shows, takes, refuses and drops."""

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from lcp_gateway.purchase.errors import PriceLimitExceeded, QuoteExpired, Refused
from lcp_gateway.purchase.held_quotes import QuoteForAnotherBody, UnknownQuote
from lcp_gateway.purchase.idempotency import RepeatKeys, ResultLost
from lcp_gateway.purchase.journal import BudgetExceeded, DuplicateIntent, JournalUnavailable
from lcp_gateway.purchase.limits import LoopDetected, SpendingLimits
from lcp_gateway.purchase.money import Budget, Msat, Period
from lcp_gateway.purchase.quoting import QuotingRules
from lcp_gateway.purchase.states import State, Verdict
from tests.support.purchases import quote
from tests.support.scripted_peers import (
    OTHER_BODY,
    Peer,
    ScriptedPeers,
    bought_elsewhere,
    ordered,
    settle,
    spawn,
    world,
)


async def test_a_quote_that_was_shown_can_be_taken_once():
    w = world()
    held = await w.service.quote(ordered())
    assert w.journal.intents == [] and w.upstream.works == []
    asked = spawn(w.ask(ordered(), quote_id=held.id))
    work = await w.work()
    work.deliver()
    assert await asked == b"answer"
    assert work.quote == held.offer.quote and len(w.upstream.quotes) == 1
    with pytest.raises(UnknownQuote):
        await w.ask(ordered(), quote_id=held.id)
    assert len(w.upstream.works) == 1


async def test_a_quote_is_for_its_own_request_and_stays_when_another_asks():
    w = world()
    held = await w.service.quote(ordered())
    with pytest.raises(QuoteForAnotherBody):
        await w.ask(ordered(OTHER_BODY), quote_id=held.id)
    asked = spawn(w.ask(ordered(), quote_id=held.id))
    (await w.work()).deliver()
    assert await asked == b"answer"


async def test_a_quote_that_has_expired_is_not_taken():
    w = world()
    held = await w.service.quote(ordered())
    w.now[0] += timedelta(seconds=300)
    with pytest.raises(QuoteExpired):
        await w.ask(ordered(), quote_id=held.id)
    assert w.journal.intents == []


async def test_a_retry_of_a_taken_quote_joins_it():
    w = world()
    held = await w.service.quote(ordered())
    asked = spawn(w.ask(ordered(), quote_id=held.id))
    await w.work()
    retry = spawn(w.ask(ordered(), RepeatKeys(is_retry=True), quote_id=held.id))
    await settle()
    w.upstream.works[0].deliver()
    assert await asked == await retry == b"answer"
    assert len(w.upstream.works) == 1


async def test_a_quote_too_dear_for_the_client_can_be_taken_without_its_limit():
    w = world()
    with pytest.raises(PriceLimitExceeded) as caught:
        await w.ask(ordered(limit_msat=Msat(100)))
    name = f"quote_{caught.value.quote.job_id.hex()}"
    assert w.upstream.cancelled == []
    asked = spawn(w.ask(ordered(), quote_id=name))
    (await w.work()).deliver()
    assert await asked == b"answer" and len(w.upstream.quotes) == 1


async def test_a_quote_is_measured_again_when_it_is_taken():
    w = world()
    held = await w.service.quote(ordered())
    for _ in range(2):
        with pytest.raises(PriceLimitExceeded):
            await w.ask(ordered(limit_msat=Msat(100)), quote_id=held.id)
    assert w.journal.intents == []


@pytest.mark.parametrize("refusal", ["budget", "journal"])
async def test_a_quote_that_may_pass_later_can_be_taken_later(refusal):
    w = world()
    held = await w.service.quote(ordered())
    quote = held.offer.quote
    budget = Budget(Period.DAY, Msat(1))
    w.journal.refusal = (
        BudgetExceeded(quote, budget, Msat(0)) if refusal == "budget" else JournalUnavailable("full", quote=quote)
    )
    with pytest.raises(Refused):
        await w.ask(ordered(), quote_id=held.id)
    w.journal.refusal = None
    asked = spawn(w.ask(ordered(), quote_id=held.id))
    (await w.work()).deliver()
    assert await asked == b"answer" and len(w.upstream.quotes) == 1


async def test_the_loop_brake_does_not_use_up_a_quote():
    w = world(per_minute=1)
    held = await w.service.quote(ordered())
    asked = spawn(w.ask(ordered()))
    (await w.work()).deliver()
    await asked
    with pytest.raises(LoopDetected):
        await w.ask(ordered(), quote_id=held.id)
    w.clock[0] += 61
    asked = spawn(w.ask(ordered(), quote_id=held.id))
    (await w.work(1)).deliver()
    assert await asked == b"answer"


async def test_the_runner_up_price_is_written_down():
    w = world(upstream=ScriptedPeers({"p1": Peer(5_000), "p2": Peer(4_000)}), asking=QuotingRules(at_once=2))
    asked = spawn(w.ask(ordered()))
    work = await w.work()
    assert work.quote.price_msat == 4_000
    work.deliver()
    await asked
    (intent,) = w.journal.intents
    assert intent.runner_up_msat == 5_000


async def test_a_quote_that_another_process_took_reports_its_purchase():
    w = world()
    held = await w.service.quote(ordered())
    earlier = bought_elsewhere(w, State.DELIVERED)
    name = f"quote_{earlier.quote.job_id.hex()}"
    with pytest.raises(ResultLost) as lost:
        await w.service.check_quote(ordered(), name)
    assert lost.value.verdict is Verdict.SETTLED
    # Another credential or another request learns nothing, and an unpaid purchase is not reported.
    for order in (ordered(key_id="other"), ordered(OTHER_BODY)):
        with pytest.raises(UnknownQuote):
            await w.service.check_quote(order, name)
    w.journal.elsewhere[earlier.quote.job_id] = replace(earlier, state=State.NOT_PAID)
    for unknown in (name, "quote_" + "ab" * 32, "quote_zz", "something"):
        with pytest.raises(UnknownQuote):
            await w.service.check_quote(ordered(), unknown)
    await w.service.check_quote(ordered(), held.id)


async def test_a_duplicate_never_cancels_the_job_that_is_paid_and_running():
    """Regression: its quote was cancelled as not taken, under the id of the running job."""
    w = world()
    first = spawn(w.ask(ordered()))
    work = await w.work()
    w.journal.refusal = DuplicateIntent("this quote was taken before", quote=work.quote)
    w.upstream.same_job = work.quote.job_id
    with pytest.raises(DuplicateIntent):
        await w.ask(ordered(OTHER_BODY))
    await asyncio.sleep(0.01)
    assert w.upstream.cancelled == []
    work.deliver()
    assert await first == b"answer"


async def test_a_duplicate_never_cancels_the_job_that_another_process_paid_for():
    w = world()
    w.journal.refusal = DuplicateIntent("this quote was taken before", quote=quote())
    with pytest.raises(DuplicateIntent):
        await w.ask(ordered())
    await asyncio.sleep(0.01)
    assert w.upstream.cancelled == []


async def test_a_quote_that_is_not_taken_never_cancels_a_job_that_was_paid_for():
    """The same where the quote is too expensive, or another one is taken."""
    limits = SpendingLimits(max_price_msat=5_000)
    w = world(limits=limits, asking=QuotingRules(at_once=2, at_most=2))
    first = spawn(w.ask(ordered()))
    work = await w.work()
    w.upstream.same_job = work.quote.job_id
    w.upstream.peers["p1"].price_msat = 6_000
    w.upstream.peers |= {"p2": Peer(4_000), "p3": Peer(4_500)}
    other = spawn(w.ask(ordered(OTHER_BODY)))
    await asyncio.sleep(0.01)
    assert w.upstream.cancelled == []
    work.deliver()
    assert await first == b"answer"
    other.cancel()


# Unknown payments that turn out not to have been made.
