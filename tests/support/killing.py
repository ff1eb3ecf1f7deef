"""Kills gateways at chosen moments and resolves their unknown payments: for the tests and the long runs of kill -9."""

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event
from typing import Protocol

from lcp_gateway.lightning.lnd.client import LndClient
from lcp_gateway.lightning.reconcile import Reconciler, open_payment
from lcp_gateway.store.database.engines import open_database
from lcp_gateway.store.journal.queries import Books
from lcp_gateway.store.journal.recovery import resolve
from tests.support.forked import start_module
from tests.support.gateway import clean_environment, gateway
from tests.support.lnd_standin import LndStandin

LONGEST_START_S = 0.5
"""A gateway that is forked with its modules loaded listens by then, on a machine that is not busy."""

ANSWER_TIMEOUT_S = 120.0


class Load(Protocol):
    """Clients that buy from the gateway at ``port`` while ``up`` is set."""

    port: int
    up: Event


def kill_while_starting(settings: Mapping[str, str], after_s: float) -> None:
    process = start_module(
        "lcp_gateway", "serve", env=clean_environment({"LCP_GATEWAY_HTTP_ADDR": "127.0.0.1:0", **settings})
    )
    time.sleep(after_s)
    process.kill()
    process.wait(60)


def kill_under_load(
    settings: Mapping[str, str], load: Load, after_s: float, *, answers: Sequence[object] | None = None
) -> None:
    """Kill a gateway ``after_s`` after it listens, and where there are ``answers`` not before it has added one to them."""
    with gateway(embedded=False, env=settings) as running:
        load.port = running.port
        before = len(answers or ())
        load.up.set()
        time.sleep(after_s)
        deadline = time.monotonic() + ANSWER_TIMEOUT_S
        while answers is not None and len(answers) == before:
            assert time.monotonic() < deadline, f"no client had an answer:\n{running.logs[-2000:]}"
            time.sleep(0.01)
        running.process.kill()
        load.up.clear()
        running.process.wait(60)


async def resolve_later(journal: Path | str, lnd: LndStandin) -> None:
    """Reconcile as the gateway does, an hour after all invoices have expired."""
    database = await open_database(journal)

    async def unknowns():
        for record in await Books(database).unknowns(limit=10_000):
            yield open_payment(record.job_id, record.payment_request, record.expires_at, record.paying_at)

    async def write(payment, resolution) -> bool:
        await resolve(database, payment.job_id, resolution.state, resolution.at, resolution.update)
        return True

    try:
        async with LndClient(lnd.address, timeout_s=60) as client:
            reconciler = Reconciler(
                lookup=lambda payment: client.payment(payment.payment_hash),
                open_payments=unknowns,
                resolve=write,
                lnd_pays=lambda: True,
                now=lambda: datetime.now(UTC) + timedelta(hours=1),
            )
            while (await reconciler.once()).more:
                pass
    finally:
        await database.close()
