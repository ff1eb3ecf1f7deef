"""``python -m bench.stored``: what storing costs: memory against its budget, and the pace of streams, off and on in turn."""

import argparse
import asyncio
import contextlib
import json
import math
import secrets
import statistics
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench import processes
from bench.http_client import Client
from bench.processes import Server
from bench.stored_node import MODEL, Node
from bench.workload import Load, Tally
from lcp_gateway.responses.items import Item, ItemKind
from lcp_gateway.responses.store import ResponseStore, StoreLimits

_MIB = 2**20
_ITEMS = 10_000
_ITEM_BYTES = 100 * 1024
_BUDGET_BYTES = 64 * _MIB
_FILL_LIMIT_S = 900.0
# As a quick model's tokens come: here the gateway has time to spare, and a stream that storing held up would show it.
_PAUSE_S = 0.005
_PACED_CLIENTS = 32


# The store by itself.


def measure_store(items: int) -> None:
    """Put ``items`` of 100 KiB, assembled from pieces as a stream's are, and print by how much the process grew."""
    limits = StoreLimits(items_per_owner=items, bytes_in_all=_BUDGET_BYTES, keep_s=86_400.0)
    store: ResponseStore = ResponseStore(limits)
    me = psutil.Process()
    before = peak = me.memory_info().rss
    pieces = [secrets.token_bytes(1024) for _ in range(_ITEM_BYTES // 1024)]
    used = 0.0
    for number in range(items):
        item = _item(number, b"".join(pieces))
        started = time.process_time()
        store.put("key", item)
        used += time.process_time() - started
        if number % 100 == 0:
            peak = max(peak, me.memory_info().rss)
    peak = max(peak, me.memory_info().rss)
    kept = store.items("key", ItemKind.RESPONSE)
    newest = [item.id for item in kept] == [_name(n) for n in range(items - len(kept), items)]
    if not (newest and store.held_bytes <= _BUDGET_BYTES):
        raise SystemExit("the store did not keep the newest within its budget")
    print(f"The store: {items:,} items of {_ITEM_BYTES // 1024} KiB put")
    print(f"  the newest {len(kept)} are held, the others gone")
    print(f"  resident: grew by {(peak - before) / _MIB:.1f} MiB at most on a budget of {_BUDGET_BYTES / _MIB:.0f} MiB")
    print(f"  one put: {used / items * 1e6:.1f} us of CPU")


def _item(number: int, block: bytes) -> Item:
    return Item(
        kind=ItemKind.RESPONSE,
        id=_name(number),
        created_at=number,
        model=MODEL,
        blocks=(block,),
        stream=True,
        inputs=(b'{"role":"user","content":"%d"}' % number,),
    )


def _name(number: int) -> str:
    return f"resp_{number:048d}"


# The whole program.


@dataclass(frozen=True, slots=True)
class Round:
    """The result of one period of load: its clients' results, and the gateway's CPU meanwhile."""

    load: Load
    cpu_s: float

    @property
    def chunks_per_s(self) -> float:
        return self.load.chunks / self.load.seconds

    @property
    def us_per_chunk(self) -> float:
        return self.cpu_s / max(1, self.load.chunks) * 1e6


@contextlib.asynccontextmanager
async def _asking(gateway: Server, clients: int, tally: Tally, *, store: bool):
    """Have clients ask for one stream after another."""
    body = json.dumps(
        # As most clients, which do not set ``store``: the response is stored.
        {"model": MODEL, "input": "hello you", "stream": True, **({} if store else {"store": False})}
    ).encode()
    head = (
        f"POST /v1/responses HTTP/1.1\r\nHost: {gateway.address}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    host, _, port = gateway.address.rpartition(":")
    request = head.encode() + body
    asking = [Client(request, request, tally, stream=True, every_s=0.0) for _ in range(clients)]
    for client in asking:
        await asyncio.get_running_loop().create_connection(lambda c=client: c, host, int(port))
    try:
        yield
    finally:
        for client in asking:
            client.close()
        # Cut streams are released before the next round begins.
        await asyncio.sleep(0.5)


async def _round(gateway: Server, clients: int, seconds: float, *, store: bool) -> Round:
    tally = Tally()
    async with _asking(gateway, clients, tally, store=store):
        await asyncio.sleep(0.3)
        before = gateway.cpu_s()
        tally.begin(time.perf_counter())
        await asyncio.sleep(seconds)
        await tally.until_counted(stream=True)
        load = tally.load(time.perf_counter())
        return Round(load, gateway.cpu_s() - before)


async def _fill(gateway: Server, clients: int, streams: int) -> tuple[Load, int]:
    """Have so many streams stored; return the clients' results, and the gateway's largest resident size."""
    tally = Tally()
    started = time.perf_counter()
    tally.begin(started)
    peak = gateway.rss_bytes()
    async with _asking(gateway, clients, tally, store=True):
        while True:
            await asyncio.sleep(0.2)
            peak = max(peak, gateway.rss_bytes())
            load = tally.load(time.perf_counter())
            if load.requests >= streams or load.errors:
                return load, peak
            if time.perf_counter() - started > _FILL_LIMIT_S:
                raise SystemExit(f"only {load.requests} streams in {_FILL_LIMIT_S:.0f} s")


def _status(gateway: Server, response_id: str) -> int:
    url = f"http://{gateway.address}/v1/responses/{response_id}"
    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code


async def _compare(gateway: Server, clients: int, seconds: float, rounds: int, title: str) -> None:
    """Measure without and with storing in turn, and print the two side by side."""
    off: list[Round] = []
    on: list[Round] = []
    for _ in range(rounds):
        off.append(await _round(gateway, clients, seconds, store=False))
        on.append(await _round(gateway, clients, seconds, store=True))

    def middle(of: list[Round], value: Callable[[Round], float]) -> float:
        return statistics.median(value(one) for one in of)

    lines: list[tuple[str, Callable[[Round], float]]] = [
        ("chunks/s", lambda one: one.chunks_per_s),
        ("one stream p50 (ms)", lambda one: one.load.total_p50 * 1e3),
        ("one stream p99 (ms)", lambda one: one.load.total_p99 * 1e3),
        ("CPU us/chunk", lambda one: one.us_per_chunk),
    ]
    print(f"\n{title + f' (medians of {rounds} rounds in turn)':62} store off  store on  on/off")
    for name, value in lines:
        without, with_it = middle(off, value), middle(on, value)
        print(f"  {name:58} {without:11,.1f} {with_it:9,.1f} {_ratio(with_it, without):7.3f}")
    print(f"  errors: {sum(one.load.errors for one in [*off, *on])}")


def _ratio(value: float, base: float) -> float:
    """Return a ratio; not a number where the base was too small to be measured, as CPU time in a short round can be."""
    return value / base if base else math.nan


async def _measure(gateway: Server, node: Node, arguments: argparse.Namespace) -> None:
    # Answers that the gateway holds for repeats are in memory before it is measured.
    clients, seconds, rounds = arguments.clients, arguments.seconds, arguments.rounds
    await _round(gateway, clients, seconds, store=False)
    before = gateway.rss_bytes()
    node.done.clear()
    load, peak = await _fill(gateway, clients, arguments.streams)
    print(f"\nThe program: {load.requests:,} streams of 100 KiB stored, {load.errors} errors")
    print(
        f"  resident: {before / _MIB:.0f} MiB before, {peak / _MIB:.0f} MiB at most, "
        f"{gateway.rss_bytes() / _MIB:.0f} MiB after, on a budget of {_BUDGET_BYTES / _MIB:.0f} MiB"
    )
    # Of the very last ones some were cut when the clients left.
    newest = [_status(gateway, name) for name in node.done[-5 * clients : -clients]]
    print(
        f"  GET of the oldest: {_status(gateway, node.done[0])}; "
        f"of the newest {len(newest)}: {newest.count(200)} are there"
    )
    title = f"{clients} streams at once, as fast as they go"
    await _compare(gateway, clients, seconds, rounds, title)
    node.pause_s = _PAUSE_S
    title = f"{_PACED_CLIENTS} streams at once, a chunk each {_PAUSE_S * 1e3:.0f} ms"
    await _compare(gateway, _PACED_CLIENTS, seconds, rounds, title)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.stored", description=__doc__)
    parser.add_argument("--streams", type=int, default=_ITEMS, help="how many are stored first")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=4.0, help="how long a round measures")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory-only", action="store_true", help="only the store by itself")
    parser.add_argument("--quick", action="store_true", help="1,000 streams, 2 rounds of 2 s")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.streams, arguments.seconds, arguments.rounds = 1_000, 2.0, 2
    return arguments


def main() -> None:
    arguments = _arguments()
    measure_store(_ITEMS)
    if arguments.memory_only:
        return
    with tempfile.TemporaryDirectory(prefix="lcp-gateway-bench-") as name, Node().running() as node:
        row = {
            "name": "bench",
            "base_url": f"http://127.0.0.1:{node.port}",
            "models": [MODEL],
            "endpoints": ["responses"],
            "max_connections": 2 * max(arguments.clients, _PACED_CLIENTS),
        }
        settings = {
            "LCP_GATEWAY_NODES": json.dumps([row]),
            "LCP_GATEWAY_MAX_STORED_ITEMS": str(2 * arguments.streams),
            "LCP_GATEWAY_MAX_STORED_BYTES": str(_BUDGET_BYTES),
            # The streams that are cut at the end of a round would count as the node's failures.
            "LCP_GATEWAY_BREAKER_FAILURES": "0",
        }
        with processes.gateway(Path(name), None, **settings) as gateway:
            asyncio.run(_measure(gateway, node, arguments))


if __name__ == "__main__":
    main()
