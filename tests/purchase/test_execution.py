import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from lcp_gateway.purchase.errors import (
    PaymentFailed,
    PeerNotTrusted,
    PriceLimitExceeded,
    QuoteExpired,
    Refused,
    Undelivered,
    UpstreamError,
)
from lcp_gateway.purchase.execution import PurchaseExecutor
from lcp_gateway.purchase.journal import BudgetExceeded, InsufficientBalance, JournalUnavailable
from lcp_gateway.purchase.limits import SpendingLimits
from lcp_gateway.purchase.money import Budget, Markup, Msat, Period, Tariff
from lcp_gateway.purchase.outcome import EndedBy
from lcp_gateway.purchase.paid_stream import PaidStream
from lcp_gateway.purchase.ports import ResultStatus, StreamBegin, StreamEnd
from lcp_gateway.purchase.purchase import Purchase
from lcp_gateway.purchase.states import IllegalTransition, State, Verdict
from tests.support.purchases import (
    HASH,
    NOW,
    TASK,
    MemoryJournal,
    ScriptedInspector,
    ScriptedUpstream,
    Trusting,
    order,
    quote,
    result,
    stream_events,
)

NO_LIMITS = SpendingLimits()


def world(*, now=NOW, inspect=lambda _order, _quote: HASH, limits=NO_LIMITS, exposure=None, **script):
    exposure = exposure or Trusting()
    upstream = ScriptedUpstream(**script)
    journal = MemoryJournal(upstream)
    executor = PurchaseExecutor(
        upstream,
        journal=journal,
        inspector=ScriptedInspector(limits, exposure, inspect),
        limits=limits,
        exposure=exposure,
        execute_timeout_s=1,
        now=lambda: now,
    )
    return upstream, journal, executor, Purchase(order(), upstream.quoted)


async def read(stream: PaidStream) -> bytes:
    return b"".join([chunk async for chunk in stream.chunks()])


async def test_a_good_purchase_is_recorded_before_it_is_paid_and_ends_delivered():
    upstream, journal, executor, purchase = world(outcome=result())
    assert (await executor.execute(purchase)).body == b"answer"
    assert journal.states == ["paying", "settled", "delivered"]
    assert journal.calls_at[0] == (), "the intent is written before the call goes out"
    assert upstream.calls == ["execute"]


async def test_a_purchase_cannot_be_bought_twice():
    upstream, _, executor, purchase = world(outcome=result())
    await executor.execute(purchase)
    with pytest.raises(IllegalTransition):
        await executor.execute(purchase)
    with pytest.raises(IllegalTransition):
        await executor.open_stream(purchase)
    assert upstream.calls == ["execute"]


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_quote_that_does_not_pass_inspection_is_refused_unpaid(streamed):
    def refuse(_order, quote):
        raise Refused("no", quote=quote)

    upstream, journal, executor, purchase = world(inspect=refuse, outcome=result())
    with pytest.raises(Refused):
        await (executor.open_stream(purchase) if streamed else executor.execute(purchase))
    assert (journal.states, upstream.calls) == ([], [])
    assert purchase.state is State.REFUSED and purchase.verdict is Verdict.NONE


async def test_a_purchase_that_cannot_be_recorded_is_not_paid():
    upstream, journal, executor, purchase = world(outcome=result())
    journal.refusal = JournalUnavailable("the disk is full", quote=purchase.quote)
    with pytest.raises(JournalUnavailable):
        await executor.execute(purchase)
    assert upstream.calls == []
    assert purchase.state is State.REFUSED


async def test_a_purchase_cancelled_while_its_intent_is_written_pays_nothing_and_records_that():
    upstream, journal, executor, purchase = world(outcome=result())
    journal.refusal = asyncio.CancelledError()
    with pytest.raises(asyncio.CancelledError):
        await executor.execute(purchase)
    assert upstream.calls == []
    assert journal.states == ["not_paid"], "the intent may stand in the journal, so it is taken back"


async def test_a_peer_that_is_not_trusted_is_not_paid():
    class Distrusting(Trusting):
        def check(self, quote):
            raise PeerNotTrusted("no", quote=quote)

    upstream, _, executor, purchase = world(outcome=result(), exposure=Distrusting())
    with pytest.raises(PeerNotTrusted):
        await executor.execute(purchase)
    assert upstream.calls == []


async def test_a_quote_refused_by_a_budget_releases_its_peers_exposure():
    """Regression: after a budget refused a quote, its price still counted towards the peer's exposure."""
    upstream, journal, executor, purchase = world(outcome=result())
    budget = Budget(Period.DAY, Msat(1))
    journal.refusal = BudgetExceeded(purchase.quote, budget, Msat(1))
    with pytest.raises(BudgetExceeded):
        await executor.execute(purchase)
    assert executor._exposure.states == ["refused"]
    assert upstream.calls == []


async def test_the_intent_says_what_is_about_to_be_paid_and_no_more():
    limits = SpendingLimits(budgets={Period.DAY: 9}, key_budgets={Period.HOUR: 5})
    _, journal, executor, purchase = world(outcome=result(), limits=limits)
    await executor.execute(purchase)
    (intent,) = journal.intents
    assert (intent.quote, intent.payment_hash, intent.model) == (purchase.quote, HASH, "m")
    assert (intent.fee_cap_msat, intent.amount_msat) == (1_050, 6_050)
    assert intent.request_sha256 == purchase.order.body_sha256
    assert "messages" not in repr(intent)


async def test_an_expired_quote_is_not_paid():
    upstream, journal, executor, purchase = world(
        now=NOW + timedelta(seconds=300), outcome=result(), quoted=quote(expires_in_s=300)
    )
    with pytest.raises(QuoteExpired):
        await executor.execute(purchase)
    assert (journal.states, upstream.calls) == ([], [])
    assert purchase.state is State.EXPIRED


@pytest.mark.parametrize("stream", [False, True])
async def test_a_quote_that_expires_while_its_intent_is_written_is_not_paid(stream):
    """Regression: expiry was checked before the journal's commit, which may take seconds, and not again before the pay call."""
    upstream, journal, executor, purchase = world(outcome=result(), events=stream_events(b"x"))
    times = iter([NOW, NOW + timedelta(seconds=300)])
    executor._now = lambda: next(times, NOW + timedelta(seconds=301))
    with pytest.raises(QuoteExpired, match="nothing was paid") as expired:
        await (executor.open_stream if stream else executor.execute)(purchase)
    assert upstream.calls == []
    # The intent is withdrawn, and with it the customer's hold, the budgets' share and the repeat key.
    assert journal.states == ["paying", "not_paid"]
    assert (purchase.state, expired.value.verdict) == (State.NOT_PAID, Verdict.NONE)
    assert executor._exposure.states == ["not_paid"]


@pytest.mark.parametrize(
    ("failure", "states", "verdict"),
    [
        (UpstreamError("FAILED_PRECONDITION", "payment failed: FAILURE_REASON_NO_ROUTE"),
         ["paying", "not_paid"], Verdict.NONE),
        (UpstreamError("DEADLINE_EXCEEDED", "too late"), ["paying", "unknown"], Verdict.UNKNOWN),
        (UpstreamError("RESOURCE_EXHAUSTED", "lcp_error code=7: backend unavailable"),
         ["paying", "settled", "undelivered"], Verdict.SETTLED),
    ],
)  # fmt: skip
@pytest.mark.parametrize("streamed", [False, True])
async def test_a_failed_call_is_judged_by_its_evidence_and_never_repeated(failure, states, verdict, streamed):
    upstream, journal, executor, purchase = world(outcome=failure, events=[failure])
    with pytest.raises(PaymentFailed) as caught:
        await (executor.open_stream(purchase) if streamed else executor.execute(purchase))
    assert caught.value.verdict is purchase.verdict is verdict
    assert journal.states == states
    assert upstream.calls == ["execute"]


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_client_that_leaves_while_paying_leaves_an_unknown(streamed):
    gone = asyncio.CancelledError()
    _, journal, executor, purchase = world(outcome=gone, events=[gone])
    with pytest.raises(asyncio.CancelledError):
        await (executor.open_stream(purchase) if streamed else executor.execute(purchase))
    assert journal.states == ["paying", "unknown"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"sha256": b"\0" * 32},
        {"sha256": b""},
        {"length": 7},
        {"status": ResultStatus.FAILED, "message": "the model broke"},
        {"status": ResultStatus.CANCELLED},
        {"status": ResultStatus.UNSPECIFIED},
    ],
)
async def test_a_result_that_fails_verification_is_undelivered(wrong):
    _, journal, executor, purchase = world(outcome=result(**wrong))
    with pytest.raises(Undelivered):
        await executor.execute(purchase)
    assert journal.states == ["paying", "settled", "undelivered"]
    assert purchase.verdict is Verdict.SETTLED


async def test_a_whole_stream_is_delivered():
    upstream, journal, executor, purchase = world(events=stream_events(b"one", b"two"))
    stream = await executor.open_stream(purchase)
    assert purchase.state is State.SETTLED
    assert await read(stream) == b"onetwo"
    assert journal.states == ["paying", "settled", "delivered"]
    assert upstream.closed


def cut_streams():
    begin, one, end, done = stream_events(b"one")
    wrong_hash = StreamEnd(b"\0" * 32, 3)
    yield "no end", [begin, one]
    yield "no terminal result", [begin, one, end]
    yield "wrong hash", [begin, one, wrong_hash, done]
    yield "wrong length", [begin, one, StreamEnd(end.sha256, 4), done]
    yield "hashes that differ", [begin, one, end, result(b"", sha256=b"\1" * 32, length=3)]
    yield "a chunk after the end", [begin, one, end, b"more", done]
    yield "two heads", [begin, one, begin, end, done]
    yield "failed", [begin, one, end, result(b"", status=ResultStatus.FAILED)]
    yield "broken", [begin, one, UpstreamError("UNAVAILABLE", "gone")]


@pytest.mark.parametrize("events", [pytest.param(e, id=name) for name, e in cut_streams()])
async def test_a_stream_that_is_not_whole_never_ends_cleanly(events):
    upstream, journal, executor, purchase = world(events=events)
    stream = await executor.open_stream(purchase)
    with pytest.raises(Undelivered):
        await read(stream)
    assert journal.states == ["paying", "settled", "undelivered"]
    assert upstream.closed


async def test_a_reader_that_stops_early_ends_the_call_and_the_purchase_as_undelivered():
    upstream, journal, executor, purchase = world(events=stream_events(b"one", b"two"))
    chunks = (await executor.open_stream(purchase)).chunks()
    assert await anext(chunks) == b"one"
    await chunks.aclose()
    assert journal.states[-1] == "undelivered"
    assert upstream.closed


def streamed_to_a_customer(*events):
    _, journal, executor, purchase = sold(events=events, refund=True)
    purchase.order = order(replace(TASK, stream=True), key_id="key_1")
    purchase.order = replace(purchase.order, account_id="acct_1")
    return journal, executor, purchase


async def test_a_client_that_leaves_in_the_middle_pays_and_its_provider_is_not_blamed():
    journal, executor, purchase = streamed_to_a_customer(*stream_events(b"one", b"two"))
    chunks = (await executor.open_stream(purchase)).chunks()
    await anext(chunks)
    purchase.interrupted_by = EndedBy.CLIENT
    await chunks.aclose()
    assert journal.states[-1] == "undelivered"
    assert executor._exposure.states[-1] == "released"
    assert purchase.customer_msat == 5_500, "a client that leaves gets nothing back"


async def test_a_provider_that_sent_nothing_is_not_excused_by_a_client_that_gave_up():
    begin, *_ = stream_events(b"one")
    gone = UpstreamError("CANCELLED", "closed")
    _, executor, purchase = streamed_to_a_customer(begin, gone)
    stream = await executor.open_stream(purchase)
    purchase.interrupted_by = EndedBy.CLIENT
    with pytest.raises(Undelivered):
        await read(stream)
    assert executor._exposure.states[-1] == "undelivered"


async def test_a_stream_without_a_head_is_undelivered():
    _, journal, executor, purchase = world(events=[result(status=ResultStatus.FAILED, message="no")])
    with pytest.raises(Undelivered, match="no"):
        await executor.open_stream(purchase)
    assert journal.states == ["paying", "settled", "undelivered"]


async def test_a_stream_that_says_nothing_leaves_an_unknown():
    _, journal, executor, purchase = world(events=[])
    with pytest.raises(PaymentFailed) as caught:
        await executor.open_stream(purchase)
    assert caught.value.verdict is Verdict.UNKNOWN
    assert journal.states == ["paying", "unknown"]


async def test_a_result_with_only_a_terminal_hash_is_still_checked():
    begin, one, _, done = stream_events(b"one")
    _, journal, executor, purchase = world(events=[begin, one, done])
    assert await read(await executor.open_stream(purchase)) == b"one"
    assert journal.states[-1] == "delivered"
    assert isinstance(begin, StreamBegin)


# -- customers ------------------------------------------------------------------------------------

TEN_PERCENT = Tariff(Markup(100_000))
LATE = UpstreamError("DEADLINE_EXCEEDED", "took too long", evidence=Verdict.UNKNOWN)
NOT_PAID = UpstreamError("UNAVAILABLE", "no route", evidence=Verdict.NONE)


def sold(*, refund=False, tariff=TEN_PERCENT, budgets=(), **script):
    """Return a world whose customer is charged 5,500 msat for a quote of 5,000."""
    limits = SpendingLimits(tariff=tariff, refund_undelivered=refund)
    upstream, journal, executor, _ = world(limits=limits, **script)
    whose = replace(order(key_id="key_1"), account_id="acct_1", budgets=budgets)
    return upstream, journal, executor, Purchase(whose, upstream.quoted)


async def test_the_intent_holds_what_the_customer_is_charged_at_most():
    _, journal, executor, purchase = sold(outcome=result(), refund=True)
    assert purchase.customer_msat is None, "nothing is held before"
    await executor.execute(purchase)
    charge = journal.intents[0].charge
    assert (charge.account_id, charge.amount_msat, charge.refund_undelivered) == ("acct_1", 5_500, True)
    assert charge.markup == Markup(100_000)
    assert purchase.customer_msat == 5_500


async def test_without_an_account_no_customer_is_charged():
    _, journal, executor, purchase = world(outcome=result(), limits=SpendingLimits(tariff=TEN_PERCENT))
    await executor.execute(purchase)
    assert journal.intents[0].charge is purchase.customer_msat is None


async def test_a_customer_with_too_little_buys_nothing_and_nothing_goes_out():
    upstream, journal, executor, purchase = sold(outcome=result())
    journal.refusal = InsufficientBalance(purchase.quote, Msat(5_500), Msat(5_499))
    with pytest.raises(InsufficientBalance):
        await executor.execute(purchase)
    assert (upstream.calls, purchase.state, purchase.customer_msat) == ([], State.REFUSED, 0)


async def test_a_result_that_cost_less_is_charged_at_less():
    _, _, executor, purchase = sold(outcome=result(charged_msat=Msat(1_001)))
    await executor.execute(purchase)
    assert purchase.customer_msat == 1_102, "rounded up"


@pytest.mark.parametrize(
    ("failure", "charged_msat"), [(NOT_PAID, 0), (LATE, 5_500)], ids=["nothing was paid", "not known"]
)
async def test_no_charge_is_reported_for_a_purchase_that_was_surely_not_paid(failure, charged_msat):
    _, _, executor, purchase = sold(outcome=failure)
    with pytest.raises(PaymentFailed):
        await executor.execute(purchase)
    assert purchase.customer_msat == charged_msat


@pytest.mark.parametrize(("refund", "charged_msat"), [(True, 0), (False, 5_500)])
async def test_a_paid_and_undelivered_purchase_is_charged_as_configured(refund, charged_msat):
    _, journal, executor, purchase = sold(outcome=result(sha256=b"\0" * 32), refund=refund)
    with pytest.raises(Undelivered):
        await executor.execute(purchase)
    assert journal.states == ["paying", "settled", "undelivered"]
    assert purchase.customer_msat == charged_msat


async def test_a_free_purchase_with_a_charge_is_recorded_and_may_be_refused():
    fixed = Tariff(Markup(0, Msat(100)))
    upstream, journal, executor, purchase = sold(tariff=fixed, quoted=quote(0), outcome=result())
    await executor.execute(purchase)
    assert journal.intents[0].charge.amount_msat == 100
    assert journal.states == ["paying", "settled", "delivered"]
    upstream, journal, executor, purchase = sold(tariff=fixed, quoted=quote(0), outcome=result())
    journal.refusal = InsufficientBalance(purchase.quote, Msat(100), Msat(0))
    with pytest.raises(InsufficientBalance):
        await executor.execute(purchase)
    assert upstream.calls == []


async def test_an_orders_own_budgets_are_asked_beside_the_gateways():
    own = Budget(Period.DAY, Msat(7), "key_1")
    _, journal, executor, purchase = sold(outcome=result(), budgets=(own,))
    executor._limits = replace(executor._limits, budgets={Period.HOUR: 9})
    asked = []
    written = journal.intend

    async def intend(intent, budgets):
        asked.extend(budgets)
        await written(intent, budgets)

    journal.intend = intend
    await executor.execute(purchase)
    assert asked == [Budget(Period.HOUR, Msat(9)), own]


async def test_a_limit_that_was_set_after_the_quote_was_looked_at_holds_before_it_is_paid():
    upstream, journal, executor, purchase = world(outcome=result(), limits=SpendingLimits(max_price_msat=1))
    purchase.payment_hash = HASH  # as the inspection leaves it, which used the previous limits
    with pytest.raises(PriceLimitExceeded):
        await executor.execute(purchase)
    assert (upstream.calls, journal.states) == ([], [])
    assert purchase.state is State.REFUSED
