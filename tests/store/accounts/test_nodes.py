"""Nodes of accounts: what their owners earn is part of the transaction that captures a delivered request."""

from datetime import timedelta

import pytest
from sqlalchemy import text

from lcp_gateway.accounts.models import AccountNotFound, Balance, Cause
from lcp_gateway.accounts.nodes import Earned, NodeNotFound, NodeTaken, NodeTermsCache, TooManyNodes
from lcp_gateway.purchase.journal import PurchaseUpdate
from lcp_gateway.purchase.money import Msat, Refund, RefundLimits
from lcp_gateway.purchase.outcome import EndedBy, Ending, Received
from lcp_gateway.purchase.quote import Payee, ProviderSource
from lcp_gateway.purchase.states import State
from lcp_gateway.store.accounts.nodes import Nodes
from lcp_gateway.store.database.engines import open_database
from lcp_gateway.store.journal.recovery import sweep
from lcp_gateway.store.journal.writer import JournalWriter
from tests.store.journals import NOW, charged, intent, job, until_gone, written

NODE = "gpu.abc123"
PROVIDER = f"node:{NODE}"
AT_NODE = {"source": ProviderSource.NODE, "peer_id": PROVIDER, "payment_hash": None, "fee_cap_msat": Msat(0)}


@pytest.fixture
def nodes(database):
    return Nodes(database)


def earning(number, customer, owner, *, commission_ppm=100_000, **changes):
    payee = Payee(NODE, owner, commission_ppm)
    return charged(number, customer, payee=payee, refund_undelivered=True, **AT_NODE, **changes)


async def delivered(journal, number, charged_msat=None):
    update = PurchaseUpdate(charged_msat=None if charged_msat is None else Msat(charged_msat))
    journal.record(job(number), State.SETTLED, NOW)
    journal.record(job(number), State.DELIVERED, NOW + timedelta(seconds=1), update)
    await written(journal)


async def test_a_delivered_request_is_the_customers_price_the_owners_part_and_the_operators(
    journal, ledger, customer, nodes
):
    buyer, owner = await customer(10_000), await customer(0)
    await journal.intend(earning(1, buyer, owner))
    # The price was the most; the node took less. 10 % of 801, rounded up, stay with the operator, and the mark-up of 5 %.
    await delivered(journal, 1, 801)
    assert await ledger.balance(buyer) == Balance(Msat(10_000 - 842), Msat(0))
    assert await ledger.balance(owner) == Balance(Msat(720), Msat(0))
    (line,) = (await ledger.statement(owner)).lines
    assert (line.cause, line.cause_id, line.amount_msat) == (Cause.EARNING, job(1).hex(), 720)
    audit = await ledger.audit()
    assert audit.problems == []
    assert audit.books == {"adjustments": -10_000, "customers": 9_878, "revenue": 122}
    assert await nodes.earned(owner) == await nodes.earned() == {PROVIDER: Earned(1, Msat(720), Msat(81))}
    assert await nodes.earned(buyer) == await nodes.earned(owner, since=NOW + timedelta(days=1)) == {}
    (line,) = (await nodes.earnings(owner, PROVIDER)).items
    assert (line.job_id, line.price_msat, line.earned_msat) == (job(1), 801, 720)
    # Reported again: nothing more.
    journal.record(job(1), State.DELIVERED, NOW)
    await written(journal)
    assert (await ledger.balance(owner)).balance_msat == 720


@pytest.mark.parametrize("by", [EndedBy.PROVIDER, EndedBy.CLIENT])
async def test_what_was_not_delivered_earns_nothing(journal, ledger, customer, by):
    buyer, owner = await customer(10_000), await customer(0)
    await journal.intend(earning(1, buyer, owner))
    journal.record(job(1), State.SETTLED, NOW)
    journal.record(job(1), State.UNDELIVERED, NOW, PurchaseUpdate(ending=Ending(by, Received.PART)))
    await written(journal)
    assert (await ledger.balance(owner)).balance_msat == 0
    # A client that leaves pays: a node that drips until it leaves gains nothing.
    assert (await ledger.balance(buyer)).balance_msat == (10_000 if by is EndedBy.PROVIDER else 8_950)
    assert (await ledger.audit()).problems == []


async def test_its_refunds_are_no_loss_and_meet_no_limit(database, ledger, customer, problems):
    buyer, owner = await customer(10_000), await customer(0)
    decisions = []
    journal = JournalWriter(database, on_problem=problems.append, on_refund=decisions.append)
    journal.refunds = RefundLimits(account_day_msat=1, day_msat=1)
    journal.start()
    await journal.intend(earning(1, buyer, owner))
    journal.record(job(1), State.SETTLED, NOW)
    journal.record(job(1), State.UNDELIVERED, NOW)
    await written(journal)
    await journal.close()
    assert [it.refund for it in decisions] == [Refund.GIVEN]
    assert await ledger.balance(buyer) == Balance(Msat(10_000), Msat(0))


async def test_a_request_of_the_operators_own_key_is_paid_by_the_operator(journal, ledger, customer):
    owner = await customer(0)
    await journal.intend(intent(1, payee=Payee(NODE, owner, 0), **AT_NODE))
    await delivered(journal, 1)
    assert (await ledger.balance(owner)).balance_msat == 1_000
    audit = await ledger.audit()
    assert (audit.problems, audit.books) == ([], {"customers": 1_000, "revenue": -1_000})


async def test_an_owner_that_uses_its_own_node_pays_the_commission_and_the_markup(journal, ledger, customer):
    owner = await customer(10_000)
    await journal.intend(earning(1, owner, owner))
    await delivered(journal, 1)
    assert (await ledger.balance(owner)).balance_msat == 10_000 - 1_050 + 900
    assert (await ledger.audit()).problems == []


@pytest.mark.parametrize(("commission_ppm", "earned_msat"), [(0, 1_000), (1_000_000, 0), (1, 999)])
async def test_the_commission_is_rounded_up(journal, ledger, customer, commission_ppm, earned_msat):
    buyer, owner = await customer(10_000), await customer(0)
    await journal.intend(earning(1, buyer, owner, commission_ppm=commission_ppm))
    await delivered(journal, 1)
    assert (await ledger.balance(owner)).balance_msat == earned_msat
    assert (await ledger.audit()).problems == []


async def test_a_crash_between_capture_and_delivery_earns_nothing(where, database, ledger, customer):
    buyer, owner = await customer(10_000), await customer(0)
    second = await open_database(where, gone_after_s=0)
    theirs = JournalWriter(second, on_problem=lambda _problem: None)
    theirs.start()
    await theirs.intend(earning(1, buyer, owner))
    theirs.record(job(1), State.SETTLED, NOW)
    await written(theirs)
    await theirs.close()
    await second.close()
    await until_gone(database, second.owner)
    await sweep(database, NOW)
    await sweep(database, NOW)
    assert await ledger.balance(buyer) == Balance(Msat(10_000), Msat(0))
    assert (await ledger.balance(owner)).balance_msat == 0
    assert (await ledger.audit()).problems == []


async def test_the_audit_finds_an_earning_that_does_not_fit(journal, ledger, customer, database):
    buyer, owner = await customer(10_000), await customer(0)
    await journal.intend(earning(1, buyer, owner))
    await delivered(journal, 1)
    await database.write(lambda connection: connection.execute(text("UPDATE purchases SET commission_ppm = 0")))
    (problem,) = (await ledger.audit()).problems
    assert f"earns {owner} 1000 msat, 900 msat were credited" in problem


async def test_a_node_is_recorded_when_it_connects_and_keeps_its_terms(nodes, customer, accounts):
    owner, other = await customer(0), await customer(0)
    made = await nodes.connected(NODE, owner, "key_1", "gpu", NOW)
    assert (made.account_id, made.commission_ppm, made.is_frozen) == (owner, None, False)
    with pytest.raises(NodeTaken):
        await nodes.connected(NODE, other, "key_2", "gpu", NOW)
    with pytest.raises(AccountNotFound):
        await nodes.connected("x.1", "acct_none", "key_2", "x", NOW)
    by = {"reason": "agreed", "actor": "op", "at": NOW}
    assert (await nodes.set(NODE, commission_ppm=50_000, **by)).commission_ppm == 50_000
    assert (await nodes.set(NODE, frozen=True, **by)).is_frozen
    again = await nodes.connected(NODE, owner, "key_3", "gpu", NOW + timedelta(hours=1))
    assert (again.key_id, again.commission_ppm, again.frozen_at, again.created_at) == ("key_3", 50_000, NOW, NOW)
    assert not (await nodes.set(NODE, frozen=False, **by)).is_frozen
    with pytest.raises(NodeNotFound):
        await nodes.set("none", frozen=True, **by)
    assert await nodes.get("none") is None
    await nodes.connected("b.2", other, "key_2", "b", NOW + timedelta(hours=2))
    page = await nodes.page(limit=1)
    assert [it.id for it in page.items] == ["b.2"]
    assert [it.id for it in (await nodes.page(limit=1, after=page.after)).items] == [NODE]
    assert [it.id for it in (await nodes.page(owner)).items] == [NODE]


async def test_a_node_that_comes_under_ever_new_names_fills_neither_disk_nor_memory(nodes, customer, monkeypatch):
    owner, other = await customer(0), await customer(0)
    monkeypatch.setattr("lcp_gateway.store.accounts.nodes.MOST_NODES", 3)
    for number in range(3):
        await nodes.connected(f"n{number}", owner, "key_1", f"n{number}", NOW)
    with pytest.raises(TooManyNodes):
        await nodes.connected("n3", owner, "key_1", "n3", NOW)
    assert (await nodes.connected("n0", owner, "key_1", "n0", NOW)).id == "n0"
    assert (await nodes.connected("n3", other, "key_2", "n3", NOW)).account_id == other


async def test_terms_are_known_in_memory_as_soon_as_they_change(nodes, customer):
    owner = await customer(0)
    cache = NodeTermsCache(nodes, now=lambda: NOW)
    assert cache.find(NODE) is None
    await cache.connect(NODE, owner, "key_1", "gpu")
    assert cache.find(NODE).commission_ppm is None
    await nodes.set(NODE, commission_ppm=7, frozen=True, reason="x", actor="op", at=NOW)
    await cache.refresh()
    assert (cache.find(NODE).commission_ppm, cache.find(NODE).is_frozen) == (7, True)
