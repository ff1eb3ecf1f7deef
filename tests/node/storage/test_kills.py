"""Processes that are killed while they write: what a method returned after is there, whatever came next."""

import os
import random
from dataclasses import replace
from itertools import islice
from subprocess import PIPE

import pytest

from lcp_gateway.node.memory.store import MemoryStore
from lcp_gateway.node.storage.history import open_history
from lcp_gateway.node.storage.records import end_without_text, read_sent
from lcp_gateway.node.storage.store import SqliteStore
from tests.support.forked import start_module
from tests.support.node_records import peer
from tests.support.node_store_worker import calls

KILLS = 6


def write_and_kill(path, at_rest, seed, workers, after_calls):
    """Return how many calls of each worker have returned before the process was killed."""
    arguments = (str(path), at_rest, str(seed), str(workers))
    process = start_module("tests.support.node_store_worker", *arguments, env=dict(os.environ), stdout=PIPE, text=True)
    returned = dict.fromkeys(range(workers), 0)
    try:
        for line in islice(process.stdout, after_calls):
            worker, at = map(int, line.split())
            returned[worker] = at
        process.kill()
        for line in process.stdout:
            # A line is written at once, and whole.
            worker, at = map(int, line.split())
            returned[worker] = at
    finally:
        process.kill()
        process.wait(60)
        process.stdout.close()
    return returned


async def expected(seed, worker, count, at_rest):
    """Return what a worker's calls leave: what is kept, and the lines of what has ended."""
    model, lines = MemoryStore(), []
    for method, arguments, named in islice(calls(seed, worker), count):
        if method == "end_purchase" and arguments[0] in model._purchases:
            lines.append(("purchase", arguments[0], named["fee_msat"]))
        if method == "end_sale" and arguments in model._sales and arguments not in model._lined:
            lines.append(("sale", arguments[1], None))
        await getattr(model, method)(*arguments, **named)
    sales = await model.sales()
    if at_rest == "memory":
        sales = [without_content(kept) for kept in sales]
    return by_id(await model.purchases()), by_id(sales), await model.manifests(), lines


def without_content(kept):
    last = end_without_text(kept.sent)
    return replace(kept, kept=replace(kept.kept, body=b""), sent=tuple(read_sent(last)) if last else ())


def by_id(kept):
    return sorted(kept, key=repr)


@pytest.mark.parametrize("at_rest", ["encrypted", "memory"])
@pytest.mark.parametrize("workers", [1, 6])
async def test_what_a_method_returned_after_is_there_when_the_process_is_killed(path, workers, at_rest):
    dice = random.Random(f"{workers} {at_rest}")
    for seed in range(KILLS):
        place = path.with_name(f"{seed}.db")
        returned = write_and_kill(place, at_rest, seed, workers, dice.randrange(1, 150))

        store = await SqliteStore.open(place, at_rest=at_rest, clock=lambda: 1_000.0)
        purchases, sales, manifests = await store.purchases(), await store.sales(), await store.manifests()
        await store.close()
        with open_history(place) as history:
            lines = list(reversed(history.lines(limit=10_000)))

        for worker, count in returned.items():
            own = {peer(worker * 10 + number) for number in range(3)}
            found = (
                by_id(one for one in purchases if one.peer_id in own),
                by_id(one for one in sales if one.peer_id in own),
                {key: kept for key, kept in manifests.items() if key[0] in own},
                [(line.kind, line.job_id, line.fee_msat) for line in lines if line.peer_id in own],
            )
            # The call that was under way may have happened.
            assert found in [await expected(seed, worker, count + more, at_rest) for more in range(2)]
