"""Purchases in the journal of a gateway with accounts: two customers with two keys each, and the operator's own."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

from lcp_gateway.accounts.callers import Scope
from lcp_gateway.purchase.money import Markup
from lcp_gateway.purchase.quote import ProviderSource
from lcp_gateway.purchase.states import State
from lcp_gateway.store.journal.writer import JournalWriter
from tests.store.journals import charged, intent, written

EVIL = "=HYPERLINK(1)"
MARKUP = Markup(100_000)
TO = {
    State.PAYING: [],
    State.UNKNOWN: [State.UNKNOWN],
    State.NOT_PAID: [State.NOT_PAID],
    State.DELIVERED: [State.SETTLED, State.DELIVERED],
    State.UNDELIVERED: [State.SETTLED, State.UNDELIVERED],
}
ROUTINE = [State.DELIVERED, State.DELIVERED, State.UNDELIVERED, State.UNKNOWN, State.NOT_PAID]


async def buy(journal, wanted, state):
    await journal.intend(wanted)
    for step in TO[state]:
        journal.record(wanted.quote.job_id, step, wanted.at)


async def make_history(gateway) -> SimpleNamespace:
    """Make the customers and their purchases; return accounts, keys by name, and the purchases' job ids."""
    bank, made = gateway.bank, SimpleNamespace(problems=[], accounts={}, keys={}, ids={}, jobs={})
    for name in ("ann", "bob"):
        account_id = made.accounts[name] = await bank.customer(10_000_000, name)
        for scopes in ({"wallet", "inference"}, {"inference"}, {"account"}):
            label = f"{name} {'+'.join(sorted(scopes))}"
            made.keys[label] = await gateway.key(account_id, scopes=frozenset(map(Scope, scopes)))
            (record, *_) = (await bank.keys.page(account_id, limit=1)).items
            made.ids[label] = record.id
    journal = JournalWriter(bank.database, on_problem=made.problems.append)
    journal.start()
    now = datetime.now(UTC)
    for name, account_id in made.accounts.items():
        for number in range(20):
            key_id = made.ids[f"{name} {'inference+wallet' if number % 2 else 'inference'}"]
            wanted = charged(
                f"{name} {number}",
                account_id,
                price_msat=1_000 + number,
                markup=MARKUP,
                refund_undelivered=True,
                model=EVIL if number == 0 else f"m{number % 3}",
                key_id=key_id,
                at=now - timedelta(minutes=10 * number),
            )
            await buy(journal, wanted, ROUTINE[number % 5])
            made.jobs.setdefault(name, []).append(wanted.quote.job_id.hex())
    own = intent("own", key_id="key_static", at=now)
    await buy(journal, own, State.DELIVERED)
    of_node = intent(
        "node", key_id="key_static", peer_id="node:pet", source=ProviderSource.NODE, payment_hash=None, at=now
    )
    await buy(journal, of_node, State.DELIVERED)
    made.jobs["operator"] = [own.quote.job_id.hex(), of_node.quote.job_id.hex()]
    await written(journal)
    await journal.close()
    return made
