"""``python -m bench.console``: what an open console costs streams under load and an idle gateway, off and on in turn.

The visitor is a process that reads as the console's Overview does: one event stream, and after each burst of purchases the
page's five documents, at most once in 0.4 s. A browser beside the gateway would need CPU of its own.
"""

import argparse
import asyncio
import contextlib
import statistics
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import aiohttp

from bench import processes, standin
from bench.processes import Server, Used
from bench.workload import Load, Workload

_SETTLE_S = 0.4
_TODAY = f"{datetime.now(UTC):%Y-%m-%d}T00:00:00Z"
_PAGE = (
    "/api/usage?by=model&period=day",
    f"/api/usage?by=model&period=day&since={_TODAY}",
    "/api/purchases?limit=10",
    "/api/budgets",
    "/readyz",
)
_FIRST_VISIT = ("/console/", "/api/console", "/api/session", *_PAGE)


async def _visit(address: str) -> None:
    """Read as an open Overview does, until the process ends."""
    base = f"http://{address}"
    due = asyncio.Event()

    async def read() -> None:
        while True:
            await due.wait()
            await asyncio.sleep(_SETTLE_S)
            due.clear()
            await asyncio.gather(*(_get(session, base + path) for path in _PAGE))

    no_limit = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(timeout=no_limit) as session:
        reading = asyncio.create_task(read())
        try:
            while True:
                async with session.get(f"{base}/api/events", headers={"Accept": "text/event-stream"}) as events:
                    due.set()
                    async for line in events.content:
                        if line.startswith(b"event: purchase"):
                            due.set()
        finally:
            reading.cancel()


async def _get(session: aiohttp.ClientSession, url: str) -> bytes:
    async with session.get(url) as answer:
        return await answer.read()


@contextlib.contextmanager
def _visitor(address: str, count: int) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(processes.program("bench.console", "--visit", address))
        # Time for its first page.
        time.sleep(2.0)
        yield


def _measure(gateway: Server, workload: Workload) -> tuple[Load, Used]:
    return processes.load("http", gateway.address, workload, gateway)


def _under_load(gateway: Server, workload: Workload, rounds: int, visitors: int) -> None:
    ratios: dict[str, list[float]] = {}
    for number in range(rounds):
        found: dict[bool, tuple[Load, Used]] = {}
        # The second of a pair has the warmer machine: the order changes with each.
        for is_open in (False, True) if number % 2 == 0 else (True, False):
            with _visitor(gateway.address, visitors) if is_open else contextlib.nullcontext():
                found[is_open] = _measure(gateway, workload)
        (off, off_used), (on, on_used) = found[False], found[True]
        pairs = {
            "time to the first byte, p50": (on.first_p50, off.first_p50),
            "time to the first byte, p99": (on.first_p99, off.first_p99),
            "whole stream, p50": (on.total_p50, off.total_p50),
            "whole stream, p99": (on.total_p99, off.total_p99),
            "chunks a second": (on.chunks / on.seconds, off.chunks / off.seconds),
            "CPU a chunk": (on_used.cpu_s / on.chunks, off_used.cpu_s / off.chunks),
        }
        for name, (with_console, without) in pairs.items():
            ratios.setdefault(name, []).append(with_console / without)
        print(
            f"pair {number + 1}: p50 of a stream {off.total_p50:.3f} s without, {on.total_p50:.3f} s with; errors {off.errors}, {on.errors}"
        )
    print(f"{workload.clients} streams, {visitors} open console(s): ratio with / without, median of {rounds} pairs")
    for name, values in ratios.items():
        print(f"  {name:30} {statistics.median(values):5.2f}   ({min(values):.2f} to {max(values):.2f})")


def _idle(gateway: Server, seconds: float, visitors: int) -> None:
    before = gateway.cpu_s()
    time.sleep(seconds)
    without = gateway.cpu_s() - before
    with _visitor(gateway.address, visitors):
        before = gateway.cpu_s()
        time.sleep(seconds)
        with_console = gateway.cpu_s() - before
    print(
        f"idle gateway, CPU a minute: {60 * without / seconds:.2f} s without, {60 * with_console / seconds:.2f} s with {visitors} open console(s)"
    )


async def _first_visit(address: str) -> None:
    headers = {"Accept-Encoding": "gzip"}
    async with aiohttp.ClientSession(auto_decompress=False, headers=headers) as session:
        for path in _FIRST_VISIT:
            began = time.perf_counter()
            body = await _get(session, f"http://{address}{path}")
            print(f"  {path:55} {len(body):7} bytes {1000 * (time.perf_counter() - began):6.1f} ms")


def main() -> None:
    """Measure, or visit."""
    parser = argparse.ArgumentParser(prog="python -m bench.console", description=__doc__)
    parser.add_argument("--visit", metavar="ADDRESS", help="be the visitor of a gateway")
    parser.add_argument("--clients", type=int, default=64, help="streams at one time")
    parser.add_argument("--pause", type=float, default=0.02, metavar="S", help="between the chunks of a stream")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long each side of a pair measures")
    parser.add_argument("--rounds", type=int, default=5, help="pairs")
    parser.add_argument("--visitors", type=int, default=1, help="open consoles")
    arguments = parser.parse_args()
    if arguments.visit:
        asyncio.run(_visit(arguments.visit))
        return
    workload = Workload(standin.MODEL, "hello", True, arguments.clients, arguments.seconds, 3.0)
    with (
        tempfile.TemporaryDirectory() as name,
        processes.stand_in(Path(name), arguments.pause) as daemon,
        processes.gateway(Path(name), daemon) as gateway,
    ):
        asyncio.run(_first_visit(gateway.address))
        _idle(gateway, arguments.seconds, arguments.visitors)
        _under_load(gateway, workload, arguments.rounds, arguments.visitors)


if __name__ == "__main__":
    main()
