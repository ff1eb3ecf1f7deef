"""A gateway reduced to its journal, for tests that kill it: writes intents as fast as it can and prints which were committed."""

import asyncio
import sys
from datetime import UTC, datetime

from lcp_gateway.purchase.journal import BudgetExceeded, InsufficientBalance
from lcp_gateway.purchase.money import Budget, Msat, Period
from lcp_gateway.purchase.quote import ProviderSource
from lcp_gateway.purchase.states import State
from lcp_gateway.store.database.engines import open_database
from lcp_gateway.store.journal.writer import JournalLimits, JournalWriter
from tests.store.journals import charged, intent, job, written


async def burst(
    where: str, name: str, purchases: int, limit_msat: int, source: str = "lcp", account_id: str = "", clients: int = 16
) -> None:
    database = await open_database(where, busy_timeout_s=60.0, write_timeout_s=60.0)
    journal = JournalWriter(
        database, on_problem=lambda problem: print(problem, file=sys.stderr), limits=JournalLimits(wait_s=60.0)
    )
    journal.start()
    print(f"owner {database.owner}", flush=True)
    numbers = iter(range(purchases))

    async def client() -> None:
        for number in numbers:
            kind = {"source": ProviderSource(source)}
            wanted = (
                charged(f"{name}-{number}", account_id, **kind) if account_id else intent(f"{name}-{number}", **kind)
            )
            try:
                await journal.intend(wanted, [Budget(Period.HOUR, Msat(limit_msat))])
            except (BudgetExceeded, InsufficientBalance):
                print(f"refused {name}-{number}", flush=True)
                continue
            # Printed only after the commit, so that the test may rely on it.
            print(f"intended {name}-{number}", flush=True)
            if number % 3 == 0:
                journal.record(job(f"{name}-{number}"), State.SETTLED, datetime.now(UTC))

    await asyncio.gather(*(client() for _ in range(clients)))
    await written(journal)
    print("done", flush=True)
    if sys.stdin.readline():
        await journal.close()
        await database.close()


if __name__ == "__main__":
    asyncio.run(burst(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), *sys.argv[5:]))
