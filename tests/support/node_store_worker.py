"""A process that keeps and ends jobs in a node's database until it is killed, and says which calls have returned.

``python -m tests.support.node_store_worker PATH AT_REST SEED WORKERS``: each line of its output is a worker and the number of
its calls that have returned.
"""

import asyncio
import random
import sys
from collections.abc import Iterator
from pathlib import Path

from lcp_gateway.node.lcp.messages import Protocol
from lcp_gateway.node.storage.store import SqliteStore
from tests.support.node_records import end, manifest, number32, peer, piece, purchase, quote, sale

Call = tuple[str, tuple, dict]


def calls(seed: int, worker: int) -> Iterator[Call]:
    """The calls of a worker, without end; they touch its own purchases, sales and manifests alone."""
    dice = random.Random(f"{seed} {worker}")
    protocol = Protocol.V02
    while True:
        number = worker * 10 + dice.randrange(3)
        job_id = number32("job", number)
        match dice.randrange(8):
            case 0:
                yield "keep_manifest", (peer(number), protocol, dice.choice([manifest(dice.randrange(5)), None])), {}
            case 1:
                yield "keep_purchase", (purchase(number),), {}
            case 2:
                ended = {"outcome": "delivered", "paid": True, "ended_at": 10**10, "fee_msat": dice.randrange(100)}
                yield "end_purchase", (quote(number).job_id,), ended
            case 3:
                yield "keep_sale", (sale(number, body=dice.randbytes(dice.randrange(1, 50_000))),), {}
            case 4 | 5:
                sent = piece(number, dice.randrange(5), data=dice.randbytes(1_000))
                yield "keep_sent", (peer(number), job_id, dice.choice([(sent,), (sent, end(number))])), {}
            case 6:
                line = {"outcome": "delivered", "price_msat": dice.randrange(100), "paid": True, "model": "model-a"}
                yield "end_sale", (peer(number), job_id), {**line, "line": True, "ended_at": 10**10}
            case 7:
                yield "forget_sale", (peer(number), job_id), {}


async def main(path: str, at_rest: str, seed: str, workers: str) -> None:
    store = await SqliteStore.open(Path(path), at_rest=at_rest, clock=lambda: 1_000.0)

    async def work(worker: int) -> None:
        for at, (method, arguments, named) in enumerate(calls(int(seed), worker), 1):
            await getattr(store, method)(*arguments, **named)
            sys.stdout.write(f"{worker} {at}\n")
            sys.stdout.flush()

    await asyncio.gather(*map(work, range(int(workers))))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
