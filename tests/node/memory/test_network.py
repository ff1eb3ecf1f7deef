import asyncio
import contextlib
from hashlib import sha256

import pytest

from lcp_gateway.lightning import bolt11
from lcp_gateway.node.memory.hooks import Hooks
from lcp_gateway.node.memory.network import Network
from lcp_gateway.node.ports import (
    InvoicePaid,
    InvoiceState,
    LightningAway,
    MessageReceived,
    PaymentLost,
    PaymentRefused,
    PaymentSucceeded,
    PeerConnected,
    PeerDisconnected,
)

TERMS = b"t" * 32
PREIMAGE = b"p" * 32


def _two(**settings):
    network = Network(**settings)
    return network, network.node("alice", "10.0.0.1:9735"), network.node("bob", "10.0.0.2:9735")


async def _invoice(node, **changed):
    return await node.invoices.make(**({"description_hash": TERMS, "amount_msat": 5_000, "expiry_s": 60} | changed))


def _pay(node, made, **changed):
    arguments = {"amount_msat": 5_000, "fee_limit_msat": 10, "timeout_s": 30} | changed
    return node.payments.pay(made.payment_request, made.payment_hash, **arguments)


async def test_peers_and_messages_come_in_their_order():
    network, alice, bob = _two()
    network.connect(alice, bob)

    async with contextlib.aclosing(bob.transport.events()) as events:
        assert await anext(events) == PeerConnected(alice.node_id, "10.0.0.1:9735")
        await alice.transport.send(bob.node_id, 42081, b"1")
        await alice.transport.send(bob.node_id, 42083, b"2")
        assert await anext(events) == MessageReceived(alice.node_id, 42081, b"1")
        assert await anext(events) == MessageReceived(alice.node_id, 42083, b"2")
        await alice.transport.disconnect(bob.node_id)
        assert await anext(events) == PeerDisconnected(alice.node_id)
    with pytest.raises(LightningAway):
        await alice.transport.send(bob.node_id, 42083, b"3")


async def test_a_message_without_a_reader_is_lost():
    network, alice, bob = _two()
    network.connect(alice, bob)
    await alice.transport.send(bob.node_id, 42081, b"lost")

    events = bob.transport.events()
    assert isinstance(await anext(events), PeerConnected)
    await alice.transport.send(bob.node_id, 42081, b"came")
    assert (await anext(events)).payload == b"came"
    await events.aclose()


async def test_hooks_drop_repeat_and_delay_messages():
    class Faults(Hooks):
        def deliveries(self, message):
            return {b"dropped": (), b"twice": (0, 0), b"late": (0.01,)}.get(message.payload, (0,))

    network, alice, bob = _two(hooks=Faults())
    network.connect(alice, bob)
    events = bob.transport.events()
    await anext(events)
    for payload in (b"late", b"dropped", b"twice", b"plain"):
        await alice.transport.send(bob.node_id, 42081, payload)

    assert [(await anext(events)).payload for _ in range(4)] == [b"twice", b"twice", b"plain", b"late"]
    await events.aclose()


async def test_a_delayed_message_does_not_cross_into_a_later_link():
    class Late(Hooks):
        def deliveries(self, message):
            return (0.0,) if message.payload == b"new" else (0.01,)

    network, alice, bob = _two(hooks=Late())
    network.connect(alice, bob)
    await alice.transport.send(bob.node_id, 42081, b"old")
    network.disconnect(alice.node_id, bob.node_id)
    network.connect(alice, bob)
    events = bob.transport.events()
    await anext(events)
    late = asyncio.create_task(anext(events))
    arrived = asyncio.Event()
    asyncio.get_running_loop().call_later(0.02, arrived.set)
    await arrived.wait()
    assert not late.done()
    await alice.transport.send(bob.node_id, 42081, b"new")
    assert (await late).payload == b"new"
    await events.aclose()


async def test_a_node_that_is_away_breaks_its_streams_and_fails_calls():
    network, alice, bob = _two()
    network.connect(alice, bob)
    events, paid = bob.transport.events(), bob.invoices.paid(0)
    await anext(events)
    waiting = asyncio.create_task(anext(paid))
    await asyncio.sleep(0)
    bob.stop()

    assert isinstance(await anext(events), PeerDisconnected)
    with pytest.raises(LightningAway):
        await anext(events)
    with pytest.raises(LightningAway):
        await waiting
    for call in (bob.transport.identity(), _invoice(bob), bob.invoices.state(TERMS), bob.transport.send("x", 1, b"")):
        with pytest.raises(LightningAway):
            await call
    bob.start()
    network.connect(alice, bob)
    assert await bob.transport.identity() == (bob.node_id, "bcrt")


async def test_a_payment_settles_a_real_invoice_once():
    _, alice, bob = _two()
    made = await _invoice(bob)
    invoice = bolt11.decode(made.payment_request)
    assert (invoice.payee, invoice.amount_msat, invoice.description_hash) == (bob.node_id, 5_000, TERMS)

    end = await _pay(alice, made)
    assert isinstance(end, PaymentSucceeded) and sha256(end.preimage).digest() == made.payment_hash
    assert await bob.invoices.state(made.payment_hash) is InvoiceState.SETTLED
    assert await alice.payments.track(made.payment_hash) == end
    with pytest.raises(PaymentRefused) as refused:
        await _pay(alice, made)
    assert refused.value.already_paid and alice.payments.begun == 1


async def test_settled_invoices_are_read_from_an_index_on():
    _, alice, bob = _two()
    first, second, third = [await _invoice(bob) for _ in range(3)]
    for made in (second, first):
        await _pay(alice, made)

    paid = bob.invoices.paid(1)
    assert await anext(paid) == InvoicePaid(first.payment_hash, InvoiceState.SETTLED, 2)
    await _pay(alice, third)
    assert await anext(paid) == InvoicePaid(third.payment_hash, InvoiceState.SETTLED, 3)
    await paid.aclose()


@pytest.mark.parametrize("settle", [True, False])
async def test_a_hold_invoice_waits_to_be_settled_or_cancelled(settle):
    _, alice, bob = _two()
    made = await _invoice(bob, hold_preimage=PREIMAGE)
    paid = bob.invoices.paid(0)
    accepted = asyncio.create_task(anext(paid))
    payment = asyncio.create_task(_pay(alice, made))
    assert await accepted == InvoicePaid(made.payment_hash, InvoiceState.ACCEPTED)
    assert not payment.done()

    if settle:
        await bob.invoices.settle(PREIMAGE)
        await bob.invoices.settle(PREIMAGE)
        assert await payment == PaymentSucceeded(PREIMAGE, 0)
    else:
        await bob.invoices.cancel(made.payment_hash)
        assert isinstance(await payment, PaymentLost)
    await paid.aclose()


async def test_an_invoice_that_is_cancelled_or_expired_takes_no_payment():
    now = [1_800_000_000]
    _, alice, bob = _two(clock=lambda: now[0])
    cancelled, expired = await _invoice(bob), await _invoice(bob)
    await bob.invoices.cancel(cancelled.payment_hash)
    assert isinstance(await _pay(alice, cancelled), PaymentLost)

    now[0] += 61
    assert await bob.invoices.state(expired.payment_hash) is InvoiceState.CANCELLED
    with pytest.raises(PaymentRefused):
        await _pay(alice, expired)


async def test_hooks_hold_fail_and_price_payments():
    class Faults(Hooks):
        def __init__(self):
            self.may_arrive, self.reason, self.fee = asyncio.Event(), "FAILURE_REASON_TIMEOUT", 0

        async def before_payment(self, payer, invoice):
            await self.may_arrive.wait()
            return self.reason

        def fee_msat(self, payer, invoice):
            return self.fee

    faults = Faults()
    _, alice, bob = _two(hooks=faults)
    first, second, third = [await _invoice(bob) for _ in range(3)]
    payment = asyncio.create_task(_pay(alice, first))
    await asyncio.sleep(0)
    assert not payment.done()
    faults.may_arrive.set()
    assert await payment == PaymentLost("FAILURE_REASON_TIMEOUT")
    faults.reason, faults.fee = None, 11
    assert await _pay(alice, second) == PaymentLost("FAILURE_REASON_NO_ROUTE")
    faults.fee = 10
    assert (await _pay(alice, third)).fee_msat == 10


async def test_a_payment_goes_on_without_its_caller():
    class Held(Hooks):
        def __init__(self):
            self.may_arrive = asyncio.Event()

        async def before_payment(self, payer, invoice):
            await self.may_arrive.wait()

    held = Held()
    _, alice, bob = _two(hooks=held)
    made = await _invoice(bob)
    payment = asyncio.create_task(_pay(alice, made))
    await asyncio.sleep(0)
    payment.cancel()
    held.may_arrive.set()
    assert isinstance(await alice.payments.track(made.payment_hash), PaymentSucceeded)
