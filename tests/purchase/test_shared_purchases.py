"""How the service uses results that other gateways share; the sharing itself is tested in tests/accounts/shared."""

import asyncio

import pytest

from lcp_gateway.purchase.errors import PaymentFailed, UpstreamError
from lcp_gateway.purchase.held_quotes import UnknownQuote
from lcp_gateway.purchase.idempotency import KeyReused, RepeatKeys, ResultLost
from lcp_gateway.purchase.purchase import Interrupted, InterruptReason, Purchase
from lcp_gateway.purchase.result_buffer import ResultHead
from lcp_gateway.purchase.shared_purchases import BoughtElsewhere, LostElsewhere
from lcp_gateway.purchase.states import PurchaseEvent, Verdict
from tests.support.others import OtherGateways
from tests.support.purchases import quote
from tests.support.scripted_peers import NO_REPEAT, OTHER_BODY, Peer, ScriptedPeers, ordered, settle, world

KEY = RepeatKeys(key="k")


class Others(OtherGateways):
    """Stands in for the other gateways: their answer to a claim, and the ends that they are told."""

    def __init__(self, *, says=None, may_pay=True, ready=None) -> None:
        self.says = says
        self.pays = may_pay
        self.ready = ready
        self.asked = 0
        self.heard: list = []

    async def claim(self, order, repeat, per_minute):
        self.asked += 1
        if self.ready is not None:
            await self.ready.wait()
        if isinstance(self.says, Exception):
            raise self.says
        return self.says or self

    async def may_pay(self):
        return self.pays

    async def ended(self, answer):
        assert answer.ended
        self.heard.append(answer)


def sharing(others, **more):
    w = world(**more)
    w.service._shared = others
    return w


HEAD = ResultHead("application/json", "identity")


def bought(*events, body=b"theirs", error=None, head=HEAD):
    purchase = Purchase(ordered(), quote())
    for event in (PurchaseEvent.PAY, *events):
        purchase.apply(event)
    return BoughtElsewhere(purchase, head, body, error and error(purchase))


def spawn(coroutine) -> asyncio.Task:
    return asyncio.ensure_future(coroutine)


async def test_a_claimed_order_is_bought_and_its_end_is_published_to_the_others():
    others = Others()
    w = sharing(others)
    asked = spawn(w.ask(ordered(), KEY))
    (await w.work()).deliver()
    assert await asked == b"answer"
    await settle()
    assert [answer.verdict for answer in others.heard] == [Verdict.SETTLED]
    assert len(w.service) == 0 and len(w.observer.ends) == 1


async def test_a_request_that_asks_again_here_asks_the_others_once():
    others = Others()
    w = sharing(others)
    asked = [spawn(w.ask(ordered(), KEY)) for _ in range(5)]
    (await w.work()).deliver()
    assert await asyncio.gather(*asked) == [b"answer"] * 5
    assert await w.ask(ordered(), KEY) == b"answer"
    assert others.asked == 1


async def test_a_result_bought_elsewhere_is_returned_and_neither_bought_nor_counted_here():
    w = sharing(Others(says=bought(PurchaseEvent.SETTLE, PurchaseEvent.DELIVER)))
    answer = w.service.start(ordered(), KEY)
    assert await w.read(answer) == b"theirs"
    assert answer.verdict is Verdict.SETTLED
    await settle()
    assert await w.ask(ordered(), KEY) == b"theirs"
    assert not w.upstream.asked and not w.journal.intents and not w.observer.ends


async def test_an_order_that_failed_elsewhere_fails_alike_and_cancels_no_job():
    def late(purchase):
        cause = UpstreamError("DEADLINE_EXCEEDED", "late")
        return PaymentFailed(cause, purchase.verdict, quote=purchase.quote)

    w = sharing(Others(says=bought(PurchaseEvent.LOSE_SIGHT, error=late, head=None)))
    with pytest.raises(PaymentFailed, match="late") as error:
        await w.ask(ordered(), KEY)
    assert error.value.verdict is Verdict.UNKNOWN
    await settle()
    assert not w.upstream.cancelled and not w.observer.ends


async def test_a_key_that_another_request_has_elsewhere_stays_free_for_that_request_here():
    others = Others(says=KeyReused("used"))
    w = sharing(others)
    with pytest.raises(KeyReused):
        await w.ask(ordered(OTHER_BODY), KEY)
    await settle()
    others.says = bought(PurchaseEvent.SETTLE, PurchaseEvent.DELIVER)
    assert await w.ask(ordered(), KEY) == b"theirs"


async def test_a_lost_result_is_looked_up_again_each_time():
    others = Others(says=LostElsewhere("lost", verdict=Verdict.SETTLED))
    w = sharing(others)
    for _ in range(2):
        with pytest.raises(ResultLost) as error:
            await w.ask(ordered(), KEY)
        assert error.value.verdict is Verdict.SETTLED
        await settle()
    assert others.asked == 2 and not w.upstream.asked


async def test_a_request_that_lost_the_claim_does_not_pay():
    others = Others(may_pay=False)
    w = sharing(others)
    with pytest.raises(Interrupted) as error:
        await w.ask(ordered(), KEY)
    assert error.value.code == InterruptReason.TAKEN_OVER == "taken_over"
    assert error.value.verdict is Verdict.NONE
    await settle()
    assert w.upstream.asked and not w.journal.intents and not w.upstream.works
    assert [answer.verdict for answer in others.heard] == [Verdict.NONE]


async def test_a_claim_without_a_listener_is_not_waited_for():
    others = Others(ready=asyncio.Event())
    w = sharing(others)
    asked = spawn(w.ask(ordered(), KEY))
    await settle()
    asked.cancel()
    await settle()
    assert len(w.service) == 0 and not others.heard


async def test_a_claimed_order_that_no_client_waits_for_is_released():
    others = Others()
    upstream = ScriptedPeers({"p1": Peer(ready=asyncio.Event())})
    w = sharing(others, upstream=upstream)
    asked = spawn(w.ask(ordered(), KEY))
    await settle()
    asked.cancel()
    await settle()
    assert [answer.verdict for answer in others.heard] == [Verdict.NONE]


async def test_a_quote_is_taken_only_where_the_order_is_bought():
    others = Others()
    w = sharing(others)
    held = await w.service.quote(ordered())
    others.says = bought(PurchaseEvent.SETTLE, PurchaseEvent.DELIVER)
    assert await w.ask(ordered(), KEY, held.id) == b"theirs"
    assert await w.ask(ordered(), RepeatKeys(key="l"), "not bought here") == b"theirs"
    others.says = None
    asked = spawn(w.ask(ordered(), RepeatKeys(key="m"), held.id))
    (await w.work()).deliver()
    assert await asked == b"answer"
    with pytest.raises(UnknownQuote):
        await w.ask(ordered(), NO_REPEAT, "not bought here")


async def test_publishing_to_the_others_is_not_cut_short_by_a_client_that_leaves():
    telling = asyncio.Event()

    class Slow(Others):
        async def ended(self, answer):
            await telling.wait()
            await super().ended(answer)

    others = Slow()
    w = sharing(others)
    answer = w.service.start(ordered(), KEY)
    reading = spawn(w.read(answer))
    (await w.work()).deliver()
    assert await reading == b"answer"
    w.service.interrupt(answer, InterruptReason.NO_LISTENER)
    assert w.service.interrupt_all(InterruptReason.SHUTTING_DOWN) == 1
    await settle()
    telling.set()
    await w.service.wait_idle()
    assert others.heard == [answer] and answer.error is None
