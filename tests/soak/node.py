"""``python -m tests.soak.node jobs|link``: two nodes of ours over a simulated Lightning network, for minutes. Ends with 1 where anything differs.

``jobs``: ten thousand jobs, whole and streamed, in both versions, with books on a disk: each is delivered, both sides agree about the
money, and the memory does not grow in the last quarter. ``link``: two hundred requests of a mebibyte at once over one link whose every
message takes a millisecond, as lnd's does: all are delivered, and short jobs beside them go on.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil
import uvloop

from lcp_gateway.node.compute.deterministic import DeterministicBackend
from lcp_gateway.node.compute.echo import EchoBackend
from lcp_gateway.node.lcp.buying_events import Order, ResultData
from lcp_gateway.node.lcp.judging import SoldModel
from lcp_gateway.node.lcp.messages import CHAT, Protocol
from lcp_gateway.node.lcp.pricing import TokenPrice
from lcp_gateway.node.lcp.selling_events import SaleTerms
from lcp_gateway.node.lcp.table import write_params
from lcp_gateway.node.memory import invoices, payments
from lcp_gateway.node.memory.network import Network
from lcp_gateway.node.memory.store import MemoryStore
from lcp_gateway.node.runtime.bounds import Bounds, Delays
from lcp_gateway.node.runtime.calls import CallFailed, Delivered
from lcp_gateway.node.runtime.log import NodeLog
from lcp_gateway.node.runtime.node import LcpNode
from lcp_gateway.node.runtime.observer import Role
from lcp_gateway.node.storage.history import open_history
from lcp_gateway.node.storage.store import SqliteStore

MIB = 2**20
MODEL = "echo-1"
SOLD = {MODEL: SoldModel(TokenPrice(2_000_000, 14_000_000), 4_096)}
MOST_GROWTH_MIB = 16
# Messages are remembered against repeats for five minutes, up to 16,384 of them, and jobs until their quotes expire: both fill up at first.
# A job is kept until its quote has expired, to be sent again: with lnd's usual five minutes ten thousand would be kept.
TTL_S, SLACK_S, KEEP_S, SWEEP_S = 15, 1, 1, 0.25
# The simulated network remembers ten thousand of each by itself; with so few, what grows is the nodes'.
REMEMBERED = 500


class Report(NodeLog):
    """What a node reports: its money, the ends of its jobs, its problems."""

    def __init__(self):
        self.ends, self.messages, self.msat, self.problems = Counter(), 0, 0, Counter()

    def message(self, *, sent, protocol, byte_count):
        self.messages += sent

    def job_ended(self, *, role, end, model, paid_msat=0, fee_msat=0):
        self.ends[f"{role} {end}"] += 1
        self.msat += paid_msat

    def problem(self, part, error, *, again_in_s=None):
        self.problems[f"{part}: {type(error).__name__}"] += 1


class SlowTransport:
    """A transport whose every message takes a while, one after the other."""

    def __init__(self, transport, message_s):
        self._message_s = message_s
        self.identity, self.events, self.disconnect = transport.identity, transport.events, transport.disconnect
        self._send = transport.send

    async def send(self, peer_id, message_type, payload):
        await asyncio.sleep(self._message_s)
        await self._send(peer_id, message_type, payload)


def order(padding, protocol=Protocol.V02, *, stream=False):
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "x" * padding}],
        "stream": stream,
        "max_tokens": 64,
    }
    return Order(
        task_kind=CHAT, params=write_params(MODEL), request=json.dumps(body).encode(), params_content_type=None
    )


@contextlib.asynccontextmanager
async def pair(stores, *, message_s=None):
    """Run a buyer and a seller that are linked; yield them, the seller's id and both reports."""
    network, reports = Network(), {"seller": Report(), "buyer": Report()}
    lightning = {name: network.node(name) for name in reports}
    nodes = {}
    for name, report in reports.items():
        transport = lightning[name].transport
        slow = message_s is not None
        sold = {
            "compute": DeterministicBackend() if slow else EchoBackend(),
            "models": SOLD,
            "terms": SaleTerms() if slow else SaleTerms(ttl_s=TTL_S, invoice_slack_s=SLACK_S),
        }
        nodes[name] = LcpNode(
            transport=SlowTransport(transport, message_s) if message_s else transport,
            payments=lightning[name].payments,
            invoices=lightning[name].invoices,
            store=stores[name],
            delays=Delays() if slow else Delays(keep_sale_s=KEEP_S, sweep_s=SWEEP_S),
            # More than two hundred requests of a mebibyte.
            bounds=Bounds(input_bytes_per_peer=256 * MIB),
            observer=report,
            log=report,
            **(sold if name == "seller" else {}),
        )
        await nodes[name].start()
    network.connect(lightning["buyer"], lightning["seller"])
    async with asyncio.timeout(10):
        while not all(nodes["buyer"].ready_peers(protocol) for protocol in Protocol):
            await asyncio.sleep(0.01)
    try:
        yield nodes["buyer"], nodes["seller"], lightning["seller"].node_id, reports
    finally:
        for node in nodes.values():
            await node.stop()


async def buy(buyer, seller_id, wanted, protocol=Protocol.V02):
    """Buy one job, and return the bytes of its result and the time that it took."""
    started, size, end = time.monotonic(), 0, None
    quote = await buyer.request_quote(protocol, seller_id, wanted)
    async with contextlib.aclosing(buyer.accept(seller_id, quote.job_id)) as items:
        async for item in items:
            if isinstance(item, ResultData):
                size += len(item.data)
            end = item
    if not isinstance(end, Delivered) or not size:
        raise CallFailed("UNKNOWN", "nothing was delivered")
    return size, time.monotonic() - started


async def jobs(count, clients):
    """Run many jobs, and return what is wrong."""
    payments.MAX_PAYMENTS = invoices.MAX_INVOICES = REMEMBERED
    problems, rss_mib, numbers = [], [], itertools.count()
    with tempfile.TemporaryDirectory(prefix="lcp-gateway-soak-") as folder:
        places = {name: Path(folder) / f"{name}.db" for name in ("buyer", "seller")}
        stores = {name: await SqliteStore.open(place) for name, place in places.items()}
        process, started = psutil.Process(), time.monotonic()
        async with pair(stores) as (buyer, _, seller_id, reports):

            async def client():
                while (number := next(numbers)) < count:
                    protocol = (Protocol.V02, Protocol.V03)[number // 2 % 2]
                    try:
                        await buy(buyer, seller_id, order(number % 5_000, protocol, stream=number % 2 == 1), protocol)
                    except CallFailed as error:
                        problems.append(str(error))
                    if number % (count // 40 or 1) == 0:
                        rss_mib.append(process.memory_info().rss / MIB)

            await asyncio.gather(*(client() for _ in range(clients)))
            took_s = time.monotonic() - started
            kept_msat = await _kept_msat(places["seller"], reports["seller"])
        for store in stores.values():
            await store.close()
    growth_mib = _growth(rss_mib)
    bought, sold = reports["buyer"], reports["seller"]
    print(f"{count} jobs in {took_s:.0f} s, {count / took_s:.0f} a second; messages {bought.messages + sold.messages}")
    print(f"memory {rss_mib[0]:.0f} -> {rss_mib[-1]:.0f} MiB, from the third to the last quarter {growth_mib:+.1f} MiB")
    print(f"ends {dict(bought.ends)} {dict(sold.ends)}; paid {bought.msat} msat, earned {sold.msat} msat")
    if bought.ends != {f"{Role.BUYER} delivered": count}:
        problems.append(f"the buyer's jobs ended otherwise: {dict(bought.ends)}")
    if len({bought.msat, sold.msat, kept_msat}) != 1:
        problems.append(f"the money differs: paid {bought.msat}, earned {sold.msat}, kept {kept_msat}")
    if growth_mib > MOST_GROWTH_MIB:
        problems.append(f"the memory grew by {growth_mib:.0f} MiB")
    return [*problems, *map(str, (bought.problems + sold.problems).items())]


async def _kept_msat(place, sold):
    """Return what the seller's books say, once a line of each job is there: it comes after the job's end."""
    totals = []
    with contextlib.suppress(TimeoutError), open_history(place) as history:
        async with asyncio.timeout(180):
            while sum(total.jobs for total in totals) < sold.ends.total():
                await asyncio.sleep(0.2)
                totals = history.totals()
    return sum(total.price_msat for total in totals)


async def link(count, input_bytes, message_s):
    """Run long requests at once, with short ones beside them, and return what is wrong."""
    problems, alone, beside, long_order = [], [], [], order(input_bytes)
    stores = {name: MemoryStore() for name in ("buyer", "seller")}
    async with pair(stores, message_s=message_s) as (buyer, _, seller_id, reports):
        for _ in range(20):
            alone.append((await buy(buyer, seller_id, order(100)))[1])

        async def long_one():
            try:
                await buy(buyer, seller_id, long_order)
            except CallFailed as error:
                problems.append(str(error))

        started = time.monotonic()
        running = [asyncio.create_task(long_one()) for _ in range(count)]
        while not all(task.done() for task in running):
            beside.append((await buy(buyer, seller_id, order(100)))[1])
        await asyncio.gather(*running)
        took_s = time.monotonic() - started
    sent = reports["buyer"].messages
    print(
        f"{count} requests of {input_bytes / MIB:.1f} MiB in {took_s:.1f} s: {sent} messages, {sent / took_s:.0f} a second"
    )
    print(f"short jobs alone: median {statistics.median(alone) * 1000:.0f} ms, longest {max(alone) * 1000:.0f} ms")
    print(
        f"short jobs beside: {len(beside)}, median {statistics.median(beside) * 1000:.0f} ms,"
        f" longest {max(beside) * 1000:.0f} ms"
    )
    if max(beside) > took_s / 4:
        problems.append(f"a short job took {max(beside):.1f} of the {took_s:.1f} s")
    return [*problems, *map(str, (reports["buyer"].problems + reports["seller"].problems).items())]


def _growth(rss_mib):
    quarter = len(rss_mib) // 4
    third, last = rss_mib[2 * quarter : 3 * quarter], rss_mib[3 * quarter :]
    return statistics.mean(last) - statistics.mean(third) if quarter else 0.0


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.soak.node", description=__doc__)
    parser.add_argument("part", choices=["jobs", "link"])
    parser.add_argument("--jobs", type=int, help="10,000, or 200 at once")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--input-bytes", type=int, default=MIB)
    parser.add_argument("--message-ms", type=float, default=1.0, help="how long the link takes for each; 0: no time")
    arguments = parser.parse_args()
    if arguments.part == "jobs":
        problems = uvloop.run(jobs(arguments.jobs or 10_000, arguments.clients))
    else:
        problems = uvloop.run(link(arguments.jobs or 200, arguments.input_bytes, arguments.message_ms / 1000))
    for problem in problems[:20]:
        print(f"WRONG: {problem}")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
