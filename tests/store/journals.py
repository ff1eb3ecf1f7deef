"""Intents for the journal's tests, and helpers that wait for it and read it."""

import asyncio
import hashlib
from datetime import UTC, datetime, timedelta

from lcp_gateway.purchase.idempotency import CacheLimits, RepeatHashes, RepeatKeys
from lcp_gateway.purchase.journal import Intent
from lcp_gateway.purchase.money import Budget, Charge, Markup, Msat, Period
from lcp_gateway.purchase.order import Order, Task, TaskKind
from lcp_gateway.purchase.quote import Payee, ProviderSource, Quote
from lcp_gateway.store.journal.recovery import SweepResult, sweep

NOW = datetime(2026, 11, 21, 12, 30, tzinfo=UTC)
PEER = "02" + "ab" * 32
NO_LIMIT = Msat(10**15)
HOUR = Budget(Period.HOUR, NO_LIMIT)
DAY = Budget(Period.DAY, NO_LIMIT)
MONTH = Budget(Period.MONTH, NO_LIMIT)


def key_budget(key_id: str, period: Period = Period.DAY, limit_msat: int = NO_LIMIT) -> Budget:
    return Budget(period, Msat(limit_msat), key_id)


def job(number: int | str) -> bytes:
    return hashlib.sha256(f"job {number}".encode()).digest()


def intent(
    number: int | str,
    *,
    price_msat: int = 1_000,
    peer_id: str = PEER,
    source: ProviderSource = ProviderSource.LCP,
    payee: Payee | None = None,
    **changes,
) -> Intent:
    """Return an intent of 1,010 msat in total by default."""
    fields = {
        "kind": TaskKind.CHAT_COMPLETIONS,
        "model": "m",
        "stream": False,
        "request_id": f"req-{number}",
        "key_id": "",
        "request_sha256": b"q" * 32,
        "request_bytes": 123,
        "payment_hash": hashlib.sha256(job(number)).digest(),
        "fee_cap_msat": Msat(10),
        "runner_up_msat": None,
        "at": NOW,
    }
    fields.update(changes)
    quote = Quote(
        peer_id=peer_id,
        job_id=job(number),
        price_msat=Msat(price_msat),
        expires_at=fields["at"] + timedelta(seconds=300),
        terms_hash=b"\x22" * 32,
        payment_request="lnbcrt1" + "x" * 300,
        protocol_version=2,
        source=source,
        on_delivery=payee is not None,
        payee=payee,
    )
    return Intent(quote=quote, **fields)


async def written(journal, timeout_s: float = 60.0) -> None:
    """Wait until the journal's queue is empty."""
    async with asyncio.timeout(timeout_s):
        while journal._updates or journal._intents:
            await asyncio.sleep(0.001)


async def swept_once_gone(database, at: datetime) -> SweepResult:
    """Sweep until something was: a server takes a moment to notice that a session's other end is gone."""
    async with asyncio.timeout(60):
        while not (swept := await sweep(database, at)):
            await asyncio.sleep(0.05)
    return swept


async def until_gone(database, owner: str) -> None:
    """Wait until an owner that has closed its database counts as gone: a server may notice that a moment later."""
    async with asyncio.timeout(60):
        while not await database.write(lambda connection: database.is_gone(connection, owner)):
            await asyncio.sleep(0.05)


async def spent(books, budget: Budget = HOUR, at: datetime = NOW) -> int:
    """Return what counts against a budget at a time."""
    (state,) = await books.budgets([budget], at)
    return state.spent_msat


FIVE_PERCENT = Markup(50_000)


def charged(
    number: int | str,
    account_id: str,
    *,
    price_msat: int = 1_000,
    markup: Markup = FIVE_PERCENT,
    refund_undelivered: bool = False,
    **changes,
) -> Intent:
    """Return an intent that a customer is charged for, 1,050 msat by default."""
    charge = Charge(account_id, markup.charge_msat(price_msat), markup, refund_undelivered)
    return intent(number, price_msat=price_msat, charge=charge, **changes)


def keyed(
    number: int | str,
    key: str | None,
    *,
    body: bytes = b"b" * 32,
    client_request_id: str | None = None,
    retries: bool = False,
    **changes,
) -> Intent:
    """Return an intent for a request with an Idempotency-Key; with ``retries`` a retry of a request that another process got."""
    at, key_id = changes.get("at", NOW), changes.get("key_id", "")
    order = Order(Task(TaskKind.CHAT_COMPLETIONS, "m", b"", stream=False), f"req-{number}", key_id, body_sha256=body)
    keys = RepeatKeys(key, client_request_id=client_request_id)
    repeat = RepeatHashes(b"s" * 32, lambda: at).identity(order, keys, CacheLimits(), looks_for_first_try=retries)
    return intent(number, repeat=repeat, **changes)
