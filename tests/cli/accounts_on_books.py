"""Helpers for the tests of accounts, keys and wallets: an empty journal, and the program's JSON."""

import asyncio
import json
from datetime import UTC, datetime

from lcp_gateway.purchase.journal import PurchaseUpdate
from lcp_gateway.store.database.engines import open_database
from lcp_gateway.store.journal.writer import JournalWriter
from tests.store.journals import charged, job


def said(outcome):
    """Return the JSON that a command printed."""
    assert outcome.code == 0, outcome.err
    return json.loads(outcome.out)


def new_account(run, name="Ada", balance_msat=0):
    """Create an account with a balance; return its id."""
    account_id = said(run("accounts", "create", name, "--json"))["id"]
    if balance_msat:
        outcome = run("accounts", "adjust", account_id, str(balance_msat), "--reason", "start")
        assert outcome.code == 0, outcome.err
    return account_id


def bought(where, account_id, number, *states):
    """Charge a purchase of 1,050 msat to an account, and take it through these states after ``paying``."""

    async def write():
        database = await open_database(where)
        journal = JournalWriter(database, on_problem=print)
        journal.start()
        await journal.intend(charged(number, account_id))
        for state in states:
            journal.record(job(number), state, datetime.now(UTC), PurchaseUpdate())
        await journal.close()
        await database.close()

    asyncio.run(write())
