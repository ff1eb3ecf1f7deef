"""``python -m tests.soak.crashes --kills 100 --database postgresql``: kill -9 at random moments of a gateway that sells.

Customers buy, read slowly, leave and ask again after each restart, keys are revoked, and the wallet settles, fails and
holds payments. Then everything unknown is reconciled, and the charges are compared with a reference model.
pytest runs a short version of it. Ends with 1 where anything differs.
"""

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.soak.books import Books, read_books
from tests.soak.customers import Accounts, Load, customers
from tests.soak.lnd import lnd_beside
from tests.soak.model import Facts, Verdict, compare
from tests.support.gateway import gateway
from tests.support.holding_node import LONGEST_HOLD_S
from tests.support.journaled import TestedNode, money_node, on_node
from tests.support.killing import LONGEST_START_S, kill_under_load, kill_while_starting, resolve_later
from tests.support.lnd_standin import LndStandin, lnd_settings
from tests.support.postgres import running_postgres
from tests.system.selling.seller import Office, selling

NODE = """
[fault_settings]
big_result_bytes = 1500000
chunks_before_failure = 2
"""
ACCOUNTS = 4
FILLED_MSAT = 10**12
HUGE_BUDGET_MSAT = 10**15
WHILE_STARTING = 0.12
LONGEST_RUN_S = 1.6
WIND_UP_S = 90.0


@dataclass
class Run:
    """A run's counts and discrepancies."""

    kills: Counter = field(default_factory=Counter)
    answers: Counter = field(default_factory=Counter)
    resolved: Counter = field(default_factory=Counter)
    verdict: Verdict = field(default_factory=Verdict)

    def lines(self) -> list[str]:
        """Return the report."""
        return [
            f"kills: {self.kills.total()} {dict(self.kills)}",
            f"requests: {dict(self.answers)}",
            f"unknown resolved: {dict(self.resolved)}",
            *(f"{name}: {number}" for name, number in sorted(self.verdict.counts.items())),
            f"discrepancies: {len(self.verdict.discrepancies)}",
            *self.verdict.discrepancies[:40],
        ]


@contextmanager
def fresh_journal(database: str, folder: Path) -> Iterator[str]:
    """Return the address of an empty journal."""
    if database == "sqlite":
        yield str(folder / "journal.db")
        return
    with running_postgres() as server, server.fresh_database() as url:
        yield url


def run(
    *,
    kills: int,
    journal: str,
    folder: Path,
    seed: str,
    clients: int = 14,
    seconds: float = float("inf"),
    tell: Callable[[str], None] | None = None,
) -> Run:
    """Kill so many gateways, for no longer than ``seconds``, and compare; ``tell`` is called with the progress."""
    dice = random.Random(seed)
    done = Run()
    until = time.monotonic() + seconds
    with ExitStack() as stack:
        node = stack.enter_context(money_node(folder, toml=NODE, faults=True, module="tests.support.holding_node"))
        lnd = stack.enter_context(lnd_beside(node.events_file, folder))
        settings = {
            **on_node(node, journal_url=journal, budget_month_msat=HUGE_BUDGET_MSAT),
            **selling(
                timeout_execute_s=8,
                reconcile_interval_s=1,
                refund_day_msat=0,
                refund_account_day_msat=0,
                exposure_unproven_msat=0,
            ),
            **lnd_settings(lnd.address),
            "XDG_STATE_HOME": str(folder),
            "XDG_CONFIG_HOME": str(folder),
        }
        accounts = Accounts()
        with gateway(embedded=False, env=settings) as first:
            accounts.open(Office(first.port), ACCOUNTS, FILLED_MSAT)
        at_kill: dict[str, str] = {}
        with customers(accounts, clients, dice) as load:
            while done.kills.total() < kills and time.monotonic() < until:
                if dice.random() < WHILE_STARTING:
                    kill_while_starting(settings, dice.uniform(0, LONGEST_START_S))
                    done.kills["while starting"] += 1
                else:
                    kill_under_load(settings, load, dice.uniform(0, LONGEST_RUN_S))
                    done.kills["under load"] += 1
                if tell is not None:
                    tell(f"{done.kills.total()} kills, {len(load.orders)} orders")
                left = asyncio.run(read_books(journal))
                for job_id, bought in left.purchases.items():
                    # When it is first observed, the gateway that bought it has just been killed.
                    at_kill.setdefault(job_id, bought.state)
            if tell is not None:
                tell("winding up")
            _wind_up(settings, load, clients)
        if tell is not None:
            tell("reconciling")
        done.answers = _answers(load)
        books = _reconciled(node, lnd, journal, at_kill, done)
        facts = Facts(load.orders, node.events(), accounts.revoked_at, at_kill, FILLED_MSAT)
        done.verdict = compare(facts, books)
        done.verdict.counts["keys revoked"] = len(accounts.revoked_at)
        with gateway(embedded=False, env=settings) as last:
            reported = Office(last.port).get("audit").json
            done.verdict.discrepancies += [f"audit: {problem}" for problem in reported["problems"]]
    return done


def _wind_up(settings: dict[str, str], load: Load, clients: int) -> None:
    """Let the customers repeat the requests that were cut off last, at a gateway that is not killed."""
    with gateway(embedded=False, env=settings) as running:
        load.port = running.port
        load.winding_up.set()
        load.up.set()
        until = time.monotonic() + WIND_UP_S
        for _ in range(clients):
            assert load.idle.acquire(timeout=max(0.0, until - time.monotonic())), running.logs
        time.sleep(LONGEST_HOLD_S + 1)
        assert running.stop() == 0, running.logs[-3000:]


def _answers(load: Load) -> Counter:
    found: Counter = Counter()
    for order in load.orders:
        for attempt in order.attempts:
            if attempt.left:
                found["left"] += 1
            elif attempt.complete:
                found["complete"] += 1
            else:
                found[f"{attempt.status or 'cut off'} {attempt.code or attempt.verdict}".strip()] += 1
    return found


def _reconciled(node: TestedNode, lnd: LndStandin, journal: str, at_kill: dict[str, str], done: Run) -> Books:
    """Return the books once all unknown payments are resolved; those without a record in lnd after their invoices have expired."""
    before = asyncio.run(read_books(journal))
    left = {job for job, bought in before.purchases.items() if bought.state == "unknown"}
    asyncio.run(resolve_later(Path(journal) if "://" not in journal else journal, lnd))
    after = asyncio.run(read_books(journal))
    for job_id, bought in after.purchases.items():
        if job_id in left:
            done.resolved[f"at the end, {bought.state}"] += 1
        elif at_kill.get(job_id) in {"paying", "unknown"}:
            done.resolved[f"by a gateway, {bought.state}"] += 1
    return after


def main() -> int:
    """Run it as a program."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak.crashes", description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite")
    parser.add_argument("--seed", default=str(random.randrange(10**6)), help="repeats the moments")
    parser.add_argument("--clients", type=int, default=14)
    parser.add_argument("--seconds", type=float, default=1_800.0, help="no kill after so long")
    arguments = parser.parse_args()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="lcp-crashes-") as name:
        folder = Path(name)
        with fresh_journal(arguments.database, folder) as journal:
            done = run(
                kills=arguments.kills,
                journal=journal,
                folder=folder,
                seed=arguments.seed,
                clients=arguments.clients,
                seconds=arguments.seconds,
                tell=lambda text: print(f"{time.monotonic() - begun:6.1f} s: {text}", flush=True),
            )
    print(f"{arguments.database}, seed {arguments.seed}, {time.monotonic() - begun:.0f} s")
    print("\n".join(done.lines()))
    return 1 if done.verdict.discrepancies else 0


if __name__ == "__main__":
    sys.exit(main())
