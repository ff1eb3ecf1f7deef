"""``python -m tests.soak.withdrawals --kills 100 --database postgresql``: kill -9 at random moments of gateways that pay out.

Two gateways on one database pay withdrawals at lnd's stand-in, which settles, fails, holds, refuses and hangs, and is
itself killed and restarted. Customers send invoices to both, some twice. In the end everything unknown is found out, and
the balances are compared with what the stand-in paid. pytest runs a short version of it. Ends with 1 where anything differs.
"""

import argparse
import asyncio
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from lcp_gateway.accounts.models import Balance
from lcp_gateway.accounts.payouts import Payouts
from lcp_gateway.accounts.withdrawals import Withdrawal, WithdrawalRules
from lcp_gateway.lightning import bolt11
from lcp_gateway.lightning.lnd.payer import LndPayer
from lcp_gateway.lightning.lnd.payouts import LndPayouts
from lcp_gateway.purchase.money import Msat
from lcp_gateway.store.accounts.ledger import Ledger
from lcp_gateway.store.accounts.withdrawals import Withdrawals
from lcp_gateway.store.database.engines import DatabaseUnavailable, open_database
from tests.soak.crashes import fresh_journal
from tests.support.gateway import gateway
from tests.support.journaled import money_node, on_node
from tests.support.lnd_standin import FAILED, IN_FLIGHT, SUCCEEDED, LndStandin, channel, in_a_thread, lnd_settings
from tests.support.wire import Answer, post
from tests.system.selling.seller import Office, bearer, selling

ACCOUNTS = 4
FILLED_MSAT = 50_000_000
AMOUNTS_MSAT = (5_000, 60_000)
WAYS = {"settle": 60, "no_route": 14, "hold": 16, "refuse": 5, "hang": 5}
SENT_TWICE = 0.2
LND_KILLED = 0.25
LONGEST_RUN_S = 1.5
CUSTOMERS = 4


@dataclass
class Report:
    """A run's counts and discrepancies."""

    counts: Counter = field(default_factory=Counter)
    discrepancies: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        found = [f"{name}: {number}" for name, number in sorted(self.counts.items())]
        return [*found, f"discrepancies: {len(self.discrepancies)}", *self.discrepancies[:40]]


@dataclass
class Market:
    """Customers with invoices, and the gateways that run now."""

    lnd: LndStandin
    ports: list[int] = field(default_factory=list)
    keys: dict[str, str] = field(default_factory=dict)
    owners: dict[bytes, str] = field(default_factory=dict)
    answers: Counter = field(default_factory=Counter)
    over: threading.Event = field(default_factory=threading.Event)

    def withdraw(self, dice: random.Random) -> None:
        """Be a customer until the market is over."""
        while not self.over.is_set():
            ports = list(self.ports)
            if not ports:
                time.sleep(0.01)
                continue
            account_id = dice.choice(list(self.keys))
            text = self.lnd.elsewhere(dice.randint(*AMOUNTS_MSAT))
            self.owners[bolt11.decode(text).payment_hash] = account_id
            for _ in range(2 if dice.random() < SENT_TWICE else 1):
                self._send(dice.choice(ports), account_id, text)
            time.sleep(dice.uniform(0, 0.05))

    def _send(self, port: int, account_id: str, text: str) -> None:
        with suppress(OSError, EOFError, ValueError, IndexError):
            answer: Answer = post(
                port, "/api/wallet/withdrawals", {"payment_request": text}, bearer(self.keys[account_id]), 20
            )
            self.answers[answer.status] += 1
            return
        self.answers["cut off"] += 1


def run(*, kills: int, journal: str, folder: Path, seed: str) -> Report:
    """Kill gateways so many times, then compare."""
    dice = random.Random(seed)
    report = Report()
    lnd = LndStandin(folder)
    lnd.channels = [channel(10**9)]
    ways = random.Random(f"{seed} ways")
    chosen: dict[bytes, str] = {}
    lnd.payments_go = lambda payment_hash: chosen.setdefault(payment_hash, ways.choices(list(WAYS), WAYS.values())[0])
    macaroon = lnd.bake("withdrawals", "GetInfo", "ListChannels", "TrackPaymentV2", "SendPaymentV2")
    with ExitStack() as stack:
        stack.enter_context(in_a_thread(lnd))
        node = stack.enter_context(money_node(folder))
        env = {
            **on_node(node, journal_url=journal, reconcile_interval_s=1),
            **lnd_settings(lnd.address),
            **selling(
                withdrawals="true",
                withdrawal_min_msat=1_000,
                withdrawal_freeze_s=0,
                withdrawal_approval_msat=0,
                withdrawal_account_day_msat=0,
                withdrawal_day_msat=0,
                lnd_withdrawal_macaroon_file=macaroon,
            ),
        }
        market = Market(lnd)
        running = [stack.enter_context(gateway(embedded=False, env=env)) for _ in range(2)]
        office = Office(running[0].port)
        for _ in range(ACCOUNTS):
            account_id = office.account(FILLED_MSAT)
            market.keys[account_id] = office.key(account_id, scopes=["wallet", "withdraw"])["key"]
        market.ports = [it.port for it in running]
        threads = [
            threading.Thread(target=market.withdraw, args=(random.Random(f"{seed} {n}"),), daemon=True)
            for n in range(CUSTOMERS)
        ]
        for thread in threads:
            thread.start()
        try:
            for _ in range(kills):
                time.sleep(dice.uniform(0.05, LONGEST_RUN_S))
                _release_some(lnd, dice)
                if dice.random() < LND_KILLED:
                    lnd.run(lnd.kill())
                    lnd.run(lnd.start())
                    report.counts["lnd killed"] += 1
                at = dice.randrange(len(running))
                market.ports.remove(running[at].port)
                running[at].process.kill()
                running[at].process.wait(60)
                report.counts["gateways killed"] += 1
                running[at] = stack.enter_context(gateway(embedded=False, env=env))
                market.ports.append(running[at].port)
        finally:
            market.over.set()
            for thread in threads:
                thread.join(60)
        market.ports.clear()
        for it in running:
            it.process.kill()
            it.process.wait(60)
        _release_some(lnd, dice, all_of_them=True)
        asyncio.run(_find_out(journal, lnd))
        report.counts.update({f"answers {status}": number for status, number in market.answers.items()})
        books = asyncio.run(_read(journal, market.keys))
        report.counts.update(f"withdrawals {it.state}" for it in books.withdrawals)
        report.discrepancies += _compare(books, lnd, market)
    return report


def _release_some(lnd: LndStandin, dice: random.Random, *, all_of_them: bool = False) -> None:
    """End payments that their payees hold."""
    for payment_hash, payment in list(lnd.payments.items()):
        if payment.status == IN_FLIGHT and (all_of_them or dice.random() < 0.3):
            lnd.finish(payment_hash, settle=dice.random() < 0.6)


async def _find_out(journal: str, lnd: LndStandin) -> None:
    """Ask lnd about everything that is left open, as a gateway does, by a clock that is an hour ahead and goes on."""
    database = await open_database(Path(journal) if "://" not in journal else journal, gone_after_s=0)
    withdrawals, later = Withdrawals(database), [timedelta(hours=1)]
    try:
        async with LndPayer(lnd.address, timeout_s=60) as payer:
            payouts = Payouts(
                withdrawals,
                LndPayouts(payer),
                WithdrawalRules(),
                start_task=_never,
                unavailable=(DatabaseUnavailable,),
                now=lambda: datetime.now(UTC) + later[0],
            )
            for _ in range(8):
                await payouts.catch_up()
                later[0] += timedelta(minutes=2)
    finally:
        await database.close()


def _never(*_arguments: object, **_more: object) -> "asyncio.Task[None]":
    raise AssertionError("nothing is paid while everything is found out")


@dataclass
class Books:
    """What the database says in the end."""

    withdrawals: list[Withdrawal]
    balances: dict[str, Balance | None]
    audit_problems: list[str]


async def _read(journal: str, accounts: Iterable[str]) -> Books:
    database = await open_database(Path(journal) if "://" not in journal else journal)
    try:
        found: list[Withdrawal] = []
        after = None
        while True:
            page = await Withdrawals(database).page(limit=500, after=after)
            found += page.items
            after = page.after
            if after is None:
                break
        ledger = Ledger(database)
        balances = {account_id: await ledger.balance(account_id) for account_id in accounts}
        return Books(found, balances, list((await ledger.audit()).problems))
    finally:
        await database.close()


def _compare(books: Books, lnd: LndStandin, market: Market) -> Iterator[str]:
    """Yield where lnd, the withdrawals and the balances differ."""
    yield from (f"audit: {problem}" for problem in books.audit_problems)
    yield from (f"{it.hex()[:16]} was sent {times} times" for it, times in Counter(lnd.sent).items() if times > 1)
    rows = {it.payment_hash: it for it in books.withdrawals}
    owed = dict.fromkeys(market.keys, FILLED_MSAT)
    for payment_hash, payment in lnd.payments.items():
        if payment.status == SUCCEEDED:
            owed[market.owners[payment_hash]] -= payment.value_msat + payment.fee_msat
        expected = {SUCCEEDED: "settled", FAILED: "failed"}.get(payment.status, "in flight")
        state = rows[payment_hash].state if payment_hash in rows else "unknown to the gateway"
        if state != expected:
            yield f"{payment_hash.hex()[:16]} is {state}, lnd's payment is {expected}"
    for row in books.withdrawals:
        if row.payment_hash not in lnd.payments and row.state != "failed":
            yield f"{row.id} is {row.state}, and lnd has no payment"
    for account_id, balance in books.balances.items():
        if balance != Balance(Msat(owed[account_id]), Msat(0)) or owed[account_id] < 0:
            yield f"{account_id} has {balance}, the model says {owed[account_id]} msat and none held"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--seed", default=str(random.randrange(10**6)))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with fresh_journal(options.database, folder) as journal:
            report = run(kills=options.kills, journal=journal, folder=folder, seed=options.seed)
    print("\n".join([f"seed {options.seed}", *report.lines()]))
    return 1 if report.discrepancies else 0


if __name__ == "__main__":
    sys.exit(main())
