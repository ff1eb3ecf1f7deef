"""``python -m bench.workers``: requests a second and CPU a request of several workers against one, paired in one run."""

import argparse
import json
import os
import statistics
import tempfile
import time
import urllib.request
from collections import defaultdict
from pathlib import Path

from bench import processes, standin
from bench.workload import Workload

_PROMPT = " ".join(["word"] * 90)
_MIB = 2**20
_START_S = 60.0


def _wait_for_all(address: str, count: int) -> None:
    """Wait until all workers serve: the first is ready while the others still start, at a cost of their own."""
    deadline = time.monotonic() + _START_S
    while count > 1 and time.monotonic() < deadline:
        with urllib.request.urlopen(f"http://{address}/readyz") as answer:
            if json.load(answer)["workers"]["running"] == count:
                return
        time.sleep(0.1)


def main() -> None:
    """Measure rounds of each number of workers in turn, and print the medians of the ratios to the first."""
    parser = argparse.ArgumentParser(prog="python -m bench.workers", description=__doc__)
    parser.add_argument("--workers", default="1,2", help="numbers of workers; the first is the ruler")
    parser.add_argument("--clients", default="16,64")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    counts = [int(number) for number in chosen.workers.split(",")]
    rates: dict[tuple[str, int, int], list[float]] = defaultdict(list)
    costs: dict[tuple[str, int, int], list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder, processes.stand_in(Path(folder), 0.0) as daemon:
        for _ in range(chosen.rounds):
            for count in counts:
                state = Path(folder) / f"state-{count}"
                state.mkdir(exist_ok=True)
                with processes.gateway(state, daemon, LCP_GATEWAY_WORKERS=str(count)) as gateway:
                    _wait_for_all(gateway.address, count)
                    print(
                        f"{count} workers: {gateway.rss_bytes() / _MIB:.0f} MiB, ready in {gateway.start_s:.1f} s, "
                        f"load of the machine {os.getloadavg()[0]:.1f}"
                    )
                    for kind, stream in (("unary", False), ("stream", True)):
                        for clients in map(int, chosen.clients.split(",")):
                            workload = Workload(
                                model=standin.MODEL,
                                prompt=_PROMPT,
                                stream=stream,
                                clients=clients,
                                seconds=chosen.seconds,
                                warm_up_s=min(4.0, chosen.seconds),
                            )
                            load, used = processes.load("http", gateway.address, workload, gateway)
                            done = max(load.requests, 1)
                            rates[kind, clients, count].append(load.requests / load.seconds)
                            costs[kind, clients, count].append(used.cpu_s / done)
                            print(
                                f"  {kind}, {clients} clients: {load.requests / load.seconds:.0f}/s, {load.errors} errors",
                                flush=True,
                            )
    print("\n| | clients | " + " | ".join(f"{count} workers" for count in counts) + " |")
    print("| --- | --- |" + " --- |" * len(counts))
    for kind in ("unary", "stream"):
        for clients in map(int, chosen.clients.split(",")):
            cells = []
            for count in counts:
                key, ruler = (kind, clients, count), (kind, clients, counts[0])
                rate = statistics.median(rates[key])
                faster = statistics.median(a / b for a, b in zip(rates[key], rates[ruler], strict=True))
                dearer = statistics.median(a / b for a, b in zip(costs[key], costs[ruler], strict=True))
                cost_us = statistics.median(costs[key]) * 1e6
                cells.append(f"{rate:.0f}/s ({faster:.2f}x), {cost_us:.0f} us CPU ({dearer:.2f}x)")
            print(f"| {kind} | {clients} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
