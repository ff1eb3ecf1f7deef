"""A gateway reduced to its leadership, for tests that kill it: prints when it gains and loses the lead."""

import asyncio
import sys
import time

from lcp_gateway.store.database import leader
from lcp_gateway.store.database.engines import DatabaseUnavailable, open_database
from lcp_gateway.store.database.leader import Leadership

# As tests/conftest.py has it.
leader._ANSWER_S = 60.0


async def lead(where: str) -> None:
    database = await open_database(where, busy_timeout_s=60.0, write_timeout_s=60.0)
    leadership = Leadership(database, "settlements")
    said: object = None
    while True:
        try:
            word = "leads" if await leadership.try_lead() else "follows"
        except DatabaseUnavailable:
            word = "away"
        if word != said:
            print(word, time.monotonic(), flush=True)
            said = word
        await asyncio.sleep(0.05)


if __name__ == "__main__":
    asyncio.run(lead(sys.argv[1]))
