"""A load generator's process: ``python -m bench.generator http|grpc WHERE WORKLOAD``.

Prints "measuring" when the warm-up is over, and its result as JSON when the time is up, so that its parent process can
read the CPU clock of the program under test at both moments.
"""

import asyncio
import sys
import time

import uvloop

from bench.workload import Tally, Workload


async def run(kind: str, where: str, workload: Workload) -> None:
    """Let the clients ask until the time is up."""
    tally = Tally()
    if kind == "http":
        from bench.http_client import start_clients
    else:
        from bench.grpc_client import start_clients
    stop = await start_clients(where, workload, tally)
    await asyncio.sleep(workload.warm_up_s)
    tally.begin(time.perf_counter())
    print("measuring", flush=True)
    await asyncio.sleep(workload.seconds)
    await tally.until_counted(stream=workload.stream)
    print(tally.load(time.perf_counter()).to_json(), flush=True)
    await stop()


if __name__ == "__main__":
    uvloop.run(run(sys.argv[1], sys.argv[2], Workload.from_json(sys.argv[3])))
