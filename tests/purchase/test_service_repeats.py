"""Repeats of a request: in the same process, in another process, and after an unknown payment."""

import asyncio
from dataclasses import replace

import pytest

from lcp_gateway.purchase.errors import PaymentFailed, PurchaseError, UpstreamError
from lcp_gateway.purchase.idempotency import CacheLimits, KeyReused, RepeatKeys, ResultLost
from lcp_gateway.purchase.journal import EarlierPurchase
from lcp_gateway.purchase.limits import LoopDetected
from lcp_gateway.purchase.money import Charge, Markup, Msat, Refund
from lcp_gateway.purchase.shared_purchases import BoughtBefore
from lcp_gateway.purchase.states import State, Verdict
from tests.support.scripted_peers import KEY, NO_REPEAT, OTHER_BODY, bought_elsewhere, ordered, settle, spawn, world


@pytest.mark.parametrize("stream", [False, True])
async def test_twenty_requests_at_once_with_one_key_share_one_payment(stream):
    w = world()
    asked = [spawn(w.ask(ordered(stream=stream), KEY)) for _ in range(20)]
    work = await w.work()
    if stream:
        work.stream(b"one", b"two")
    else:
        work.deliver(b"onetwo")
    assert await asyncio.gather(*asked) == [b"onetwo"] * 20
    assert len(w.upstream.works) == len(w.journal.intents) == 1


async def test_a_repeat_after_the_end_gets_the_result_again():
    w = world()
    first = spawn(w.ask(ordered(), KEY))
    (await w.work()).deliver()
    assert await first == await w.ask(ordered(), KEY) == b"answer"
    assert len(w.upstream.works) == 1


async def test_a_repeat_of_a_purchase_that_failed_after_payment_fails_alike():
    w = world()
    first = spawn(w.ask(ordered(), KEY))
    (await w.work()).put(UpstreamError("DEADLINE_EXCEEDED", "late"))
    for _ in range(3):
        with pytest.raises(PaymentFailed) as caught:
            await (first if not first.done() else w.ask(ordered(), KEY))
        assert caught.value.verdict is Verdict.UNKNOWN
    assert len(w.upstream.works) == 1


async def test_an_order_that_was_certainly_not_paid_is_bought_again():
    w = world()
    first = spawn(w.ask(ordered(), KEY))
    no_route = UpstreamError("FAILED_PRECONDITION", "payment failed: FAILURE_REASON_NO_ROUTE: no route")
    (await w.work()).put(no_route)
    with pytest.raises(PaymentFailed) as caught:
        await first
    assert caught.value.verdict is Verdict.NONE
    second = spawn(w.ask(ordered(), KEY))
    (await w.work(1)).deliver()
    assert await second == b"answer"
    assert sorted(map(tuple, w.journal.states.values())) == [("paying", "not_paid"), ("paying", "settled", "delivered")]


async def test_the_same_key_with_another_body_is_refused_while_it_runs_and_after():
    w = world()
    first = spawn(w.ask(ordered(), KEY))
    await settle()
    with pytest.raises(KeyReused):
        await w.ask(ordered(OTHER_BODY), KEY)
    (await w.work()).deliver()
    await first
    with pytest.raises(KeyReused):
        await w.ask(ordered(OTHER_BODY), KEY)
    assert len(w.upstream.works) == 1


async def test_the_same_key_of_another_credential_is_another_order():
    w = world()
    one = spawn(w.ask(ordered(key_id="one"), KEY))
    other = spawn(w.ask(ordered(key_id="other"), KEY))
    for at in (0, 1):
        (await w.work(at)).deliver()
    await asyncio.gather(one, other)
    assert len(w.upstream.works) == 2


async def test_a_result_that_is_gone_is_not_bought_again():
    w = world(memory_limits=CacheLimits(bytes_in_all=10))
    first = spawn(w.ask(ordered(), KEY))
    (await w.work()).deliver(b"x" * 8)
    await first
    other = spawn(w.ask(ordered(OTHER_BODY), RepeatKeys(key="other")))
    (await w.work(1)).deliver(b"y" * 8)
    assert await other == b"y" * 8
    with pytest.raises(ResultLost) as caught:
        await w.ask(ordered(), KEY)
    assert caught.value.verdict is Verdict.SETTLED
    assert len(w.upstream.works) == 2


# Quotes that are shown first.


async def test_the_loop_brake_stops_repeated_requests_but_not_those_that_join():
    w = world(per_minute=2)
    for at in range(2):
        asked = spawn(w.ask(ordered(), RepeatKeys(key=str(at))))
        (await w.work(at)).deliver()
        await asked
    assert await w.ask(ordered(), RepeatKeys(key="1")) == b"answer", "joining is free"
    with pytest.raises(LoopDetected):
        await w.ask(ordered(), RepeatKeys(key="2"))
    assert len(w.upstream.works) == 2
    w.clock[0] += 61
    asked = spawn(w.ask(ordered(), RepeatKeys(key="2")))
    (await w.work(2)).deliver()
    assert await asked == b"answer"


@pytest.mark.parametrize(
    ("state", "verdict"),
    [
        (State.SETTLED, Verdict.SETTLED),
        (State.DELIVERED, Verdict.SETTLED),
        (State.UNDELIVERED, Verdict.SETTLED),
        (State.UNKNOWN, Verdict.UNKNOWN),
    ],
)
async def test_a_purchase_of_another_process_is_not_bought_again(state, verdict):
    w = world()
    earlier = bought_elsewhere(w, state)
    with pytest.raises(ResultLost) as lost:
        await w.ask(ordered(), KEY)
    assert lost.value.verdict is verdict
    assert (lost.value.quote, lost.value.request_id) == (earlier.quote, "req_elsewhere")
    assert w.upstream.works == []
    # The quote requested meanwhile is cancelled; its job is not the one that was paid.
    await asyncio.sleep(0)
    assert len(w.upstream.cancelled) == 1


async def test_another_request_under_a_key_of_another_process_is_refused_and_does_no_harm():
    w = world()
    bought_elsewhere(w, State.DELIVERED)
    with pytest.raises(KeyReused):
        await w.ask(ordered(OTHER_BODY), KEY)
    with pytest.raises(ResultLost):
        await w.ask(ordered(), KEY)


async def test_a_running_payment_of_another_process_is_awaited():
    w = world()
    earlier = bought_elsewhere(w, State.PAYING)
    asked = spawn(w.ask(ordered(), KEY))
    await asyncio.sleep(0.05)
    assert not asked.done()
    w.journal.elsewhere[earlier.quote.job_id] = replace(earlier, state=State.DELIVERED)
    with pytest.raises(ResultLost) as lost:
        await asked
    assert lost.value.verdict is Verdict.SETTLED


async def test_an_order_that_another_process_could_not_pay_is_bought_with_the_present_quote():
    w = world()
    earlier = bought_elsewhere(w, State.PAYING)
    asked = spawn(w.ask(ordered(), KEY))
    await asyncio.sleep(0.03)
    w.journal.refusal = None
    w.journal.elsewhere[earlier.quote.job_id] = replace(earlier, state=State.NOT_PAID)
    work = await asyncio.wait_for(_first_work(w), 60)
    work.deliver()
    assert await asked == b"answer"
    assert len(w.upstream.quotes) == 1 and w.upstream.cancelled == []
    assert w.journal.only == ["paying", "settled", "delivered"]


async def _first_work(w):
    while not w.upstream.works:
        await asyncio.sleep(0.005)
    return w.upstream.works[0]


async def test_the_wait_for_another_process_that_never_finishes_paying_is_bounded():
    w = world(elsewhere_s=0.05)
    bought_elsewhere(w, State.PAYING)
    with pytest.raises(ResultLost) as lost:
        await asyncio.wait_for(w.ask(ordered(), KEY), 60)
    assert lost.value.verdict is Verdict.UNKNOWN


async def test_a_retry_looks_for_its_first_try_elsewhere_only_if_it_was_not_here():
    w = world()
    retry = RepeatKeys(is_retry=True)
    assert w.memory.identity(ordered(), retry).first_try_since is not None
    asked = spawn(w.ask(ordered()))
    (await w.work()).deliver()
    await asked
    assert w.memory.identity(ordered(), retry).first_try_since is None
    assert w.memory.identity(ordered(OTHER_BODY), NO_REPEAT).first_try_since is None


# A peer that reuses the id of a paid, running job for another quote.


async def test_a_key_whose_payment_was_unknown_buys_once_it_is_found_not_to_be_paid():
    w = world()
    asked = spawn(w.ask(ordered(), KEY))
    work = await w.work()
    work.put(UpstreamError("DEADLINE_EXCEEDED", "too late"))
    with pytest.raises(PaymentFailed):
        await asked
    unknown = w.service.find_undecided(ordered(), KEY)
    assert unknown is not None and w.service.find_undecided(ordered(), NO_REPEAT) is None
    assert w.service.find_undecided(ordered(OTHER_BODY), KEY) is None
    earlier = EarlierPurchase(work.quote, State.UNKNOWN, "", "req_1", None)
    for state in (State.UNKNOWN, State.NOT_PAID):
        w.journal.elsewhere[work.quote.job_id] = replace(earlier, state=state)
        await w.service.learn_outcome(unknown)
        if state is State.UNKNOWN:
            with pytest.raises(PaymentFailed):
                await w.ask(ordered(), KEY)
    assert w.service.find_undecided(ordered(), KEY) is None
    again = spawn(w.ask(ordered(), KEY))
    (await w.work(1)).deliver()
    assert await again == b"answer"


@pytest.mark.parametrize("refund", [Refund.GIVEN, Refund.WITHHELD])
async def test_a_key_whose_payment_was_unknown_reports_the_resolution_once_it_is_found_to_be_paid(refund):
    """Regression: the process whose payment had been unknown kept reporting "unknown" and the charge for as long as it cached the key."""
    w = world()
    asked = spawn(w.ask(ordered(), KEY))
    work = await w.work()
    work.put(UpstreamError("UNAVAILABLE", "the daemon is gone"))
    with pytest.raises(PaymentFailed):
        await asked
    unknown = w.service.find_undecided(ordered(), KEY)
    charge = Charge("acct_1", Msat(5_500), Markup(100_000), refund is Refund.GIVEN)
    w.journal.elsewhere[work.quote.job_id] = EarlierPurchase(
        work.quote, State.UNDELIVERED, "", "req_1", None, charge, refund
    )
    with pytest.raises(BoughtBefore, match="its result did not come") as told:
        await w.service.learn_outcome(unknown)
    assert told.value.verdict is Verdict.SETTLED
    assert told.value.earlier.customer_msat == (0 if refund is Refund.GIVEN else 5_500)
    assert len(w.journal.intents) == 1, "it is not paid again"


@pytest.mark.parametrize(("decided", "customer_msat"), [(Refund.GRANTED, 0), (Refund.DENIED, 5_500)])
async def test_a_key_whose_charge_was_withheld_reports_the_operators_decision(decided, customer_msat):
    """Regression: the process that made the purchase kept reporting "withheld" after the charge had been refunded."""
    w = world()
    asked = spawn(w.ask(ordered(), KEY))
    work = await w.work()
    work.put(UpstreamError("RESOURCE_EXHAUSTED", "lcp_error code=7: backend unavailable"))
    with pytest.raises(PurchaseError) as failed:
        await asked
    assert failed.value.verdict is Verdict.SETTLED
    assert w.service.find_undecided(ordered(), KEY) is None
    purchase = w.observer.ends[0].purchase
    purchase.charge = Charge("acct_1", Msat(5_500), Markup(100_000), refund_undelivered=True)
    purchase.record_refund(Refund.WITHHELD)
    assert purchase.customer_msat == 5_500
    undecided = w.service.find_undecided(ordered(), KEY)
    charge = replace(purchase.charge, refund_undelivered=decided is Refund.GRANTED)
    w.journal.elsewhere[work.quote.job_id] = EarlierPurchase(
        work.quote, State.UNDELIVERED, "", "req_1", None, charge, decided
    )
    await w.service.learn_outcome(undecided)
    assert (purchase.refund, purchase.customer_msat) == (decided, customer_msat)
    assert w.service.find_undecided(ordered(), KEY) is None
