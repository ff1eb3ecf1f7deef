"""Withdrawals, top-ups, holds, spends and earnings against a plain model: after any sequence, crashes included, and any answer of the payer."""

import asyncio
import hashlib
import itertools
from datetime import timedelta

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lcp_gateway.accounts.models import Balance
from lcp_gateway.accounts.payouts import Payouts
from lcp_gateway.accounts.withdrawal_states import WithdrawalState as Status
from lcp_gateway.accounts.withdrawals import (
    InsufficientFunds,
    InvalidInvoice,
    InvoiceUsed,
    NodeCannotCover,
    PayoutState,
    PayoutsUnavailable,
    WithdrawalRules,
)
from lcp_gateway.purchase.journal import InsufficientBalance
from lcp_gateway.purchase.money import Msat
from lcp_gateway.purchase.quote import Payee, ProviderSource
from lcp_gateway.purchase.states import State
from lcp_gateway.store.accounts.accounts import Accounts
from lcp_gateway.store.accounts.ledger import Ledger
from lcp_gateway.store.accounts.topups import Topups
from lcp_gateway.store.accounts.withdrawals import Withdrawals
from lcp_gateway.store.database.engines import DatabaseUnavailable, open_database
from lcp_gateway.store.journal.recovery import sweep
from lcp_gateway.store.journal.writer import JournalWriter
from tests.accounts.paying_node import ABSENT, IN_FLIGHT, NO_ROUTE, OWN, REFUSED, UNCLEAR, PayingNodeStandIn, settled
from tests.store.invoices import asked, hash_of
from tests.store.journals import NOW, charged, job, until_gone, written
from tests.support.examples import examples

WHOSE = st.integers(0, 2)
NUMBERS = st.integers(0, 5)
AMOUNTS = st.integers(1, 1_500)
# What the call ends with, and what the node then shows.
WAYS = {
    "settles": (settled(7), settled(7)),
    "costs": (settled(40), settled(40)),
    "fails": (NO_ROUTE, NO_ROUTE),
    "refused": (REFUSED, ABSENT),
    "holds": (UNCLEAR, IN_FLIGHT),
    "lost and settled": (UNCLEAR, settled(3)),
    "lost and failed": (UNCLEAR, NO_ROUTE),
    "never arrived": (UNCLEAR, ABSENT),
}
RULES = WithdrawalRules(enabled=True, min_msat=1, fee_ppm=0, fee_base_msat=40, approval_msat=1_200, most_open=100)
FUNDS_MSAT = 6_500

steps = st.one_of(
    *[st.tuples(st.just("withdraw"), NUMBERS, WHOSE, AMOUNTS, st.sampled_from(sorted(WAYS)))] * 4,
    *[st.tuples(st.just("finish"), NUMBERS, st.booleans())] * 2,
    *[st.tuples(st.just("catch_up"), st.sampled_from([0, 30, 90]))] * 2,
    st.tuples(st.just("decide"), NUMBERS, st.booleans()),
    st.tuples(st.just("transfer"), NUMBERS, WHOSE, WHOSE, AMOUNTS),
    st.tuples(st.just("topup"), NUMBERS, WHOSE, AMOUNTS),
    st.tuples(st.just("buy"), NUMBERS, WHOSE, WHOSE, AMOUNTS, st.sampled_from(["deliver", "lose", "leave open"])),
    st.tuples(st.just("away"), st.booleans()),
    st.tuples(st.just("crash"), st.booleans()),
)


class World:
    """One gateway after another on one database; the node that pays outlives them. ``expected`` is the plain model."""

    def __init__(self, where, run):
        self._where, self._run = where, run
        self.node = PayingNodeStandIn(go=lambda payment_hash: WAYS[self.ways[payment_hash]])
        self.ways: dict[bytes, str] = {}
        self.accounts: list[str] = []
        self.topped: dict[object, tuple[int, int]] = {}
        self.asked: dict[int, tuple[int, int, str]] = {}
        self.inside: dict[int, tuple[int, int, int]] = {}
        self.bought: dict[int, tuple[int, int, int, str]] = {}
        self.moved_s = 0.0
        self.tasks: list[asyncio.Task] = []

    async def start(self):
        self.database = await open_database(self._where, gone_after_s=0, write_timeout_s=60.0)
        self.journal = JournalWriter(self.database, on_problem=lambda _problem: None)
        self.journal.start()
        self.ledger, self.topups = Ledger(self.database), Topups(self.database)
        self.withdrawals = Withdrawals(self.database)
        self.payouts = Payouts(
            self.withdrawals,
            self.node,
            RULES,
            start_task=self._start_task,
            unavailable=(DatabaseUnavailable,),
            now=lambda: NOW + timedelta(seconds=self.moved_s),
        )

    async def stop(self):
        await self.settle_down()
        await self.journal.close()
        await self.database.close()

    def _start_task(self, run, *, may_return=bool):
        task = asyncio.create_task(run())
        self.tasks.append(task)
        return task

    async def settle_down(self):
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.tasks.clear()

    def name(self, what):
        return f"{self._run}/{what}"

    def owed_msat(self):
        return sum(balance.balance_msat for balance in self.model_balances())

    def lnd_msat(self):
        """What the node holds: what came in, less what it paid with its fees, less what is in flight."""
        msat = FUNDS_MSAT + sum(amount for _, amount in self.topped.values())
        for number, (_, amount_msat, _) in self.asked.items():
            shown = self.node.payments.get(self.hash(number))
            if shown is not None and shown.state is PayoutState.SETTLED:
                msat -= amount_msat + shown.fee_msat
            elif shown is not None and shown.state is PayoutState.IN_FLIGHT:
                msat -= amount_msat + RULES.fee_base_msat
        return msat

    def hash(self, number):
        return hashlib.sha256(self.name(f"withdrawal {number}").encode()).digest()

    async def topup(self, number, whose, amount_msat):
        name = self.name(f"top-up {number}")
        if name not in self.topped:
            await asked(self.topups, self.accounts[whose], name, amount_msat=amount_msat)
            self.topped[name] = (whose, amount_msat)
        whose, amount_msat = self.topped[name]
        await self.topups.settle(hash_of(name), Msat(amount_msat), settle_index=1, at=NOW)

    async def withdraw(self, number, whose, amount_msat, way):
        text = self.name(f"withdrawal {number}")
        if number not in self.asked:
            self.node.invoice(text, amount_msat, payment_hash=self.hash(number), expires_at=NOW + timedelta(days=9))
            self.node.invoices[text] = self.node.invoices.pop(f"lnbcrt1invoice{text}")
            self.ways[self.hash(number)] = way
        self.node.funds_msat = max(0, self.lnd_msat())
        covered = self.node.funds_msat >= self.owed_msat()
        available_msat = self.model_balances()[whose].available_msat
        known = number in self.asked
        amount_msat = self.node.invoices[text].amount_msat
        try:
            made, is_new = await self.payouts.request(self.accounts[whose], "key", text)
        except InsufficientFunds as refused:
            told_msat = refused.available_msat
            assert not known
            assert told_msat == available_msat < amount_msat + 40
        except NodeCannotCover:
            # The stand-in's balance is exact; the check counts what it cannot know against the withdrawal.
            assert not known
        except InvoiceUsed:
            assert known and self.asked[number][0] != whose
        except PayoutsUnavailable:
            assert self.node.is_away and not known
        else:
            assert is_new is not known
            if is_new:
                assert amount_msat + 40 <= available_msat
                assert covered or made.state is Status.AWAITING_APPROVAL
                self.asked[number] = (whose, amount_msat, made.id)
        await self.settle_down()

    async def transfer(self, number, payer, receiver, amount_msat):
        """Withdraw to a top-up of another account."""
        name = self.name(f"inside {number}")
        text = f"lnbcrt1inside{name}"
        if text not in self.node.invoices:
            await asked(
                self.topups, self.accounts[receiver], name, amount_msat=amount_msat, expires_at=NOW + timedelta(days=9)
            )
            self.node.invoice(
                name, amount_msat, payee=OWN, payment_hash=hash_of(name), expires_at=NOW + timedelta(days=9)
            )
            self.node.invoices[text] = self.node.invoices.pop(f"lnbcrt1invoice{name}")
            self.inside[number] = (-1, receiver, amount_msat)
        was_payer, receiver, amount_msat = self.inside[number]
        if amount_msat > RULES.approval_msat:
            return
        available_msat = self.model_balances()[payer].available_msat
        try:
            made, is_new = await self.payouts.request(self.accounts[payer], "key", text)
        except InsufficientFunds:
            assert was_payer == -1 and available_msat < amount_msat
        except InvalidInvoice:
            assert payer == receiver
        except InvoiceUsed:
            assert was_payer not in {-1, payer}
        except PayoutsUnavailable:
            assert self.node.is_away
        else:
            assert made.state is Status.SETTLED
            assert is_new is (was_payer == -1)
            self.inside[number] = (payer, receiver, amount_msat)

    async def finish(self, number, settles):
        """End a payment that its payee holds."""
        payment_hash = self.hash(number)
        if (shown := self.node.payments.get(payment_hash)) is not None and shown is IN_FLIGHT:
            self.node.payments[payment_hash] = settled(11) if settles else NO_ROUTE

    async def decide(self, number, approve):
        if number in self.asked:
            found = await self.withdrawals.get(self.asked[number][2])
            if found.state is Status.AWAITING_APPROVAL:
                await self.withdrawals.decide(found.id, approve=approve, reason="so", actor="op", at=NOW)

    async def catch_up(self, later_s):
        self.moved_s += later_s
        self.node.funds_msat = max(0, self.lnd_msat())
        try:
            await self.payouts.catch_up()
        except PayoutsUnavailable:
            assert self.node.is_away
        await self.settle_down()

    async def away(self, is_away):
        self.node.is_away = is_away

    async def buy(self, number, whose, owner, price_msat, end):
        """Buy at a node of an account, which earns the price less a tenth where it delivers."""
        if number in self.bought:
            return
        name = self.name(f"purchase {number}")
        payee = Payee("gpu", self.accounts[owner], 100_000)
        intent = charged(
            name,
            self.accounts[whose],
            price_msat=price_msat,
            payee=payee,
            refund_undelivered=True,
            source=ProviderSource.NODE,
            peer_id="node:gpu",
            payment_hash=None,
            fee_cap_msat=Msat(0),
        )
        try:
            await self.journal.intend(intent)
        except InsufficientBalance as refused:
            told_msat, charge_msat = refused.available_msat, intent.charge.amount_msat
            assert told_msat == self.model_balances()[whose].available_msat < charge_msat
            return
        if end != "leave open":
            self.journal.record(job(name), State.SETTLED, NOW)
            self.journal.record(job(name), State.DELIVERED if end == "deliver" else State.UNDELIVERED, NOW)
            await written(self.journal)
        self.bought[number] = (whose, owner, price_msat, end)

    async def crash(self, at_once):
        """Kill the process with its payments under way; another one starts, sweeps and takes over."""
        if not at_once:
            await asyncio.sleep(0)
        for task in self.tasks:
            task.cancel()
        await self.settle_down()
        self.journal._task.cancel()
        await asyncio.gather(self.journal._task, return_exceptions=True)
        dead = self.database.owner
        await self.database.close()
        await self.start()
        await until_gone(self.database, dead)
        for _ in range(3):
            await sweep(self.database, NOW + timedelta(minutes=1))
        for number, (whose, owner, price_msat, end) in self.bought.items():
            # What a dead gateway left open was not delivered.
            self.bought[number] = (whose, owner, price_msat, "lose" if end == "leave open" else end)
        await self.catch_up(0)

    def model_balances(self):
        """What each balance is, by what the world and the rows' states say."""
        balance, held = [0] * 3, [0] * 3
        for whose, amount_msat in self.topped.values():
            balance[whose] += amount_msat
        for payer, receiver, amount_msat in self.inside.values():
            if payer >= 0:
                balance[payer] -= amount_msat
                balance[receiver] += amount_msat
        for number, (whose, amount_msat, _) in self.asked.items():
            state, fee_msat = self.rows.get(number, (Status.PAYING, 0))
            if state is Status.SETTLED:
                balance[whose] -= amount_msat + fee_msat
            elif state not in {Status.FAILED, Status.DENIED}:
                held[whose] += amount_msat + 40
        for whose, owner, price_msat, end in self.bought.values():
            charge_msat = price_msat - (-price_msat * 50_000 // 1_000_000)
            if end == "leave open":
                held[whose] += charge_msat
            elif end == "deliver":
                balance[whose] -= charge_msat
                balance[owner] += price_msat + -price_msat * 100_000 // 1_000_000
        return [Balance(Msat(b), Msat(h)) for b, h in zip(balance, held, strict=True)]

    async def check(self):
        self.rows = {}
        for number, (_, _, withdrawal_id) in self.asked.items():
            found = await self.withdrawals.get(withdrawal_id)
            self.rows[number] = (found.state, found.fee_msat or 0)
            shown = self.node.payments.get(self.hash(number), ABSENT)
            # The ledger never says other than the node: paid is settled or not known yet, and what failed was not paid.
            if found.state is Status.SETTLED:
                assert shown.state is PayoutState.SETTLED and found.fee_msat == shown.fee_msat
            if found.state in {Status.FAILED, Status.DENIED}:
                assert shown.state in {PayoutState.ABSENT, PayoutState.FAILED}
            if shown.state in {PayoutState.SETTLED, PayoutState.IN_FLIGHT}:
                assert found.state in {Status.PAYING, Status.UNKNOWN, Status.SETTLED}
        for account_id, expected in zip(self.accounts, self.model_balances(), strict=True):
            balance = await self.ledger.balance(account_id)
            assert balance == expected
            assert balance.balance_msat >= balance.held_msat >= 0
        assert len(self.node.paid) == len(set(self.node.paid))


_runs = itertools.count()


@settings(
    max_examples=examples(0.5),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(steps, min_size=10, max_size=35))
async def test_balances_and_the_node_agree_after_any_sequence(where, sequence):
    world = World(where, next(_runs))
    world.rows = {}
    await world.start()
    try:
        world.accounts = [
            (await Accounts(world.database).create(name, actor="op", at=NOW)).id for name in ("one", "two", "three")
        ]
        for whose in range(3):
            await world.topup(f"to begin with {whose}", whose, 2_000)
        await world.check()
        for name, *arguments in sequence:
            await getattr(world, name)(*arguments)
            await world.check()
        # In the end everything is found out.
        await world.away(is_away=False)
        for number in range(6):
            await world.finish(number, settles=number % 2 == 0)
        for _ in range(3):
            await world.catch_up(90)
        await world.check()
        left = {state for state, _ in world.rows.values()}
        assert left <= {Status.SETTLED, Status.FAILED, Status.DENIED, Status.AWAITING_APPROVAL, Status.APPROVED}
        audit = await world.ledger.audit()
        assert audit.problems == []
    finally:
        await world.stop()
