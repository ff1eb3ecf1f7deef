"""Several processes on one balance, one of which is killed: together they never spend more than the balance, and nothing is lost."""

import asyncio
import signal
from datetime import timedelta

from lcp_gateway.accounts.models import Balance
from lcp_gateway.purchase.money import Msat
from lcp_gateway.purchase.quote import ProviderSource
from lcp_gateway.purchase.states import State
from lcp_gateway.store.accounts.ledger import Ledger
from lcp_gateway.store.database.engines import open_database
from lcp_gateway.store.journal.queries import Books
from lcp_gateway.store.journal.recovery import resolve, sweep
from tests.store.journal.test_recovery import all_of, gateway, numbers, read_until
from tests.store.journals import NO_LIMIT, NOW

EACH_MSAT = 1_050


def spender(where, name, purchases, account_id, source=ProviderSource.LCP):
    return gateway(where, name, purchases, NO_LIMIT, source.value, account_id)


async def test_two_processes_on_one_balance_for_ten_take_exactly_ten(where, customer, ledger):
    account_id = await customer(10 * EACH_MSAT + 1_049)
    with spender(where, "a", 32, account_id) as first, spender(where, "b", 32, account_id) as second:
        lines = await asyncio.gather(*(asyncio.to_thread(read_until, process, "done") for process in (first, second)))
    assert len(numbers(lines[0]) + numbers(lines[1])) == 10
    balance = await ledger.balance(account_id)
    assert balance.available_msat == 1_049
    assert (await ledger.audit()).problems == []


async def test_a_balance_outlives_the_processes_that_spend_it(where, customer, database):
    account_id = await customer(300 * EACH_MSAT)
    ledger, books = Ledger(database), Books(database)
    with (
        spender(where, "killed", 100_000, account_id) as killed,
        spender(where, "node", 60, account_id, ProviderSource.NODE) as node,
    ):
        await asyncio.to_thread(read_until, killed, "intended", 100)
        killed.send_signal(signal.SIGKILL)
        killed.wait(60)
        with spender(where, "restarted", 400, account_id) as restarted:
            for process in (node, restarted):
                await asyncio.to_thread(read_until, process, "done")
        balance = await ledger.balance(account_id)
        assert 0 <= balance.available_msat < EACH_MSAT
        # While one of them is still buying, the audit finds nothing.
        assert (await ledger.audit()).problems == []
    async with asyncio.timeout(60):
        while (await books.outstanding()).paying:
            await sweep(database, NOW + timedelta(minutes=1))
            await asyncio.sleep(0.02)
    assert (await ledger.audit()).problems == []
    for number, purchase in enumerate(await all_of(books)):
        if purchase.state is State.UNKNOWN:
            state = State.NOT_PAID if number % 2 else State.SETTLED
            await resolve(database, purchase.job_id, state, NOW)
    purchases = await all_of(books)
    assert len(purchases) == 300
    taken_msat = sum(purchase.charged_msat for purchase in purchases)
    assert taken_msat == EACH_MSAT * sum(p.state is not State.NOT_PAID for p in purchases) > 0
    left = Balance(Msat(300 * EACH_MSAT - taken_msat), Msat(0))
    assert await ledger.balance(account_id) == left
    audit = await ledger.audit()
    assert audit.ok and audit.books["revenue"] == taken_msat


async def test_an_audit_beside_processes_that_spend_never_finds_anything(where, customer):
    account_id = await customer(10_000 * EACH_MSAT)
    other = await open_database(where)
    ledger = Ledger(other)
    with spender(where, "busy", 600, account_id) as busy:
        done = asyncio.ensure_future(asyncio.to_thread(read_until, busy, "done"))
        audits = 0
        while not done.done():
            assert (await ledger.audit()).problems == []
            audits += 1
    await done
    assert audits, "the spender was done before the first audit"
    assert (await ledger.balance(account_id)).balance_msat == (10_000 - 200) * EACH_MSAT
    await other.close()
