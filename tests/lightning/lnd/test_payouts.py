"""The payer at lnd: one call for a payment, and its outcome by the payment hash."""

import asyncio
import hashlib
import time

import grpc
import pytest

from lcp_gateway.accounts.withdrawals import FailedBecause, InvalidInvoice, PayoutState, PayoutsUnavailable
from lcp_gateway.lightning.lnd.payer import LndPayer
from lcp_gateway.lightning.lnd.payouts import LndPayouts
from tests.support.lnd_standin import ELSEWHERE, LndStandin, Trouble, channel, settled, unfinished

PAY = {"fee_limit_msat": 1_000, "timeout_s": 60}


@pytest.fixture
async def node(tmp_path):
    standin = LndStandin(tmp_path)
    await standin.start()
    yield standin
    await standin.stop()


@pytest.fixture
async def payouts(node):
    async with LndPayer(node.address, timeout_s=60) as payer:
        yield LndPayouts(payer)


async def pay(payouts, text, amount_msat=None, **more):
    return await payouts.pay(text, amount_msat=amount_msat, **{**PAY, **more})


async def test_an_invoice_is_read_as_a_payer_reads_it(payouts, node):
    read = payouts.read(node.elsewhere(12_000))
    assert (read.network, read.amount_msat) == ("bcrt", 12_000)
    assert read.payee == ELSEWHERE.public_key.format().hex()
    assert read.expires_at.timestamp() == pytest.approx(time.time() + 3_600, abs=60)
    assert payouts.read(node.elsewhere(None)).amount_msat is None
    for text in ("", "lnbcrt1", "no invoice", node.elsewhere() + "q"):
        with pytest.raises(InvalidInvoice):
            payouts.read(text)
    with pytest.raises(InvalidInvoice, match="calendar"):
        payouts.read(node.elsewhere(expiry_s=2**60))


async def test_it_pays_and_reports_fee_and_preimage(payouts, node):
    text = node.elsewhere(12_000)
    payment_hash = payouts.read(text).payment_hash
    assert (await payouts.track(payment_hash)).state is PayoutState.ABSENT
    paid = await pay(payouts, text)
    assert (paid.state, paid.fee_msat, paid.preimage) == (PayoutState.SETTLED, 7, node.preimages[payment_hash])
    assert await payouts.track(payment_hash) == paid
    # lnd refuses the second call itself.
    assert (await pay(payouts, text)).state is PayoutState.REFUSED
    assert node.sent == [payment_hash]


async def test_an_amount_goes_with_an_invoice_that_names_none(payouts, node):
    text = node.elsewhere(None)
    assert (await pay(payouts, text, 33_000)).state is PayoutState.SETTLED
    assert node.payments[payouts.read(text).payment_hash].value_msat == 33_000


@pytest.mark.parametrize(
    ("way", "limit_msat", "reason"),
    [("no_route", 1_000, FailedBecause.NO_ROUTE), ("settle", 6, FailedBecause.NO_ROUTE)],
)
async def test_a_failure_has_a_reason(payouts, node, way, limit_msat, reason):
    node.payments_go = lambda _hash: way
    failed = await pay(payouts, node.elsewhere(), fee_limit_msat=limit_msat)
    assert (failed.state, failed.reason) == (PayoutState.FAILED, reason)


async def test_a_held_payment_is_in_flight_until_it_ends(payouts, node):
    node.payments_go = lambda _hash: "hold"
    text = node.elsewhere()
    payment_hash = payouts.read(text).payment_hash
    call = asyncio.create_task(pay(payouts, text))
    while payment_hash not in node.payments:
        await asyncio.sleep(0.01)
    assert (await payouts.track(payment_hash)).state is PayoutState.IN_FLIGHT
    # lnd is killed in the middle: the call says nothing, and what lnd's database says counts.
    await node.kill()
    assert (await call).state is PayoutState.UNCLEAR
    with pytest.raises(PayoutsUnavailable):
        await payouts.track(payment_hash)
    await node.start()
    node.finish(payment_hash, settle=True)

    async def found():
        try:
            return (await payouts.track(payment_hash)).state
        except PayoutsUnavailable:
            return None

    while (state := await found()) is None:
        await asyncio.sleep(0.05)
    assert state is PayoutState.SETTLED


async def test_lnds_refusals_and_silence_differ(payouts, node):
    node.payments_go = lambda _hash: "refuse"
    assert (await pay(payouts, node.elsewhere())).state is PayoutState.REFUSED
    assert (await pay(payouts, node.elsewhere(timestamp=int(time.time()) - 7_200))).state is PayoutState.REFUSED
    assert (await pay(payouts, node.elsewhere(None))).state is PayoutState.REFUSED
    node.trouble = Trouble(grpc.StatusCode.UNAVAILABLE, "starting")
    assert (await pay(payouts, node.elsewhere())).state is PayoutState.UNCLEAR
    for call in (payouts.node(), payouts.spendable_msat(), payouts.track(b"\x01" * 32)):
        with pytest.raises(PayoutsUnavailable):
            await call


async def test_a_preimage_that_does_not_fit_proves_nothing(payouts, node):
    preimage = b"\x01" * 32
    payment_hash = hashlib.sha256(b"other").digest()
    forged = settled(preimage)
    forged.payment_hash = payment_hash.hex()
    node.payments[payment_hash] = forged
    assert (await payouts.track(payment_hash)).state is PayoutState.IN_FLIGHT
    node.payments[payment_hash] = unfinished(payment_hash, status=3, failure_reason=99)
    assert (await payouts.track(payment_hash)).reason is FailedBecause.NODE_ERROR


async def test_what_can_be_paid_out_is_in_active_channels_without_reserves(payouts, node):
    node.channels = [channel(1_000, reserve_sat=100), channel(500, active=False), channel(5, reserve_sat=10)]
    assert await payouts.spendable_msat() == 900_000
    assert (await payouts.node()).node_id == node.identity
