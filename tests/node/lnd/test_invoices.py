"""Invoices over lnd: made as the buyer must see them, and their settlement never missed."""

import asyncio
import hashlib
from contextlib import aclosing

import grpc
import pytest

from lcp_gateway.lightning import bolt11
from lcp_gateway.node.lnd.invoices import LndJobInvoices
from lcp_gateway.node.lnd.payments import LndJobPayments
from lcp_gateway.node.ports import InvoicePaid, InvoiceState, LightningAway, PaymentLost, PaymentSucceeded
from tests.support.lnd_standin import CANCELED, Trouble

TERMS = b"\x07" * 32
PREIMAGE = b"\x31" * 32
HASH = hashlib.sha256(PREIMAGE).digest()


@pytest.fixture
async def invoices(seller):
    async with LndJobInvoices(seller.address, timeout_s=60, poll_s=0.01) as made:
        yield made


@pytest.fixture
async def payments(buyer):
    async with LndJobPayments(buyer.address, timeout_s=60, pause_s=0.02) as made:
        yield made


async def make(invoices, **more):
    return await invoices.make(description_hash=TERMS, amount_msat=12_001, expiry_s=295, **more)


async def pay(payments, made):
    async with asyncio.timeout(60):
        return await payments.pay(
            made.payment_request, made.payment_hash, amount_msat=12_001, fee_limit_msat=1_000, timeout_s=30
        )


async def next_of(paid):
    async with asyncio.timeout(60):
        return await anext(paid)


async def until(condition):
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("hold_preimage", [None, PREIMAGE])
async def test_an_invoice_says_what_was_asked_for(invoices, seller, hold_preimage):
    made = await make(invoices, hold_preimage=hold_preimage)
    read = bolt11.decode(made.payment_request)
    assert (read.payee, read.amount_msat, read.expiry_s) == (seller.identity, 12_001, 295)
    assert (read.description_hash, read.payment_hash) == (TERMS, made.payment_hash)
    assert hold_preimage is None or made.payment_hash == HASH
    assert await invoices.state(made.payment_hash) is InvoiceState.OPEN


@pytest.mark.parametrize("hold_preimage", [None, PREIMAGE])
async def test_route_hints_are_lnds_private_channels(seller, hold_preimage):
    async with LndJobInvoices(seller.address, route_hints=True, timeout_s=60) as invoices:
        await make(invoices, hold_preimage=hold_preimage)
    assert seller.invoices[0].private


async def test_an_invoice_over_nothing_is_not_made(invoices, seller):
    with pytest.raises(LightningAway, match="lets the payer choose"):
        await invoices.make(description_hash=TERMS, amount_msat=0, expiry_s=295)
    assert not seller.invoices


@pytest.mark.parametrize("forged", [{"amount_msat": 1}, {"description_hash": b"\x02" * 32}, {"expiry_s": 10_000}])
async def test_an_invoice_other_than_the_one_asked_for_is_not_shown_to_a_peer(invoices, seller, forged):
    seller.forged = forged
    with pytest.raises(LightningAway, match="not what was asked for"):
        await make(invoices)


async def test_an_lnd_that_is_away_makes_and_finds_nothing(invoices, seller):
    made = await make(invoices)
    seller.trouble = Trouble(grpc.StatusCode.UNAVAILABLE, "gone")
    for call in (
        make(invoices),
        invoices.state(made.payment_hash),
        invoices.cancel(made.payment_hash),
        invoices.settle(PREIMAGE),
    ):
        with pytest.raises(LightningAway, match="gone"):
            await call


async def test_an_invoice_that_lnd_does_not_know_counts_as_cancelled(invoices):
    assert await invoices.state(HASH) is InvoiceState.CANCELLED
    await make(invoices)
    assert await invoices.state(HASH) is InvoiceState.CANCELLED
    await invoices.cancel(HASH)
    with pytest.raises(LightningAway, match="unable to locate"):
        await invoices.settle(PREIMAGE)


async def test_a_cancelled_invoice_cannot_be_paid(invoices, payments):
    made = await make(invoices)
    await invoices.cancel(made.payment_hash)
    await invoices.cancel(made.payment_hash)
    assert await invoices.state(made.payment_hash) is InvoiceState.CANCELLED
    assert await pay(payments, made) == PaymentLost("FAILURE_REASON_INCORRECT_PAYMENT_DETAILS")


async def test_a_settled_invoice_stays_settled_and_to_cancel_it_is_no_error(invoices, payments):
    """A buyer may pay and cancel at once: a sale that tried for ever to cancel had no line of its payment, and was never forgotten."""
    made = await make(invoices)
    await pay(payments, made)
    await invoices.cancel(made.payment_hash)
    assert await invoices.state(made.payment_hash) is InvoiceState.SETTLED


async def test_settlements_come_from_lnds_very_first_on(invoices, payments):
    async with aclosing(invoices.paid(0)) as paid:
        first = asyncio.create_task(next_of(paid))
        made = [await make(invoices) for _ in range(3)]
        await pay(payments, made[2])
        assert await first == InvoicePaid(made[2].payment_hash, InvoiceState.SETTLED, 1)
        await pay(payments, made[0])
        assert await next_of(paid) == InvoicePaid(made[0].payment_hash, InvoiceState.SETTLED, 2)


@pytest.mark.parametrize("end", ["stop", "kill"])
async def test_no_settlement_is_missed_over_a_restart_of_lnd(invoices, payments, seller, end):
    made = [await make(invoices) for _ in range(3)]
    await pay(payments, made[0])
    async with aclosing(invoices.paid(0)) as paid:
        assert (await next_of(paid)).settle_index == 1
        await until(lambda: "SubscribeInvoices" in seller.calls)
        await getattr(seller, end)()
        with pytest.raises(LightningAway):
            await next_of(paid)
    # Its peers pay while no client of it listens.
    await seller.start()
    await pay(payments, made[2])
    await pay(payments, made[1])

    async def later():
        async with aclosing(invoices.paid(1)) as paid:
            return [await next_of(paid), await next_of(paid)]

    async with asyncio.timeout(60):
        while True:
            try:
                found = await later()
                break
            except LightningAway:
                await asyncio.sleep(0.05)
    assert found == [
        InvoicePaid(made[2].payment_hash, InvoiceState.SETTLED, 2),
        InvoicePaid(made[1].payment_hash, InvoiceState.SETTLED, 3),
    ]


async def test_a_held_payment_is_reported_once_it_waits_and_taken(invoices, payments):
    async with aclosing(invoices.paid(0)) as paid:
        accepted = asyncio.create_task(next_of(paid))
        made = await make(invoices, hold_preimage=PREIMAGE)
        with pytest.raises(LightningAway, match="still open"):
            await invoices.settle(PREIMAGE)
        paying = asyncio.create_task(pay(payments, made))
        assert await accepted == InvoicePaid(HASH, InvoiceState.ACCEPTED)
        assert await invoices.state(HASH) is InvoiceState.ACCEPTED
        assert not paying.done()
        await invoices.settle(PREIMAGE)
        await invoices.settle(PREIMAGE)
        assert await paying == PaymentSucceeded(PREIMAGE, 7)
        assert await next_of(paid) == InvoicePaid(HASH, InvoiceState.SETTLED, 1)


async def test_a_held_payment_goes_back_to_the_payer(invoices, payments):
    async with aclosing(invoices.paid(0)) as paid:
        accepted = asyncio.create_task(next_of(paid))
        paying = asyncio.create_task(pay(payments, await make(invoices, hold_preimage=PREIMAGE)))
        await accepted
        await invoices.cancel(HASH)
        await invoices.cancel(HASH)
        assert await paying == PaymentLost("FAILURE_REASON_INCORRECT_PAYMENT_DETAILS")
        with pytest.raises(LightningAway, match="already canceled"):
            await invoices.settle(PREIMAGE)


async def test_a_hold_invoice_of_an_earlier_run_is_watched_once_it_was_looked_up(invoices, payments, seller):
    made = await make(invoices, hold_preimage=PREIMAGE)
    async with LndJobInvoices(seller.address, timeout_s=60, poll_s=0.01) as restarted:
        assert await restarted.state(made.payment_hash) is InvoiceState.OPEN
        async with aclosing(restarted.paid(0)) as paid:
            accepted = asyncio.create_task(next_of(paid))
            paying = asyncio.create_task(pay(payments, made))
            assert await accepted == InvoicePaid(HASH, InvoiceState.ACCEPTED)
        # Closed, and asked for again: the acceptance is returned again.
        async with aclosing(restarted.paid(0)) as paid:
            assert await next_of(paid) == InvoicePaid(HASH, InvoiceState.ACCEPTED)
        await restarted.settle(PREIMAGE)
        await paying


async def test_hold_invoices_that_have_ended_are_not_watched(invoices, seller):
    async with aclosing(invoices.paid(0)) as paid:
        first = asyncio.create_task(next_of(paid))
        await make(invoices, hold_preimage=b"\x32" * 32)
        made = await make(invoices, hold_preimage=PREIMAGE)
        await until(lambda: seller.calls.count("SubscribeSingleInvoice") == 2)
        await invoices.cancel(hashlib.sha256(b"\x32" * 32).digest())
        expiring = seller.invoice(made.payment_hash)
        expiring.creation_date -= 10_000
        await seller._announce()
        await until(lambda: not invoices._held and not invoices._watches)
        assert expiring.state == CANCELED
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)


async def test_a_hold_invoice_that_lnd_has_removed_is_not_watched(invoices, seller):
    await make(invoices, hold_preimage=PREIMAGE)
    seller.invoices.clear()
    async with aclosing(invoices.paid(1)) as paid:
        first = asyncio.create_task(next_of(paid))
        await until(lambda: not invoices._held and not invoices._watches)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
