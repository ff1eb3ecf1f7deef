"""Payments over lnd: begun once whatever breaks, and followed to their end."""

import asyncio
import hashlib

import grpc
import pytest

from lcp_gateway.node.lnd.payments import LndJobPayments
from lcp_gateway.node.ports import LightningAway, PaymentLost, PaymentRefused, PaymentSucceeded, PaymentUnderWay
from tests.support.lnd_standin import IN_FLIGHT, LN, Trouble, settled, unfinished

PREIMAGE = b"\x31" * 32
HASH = hashlib.sha256(PREIMAGE).digest()


@pytest.fixture
async def payments(buyer):
    async with LndJobPayments(buyer.address, timeout_s=60, pause_s=0.02, unknown_for_s=0.1) as made:
        yield made


async def invoice_of(seller, amount_msat=12_000, **more):
    made = await seller.add(LN.Invoice(value_msat=amount_msat, description_hash=b"\x01" * 32, expiry=300, **more))
    return made.payment_request, made.r_hash


async def pay(payments, invoice, amount_msat=12_000, fee_limit_msat=1_000):
    async with asyncio.timeout(60):
        return await payments.pay(*invoice, amount_msat=amount_msat, fee_limit_msat=fee_limit_msat, timeout_s=29.5)


async def until(condition):
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_payment_that_arrives_has_its_preimage_and_fee(payments, buyer, seller):
    end = await pay(payments, invoice := await invoice_of(seller, r_preimage=PREIMAGE))
    assert end == PaymentSucceeded(PREIMAGE, 7)
    assert buyer.sent == [invoice[1]]
    assert await payments.track(invoice[1]) == end


@pytest.mark.parametrize(
    ("way", "reason"), [("no_route", "FAILURE_REASON_NO_ROUTE"), ("hold", "FAILURE_REASON_NO_ROUTE")]
)
async def test_a_payment_that_fails_for_good_has_lnds_name_of_the_reason(payments, buyer, seller, way, reason):
    buyer.payments_go = lambda _hash: way
    invoice = await invoice_of(seller)
    paying = asyncio.create_task(pay(payments, invoice))
    if way == "hold":
        await until(lambda: invoice[1] in buyer.released)
        buyer.release(invoice[1], settle=False)
    assert await paying == PaymentLost(reason)


async def test_a_fee_above_the_limit_is_not_paid(payments, buyer, seller):
    invoice = await invoice_of(seller)
    assert await pay(payments, invoice, fee_limit_msat=6) == PaymentLost("FAILURE_REASON_NO_ROUTE")
    assert seller.invoice(invoice[1]).amt_paid_msat == 0


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (1, "TIMEOUT"),
        (2, "NO_ROUTE"),
        (3, "ERROR"),
        (4, "INCORRECT_PAYMENT_DETAILS"),
        (5, "INSUFFICIENT_BALANCE"),
        (6, "CANCELED"),
        (77, "NONE"),
    ],
)
async def test_every_reason_keeps_lnds_name(payments, buyer, number, name):
    buyer.knows(unfinished(HASH, status=3, failure_reason=number))
    assert await payments.track(HASH) == PaymentLost(f"FAILURE_REASON_{name}")


async def test_an_invoice_other_than_the_one_that_was_judged_is_not_paid(payments, buyer, seller):
    text, payment_hash = await invoice_of(seller)
    for request, digest, amount_msat in (
        (text, payment_hash, 11_999),
        (text, HASH, 12_000),
        ("lnbcrt1", payment_hash, 12_000),
    ):
        with pytest.raises(PaymentRefused) as refused:
            await pay(payments, (request, digest), amount_msat)
        assert not refused.value.already_paid
    assert "SendPaymentV2" not in buyer.calls


async def test_an_invoice_that_was_paid_before_is_said_to_be(payments, buyer, seller):
    invoice = await invoice_of(seller)
    await pay(payments, invoice)
    with pytest.raises(PaymentRefused, match="already paid") as refused:
        await pay(payments, invoice)
    assert refused.value.already_paid
    buyer.payments[invoice[1]] = unfinished(invoice[1], status=IN_FLIGHT)
    with pytest.raises(PaymentRefused, match="in transition") as refused:
        await pay(payments, invoice)
    assert refused.value.already_paid


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (grpc.StatusCode.UNKNOWN, "invoice expired. Valid until 2026-01-01"),
        (grpc.StatusCode.UNKNOWN, "self-payments not allowed"),
        (grpc.StatusCode.UNKNOWN, "permission denied"),
        (grpc.StatusCode.UNKNOWN, "the RPC server is in the process of starting up, but not yet ready to accept calls"),
        (grpc.StatusCode.UNIMPLEMENTED, "unknown service routerrpc.Router"),
    ],
)
async def test_a_refusal_of_lnds_own_needs_no_waiting(payments, buyer, seller, status, text):
    buyer.troubles["SendPaymentV2"] = Trouble(status, text)
    with pytest.raises(PaymentRefused, match=text[:10]) as refused:
        await pay(payments, await invoice_of(seller))
    assert not refused.value.already_paid
    assert "TrackPaymentV2" not in buyer.calls


async def test_nothing_is_begun_while_lnd_is_away(buyer, seller):
    invoice = await invoice_of(seller)
    await buyer.stop()
    async with LndJobPayments(buyer.address, timeout_s=0.2) as payments:
        with pytest.raises(PaymentRefused, match="away"):
            await pay(payments, invoice)


async def test_a_payment_whose_answer_is_lost_is_tracked_and_not_begun_again(payments, buyer, seller):
    buyer.payments_go = lambda _hash: "answer_lost"
    invoice = await invoice_of(seller, r_preimage=PREIMAGE)
    assert await pay(payments, invoice) == PaymentSucceeded(PREIMAGE, 7)
    assert buyer.calls.count("SendPaymentV2") == 1
    assert "TrackPaymentV2" in buyer.calls


@pytest.mark.parametrize("end", ["stop", "kill"])
@pytest.mark.parametrize("settles", [True, False])
async def test_a_payment_is_followed_over_a_restart_of_lnd(payments, buyer, seller, end, settles):
    buyer.payments_go = lambda _hash: "hold"
    invoice = await invoice_of(seller, r_preimage=PREIMAGE)
    paying = asyncio.create_task(pay(payments, invoice))
    await until(lambda: invoice[1] in buyer.released)
    await getattr(buyer, end)()
    await buyer.start()
    await until(lambda: "TrackPaymentV2" in buyer.calls)
    assert not paying.done()
    buyer.release(invoice[1], settle=settles)
    assert await paying == (PaymentSucceeded(PREIMAGE, 7) if settles else PaymentLost("FAILURE_REASON_NO_ROUTE"))
    assert buyer.calls.count("SendPaymentV2") == 1


async def test_a_call_that_never_reached_lnd_is_lost_only_after_lnd_has_said_so_for_long(buyer, seller):
    buyer.troubles["SendPaymentV2"] = Trouble(grpc.StatusCode.UNAVAILABLE, "Broken pipe")
    async with LndJobPayments(buyer.address, timeout_s=60, pause_s=0.01, unknown_for_s=0.3) as payments:
        began = asyncio.get_running_loop().time()
        assert await pay(payments, await invoice_of(seller)) == PaymentLost("lnd knows no such payment")
        assert asyncio.get_running_loop().time() - began >= 0.3
    assert buyer.calls.count("SendPaymentV2") == 1
    assert buyer.calls.count("TrackPaymentV2") >= 2


async def test_a_payment_that_shows_up_within_that_time_counts(buyer):
    async with LndJobPayments(buyer.address, timeout_s=60, pause_s=0.01, unknown_for_s=3_600) as payments:
        tracking = asyncio.create_task(payments.track(HASH))
        await until(lambda: buyer.calls.count("TrackPaymentV2") > 1)
        buyer.knows(settled(PREIMAGE))
        async with asyncio.timeout(60):
            assert await tracking == PaymentSucceeded(PREIMAGE, 7)


async def test_an_lnd_that_does_not_answer_says_nothing_of_a_payment(buyer):
    async with LndJobPayments(buyer.address, timeout_s=60, pause_s=0.01, unknown_for_s=0) as payments:
        # One that has never heard of it for a moment, and cannot be asked in between.
        answers = iter([True, False] * 20)
        plain = buyer.admit

        async def admit(name, context):
            await plain(name, context)
            if name == "TrackPaymentV2" and not next(answers, True):
                await context.abort(grpc.StatusCode.UNAVAILABLE, "starting")

        buyer.admit = admit
        async with asyncio.timeout(60):
            assert await payments.track(HASH) == PaymentLost("lnd knows no such payment")
    # Only two refusals in a row count, which came when no other answer was left.
    assert buyer.calls.count("TrackPaymentV2") == 42


async def test_the_present_state_of_a_payment_is_found_without_waiting_for_its_end(payments, buyer):
    assert await payments.find(HASH) is None
    buyer.knows(unfinished(HASH, status=IN_FLIGHT))
    assert await payments.find(HASH) == PaymentUnderWay()
    buyer.knows(unfinished(HASH, status=3, failure_reason=2))
    assert await payments.find(HASH) == PaymentLost("FAILURE_REASON_NO_ROUTE")
    buyer.knows(settled(PREIMAGE))
    assert await payments.find(HASH) == PaymentSucceeded(PREIMAGE, 7)
    buyer.troubles["TrackPaymentV2"] = Trouble(grpc.StatusCode.UNAVAILABLE, "starting")
    with pytest.raises(LightningAway):
        await payments.find(HASH)
