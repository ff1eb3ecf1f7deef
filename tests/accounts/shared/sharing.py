"""Gateways that share the results of their purchases, as the tests drive them."""

import asyncio

from lcp_gateway.purchase.errors import UpstreamError
from lcp_gateway.purchase.idempotency import RepeatKeys
from lcp_gateway.purchase.states import State
from tests.support.purchases import result
from tests.support.scripted_peers import ordered

KEY = RepeatKeys(key="k")
RETRY = RepeatKeys(is_retry=True)
CODEX = RepeatKeys(client_request_id="c1")
NO_ROUTE = UpstreamError("FAILED_PRECONDITION", "payment failed: FAILURE_REASON_NO_ROUTE: no route")


class Journals:
    """Stands in for the journal's answer about requests whose gateway has ended."""

    def __init__(self) -> None:
        self.state: State | Exception | None = None
        self.asked: list = []

    async def __call__(self, key_id, request_id, since):
        self.asked.append((key_id, request_id, since))
        if isinstance(self.state, Exception):
            raise self.state
        return self.state


def spawn(coroutine) -> asyncio.Task:
    return asyncio.ensure_future(coroutine)


async def work_of(w, at=0):
    async with asyncio.timeout(60):
        while len(w.upstream.works) <= at:
            await asyncio.sleep(0.002)
    return w.upstream.works[at]


async def bought(w, order=None, repeat=KEY, *events):
    """Let a gateway buy and share a result."""
    asked = spawn(w.ask(order or ordered(), repeat))
    (await work_of(w, len(w.upstream.works))).put(*(events or [result()]))
    try:
        return await asked
    finally:
        await w.service.wait_idle()
        await w.service._shared._claims._calls.settled()


async def claimed(w) -> None:
    """Wait until Redis, which was empty, holds a claim."""
    async with asyncio.timeout(60):
        while not await w.claims._calls.client.dbsize():
            await asyncio.sleep(0.01)


async def everything(w) -> bytes:
    """Return everything in Redis, names included."""
    kept = b""
    async for key in w.claims._calls.client.scan_iter():
        kept += key + b" "
        if await w.claims._calls.client.type(key) == b"hash":
            for field, value in (await w.claims._calls.client.hgetall(key)).items():
                kept += field + value
        else:
            kept += await w.claims._calls.client.get(key)
    return kept


async def left_alone(w) -> None:
    """Stop a gateway as if it had been killed: it renews, stores and releases nothing more."""
    w.claims._outage._until = float("inf")
