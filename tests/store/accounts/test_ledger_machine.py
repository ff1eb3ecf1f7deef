"""After any sequence of operations and crashes, balances agree with a model."""

import asyncio
import itertools
from dataclasses import dataclass, field
from datetime import timedelta

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lcp_gateway.accounts.models import AdjustmentExceedsBalance, AdjustmentIdReused, Balance
from lcp_gateway.purchase.journal import DuplicateIntent, InsufficientBalance, PurchaseUpdate
from lcp_gateway.purchase.money import Markup, Msat
from lcp_gateway.purchase.quote import ProviderSource
from lcp_gateway.purchase.records import PurchaseFilter
from lcp_gateway.purchase.states import TRANSITIONS, State
from lcp_gateway.store.accounts.accounts import Accounts
from lcp_gateway.store.accounts.ledger import Ledger
from lcp_gateway.store.accounts.topups import Topups
from lcp_gateway.store.database.engines import open_database
from lcp_gateway.store.journal.queries import Books
from lcp_gateway.store.journal.recovery import sweep
from lcp_gateway.store.journal.writer import JournalWriter
from tests.store.invoices import asked, hash_of
from tests.store.journals import NOW, charged, job, written
from tests.support.examples import examples

LEFT_OPEN = PurchaseFilter(states=[State.PAYING, State.SETTLED])
WHOSE = st.integers(0, 1)
NUMBERS = st.integers(0, 3)
AMOUNTS = st.integers(0, 1_000)
MARKUPS = (Markup(), Markup(50_000), Markup(333_333, Msat(7)))

updates = st.tuples(
    st.just("update"),
    NUMBERS,
    st.sampled_from([None, State.UNKNOWN, State.NOT_PAID, State.SETTLED])
    | st.sampled_from([State.DELIVERED, State.UNDELIVERED]),
    st.none() | AMOUNTS,
)
buys = st.tuples(
    st.just("buy"), NUMBERS, WHOSE, AMOUNTS, st.sampled_from(MARKUPS), st.booleans(), st.sampled_from(ProviderSource)
)
steps = st.one_of(
    # Weighted: the operations that matter most here come more often.
    *([updates] * 4),
    *([buys] * 2),
    st.tuples(st.just("topup"), NUMBERS, WHOSE, AMOUNTS.filter(bool)),
    st.tuples(st.just("adjust"), NUMBERS, WHOSE, st.integers(-2_000, 2_000).filter(bool)),
    st.tuples(st.just("pause")),
    st.tuples(st.just("crash"), st.booleans()),
)


@dataclass
class Bought:
    """The model's record of a purchase: the intent, the updates that are surely written, and those that may not be yet."""

    whose: int
    price_msat: int
    charge_msat: int
    markup: Markup
    refund: bool
    source: ProviderSource
    updates: list = field(default_factory=list)
    waiting: list = field(default_factory=list)

    def after(self, updates):
        """Return the state and the charge after a sequence of updates."""
        state, price_msat, charge_msat = State.PAYING, self.price_msat, self.charge_msat
        for to, charged_msat in updates:
            if to not in {None, state}:
                if to not in TRANSITIONS[state].values():
                    continue
                state = to
            if charged_msat is not None and charged_msat < price_msat:
                price_msat = charged_msat
                charge_msat = min(charge_msat, self.markup.charge_msat(price_msat))
        return state, charge_msat

    def swept(self, updates):
        match self.after(updates)[0]:
            case State.PAYING if self.source is ProviderSource.LCP:
                ends = [State.UNKNOWN]
            case State.PAYING:
                ends = [State.SETTLED, State.UNDELIVERED]
            case State.SETTLED:
                # It is not known how much of the result the client got.
                ends = [State.UNDELIVERED]
            case _:
                ends = []
        return [*updates, *((end, None) for end in ends)]

    def money(self):
        """Return what is held of the balance, and what was taken from it."""
        state, charge_msat = self.after(self.updates)
        if state in {State.PAYING, State.UNKNOWN}:
            return charge_msat, 0
        if state is State.NOT_PAID or (state is State.UNDELIVERED and self.refund):
            return 0, 0
        return 0, charge_msat


class Model:
    def __init__(self):
        self.topups = {}
        self.adjustments = {}
        self.purchases = {}

    def balance(self, whose):
        moneys = [p.money() for p in self.purchases.values() if p.whose == whose]
        given = [
            amount_msat
            for source in (self.topups, self.adjustments)
            for of_whom, amount_msat in source.values()
            if of_whom == whose
        ]
        held_msat = sum(held for held, _ in moneys)
        return Balance(Msat(sum(given) - sum(taken for _, taken in moneys)), Msat(held_msat))

    def all_written(self):
        for purchase in self.purchases.values():
            purchase.updates += purchase.waiting
            purchase.waiting = []


class Gateway:
    """One process after another on one database, each with a prefix for the ids that it makes."""

    def __init__(self, where, run):
        self._where = where
        self.run = run
        self.model = Model()
        self.accounts = []

    async def start(self):
        self.database = await open_database(self._where, gone_after_s=0)
        self.journal = JournalWriter(self.database, on_problem=lambda _problem: None)
        self.journal.start()
        self.ledger, self.topups = Ledger(self.database), Topups(self.database)
        self.books = Books(self.database)

    async def stop(self):
        await self.journal.close()
        await self.database.close()

    def name(self, what):
        return f"{self.run}/{what}"

    async def topup(self, number, whose, amount_msat):
        """The first call creates the invoice; every later one reports the same payment again."""
        name = self.name(number)
        if number not in self.model.topups:
            await asked(self.topups, self.accounts[whose], name, amount_msat=amount_msat)
            self.model.topups[number] = (whose, amount_msat)
        _, amount_msat = self.model.topups[number]
        await self.topups.settle(hash_of(name), Msat(amount_msat), settle_index=1, at=NOW)

    async def adjust(self, number, whose, amount_msat):
        await self.pause()
        before = self.model.adjustments.get(number)
        available_msat = self.model.balance(whose).available_msat
        try:
            await self.ledger.adjust(
                self.accounts[whose],
                Msat(amount_msat),
                reason="because",
                actor="op",
                at=NOW,
                adjustment_id=self.name(number),
            )
        except AdjustmentIdReused:
            assert before not in {None, (whose, amount_msat)}
        except AdjustmentExceedsBalance as low:
            told_msat = low.available_msat
            assert before is None
            assert told_msat == available_msat < -amount_msat
        else:
            assert before in {None, (whose, amount_msat)}
            self.model.adjustments[number] = (whose, amount_msat)

    async def buy(self, number, whose, price_msat, markup, refund, source):
        intent = charged(
            self.name(number),
            self.accounts[whose],
            price_msat=price_msat,
            markup=markup,
            refund_undelivered=refund,
            source=source,
        )
        # Its queued updates are written first in any case.
        self.model.all_written()
        is_new = number not in self.model.purchases
        available_msat = self.model.balance(whose).available_msat
        charge_msat = intent.charge.amount_msat
        try:
            await self.journal.intend(intent)
        except DuplicateIntent:
            assert not is_new
        except InsufficientBalance as refused:
            told_msat = refused.available_msat
            assert is_new
            assert told_msat == available_msat < charge_msat
        else:
            assert is_new and charge_msat <= available_msat
            self.model.purchases[number] = Bought(whose, price_msat, charge_msat, markup, refund, source)

    async def update(self, number, state, charged_msat):
        update = PurchaseUpdate(charged_msat=None if charged_msat is None else Msat(charged_msat))
        job_id = job(self.name(number))
        self.journal.record(job_id, state, NOW, update)
        if number in self.model.purchases:
            self.model.purchases[number].waiting.append((state, charged_msat))

    async def pause(self):
        await written(self.journal)
        self.model.all_written()
        await self.check()

    async def crash(self, at_once):
        """Kill the process with queued updates unwritten or being written; another process starts and sweeps."""
        if not at_once:
            await asyncio.sleep(0)
        self.journal._task.cancel()
        await asyncio.gather(self.journal._task, return_exceptions=True)
        await self.database.close()
        await self.start()
        async with asyncio.timeout(60):
            while (await self.books.page(LEFT_OPEN)).purchases:
                await sweep(self.database, NOW + timedelta(minutes=1))
        for number, purchase in self.model.purchases.items():
            found = await self.books.purchase(job(self.name(number)))
            stands = found.state, found.charge.amount_msat
            for upto in range(len(purchase.waiting) + 1):
                updates = purchase.swept([*purchase.updates, *purchase.waiting[:upto]])
                if purchase.after(updates) == stands:
                    break
            else:
                raise AssertionError((stands, purchase))
            purchase.updates, purchase.waiting = updates, []
        await self.check()

    async def check(self):
        for whose, account_id in enumerate(self.accounts):
            balance = await self.ledger.balance(account_id)
            assert balance == self.model.balance(whose)
            assert balance.balance_msat >= balance.held_msat >= 0


_runs = itertools.count()


@settings(
    max_examples=examples(0.25),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(steps, min_size=10, max_size=40))
async def test_balances_are_what_a_model_says_after_any_sequence(where, sequence):
    gateway = Gateway(where, next(_runs))
    await gateway.start()
    try:
        gateway.accounts = [
            (await Accounts(gateway.database).create(name, actor="op", at=NOW)).id for name in ("first", "second")
        ]
        for whose in range(2):
            await gateway.topup(f"to begin with {whose}", whose, 2_000)
        for name, *arguments in sequence:
            await getattr(gateway, name)(*arguments)
        await gateway.pause()
        for whose, account_id in enumerate(gateway.accounts):
            statement = await gateway.ledger.statement(account_id)
            newest = statement.lines[0].balance_msat if statement.lines else 0
            assert newest == gateway.model.balance(whose).balance_msat
        audit = await gateway.ledger.audit()
        assert audit.problems == []
    finally:
        await gateway.stop()
