"""Two nodes whose messages are lost, repeated and late, whose links break, and which are killed between any two effects.

Whatever happens: nothing is paid twice, nothing is computed unpaid, what was paid is delivered or said to be lost, and nothing of
a job stays once its time is over.
"""

import asyncio
from collections import Counter
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from lcp_gateway.lightning import bolt11
from lcp_gateway.node.lcp.messages import Protocol
from lcp_gateway.node.lcp.selling_events import SaleTerms
from lcp_gateway.node.memory.hooks import Hooks
from lcp_gateway.node.ports import InvoiceState, LightningAway
from lcp_gateway.node.runtime.calls import CallFailed, PaymentState
from tests.support import virtual_time
from tests.support.lcp_nodes import RESULT, Pair, ScriptedCompute, bought, settle

READS = {
    *(
        "manifests",
        "purchases",
        "sales",
        "settle_index",
        "job_key",
        "ended_purchase",
        "forgotten_until",
        "is_hash_used",
    ),
    *("events", "paid", "find", "identity", "node_id"),
}
FINE = (LightningAway, OSError)


class Faults(Hooks):
    """Treats the n-th message and the n-th payment as told; ``heal`` ends all faults."""

    def __init__(self, messages, payments):
        self.messages, self.payments, self.count, self.healed = messages, payments, 0, False

    def deliveries(self, message):
        self.count += 1
        fault = None if self.healed else self.messages.get(self.count)
        return {"lost": (), "twice": (0.0, 0.0), "late": (0.7,), "both": (0.0, 2.0)}.get(fault, (0.0,))

    async def before_payment(self, payer, invoice):
        way = self.payments.pop(0) if self.payments else "arrives"
        if way == "slow":
            await asyncio.sleep(20)
        return "FAILURE_REASON_NO_ROUTE" if way == "fails" else None

    async def after_payment(self, payer, invoice):
        if not self.healed:
            await asyncio.sleep(0.2)


class Killing:
    """A port that kills its node at its n-th call, before or after it was carried out."""

    def __init__(self, port, world, name):
        self._port, self._world, self._name = port, world, name

    def __getattr__(self, name):
        found = getattr(self._port, name)
        if name in READS or not callable(found):
            return found

        async def call(*arguments, **named):
            await self._world.may_die(self._name)
            result = await found(*arguments, **named)
            await self._world.may_die(self._name)
            return result

        return call


class PaidCompute(ScriptedCompute):
    """A backend that takes no job that is not paid."""

    def __init__(self, invoices):
        super().__init__()
        self._invoices = invoices

    def run(self, **job):
        assert any(one.state in {InvoiceState.SETTLED, InvoiceState.ACCEPTED} for one in self._invoices()), (
            "computed unpaid"
        )
        return super().run(**job)


@dataclass
class Caller:
    """A client of the buyer that wants one job, and asks for its result again after a restart."""

    stream: bool
    protocol: Protocol
    quote: object = None
    data: bytes = b""
    failure: CallFailed | None = None
    task: asyncio.Task = None
    left: bool = False


@dataclass
class World:
    """A pair of nodes, and what happens to them."""

    deaths: set
    pair: Pair
    calls: int = 0
    callers: list = field(default_factory=list)
    attempts: Counter = field(default_factory=Counter)
    dying: dict = field(default_factory=dict)

    def __post_init__(self):
        for name in ("buyer", "seller"):
            side = getattr(self.pair, name)
            self.dying[name] = asyncio.Event()
            lightning = side.lightning
            side.settings |= {
                "transport": Killing(lightning.transport, self, name),
                "invoices": Killing(lightning.invoices, self, name),
                "payments": Killing(lightning.payments, self, name),
                "store": Killing(side.store, self, name),
            }
        pay = self.pair.buyer.lightning.payments.pay

        async def counted(payment_request, payment_hash, **named):
            self.attempts[payment_hash] += 1
            return await pay(payment_request, payment_hash, **named)

        self.pair.buyer.lightning.payments.pay = counted

    async def may_die(self, name):
        self.calls += 1
        if self.calls in self.deaths:
            self.dying[name].set()
            await asyncio.Event().wait()

    async def bury(self, name):
        """Start a node again each time after it was killed."""
        side = getattr(self.pair, name)
        while True:
            await self.dying[name].wait()
            await side.stop()
            await asyncio.sleep(0.5)
            self.dying[name].clear()
            await side.start()

    async def call(self, caller):
        try:
            await self._node_is_up()
            caller.quote = await self.pair.quote(caller.protocol, stream=caller.stream)
        except CallFailed as failure:
            caller.failure = failure
            return
        while True:
            try:
                await self._node_is_up()
                _, caller.data, _ = await bought(self.pair.accept(caller.quote))
            except CallFailed as failure:
                if failure.details == "the node stops":
                    continue
                caller.failure = failure
            return

    async def _node_is_up(self):
        while self.pair.buyer.node is None or self.dying["buyer"].is_set():
            await asyncio.sleep(0.1)

    async def do(self, step, number):
        pair = self.pair
        match step:
            case "buy":
                caller = Caller(stream=number % 2 == 0, protocol=Protocol.V02 if number % 3 else Protocol.V03)
                self.callers.append(caller)
                caller.task = asyncio.create_task(self.call(caller))
            case "wait":
                await settle((0.001, 0.1, 1, 8, 65, 400)[number % 6])
            case "link":
                pair.disconnect()
                await settle((0.001, 1, 12)[number % 3])
                pair.connect()
            case "buyer dies" | "seller dies":
                self.dying[step.split(maxsplit=1)[0]].set()
            case "stream breaks":
                side = (pair.buyer, pair.seller)[number % 2]
                side.lightning.transport.break_streams()
                side.lightning.invoices.break_streams()
            case "lightning away":
                side = (pair.buyer, pair.seller)[number % 2]
                side.lightning.stop()
                await settle((1, 20)[number % 2])
                side.lightning.start()
                pair.connect()
            case "caller leaves" if self.callers:
                caller = self.callers[number % len(self.callers)]
                caller.left |= not caller.task.done()
                caller.task.cancel()

    def check(self):
        pair = self.pair
        assert set(self.attempts.values()) <= {1}, "paid more than once"
        invoices = pair.seller.lightning.invoices._invoices
        for caller in self.callers:
            if caller.quote is None:
                continue
            invoice = invoices[bolt11.decode(caller.quote.payment_request).payment_hash]
            paid = invoice.state is InvoiceState.SETTLED
            assert invoice.state is not InvoiceState.ACCEPTED, "a payment is held for good"
            assert RESULT.startswith(caller.data)
            if caller.left:
                continue
            if caller.failure is None:
                assert paid and caller.data == RESULT
            else:
                state = PaymentState.SETTLED if paid else PaymentState.NONE
                assert caller.failure.payment.state is state, (caller.failure, invoice)

    async def check_what_is_known_of_payments(self):
        """The buyer tells of each purchase what became of it, also where its caller has not seen the end."""
        invoices = self.pair.seller.lightning.invoices._invoices
        for quote in (caller.quote for caller in self.callers if caller.quote is not None):
            payment_hash = bolt11.decode(quote.payment_request).payment_hash
            report = await self.pair.buyer.node.payment(quote.job_id, payment_hash)
            paid = invoices[payment_hash].state is InvoiceState.SETTLED
            assert report.state is (PaymentState.SETTLED if paid else PaymentState.NONE), report

    async def check_nothing_stays(self):
        for side in (self.pair.buyer, self.pair.seller):
            node = side.node
            assert not node._purchases._live and not node._purchases._over
            assert not node._sales._sales and not node._sales._by_hash
            assert not node._sales._tally._jobs and not node._sales._tally._all_bytes
            assert not node._sales._tally.in_flight
            figures = node.figures()
            assert figures.queued_messages == 0 and not any(figures.running.values())
            assert await side.store.purchases() == [] and await side.store.sales() == []
            odd = [one for one in side.seen.problems if not isinstance(one[1], FINE)]
            assert not odd


async def _live(steps, messages, payments, deaths, *, hold):
    faults = Faults(messages, payments)
    pair = Pair(hooks=faults, seller={"terms": SaleTerms(hold=hold)})
    pair.compute = pair.seller.settings["compute"] = PaidCompute(pair.seller.lightning.invoices._invoices.values)
    world = World(deaths, pair)
    undertakers = [asyncio.create_task(world.bury(name)) for name in ("buyer", "seller")]
    try:
        async with pair:
            for step, number in steps:
                await world.do(step, number)
            await settle(5)
            faults.healed = True
            world.deaths = set()
            pair.connect()
            await settle(1_000)
            tasks = [one.task for one in world.callers]
            if tasks:
                done, waiting = await asyncio.wait(tasks, timeout=3_000)
                assert not waiting, "a caller waits for good"
                for task in done:
                    if not task.cancelled():
                        task.result()
            await settle(1_000)
            world.check()
            await world.check_what_is_known_of_payments()
            await world.check_nothing_stays()
    finally:
        for task in undertakers:
            task.cancel()
        await asyncio.wait(undertakers)
    return world


STEPS = (
    ["buy"] * 4
    + ["wait"] * 4
    + ["link", "buyer dies", "seller dies", "stream breaks", "lightning away", "caller leaves"]
)


def test_without_faults_every_caller_has_its_result():
    world = virtual_time.run(_live([("buy", 1), ("buy", 2), ("buy", 3)], {}, [], set(), hold=False))
    assert [one.data for one in world.callers] == [RESULT] * 3


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 11)), min_size=1, max_size=14),
    st.dictionaries(st.integers(1, 120), st.sampled_from(["lost", "twice", "late", "both"]), max_size=8),
    st.lists(st.sampled_from(["arrives", "arrives", "slow", "fails"]), max_size=6),
    st.sets(st.integers(1, 200), max_size=4),
    st.booleans(),
)
def test_whatever_happens_nothing_is_paid_twice_and_what_is_paid_is_delivered_or_said_to_be_lost(
    steps, messages, payments, deaths, hold
):
    virtual_time.run(_live(steps, messages, payments, deaths, hold=hold))


def test_a_death_at_each_effect_of_a_job_loses_nothing():
    # A whole result that is paid at once, and a streamed one whose payment is held.
    for number, hold in ((1, False), (2, True)):
        steps = [("buy", number), ("wait", 2)]
        calls = virtual_time.run(_live(steps, {}, [], set(), hold=hold)).calls
        for death in range(1, calls + 1):
            virtual_time.run(_live(steps, {}, [], {death}, hold=hold))
