"""Settlements of top-ups: each is credited once, from the last known index, by one gateway at a time, through outages."""

import asyncio
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest

from lcp_gateway.accounts import settlements
from lcp_gateway.accounts.models import TopupPurpose, TopupState
from lcp_gateway.accounts.settlements import Settlements


class DatabaseAway(Exception):
    pass


class ScriptedLeadership:
    """A leadership that the test sets; ``problem`` is raised if set."""

    def __init__(self, *, leads: bool = True) -> None:
        self.leads = leads
        self.problem: Exception | None = None

    async def try_lead(self) -> bool:
        if self.problem is not None:
            raise self.problem
        return self.leads


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(settlements, "_RETRY_S", 0.01)
    monkeypatch.setattr(settlements, "_MAX_RETRY_S", 0.02)
    monkeypatch.setattr(settlements, "_FOLLOWER_S", 0.01)


async def until(condition, timeout_s: float = 60.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not (found := condition()) or (asyncio.iscoroutine(found) and not await found):
            await asyncio.sleep(0.005)


class Follower:
    """Running settlements, and what they reported."""

    def __init__(self, bank, lead: ScriptedLeadership) -> None:
        self.bank = bank
        self.troubles: list[str] = []
        self.leading: list[bool] = []
        self.settlements = Settlements(
            bank.invoices,
            bank.topups,
            lead,
            on_credit=bank.credits.append,
            on_trouble=self.troubles.append,
            on_lead=self.leading.append,
            unavailable=(DatabaseAway,),
        )

    @asynccontextmanager
    async def running(self):
        works = (self.settlements.lead, self.settlements.follow, self.settlements.look_up)
        tasks = {asyncio.create_task(work()) for work in works}
        try:
            yield self
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def credited(self, count: int) -> None:
        await until(lambda: len(self.bank.credits) >= count)


@pytest.fixture
def lead() -> ScriptedLeadership:
    return ScriptedLeadership()


@pytest.fixture
def follower(bank, lead) -> Follower:
    return Follower(bank, lead)


async def opened(bank, count: int) -> tuple[str, list]:
    account_id = await bank.customer()
    return account_id, [await bank.wallet().top_up(account_id, 1_000) for _ in range(count)]


async def test_a_payment_is_credited_without_polling(bank, follower):
    account_id, (made,) = await opened(bank, 1)
    async with follower.running():
        await until(lambda: bank.invoices.followed_from)
        bank.invoices.pay(made.payment_hash)
        await follower.credited(1)
        # From where the next one goes on is written after the credit.
        await until(lambda: _followed(bank, 1))
    assert await bank.available(account_id) == 1_000


async def test_a_payment_while_no_gateway_listened_is_credited_once_at_the_start(bank, follower):
    account_id, made = await opened(bank, 3)
    for topup in made:
        bank.invoices.pay(topup.payment_hash)
    async with follower.running():
        await follower.credited(3)
        await until(lambda: bank.invoices.followed_from)
        await asyncio.sleep(0.05)
    assert await bank.available(account_id) == 3_000
    assert sorted(c.topup.id for c in bank.credits) == sorted(t.id for t in made), "each once"


async def test_it_goes_on_from_where_it_was_left(bank, lead):
    account_id, made = await opened(bank, 2)
    for topup in made:
        async with Follower(bank, lead).running() as follower:
            bank.invoices.pay(topup.payment_hash)
            await follower.credited(len(bank.invoices.payments))
            done = len(bank.invoices.payments)
            await until(lambda done=done: _followed(bank, done))
    async with Follower(bank, lead).running():
        await until(lambda: len(bank.invoices.followed_from) == 3)
    assert bank.invoices.followed_from[-1] == 2
    assert await bank.available(account_id) == 2_000


async def _followed(bank, index: int) -> bool:
    return await bank.topups.followed(await bank.invoices.node_id()) >= index


async def test_a_settlement_that_was_not_reported_is_looked_up(bank, follower):
    account_id, (made,) = await opened(bank, 1)
    bank.invoices.pay(made.payment_hash)
    await follower.settlements.catch_up()
    await follower.settlements.catch_up()
    assert await bank.available(account_id) == 1_000
    assert len(bank.credits) == 1
    assert bank.invoices.followed_from == []


async def test_an_invoice_of_another_program_is_ignored(bank, follower):
    account_id, (made,) = await opened(bank, 1)
    foreign = await bank.invoices.create(9_000, "", 60)
    async with follower.running():
        await until(lambda: bank.invoices.followed_from)
        bank.invoices.pay(foreign.payment_hash)
        bank.invoices.pay(made.payment_hash)
        await follower.credited(1)
    assert await bank.available(account_id) == 1_000
    assert len(bank.credits) == 1


async def test_a_gateway_that_does_not_lead_asks_no_node_until_it_does(bank):
    lead = ScriptedLeadership(leads=False)
    follower = Follower(bank, lead)
    _, (made,) = await opened(bank, 1)
    asked = len(bank.invoices.asked)
    async with follower.running():
        bank.invoices.pay(made.payment_hash)
        await asyncio.sleep(0.05)
        assert (len(bank.invoices.asked), bank.credits, follower.leading) == (asked, [], [])
        lead.leads = True
        await follower.credited(1)
        assert follower.leading == [True]


async def test_a_gateway_that_loses_the_lead_stops_and_reports_it(bank, lead, follower):
    _, (made,) = await opened(bank, 1)
    async with follower.running():
        await until(lambda: bank.invoices.followed_from)
        lead.leads = False
        await until(lambda: follower.leading == [True, False])
        bank.invoices.pay(made.payment_hash)
        await asyncio.sleep(0.05)
        assert bank.credits == []


async def test_a_node_that_goes_away_is_followed_again_when_it_is_back(bank, follower):
    account_id, (made,) = await opened(bank, 1)
    async with follower.running():
        await until(lambda: bank.invoices.followed_from)
        bank.invoices.go_away()
        await until(lambda: len(follower.troubles) >= 2)
        bank.invoices.is_away = False
        bank.invoices.pay(made.payment_hash)
        await follower.credited(1)
    assert await bank.available(account_id) == 1_000
    assert len(bank.credits) == 1


async def test_a_gateway_that_does_not_know_whether_it_leads_does_not_lead(bank, lead, follower):
    async with follower.running():
        await until(lambda: bank.invoices.followed_from)
        lead.problem = DatabaseAway("the database is away")
        await until(lambda: follower.leading == [True, False])
        assert follower.troubles[0] == "the database is away"
        lead.problem = None
        await until(lambda: follower.leading == [True, False, True])
    assert len(follower.troubles) >= 1


async def test_an_expired_invoice_is_marked_only_when_no_payment_can_be_under_way(bank, follower):
    _, made = await opened(bank, 3)
    for topup, minutes in zip(made, (50, 65, 75), strict=True):
        await bank.aged(topup, timedelta(minutes=minutes))
    await follower.settlements.catch_up()
    found = [(await bank.topups.get(topup.id)).state for topup in made]
    assert found == [TopupState.OPEN, TopupState.OPEN, TopupState.EXPIRED]


@pytest.mark.parametrize("purpose", list(TopupPurpose))
async def test_an_invoice_that_was_not_paid_for_a_day_is_deleted(bank, follower, purpose):
    account_id = await bank.customer() if purpose is TopupPurpose.TOPUP else None
    wallet = bank.wallet()
    old, new = [await wallet.top_up(account_id, 1_000, purpose=purpose) for _ in range(2)]
    await bank.aged(old, timedelta(hours=26))
    await follower.settlements.catch_up()
    assert await bank.topups.get(old.id) is None
    assert await bank.topups.get(new.id) == new


async def test_what_was_paid_is_kept_however_old_it_is(bank, follower):
    account_id, (made,) = await opened(bank, 1)
    await bank.aged(made, timedelta(days=30))
    bank.invoices.pay(made.payment_hash)
    for _ in range(2):
        await follower.settlements.catch_up()
    assert (await bank.topups.get(made.id)).state is TopupState.SETTLED
    assert await bank.available(account_id) == 1_000


async def test_a_bug_is_not_taken_for_an_absence(bank, lead, follower):
    lead.problem = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        await asyncio.wait_for(follower.settlements.lead(), 60)
    assert True not in follower.leading


async def test_a_lead_that_is_no_longer_looked_at_is_given_up(bank, lead, follower):
    """Following invoices is a task of its own, and must stop when the task that checks the leadership has stopped."""
    async with follower.running():
        await until(lambda: bank.invoices.followed_from)
        lead.problem = ZeroDivisionError()
        await until(lambda: follower.leading == [True, False])


async def test_an_error_while_following_keeps_no_top_up_from_being_looked_up(bank, follower, monkeypatch):
    """Regression: one error in one task ended all tasks that credit customers, for good."""
    monkeypatch.setattr(settlements, "_LOOK_UP_S", 0.01)

    async def broken(settle_index):
        raise OverflowError("a date that is none")
        yield

    bank.invoices.follow = broken
    account_id, (made,) = await opened(bank, 1)
    async with follower.running():
        bank.invoices.pay(made.payment_hash)
        await follower.credited(1)
    assert await bank.available(account_id) == 1_000


async def test_a_top_up_that_cannot_be_looked_up_keeps_no_other_from_it(bank, follower):
    """One bad record must not block the credits of the customers after it."""
    account_id, made = await opened(bank, 3)
    for topup in made:
        bank.invoices.pay(topup.payment_hash)
    ask = bank.invoices.paid

    async def paid(payment_hash):
        if payment_hash == made[0].payment_hash:
            raise OverflowError("a date that is none")
        return await ask(payment_hash)

    bank.invoices.paid = paid
    with pytest.raises(OverflowError):
        await follower.settlements.catch_up()
    assert await bank.available(account_id) == 2_000
