"""Withdrawals from the request to the end: checked, paid by one call, and followed until there is evidence."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest

from lcp_gateway.accounts.models import Balance
from lcp_gateway.accounts.payouts import Payouts
from lcp_gateway.accounts.withdrawal_states import WithdrawalState as State
from lcp_gateway.accounts.withdrawals import (
    AmountRefused,
    FailedBecause,
    InvalidInvoice,
    InvoiceUsed,
    NodeCannotCover,
    PayoutsUnavailable,
    WithdrawalRules,
    WithdrawalsDisabled,
)
from lcp_gateway.purchase.money import Msat
from lcp_gateway.store.accounts.withdrawals import Withdrawals
from lcp_gateway.store.database.engines import DatabaseUnavailable, open_database
from tests.accounts.paying_node import ABSENT, IN_FLIGHT, NO_ROUTE, OWN, REFUSED, UNCLEAR, PayingNodeStandIn, settled

RULES = WithdrawalRules(enabled=True, min_msat=1_000, max_msat=50_000, fee_ppm=10_000, fee_base_msat=90)


class Desk:
    """Payouts on the bank's database, with a clock that the test moves, and the tasks that it started."""

    def __init__(self, bank, node, rules=RULES):
        self.bank, self.node = bank, node
        self.tasks: list[asyncio.Task] = []
        self.ended, self.troubles = [], []
        # Where a test sets it, the clock stands there; otherwise it runs.
        self.stands_at: datetime | None = None
        self.moved = timedelta(0)
        self.clock_s = 0.0
        self.withdrawals = Withdrawals(bank.database)
        self.payouts = Payouts(
            self.withdrawals,
            node,
            rules,
            start_task=self._start,
            unavailable=(DatabaseUnavailable,),
            on_end=self.ended.append,
            on_trouble=self.troubles.append,
            now=lambda: (self.stands_at or datetime.now(UTC)) + self.moved,
            clock=lambda: self.clock_s,
        )

    def _start(self, run, *, may_return=bool):
        task = asyncio.create_task(run())
        self.tasks.append(task)
        return task

    async def request(self, account_id, text, **more):
        return await self.payouts.request(account_id, "key_1", text, **more)

    async def settle_down(self):
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def paid(self, account_id, text, **more):
        made, _ = await self.request(account_id, text, **more)
        await self.settle_down()
        return await self.withdrawals.get(made.id)


@pytest.fixture
def node():
    return PayingNodeStandIn()


@pytest.fixture
def desk(bank, node):
    return Desk(bank, node)


async def test_an_invoice_is_paid_and_the_fee_charged_as_it_was(bank, desk, node):
    account_id = await bank.customer(10_000)
    ended = await desk.paid(account_id, node.invoice(1))
    assert (ended.state, ended.fee_msat, ended.preimage) == (State.SETTLED, 7, b"\x09" * 32)
    # 1 % and 90 msat.
    assert node.calls == [(ended.payment_hash, None, 100)]
    assert desk.ended == [ended]
    assert await bank.available(account_id) == 8_993


async def test_an_invoice_without_an_amount_needs_one(bank, desk, node):
    account_id = await bank.customer(10_000)
    text = node.invoice(1, None)
    for amount_msat in (None, 0):
        with pytest.raises(AmountRefused, match="names no amount"):
            await desk.request(account_id, text, amount_msat=amount_msat)
    ended = await desk.paid(account_id, text, amount_msat=2_000)
    assert (ended.state, ended.amount_msat) == (State.SETTLED, 2_000)
    assert node.calls == [(ended.payment_hash, 2_000, 110)]
    with pytest.raises(InvoiceUsed):
        await desk.request(account_id, text, amount_msat=3_000)
    with pytest.raises(AmountRefused, match="is for 1000 msat"):
        await desk.request(account_id, node.invoice(2), amount_msat=1_001)
    assert (await desk.paid(account_id, node.invoice(3), amount_msat=1_000)).state is State.SETTLED


async def test_a_customer_can_lower_the_fee_limit_and_never_raise_it(bank, desk, node):
    account_id = await bank.customer(10_000)
    lower = await desk.paid(account_id, node.invoice(1), max_fee_msat=7)
    higher = await desk.paid(account_id, node.invoice(2), max_fee_msat=5_000)
    assert [lower.fee_limit_msat, higher.fee_limit_msat] == [7, 100]


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"network": "bc"}, InvalidInvoice),
        ({"expires_at": datetime(2026, 1, 1, tzinfo=UTC)}, InvalidInvoice),
        ({"payee": OWN}, InvalidInvoice),
        ({"amount_msat": 999}, AmountRefused),
        ({"amount_msat": 50_001}, AmountRefused),
    ],
)
async def test_what_cannot_be_paid_is_refused_and_holds_nothing(bank, desk, node, changes, error):
    account_id = await bank.customer(100_000)
    with pytest.raises(error):
        await desk.request(account_id, node.invoice(1, **changes))
    with pytest.raises(InvalidInvoice):
        await desk.request(account_id, "no invoice")
    assert await bank.ledger.balance(account_id) == Balance(Msat(100_000), Msat(0))
    assert node.calls == []


async def test_off_by_default_and_without_a_node_that_pays(bank, node):
    account_id = await bank.customer(10_000)
    text = node.invoice(1)
    with pytest.raises(WithdrawalsDisabled, match="withdrawals"):
        await Desk(bank, node, WithdrawalRules()).request(account_id, text)
    with pytest.raises(WithdrawalsDisabled, match="lnd_withdrawal_macaroon_file"):
        await Desk(bank, None).request(account_id, text)
    node.is_away = True
    with pytest.raises(PayoutsUnavailable):
        await Desk(bank, node).request(account_id, text)


async def test_an_invoice_that_the_node_pays_for_another_reason_or_could_not_is_refused(bank, desk, node):
    """Regression: with a failure of an earlier payment, a call whose answer was lost counted as failed at once.

    The hold was released while the node could still get the call and pay.
    """
    account_id = await bank.customer(10_000)
    for number, shown in enumerate((settled(), IN_FLIGHT, NO_ROUTE)):
        text = node.invoice(number)
        node.payments[node.hash_of(text)] = shown
        with pytest.raises(InvoiceUsed, match="the node"):
            await desk.request(account_id, text)
    assert node.calls == []


async def test_the_same_invoice_again_is_the_same_withdrawal(bank, desk, node):
    account_id = await bank.customer(10_000)
    text = node.invoice(1)
    made = await desk.paid(account_id, text)
    node.is_away = True
    assert await desk.request(account_id, text) == (made, False)
    with pytest.raises(InvoiceUsed):
        await desk.request(await bank.customer(10_000), text)
    assert len(node.calls) == 1


async def test_a_request_that_another_one_for_the_same_invoice_overtakes_gets_that_withdrawal(bank, desk, node):
    """Regression: of two requests at one time the later one was refused, as if the node had paid for another reason."""
    account_id = await bank.customer(10_000)
    track, overtook = node.track, {}

    async def track_late(payment_hash):
        if payment_hash not in overtook:
            overtook[payment_hash] = None
            overtook[payment_hash] = await desk.paid(account_id, texts[payment_hash])
        return await track(payment_hash)

    node.track = track_late
    texts = {node.hash_of(text): text for text in (node.invoice(1), node.invoice(2))}
    (first_hash, first), (second_hash, second) = texts.items()
    assert await desk.request(account_id, first) == (overtook[first_hash], False)
    with pytest.raises(InvoiceUsed, match="used before"):
        await desk.request(await bank.customer(10_000), second)
    assert node.paid == [first_hash, second_hash]


@pytest.mark.parametrize(
    ("told", "shown", "state", "reason"),
    [
        (NO_ROUTE, NO_ROUTE, State.FAILED, FailedBecause.NO_ROUTE),
        (REFUSED, ABSENT, State.FAILED, FailedBecause.REFUSED),
        (REFUSED, settled(5), State.SETTLED, None),
        (REFUSED, IN_FLIGHT, State.UNKNOWN, None),
        (UNCLEAR, settled(5), State.UNKNOWN, None),
        (UNCLEAR, ABSENT, State.UNKNOWN, None),
    ],
)
async def test_what_the_call_ends_with_is_judged_by_what_the_node_shows(bank, desk, node, told, shown, state, reason):
    account_id = await bank.customer(10_000)
    node.go = lambda _hash: (told, shown)
    ended = await desk.paid(account_id, node.invoice(1))
    assert (ended.state, ended.reason) == (state, reason)
    assert await bank.available(account_id) == {State.FAILED: 10_000, State.UNKNOWN: 8_900, State.SETTLED: 8_995}[state]


async def test_an_unknown_one_is_found_out_by_its_hash(bank, desk, node):
    account_id = await bank.customer(10_000)
    node.go = lambda _hash: (UNCLEAR, IN_FLIGHT)
    first, second = [await desk.paid(account_id, node.invoice(n)) for n in range(2)]
    await desk.payouts.catch_up()
    assert (await desk.withdrawals.get(first.id)).state is State.UNKNOWN
    node.payments[first.payment_hash] = settled(11)
    node.payments[second.payment_hash] = NO_ROUTE
    await desk.payouts.catch_up()
    assert (await desk.withdrawals.get(first.id)).fee_msat == 11
    assert (await desk.withdrawals.get(second.id)).state is State.FAILED
    assert await bank.available(account_id) == 10_000 - 1_011
    assert [it.id for it in desk.ended] == [first.id, second.id]


async def test_absence_is_evidence_at_two_looks_a_minute_apart(bank, desk, node):
    desk.stands_at = datetime.now(UTC)
    account_id = await bank.customer(10_000)
    node.go = lambda _hash: (UNCLEAR, ABSENT)
    lost = await desk.paid(account_id, node.invoice(1))
    for after_s in (300, 359):
        desk.moved = timedelta(seconds=after_s)
        await desk.payouts.catch_up()
        assert (await desk.withdrawals.get(lost.id)).state is State.UNKNOWN
    # It is there after all: the next absence counts from its own first look.
    node.payments[lost.payment_hash] = IN_FLIGHT
    await desk.payouts.catch_up()
    del node.payments[lost.payment_hash]
    for after_s, state in ((400, State.UNKNOWN), (459, State.UNKNOWN), (460.1, State.FAILED)):
        desk.moved = timedelta(seconds=after_s)
        await desk.payouts.catch_up()
        assert (await desk.withdrawals.get(lost.id)).state is state
    assert (await desk.withdrawals.get(lost.id)).reason is FailedBecause.NEVER_SENT
    assert await bank.available(account_id) == 10_000


async def test_another_node_knows_nothing_of_it(bank, desk, node):
    account_id = await bank.customer(10_000)
    node.go = lambda _hash: (UNCLEAR, ABSENT)
    lost = await desk.paid(account_id, node.invoice(1))
    node.node_id = "02" + "ee" * 32
    for minutes in (1, 10, 20):
        desk.moved = timedelta(minutes=minutes)
        await desk.payouts.catch_up()
    assert (await desk.withdrawals.get(lost.id)).state is State.UNKNOWN
    assert "another node" in desk.troubles[-1]


async def test_a_process_that_stood_still_after_the_commit_sends_nothing(bank, desk, node):
    account_id = await bank.customer(10_000)
    made, _ = await desk.request(account_id, node.invoice(1))
    desk.clock_s = 6.0
    await desk.settle_down()
    assert node.calls == []
    assert (await desk.withdrawals.get(made.id)).state is State.UNKNOWN


async def test_a_process_that_stood_still_during_the_commit_sends_nothing(bank, desk, node, monkeypatch):
    account_id = await bank.customer(10_000)
    create, begin = desk.withdrawals.create, desk.withdrawals.begin

    async def slow_create(*arguments):
        made = await create(*arguments)
        desk.clock_s += 600.0
        return made

    async def slow_begin(*arguments):
        begun = await begin(*arguments)
        desk.clock_s += 600.0
        return begun

    monkeypatch.setattr(desk.withdrawals, "create", slow_create)
    monkeypatch.setattr(desk.withdrawals, "begin", slow_begin)
    # Meanwhile another gateway may have found that the node has no such payment, and have given the money back.
    at_once = await desk.paid(account_id, node.invoice(1))
    desk.payouts.rules = replace(RULES, approval_msat=1)
    approved = await desk.paid(account_id, node.invoice(2))
    await desk.withdrawals.decide(approved.id, approve=True, reason="ok", actor="op", at=datetime.now(UTC))
    await desk.payouts.catch_up()
    await desk.settle_down()
    assert node.calls == []
    assert [(await desk.withdrawals.get(it.id)).state for it in (at_once, approved)] == [State.UNKNOWN] * 2


async def test_the_outcome_is_written_as_soon_as_the_database_can_be_written_again(bank, desk, node, monkeypatch):
    account_id = await bank.customer(10_000)
    record, away = desk.withdrawals.record, [True]

    async def sometimes(*arguments, **more):
        if away:
            away.pop()
            raise DatabaseUnavailable("the disk is full")
        return await record(*arguments, **more)

    monkeypatch.setattr(desk.withdrawals, "record", sometimes)
    monkeypatch.setattr("lcp_gateway.accounts.payouts._RETRY_S", 0.0)
    assert (await desk.paid(account_id, node.invoice(1))).state is State.SETTLED
    assert "the disk is full" in desk.troubles[0]


async def test_one_that_this_process_lost_is_taken_over(bank, desk, node):
    account_id = await bank.customer(10_000)
    node.gate = asyncio.Event()
    made, _ = await desk.request(account_id, node.invoice(1))
    await asyncio.sleep(0)
    await desk.payouts.catch_up()
    assert (await desk.withdrawals.get(made.id)).state is State.PAYING
    desk.tasks[0].cancel()
    await desk.settle_down()
    await desk.payouts.catch_up()
    assert (await desk.withdrawals.get(made.id)).state is State.SETTLED


async def test_one_that_was_begun_when_its_client_left_becomes_unknown_at_a_gateway_that_does_not_lead(
    bank, desk, node, tmp_path, monkeypatch
):
    account_id = await bank.customer(10_000)
    create = desk.withdrawals.create

    async def left(*arguments):
        await create(*arguments)
        raise asyncio.CancelledError

    monkeypatch.setattr(desk.withdrawals, "create", left)
    with pytest.raises(asyncio.CancelledError):
        await desk.request(account_id, node.invoice(1))
    begun = await desk.withdrawals.by_payment_hash(node.hash_of("lnbcrt1invoice1"))
    leading = Desk(replace(bank, database=await open_database(tmp_path / "journal.db")), node)
    await leading.payouts.catch_up()
    assert (await leading.withdrawals.get(begun.id)).state is State.PAYING, "its gateway lives, and may be about to pay"
    await desk.payouts.let_go()
    assert (await leading.withdrawals.get(begun.id)).state is State.PAYING, "nor is it too old to be sent yet"
    await desk.payouts.let_go()
    assert (await leading.withdrawals.get(begun.id)).state is State.UNKNOWN
    for moved in (timedelta(0), timedelta(seconds=61)):
        leading.moved = moved
        await leading.payouts.catch_up()
    await leading.bank.database.close()
    assert node.calls == []
    assert (await desk.withdrawals.get(begun.id)).reason is FailedBecause.NEVER_SENT
    assert await bank.available(account_id) == 10_000


async def test_payments_that_a_payee_leaves_in_flight_do_not_hide_the_others(bank, desk, node, monkeypatch):
    account_id = await bank.customer(100_000)
    monkeypatch.setattr(desk.withdrawals, "open_ones", partial(desk.withdrawals.open_ones, limit=2))
    node.go = lambda _hash: (UNCLEAR, IN_FLIGHT)
    for number in range(5):
        assert (await desk.paid(account_id, node.invoice(number))).state is State.UNKNOWN
    node.payments[node.hash_of("lnbcrt1invoice4")] = settled()
    await desk.payouts.catch_up()
    assert (await desk.withdrawals.by_payment_hash(node.hash_of("lnbcrt1invoice4"))).state is State.SETTLED


async def test_one_that_is_being_paid_stays_so(bank, desk, node):
    account_id = await bank.customer(10_000)
    node.gate = asyncio.Event()
    made, _ = await desk.request(account_id, node.invoice(1))
    for _ in range(3):
        await desk.payouts.let_go()
    assert (await desk.withdrawals.get(made.id)).state is State.PAYING
    node.gate.set()
    await desk.settle_down()
    assert (await desk.withdrawals.get(made.id)).state is State.SETTLED


async def test_approved_ones_are_paid_by_the_gateway_that_leads(bank, desk, node):
    account_id = await bank.customer(100_000)
    desk.payouts.rules = replace(RULES, approval_msat=1_000)
    waiting = await desk.paid(account_id, node.invoice(1, 1_001))
    late = await desk.paid(account_id, node.invoice(2, 1_001, expires_at=datetime.now(UTC) + timedelta(seconds=60)))
    await desk.payouts.catch_up()
    assert node.calls == []
    await desk.withdrawals.decide(waiting.id, approve=True, reason="ok", actor="op", at=datetime.now(UTC))
    node.funds_msat = 99_999
    await desk.payouts.catch_up()
    assert "cannot pay out" in desk.troubles[-1]
    node.funds_msat = 100_000
    desk.payouts.rules = replace(desk.payouts.rules, enabled=False)
    await desk.payouts.catch_up()
    assert node.calls == []
    desk.payouts.rules = replace(desk.payouts.rules, enabled=True)
    await desk.payouts.catch_up()
    await desk.settle_down()
    assert (await desk.withdrawals.get(waiting.id)).state is State.SETTLED
    desk.moved = timedelta(seconds=61)
    await desk.payouts.catch_up()
    ended = await desk.withdrawals.get(late.id)
    assert (ended.state, ended.reason) == (State.FAILED, FailedBecause.EXPIRED)
    assert await bank.available(account_id) == 100_000 - 1_008


async def test_a_hundred_at_once_on_a_balance_for_ten(bank, desk, node):
    account_id = await bank.customer(11_000)
    texts = [node.invoice(n) for n in range(100)]
    made = await asyncio.gather(*(desk.request(account_id, text) for text in texts), return_exceptions=True)
    await desk.settle_down()
    assert len(node.paid) == len(set(node.paid)) == sum(not isinstance(it, Exception) for it in made)
    assert len(node.paid) >= 10
    balance = await bank.ledger.balance(account_id)
    assert balance == Balance(Msat(11_000 - 1_007 * len(node.paid)), Msat(0))
    assert balance.balance_msat >= 0
    assert (await bank.ledger.audit()).problems == []


async def test_nothing_is_paid_out_while_the_node_holds_less_than_is_owed(bank, desk, node):
    account_id = await bank.customer(10_000)
    await bank.customer(5_000)
    node.funds_msat = 14_999
    with pytest.raises(NodeCannotCover):
        await desk.request(account_id, node.invoice(1))
    node.funds_msat = 15_000
    assert (await desk.paid(account_id, node.invoice(1))).state is State.SETTLED
