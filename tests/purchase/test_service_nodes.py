"""Purchases at virtual nodes: which are free, which fail over, and which never do."""

import asyncio
from dataclasses import replace

import pytest

from lcp_gateway.purchase.errors import PaymentFailed, Undelivered, UpstreamError
from lcp_gateway.purchase.idempotency import RepeatKeys
from lcp_gateway.purchase.limits import SpendingLimits
from lcp_gateway.purchase.money import Msat
from lcp_gateway.purchase.purchase import InterruptReason
from lcp_gateway.purchase.quote import Candidate, ProviderSource
from lcp_gateway.purchase.states import Verdict
from tests.support.purchases import result, stream_events
from tests.support.scripted_peers import NO_REPEAT, Peer, PlainJournal, ScriptedPeers, ordered, settle, world

FREE, PRICED = Peer(0), Peer(5_000)
DOWN = UpstreamError("UNAVAILABLE", "connection refused", retryable=True, evidence=Verdict.NONE)
LOST = UpstreamError("UNAVAILABLE", "the connection was lost", evidence=Verdict.SETTLED)
LATE = UpstreamError("DEADLINE_EXCEEDED", "took too long", evidence=Verdict.SETTLED)
WRONG = UpstreamError("INVALID_ARGUMENT", "no such field", evidence=Verdict.NONE, code="bad_field")


class Nodes(ScriptedPeers):
    """An upstream of nodes; names that begin with p are peers."""

    async def request_quote(self, task, peer_id, timeout_s):
        quoted = await super().request_quote(task, peer_id, timeout_s)
        if peer_id.startswith("p"):
            return quoted
        self.quotes[-1] = made = replace(quoted, source=ProviderSource.NODE, payment_request="")
        return made


def of(**peers) -> Nodes:
    return Nodes(dict(peers))


def spawn(coroutine) -> asyncio.Task:
    return asyncio.ensure_future(coroutine)


async def test_a_free_node_answers_and_nothing_was_paid():
    w = world(upstream=of(n1=FREE))
    asked = spawn(w.ask(ordered()))
    (await w.work()).deliver(b"answer")
    assert await asked == b"answer"
    assert w.journal.states == {} and w.journal.intents == []
    (answer,) = w.observer.ends
    assert answer.verdict is Verdict.NONE


async def test_a_free_node_answers_while_the_journal_cannot_be_written():
    w = world(upstream=of(n1=FREE), journal=PlainJournal(refusal=RuntimeError("full disk")))
    asked = spawn(w.ask(ordered()))
    (await w.work()).deliver()
    assert await asked == b"answer"


async def test_a_nodes_price_is_recorded_without_a_fee():
    w = world(upstream=of(n1=PRICED))
    asked = spawn(w.ask(ordered()))
    (await w.work()).put(result(b"answer", charged_msat=Msat(1_200)))
    await asked
    (intent,) = w.journal.intents
    assert (intent.quote.source, intent.fee_cap_msat) == (ProviderSource.NODE, 0)
    assert w.journal.only == ["paying", "settled", "delivered"]
    (answer,) = w.observer.ends
    assert answer.verdict is Verdict.SETTLED
    assert answer.purchase.cost_msat == 1_200


async def test_a_limit_on_price_and_fee_counts_no_fee_at_a_node():
    w = world(upstream=of(n1=PRICED), limits=SpendingLimits(max_total_msat=5_000))
    asked = spawn(w.ask(ordered()))
    (await w.work()).deliver()
    assert await asked == b"answer"


@pytest.mark.parametrize("first", [FREE, PRICED], ids=["free", "priced"])
async def test_a_missing_node_fails_over_to_the_next(first):
    w = world(upstream=of(n1=first, n2=FREE))
    asked = spawn(w.ask(ordered()))
    (await w.work(0)).put(DOWN)
    (await w.work(1)).deliver(b"from n2")
    assert await asked == b"from n2"
    assert [work.quote.peer_id for work in w.upstream.works] == ["n1", "n2"]
    if first is PRICED:
        assert w.journal.only == ["paying", "not_paid"]


async def test_a_missing_streaming_node_fails_over_too():
    w = world(upstream=of(n1=FREE, n2=FREE))
    asked = spawn(w.ask(ordered(stream=True)))
    (await w.work(0)).put(DOWN)
    (await w.work(1)).stream(b"a", b"b")
    assert await asked == b"ab"


async def test_a_free_node_that_breaks_off_before_its_result_fails_over():
    w = world(upstream=of(n1=FREE, p1=PRICED))
    asked = spawn(w.ask(ordered()))
    (await w.work(0)).put(LOST)
    (await w.work(1)).deliver(b"from p1")
    assert await asked == b"from p1"
    assert len(w.journal.intents) == 1


async def test_a_priced_node_that_got_the_work_is_charged_and_no_other_provider_is_asked():
    w = world(upstream=of(n1=PRICED, n2=FREE))
    asked = spawn(w.ask(ordered()))
    (await w.work()).put(LOST)
    with pytest.raises(PaymentFailed) as failed:
        await asked
    assert failed.value.verdict is Verdict.SETTLED
    assert w.journal.only == ["paying", "settled", "undelivered"]
    assert w.upstream.asked == ["n1"]


@pytest.mark.parametrize(
    "error",
    [
        UpstreamError("NOT_FOUND", "job not found"),
        UpstreamError("UNAVAILABLE", "gone"),
        UpstreamError("FAILED_PRECONDITION", "payment failed: FAILURE_REASON_NO_ROUTE"),
    ],
    ids=lambda error: error.message,
)
async def test_a_peers_failed_payment_is_never_tried_elsewhere(error):
    w = world(upstream=of(p1=PRICED, n1=FREE, p2=PRICED))
    asked = spawn(w.ask(ordered()))
    (await w.work()).put(error)
    with pytest.raises(PaymentFailed):
        await asked
    assert w.upstream.asked == ["p1"]


async def test_a_payment_that_follows_a_dead_node_is_the_only_one():
    w = world(upstream=of(n1=FREE, p1=PRICED, p2=PRICED))
    asked = spawn(w.ask(ordered()))
    (await w.work(0)).put(DOWN)
    (await w.work(1)).put(UpstreamError("UNAVAILABLE", "gone"))
    with pytest.raises(PaymentFailed) as failed:
        await asked
    assert failed.value.verdict is Verdict.UNKNOWN
    assert [work.quote.peer_id for work in w.upstream.works] == ["n1", "p1"]


async def test_an_invalid_request_is_not_tried_at_another_provider():
    w = world(upstream=of(n1=FREE, n2=FREE))
    asked = spawn(w.ask(ordered()))
    (await w.work()).put(WRONG)
    with pytest.raises(PaymentFailed) as failed:
        await asked
    assert (failed.value.verdict, failed.value.code) == (Verdict.NONE, "bad_field")
    assert w.upstream.asked == ["n1"]


async def test_a_node_that_takes_too_long_is_not_waited_for_twice():
    w = world(upstream=of(n1=FREE, n2=FREE))
    asked = spawn(w.ask(ordered()))
    (await w.work()).put(LATE)
    with pytest.raises(PaymentFailed):
        await asked
    assert w.upstream.asked == ["n1"]


async def test_when_all_nodes_are_down_the_last_error_is_reported():
    w = world(upstream=of(n1=FREE, n2=FREE))
    asked = spawn(w.ask(ordered()))
    (await w.work(0)).put(DOWN)
    (await w.work(1)).put(DOWN)
    with pytest.raises(PaymentFailed) as failed:
        await asked
    assert failed.value.verdict is Verdict.NONE


async def test_a_free_stream_that_is_cut_cost_nothing():
    w = world(upstream=of(n1=FREE, n2=FREE))
    answer = w.service.start(ordered(stream=True), NO_REPEAT)
    work = await w.work()
    begin, one, *_ = stream_events(b"one")
    work.put(begin, one, LOST)
    with pytest.raises(Undelivered) as cut:
        await w.read(answer)
    assert cut.value.verdict is Verdict.NONE
    assert w.upstream.asked == ["n1"]


async def test_a_free_result_is_given_again_to_the_same_key():
    w = world(upstream=of(n1=FREE))
    key = RepeatKeys(key="k")
    asked = spawn(w.ask(ordered(), key))
    (await w.work()).deliver(b"once")
    assert await asked == b"once"
    assert await w.ask(ordered(), key) == b"once"
    assert len(w.upstream.works) == 1


async def test_an_unpaid_failure_is_tried_again_with_the_same_key():
    w = world(upstream=of(n1=FREE))
    key = RepeatKeys(key="k")
    asked = spawn(w.ask(ordered(), key))
    (await w.work(0)).put(WRONG)
    with pytest.raises(PaymentFailed):
        await asked
    again = spawn(w.ask(ordered(), key))
    (await w.work(1)).deliver(b"better")
    assert await again == b"better"


async def test_each_candidate_gets_the_task_as_it_is_adapted_for_it():
    seen = []

    class Listening(Nodes):
        async def request_quote(self, task, peer_id, timeout_s):
            seen.append((peer_id, task.model, task.body))
            return await super().request_quote(task, peer_id, timeout_s)

        async def execute(self, quote, task, timeout_s):
            seen.append(("execute", task.model, task.body))
            return await super().execute(quote, task, timeout_s)

        def candidates(self):
            def adapt(task):
                return replace(task, model="real", body=task.body.replace(b'"m"', b'"real"'))

            return [Candidate("n1"), Candidate("p1", adapt)]

    w = world(upstream=Listening({"n1": FREE, "p1": PRICED}))
    asked = spawn(w.ask(ordered()))
    (await w.work(0)).put(DOWN)
    (await w.work(1)).deliver()
    await asked
    plain, adapted = b'{"model":"m","messages":[1]}', b'{"model":"real","messages":[1]}'
    assert seen == [("n1", "m", plain), ("execute", "m", plain), ("p1", "real", adapted), ("execute", "real", adapted)]
    (intent,) = w.journal.intents
    assert (intent.model, intent.request_bytes) == ("real", len(adapted))
    await settle()


async def test_a_quote_that_was_shown_is_taken_with_the_same_adaptation():
    def adapt(task):
        return replace(task, model="real", body=task.body + b" ")

    upstream = of(p1=PRICED)
    upstream.candidates = lambda: [Candidate("p1", adapt, routing={"model": "real"})]
    w = world(upstream=upstream)
    held = await w.service.quote(ordered())
    assert held.offer.order.task.body == b""
    asked = spawn(w.ask(ordered(), quote_id=held.id))
    (await w.work()).deliver()
    await asked
    (intent,) = w.journal.intents
    assert (intent.model, intent.quote.job_id) == ("real", held.offer.quote.job_id)
    assert w.observer.ends[0].purchase.candidate.routing == {"model": "real"}


async def test_a_nodes_task_that_the_gateway_interrupts_is_charged_and_not_unknown():
    w = world(upstream=of(n1=PRICED))
    answer = w.service.start(ordered(), NO_REPEAT)
    await w.work()
    w.service.interrupt(answer, InterruptReason.SHUTTING_DOWN)
    await w.service.wait_idle()
    assert w.journal.only == ["paying", "settled", "undelivered"]
    assert answer.verdict is Verdict.SETTLED
