"""What the paying node reports of a payment is recorded where its preimage proves it."""

from dataclasses import replace
from hashlib import sha256

import pytest

from lcp_gateway.purchase.errors import PaymentFailed, Undelivered, UpstreamError
from lcp_gateway.purchase.execution import PurchaseExecutor
from lcp_gateway.purchase.journal import NOTHING_NEW
from lcp_gateway.purchase.limits import SpendingLimits
from lcp_gateway.purchase.payment_evidence import PaymentReport
from lcp_gateway.purchase.ports import ResultStatus
from lcp_gateway.purchase.purchase import Purchase
from lcp_gateway.purchase.states import State, Verdict
from lcp_gateway.upstream_status import UpstreamStatus
from tests.support.purchases import (
    NOW,
    MemoryJournal,
    ScriptedInspector,
    ScriptedUpstream,
    Trusting,
    order,
    result,
    stream_events,
)

PREIMAGE = b"\x77" * 32
PAID = PaymentReport(verdict=Verdict.SETTLED, fee_msat=7, preimage=PREIMAGE)
HASH = sha256(PREIMAGE).digest()
LIMITS = SpendingLimits()


class Recording(MemoryJournal):
    """A journal that keeps what each state came with."""

    def record(self, job_id, state, at, update=NOTHING_NEW, on_refund=None):
        super().record(job_id, state, at, update, on_refund)
        self.updates = [*getattr(self, "updates", ()), update]


def world(payment_hash=HASH, **script):
    upstream = ScriptedUpstream(**script)
    journal = Recording(upstream)
    exposure = Trusting()
    executor = PurchaseExecutor(
        upstream,
        journal=journal,
        inspector=ScriptedInspector(LIMITS, exposure, lambda *_: payment_hash),
        limits=LIMITS,
        exposure=exposure,
        execute_timeout_s=1,
        now=lambda: NOW,
    )
    return journal, executor, Purchase(order(), upstream.quoted, payment_hash=payment_hash)


def failure(payment, status=UpstreamStatus.FAILED_PRECONDITION, text="lcp_error code=7: busy"):
    return UpstreamError(status, text, payment=payment)


async def test_fee_and_preimage_of_a_whole_result_are_recorded_when_it_is_settled():
    journal, executor, purchase = world(outcome=result(payment=PAID))
    await executor.execute(purchase)
    assert journal.states == ["paying", "settled", "delivered"]
    assert (journal.updates[0].fee_msat, journal.updates[0].preimage) == (7, PREIMAGE)


async def test_a_client_that_leaves_in_mid_stream_leaves_fee_and_preimage_recorded():
    events = stream_events(b"one", b"two")
    events[0] = replace(events[0], payment=PAID)
    journal, executor, purchase = world(events=events)
    stream = await executor.open_stream(purchase)
    chunks = stream.chunks()
    assert await anext(chunks) == b"one"
    await chunks.aclose()
    assert journal.states[:2] == ["paying", "settled"]
    assert (journal.updates[0].fee_msat, journal.updates[0].preimage) == (7, PREIMAGE)


async def test_a_stream_that_has_no_head_reports_its_payment_in_the_result():
    failed = result(b"", status=ResultStatus.FAILED, payment=PAID)
    journal, executor, purchase = world(events=[failed])
    with pytest.raises(Undelivered):
        await executor.open_stream(purchase)
    assert journal.updates[0].preimage == PREIMAGE


@pytest.mark.parametrize("stream", [False, True])
async def test_a_failure_after_the_payment_leaves_fee_and_preimage_recorded(stream):
    error = failure(PAID, UpstreamStatus.DEADLINE_EXCEEDED, "no result in time")
    journal, executor, purchase = world(outcome=error, events=[error])
    with pytest.raises(PaymentFailed) as caught:
        await (executor.open_stream(purchase) if stream else executor.execute(purchase))
    assert caught.value.verdict is Verdict.SETTLED
    assert purchase.state is State.UNDELIVERED
    assert (journal.updates[0].fee_msat, journal.updates[0].preimage) == (7, PREIMAGE)


@pytest.mark.parametrize(("verdict", "state"), [(Verdict.NONE, State.NOT_PAID), (Verdict.UNKNOWN, State.UNKNOWN)])
async def test_a_report_decides_where_the_text_says_otherwise(verdict, state):
    """A peer's error may come before the payment: its text alone means that the peer was paid."""
    _, executor, purchase = world(outcome=failure(PaymentReport(verdict=verdict)))
    with pytest.raises(PaymentFailed) as caught:
        await executor.execute(purchase)
    assert (caught.value.verdict, purchase.state) == (verdict, state)


@pytest.mark.parametrize("payment_hash", [b"\x33" * 32, None])
async def test_a_preimage_of_another_invoice_proves_nothing_and_is_not_recorded(payment_hash):
    journal, executor, purchase = world(payment_hash, outcome=result(payment=PAID))
    await executor.execute(purchase)
    assert journal.updates[0] is NOTHING_NEW


async def test_a_report_without_a_preimage_is_not_recorded():
    journal, executor, purchase = world(outcome=result(payment=replace(PAID, preimage=None)))
    await executor.execute(purchase)
    assert journal.updates[0] is NOTHING_NEW
