"""A buyer and a seller of ours over a link that loses, repeats and reorders messages, and whose ends restart."""

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from lcp_gateway.node.lcp.buying import Buying, Phase
from lcp_gateway.node.lcp.buying_events import (
    Accept,
    Ask,
    CancelJob,
    Ended,
    KeepPurchase,
    Order,
    Outcome,
    Pay,
    PaymentFailed,
    PaymentSettled,
    PeerTimeouts,
    Quoted,
    ResultData,
)
from lcp_gateway.node.lcp.effects import MessageCame, Send, TimerFired
from lcp_gateway.node.lcp.judging import SoldModel
from lcp_gateway.node.lcp.manifests import Limits, own_manifest
from lcp_gateway.node.lcp.messages import CHAT, Protocol, QuoteRequest
from lcp_gateway.node.lcp.pricing import TokenPrice
from lcp_gateway.node.lcp.selling import Selling
from lcp_gateway.node.lcp.selling_events import (
    CancelInvoice,
    Compute,
    ComputeData,
    ComputeEnded,
    InvoiceMade,
    InvoiceSettled,
    KeepSale,
    KeepSent,
    MakeInvoice,
    PeerBack,
    SaleTerms,
    StopCompute,
)
from lcp_gateway.node.lcp.table import read_message, write_params

SELLER = "02" + "ab" * 32
RESULT = bytes(range(256)) * 5
HASH = b"h" * 32


@dataclass
class Invoice:
    """The one invoice of a world, and lnd's view of it."""

    description_hash: bytes
    amount_msat: int
    expires_at: int
    network: str = "bcrt"
    payee: str = SELLER
    payment_hash: bytes = HASH
    state: str = "open"


@dataclass
class World:
    """One job between two machines; every choice of what happens next comes from outside."""

    protocol: Protocol
    stream: bool
    now: int = 1_800_000_000
    wire: list = field(default_factory=list)
    payments: int = 0
    runs: int = 0
    given: bytes = b""
    ends: list = field(default_factory=list)
    quoted: bool = False

    def __post_init__(self):
        count = iter(range(1, 100_000))
        self.new_id = lambda: next(count).to_bytes(32, "big")
        limits = Limits(max_payload_bytes=600)
        self.invoice = self.kept_purchase = self.kept_sale = self.selling = None
        self.computing, self.kept_sent = [], []
        body = b'{"model":"m","messages":[1],"stream":%s}' % (b"true" if self.stream else b"false")
        self.buyer = {
            "peer_id": SELLER,
            "manifest": own_manifest(self.protocol, limits, ["m"]),
            "own": Limits(),
            "timeouts": PeerTimeouts(),
            "new_id": self.new_id,
        }
        self.seller = {
            "sold": SoldModel(TokenPrice(1_000_000, 1_000_000), 10),
            "peer": own_manifest(self.protocol, limits),
            "own": Limits(),
            "terms": SaleTerms(),
            "inflight": lambda: 0,
            "new_id": self.new_id,
        }
        self.order = Order(task_kind=CHAT, params=write_params("m"), request=body)
        self.buying = Buying(self.protocol, self.order, **self.buyer)
        self.buy(Ask())

    def buy(self, event):
        if self.buying is None:
            return
        for effect in self.buying.on(self.now, event):
            match effect:
                case Send():
                    self.wire.append(("seller", effect))
                case Quoted():
                    self.quoted = True
                case KeepPurchase():
                    self.kept_purchase = effect
                case Pay():
                    assert self.kept_purchase is not None
                    self.payments += 1
                    self.invoice.state = "paid" if self.invoice.state == "open" else "failed"
                case ResultData(data):
                    self.given += data
                case Ended():
                    self.ends.append(effect)

    def sell(self, event):
        if self.selling is None:
            return
        for effect in self.selling.on(self.now, event):
            if isinstance(effect, Send):
                self.wire.append(("buyer", effect))
            self.carry_out(effect)

    def carry_out(self, effect):
        match effect:
            case MakeInvoice():
                self.invoice = Invoice(effect.description_hash, effect.price_msat, self.now + effect.expiry_s)
                self.sell(InvoiceMade("lnbcrt1", HASH))
            case CancelInvoice():
                if self.invoice.state == "open":
                    self.invoice.state = "cancelled"
            case KeepSale():
                self.kept_sale = effect
            case KeepSent(messages):
                self.kept_sent += messages
            case Compute():
                assert self.invoice.state == "paid"
                self.runs += 1
                self.computing = [ComputeData(RESULT[:700]), ComputeData(RESULT[700:]), ComputeEnded()]
            case StopCompute():
                self.computing = []

    def deliver(self, at, *, again=False):
        if not self.wire:
            return
        at %= len(self.wire)
        to, effect = self.wire[at] if again else self.wire.pop(at)
        _, message = read_message(effect.message_type, effect.payload)
        if to == "buyer":
            self.buy(MessageCame(message))
            return
        if self.selling is None and isinstance(message, QuoteRequest):
            self.selling = Selling(self.protocol, message, model="m", **self.seller)
        else:
            self.sell(MessageCame(message))

    def lose(self, at):
        if self.wire:
            self.wire.pop(at % len(self.wire))

    def accept(self):
        if self.quoted and self.invoice is not None:
            self.buy(Accept(self.invoice, max_price_msat=1_000, network="bcrt"))

    def compute(self):
        if self.computing:
            self.sell(self.computing.pop(0))

    def wait(self, tens):
        self.now += tens * 10
        self.buy(TimerFired())

    def reconnect(self):
        self.wire.clear()
        self.sell(PeerBack())

    def settle(self):
        if self.invoice is None:
            return
        if self.invoice.state == "paid":
            self.sell(InvoiceSettled())
            self.buy(PaymentSettled())
        elif self.invoice.state == "failed" or (self.kept_purchase and self.invoice.state == "cancelled"):
            self.buy(PaymentFailed("no"))

    def restart_buyer(self):
        if self.ends:
            return
        self.given = b""
        if self.kept_purchase is None:
            # Nothing was kept, and nothing is paid: the job is forgotten.
            self.buying = None
            self.ends.append(Ended(Outcome.CANCELLED, paid=False))
            return
        self.buying = Buying(self.protocol, self.order, kept=self.kept_purchase, **self.buyer)

    def restart_seller(self):
        self.computing = []
        self.selling = None
        if self.kept_sale is not None:
            kept = self.kept_sale
            self.selling = Selling(
                self.protocol, kept.request, model=kept.model, kept=kept, sent=self.kept_sent, **self.seller
            )

    def finish(self):
        """Let everything that is under way come to its end, without further faults."""
        for _ in range(6):
            self.sell(PeerBack())
            self.settle()
            while self.wire or self.computing:
                self.deliver(0)
                self.compute()
        for _ in range(3):
            self.now += 1_000
            self.buy(TimerFired())


CHOICES = {
    "deliver": lambda world, _: world.deliver(0),
    "reorder": World.deliver,
    "repeat": lambda world, at: world.deliver(at, again=True),
    "lose": World.lose,
    "accept": lambda world, _: world.accept(),
    "settle": lambda world, _: world.settle(),
    "compute": lambda world, _: world.compute(),
    "cancel": lambda world, _: world.buy(CancelJob("x")),
    "wait": World.wait,
    "buyer restarts": lambda world, _: world.restart_buyer(),
    "seller restarts": lambda world, _: world.restart_seller(),
    "link": lambda world, _: world.reconnect(),
}
STEPS = ["deliver"] * 12 + ["accept"] * 2 + ["settle", "compute"] * 2
FAULTS = ["reorder", "repeat", "lose", "cancel", "wait", "buyer restarts", "seller restarts", "link"]


def _run(protocol, stream, steps):
    world = World(protocol, stream)
    for kind, number in steps:
        CHOICES[kind](world, number)
    world.finish()
    return world


def test_without_faults_a_job_is_delivered():
    for protocol in Protocol:
        for stream in (False, True):
            world = _run(protocol, stream, [("deliver", 0)] * 5 + [("accept", 0), ("settle", 0)])
            assert [one.outcome for one in world.ends] == [Outcome.DELIVERED]
            assert world.given == RESULT and world.payments == world.runs == 1


def test_a_buyer_that_restarts_after_its_payment_fetches_the_result():
    steps = [("deliver", 0)] * 5 + [("accept", 0), ("buyer restarts", 0), ("settle", 0)]
    world = _run(Protocol.V02, stream=False, steps=steps)

    assert world.ends[-1].outcome is Outcome.DELIVERED
    assert world.given == RESULT and world.payments == 1


def test_a_seller_that_restarts_after_it_was_paid_delivers():
    steps = [("deliver", 0)] * 5 + [("accept", 0), ("settle", 0), ("compute", 0), ("seller restarts", 0)]
    world = _run(Protocol.V02, stream=False, steps=steps)

    assert world.ends[-1].outcome is Outcome.DELIVERED
    assert world.given == RESULT and world.payments == 1


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(Protocol),
    st.booleans(),
    st.lists(st.tuples(st.sampled_from(STEPS + FAULTS), st.integers(0, 50)), max_size=60),
)
def test_whatever_is_lost_a_job_is_paid_once_and_its_end_is_told(protocol, stream, steps):
    world = _run(protocol, stream, steps)

    assert world.payments <= 1
    assert world.runs <= 1 + sum(kind == "seller restarts" for kind, _ in steps)
    assert len(world.ends) == 1, world.invoice
    (ended,) = world.ends
    assert world.buying is None or world.buying.phase is Phase.ENDED
    assert ended.paid == (world.payments == 1 and world.invoice.state == "paid")
    if ended.outcome is Outcome.DELIVERED:
        assert world.given == RESULT
    assert RESULT.startswith(world.given)
