"""One job of a buyer and a seller in processes, brought to a stage and held there while a test ends processes."""

import asyncio
import threading

import grpc

from tests.support.lnd_standin import CANCELED, FAILED, OPEN, SUCCEEDED
from tests.support.node_thread import eventually

STAGES = ("asked", "quoted", "paying", "paid", "running", "sending")
VICTIMS = (
    ("buyer",),
    ("seller",),
    ("buyer", "seller"),
    ("buyer_lnd",),
    ("seller_lnd",),
    ("buyer", "buyer_lnd", "seller", "seller_lnd"),
)
_PLACES = {"running": "begun", "sending": "halfway"}


async def let_everything_go(world):
    for place in _PLACES.values():
        world.backend.release(place)
    for lnd in (world.buyer_lnd, world.seller_lnd):
        lnd.payments_go = lambda _hash: "settle"
        for released in lnd.released.values():
            if not released.done():
                released.set_result(True)


class Job:
    """One job of the client, brought to a stage and held there until ``go_on``."""

    def __init__(self, world, stage):
        self.world, self.stage = world, stage
        self.terms = self.purchase = self.asking = self.gate = None
        if stage == "asked":
            self._begin_to_ask()
            return
        self.terms = world.quote()
        if stage in {"paying", "paid"}:
            world.buyer_lnd.payments_go = lambda _hash: "hold"
            self.purchase = world.accept(self.terms)
            eventually(lambda: self.purchase.payment_hash in world.buyer_lnd.released)
        elif stage in _PLACES:
            begun = world.backend.begun
            world.backend.hold(_PLACES[stage])
            self.purchase = world.accept(self.terms)
            eventually(lambda: world.backend.begun > begun)
        if stage == "sending":
            eventually(lambda: self.purchase.body)

    def _begin_to_ask(self):
        lnd = self.world.seller_lnd
        calls = lnd.calls.count("AddInvoice")

        async def hold():
            self.gate = lnd.gates["AddInvoice"] = asyncio.Event()

        self.world.network.run(hold())
        self.asking = threading.Thread(target=self._ask, daemon=True)
        self.asking.start()
        eventually(lambda: lnd.calls.count("AddInvoice") > calls)

    def _ask(self):
        try:
            self.terms = self.world.ask()
        except grpc.RpcError:
            self.terms = None

    def go_on(self):
        async def go():
            if self.gate is not None:
                self.gate.set()
            await let_everything_go(self.world)

        self.world.network.run(go())

    def end(self):
        """Return the purchase at its end, asked for again if the buyer was killed; None where there is no quote."""
        if self.asking is not None:
            self.asking.join(60)
            assert not self.asking.is_alive()
        if self.terms is None:
            return None
        if self.purchase is None or self.purchase.wait().is_cut_off:
            self.purchase = self.world.accept(self.terms).wait()
        return self.purchase


def end_and_start(world, victims, while_away):
    """End processes at once, and start them again, lnds first."""
    for name in victims:
        if name.endswith("_lnd"):
            world.network.run(getattr(world, name).stop() if name == "buyer_lnd" else getattr(world, name).kill())
        else:
            getattr(world, name).kill()
    while_away()
    for name in sorted(victims, key=lambda it: not it.endswith("_lnd")):
        if name.endswith("_lnd"):
            world.network.run(getattr(world, name).start())
        else:
            getattr(world, name).start()


def money_of(world, purchase):
    """Return what the buyer's lnd knows of the payment, begun once at most, and the state of the invoice at the seller's."""
    payment_hash = purchase.payment_hash
    payment = world.buyer_lnd.payments.get(payment_hash)
    assert world.buyer_lnd.sent.count(payment_hash) == (payment is not None)
    names = {SUCCEEDED: "succeeded", FAILED: "failed"}
    return names[payment.status] if payment else "none", world.seller_lnd.invoice(payment_hash).state


def is_unpaid(world, purchase, payment):
    """Return whether the payment is as said, and the invoice unpaid: open, or cancelled once the seller hears of it."""
    known, invoice = money_of(world, purchase)
    return known == payment and invoice in {OPEN, CANCELED}
