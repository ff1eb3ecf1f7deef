"""One of several gateways, reduced to a service, its journal and its shared results, for tests that kill it.

Prints what happens to its one order, and delivers the result when it reads a line.
"""

import asyncio
import secrets
import sys
from dataclasses import replace
from types import SimpleNamespace

from lcp_gateway.accounts.shared import outage
from lcp_gateway.accounts.shared.calls import RedisCalls
from lcp_gateway.accounts.shared.claims import RedisClaims
from lcp_gateway.accounts.shared.orders import RedisOrders
from lcp_gateway.accounts.shared.outage import Outage
from lcp_gateway.accounts.shared.results import RedisResults
from lcp_gateway.app.wiring.shared_results import RequestStates
from lcp_gateway.clock import utc_now
from lcp_gateway.encryption import Encryption
from lcp_gateway.purchase.errors import PurchaseError
from lcp_gateway.purchase.idempotency import CacheLimits, RepeatKeys
from lcp_gateway.store.database.engines import open_database
from lcp_gateway.store.journal.writer import JournalLimits, JournalWriter
from tests.support.scripted_peers import ScriptedPeers, ordered, world

SECRET = b"a secret of this deployment"
# Longer than a process may stand still on a busy machine, as in tests/conftest.py.
LEASE_S = 60.0
outage._ANSWER_S = 60.0


class UniqueJobs(ScriptedPeers):
    """An upstream whose job ids no other process uses; with ``never`` it does not quote either."""

    never = False

    async def request_quote(self, task, peer_id, timeout_s):
        print("quoting", flush=True)
        if self.never:
            await asyncio.Event().wait()
        made = await super().request_quote(task, peer_id, timeout_s)
        return replace(made, job_id=secrets.token_bytes(32))

    async def execute(self, quote, task, timeout_s):
        print("paying", flush=True)
        return await super().execute(quote, task, timeout_s)


async def replica(where: str, url: str, name: str, how: str) -> None:
    database = await open_database(where, busy_timeout_s=60.0, write_timeout_s=60.0)
    journal = JournalWriter(
        database, on_problem=lambda problem: print(problem, file=sys.stderr), limits=JournalLimits(wait_s=60.0)
    )
    journal.start()
    upstream = UniqueJobs(expires_in_s=10**9)
    upstream.never = how == "never"
    # The time that claims are dated by: a purchase is looked for from its claim's on.
    w = world(upstream=upstream, journal=journal, utc_now=utc_now)
    calls = RedisCalls(url)
    w.service._shared = RedisResults(
        RedisClaims(calls, Outage(report=print), LEASE_S),
        RedisOrders(calls, Outage()),
        Encryption(SECRET),
        state_of=RequestStates(SimpleNamespace(database=database)),
        limits=CacheLimits(),
        wait_s=60.0,
    )
    asked = asyncio.ensure_future(w.ask(ordered(key_id="key_1"), RepeatKeys(key="k")))

    async def deliver() -> None:
        await asyncio.to_thread(sys.stdin.readline)
        (await w.work()).deliver(f"answer of {name}".encode())

    delivering = asyncio.ensure_future(deliver())
    try:
        print("answer", (await asked).decode(), flush=True)
    except PurchaseError as error:
        print("error", type(error).__name__, error.verdict.value, flush=True)
    await w.service.wait_idle()
    print("done", flush=True)
    await delivering


if __name__ == "__main__":
    asyncio.run(replica(*sys.argv[1:]))
