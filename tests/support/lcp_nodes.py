"""Two nodes of ours over a simulated Lightning network, and what tests do with them."""

import asyncio
import contextlib
import json

from lcp_gateway.node.lcp.buying_events import Order, ResultData, ResultHead
from lcp_gateway.node.lcp.judging import SoldModel
from lcp_gateway.node.lcp.messages import CHAT, Protocol
from lcp_gateway.node.lcp.pricing import TokenPrice
from lcp_gateway.node.lcp.table import write_params
from lcp_gateway.node.memory.hooks import Hooks
from lcp_gateway.node.memory.network import Network
from lcp_gateway.node.memory.store import MemoryStore
from lcp_gateway.node.runtime.calls import Delivered
from lcp_gateway.node.runtime.log import NodeLog
from lcp_gateway.node.runtime.node import LcpNode
from lcp_gateway.node.runtime.observer import Role, Unobserved
from tests.support import virtual_time

MODEL = "m"
SOLD = {MODEL: SoldModel(TokenPrice(1_000_000, 1_000_000), 10)}
RESULT = bytes(range(256)) * 40


def order(*, stream=False, padding=0, protocol=Protocol.V02):
    body = {"model": MODEL, "messages": [{"role": "user", "content": "x" * padding}], "stream": stream}
    return Order(
        task_kind=CHAT, params=write_params(MODEL), request=json.dumps(body).encode(), params_content_type=None
    )


class HeldPayments(Hooks):
    """Payments wait for ``arrive``, and their payers for ``learn``; ``reason`` fails them."""

    def __init__(self):
        self.arrive, self.learn, self.reason, self.fee = asyncio.Event(), asyncio.Event(), None, 0
        self.arrive.set()
        self.learn.set()

    async def before_payment(self, payer, invoice):
        await self.arrive.wait()
        return self.reason

    async def after_payment(self, payer, invoice):
        await self.learn.wait()

    def fee_msat(self, payer, invoice):
        return self.fee


class ScriptedCompute:
    """A backend of ``pieces``; ``gate`` has to be set before each run's first piece, ``error`` is raised in its place."""

    def __init__(self, pieces=(RESULT[:3_000], RESULT[3_000:])):
        self.pieces = list(pieces)
        self.gate = asyncio.Event()
        self.gate.set()
        self.error = self.late_error = None
        self.runs = []
        self.stopped = 0

    async def models(self):
        return (MODEL,)

    async def run(self, *, job_id, task_kind, model, body, stream):
        self.runs.append(job_id)
        whole = False
        try:
            await self.gate.wait()
            if self.error:
                raise self.error
            for piece in self.pieces:
                yield piece
            if self.late_error:
                raise self.late_error
            whole = True
        finally:
            self.stopped += not whole

    async def close(self):
        pass


class Problems(NodeLog, Unobserved):
    """Keeps what a node reports."""

    def __init__(self):
        self.problems, self.ended, self.dropped, self.refused, self.ready = [], [], [], [], []
        self.unreached = []
        self.earned_msat = self.spent_msat = self.sent = 0

    def problem(self, part, error, *, again_in_s=None):
        self.problems.append((part, error))

    def job_ended(self, *, role, end, model, paid_msat=0, fee_msat=0):
        self.ended.append((role.value, end.value))
        if role is Role.SELLER:
            self.earned_msat += paid_msat
        else:
            self.spent_msat += paid_msat + fee_msat

    def job_refused(self, peer_id, protocol, code):
        self.refused.append(code)

    def not_connected(self, peer_id, reason):
        self.unreached.append((peer_id, reason))

    def message(self, *, sent, protocol, byte_count):
        self.sent += sent

    def message_dropped(self, peer_id, reason):
        self.dropped.append(reason)

    def link(self, peer_id, protocol, *, ready):
        self.ready.append((protocol, ready))


class Side:
    """A node, and what outlives its restarts."""

    def __init__(self, lightning, **settings):
        self.lightning, self.settings = lightning, settings
        self.store = MemoryStore()
        self.seen = Problems()
        self.node = None

    @property
    def node_id(self):
        return self.lightning.node_id

    async def start(self):
        parts = {
            "transport": self.lightning.transport,
            "payments": self.lightning.payments,
            "invoices": self.lightning.invoices,
            "store": self.store,
            "observer": self.seen,
            "log": self.seen,
            "clock": virtual_time.unix_time,
        }
        self.node = LcpNode(**(parts | self.settings))
        await self.node.start()

    async def stop(self):
        if self.node is not None:
            await self.node.stop()
            self.node = None

    async def restart(self):
        await self.stop()
        await self.start()


class Pair:
    """A buyer and a seller that are linked. Use it as an asynchronous context."""

    def __init__(self, *, hooks=None, buyer=None, seller=None, compute=None):
        self.network = Network(clock=virtual_time.unix_time, hooks=hooks)
        self.compute = compute or ScriptedCompute()
        self.buyer = Side(self.network.node("buyer", "10.0.0.1:9735"), **(buyer or {}))
        seller = {"models": SOLD, "compute": self.compute} | (seller or {})
        self.seller = Side(self.network.node("seller", "10.0.0.2:9735"), **seller)

    async def __aenter__(self):
        await self.seller.start()
        await self.buyer.start()
        self.connect()
        await settle()
        return self

    async def __aexit__(self, *_):
        await self.buyer.stop()
        await self.seller.stop()

    def connect(self):
        self.network.connect(self.buyer.lightning, self.seller.lightning)

    def disconnect(self):
        self.network.disconnect(self.buyer.node_id, self.seller.node_id)

    async def quote(self, protocol=Protocol.V02, **asked):
        return await self.buyer.node.request_quote(protocol, self.seller.node_id, order(**asked))

    def accept(self, quote, **limits):
        return self.buyer.node.accept(self.seller.node_id, quote.job_id, **limits)

    async def buy(self, protocol=Protocol.V02, **asked):
        return await bought(self.accept(await self.quote(protocol, **asked)))


async def bought(items):
    """Return a purchase's content type, bytes and end."""
    head, data = None, b""
    async with contextlib.aclosing(items):
        async for item in items:
            match item:
                case ResultHead(content_type):
                    head = content_type
                case ResultData(piece):
                    data += piece
                case Delivered():
                    return head, data, item
    raise AssertionError("a purchase ends with Delivered or an error")


async def settle(seconds=0.001):
    """Let everything that can happen now happen: the virtual clock goes on once no task can run."""
    await asyncio.sleep(seconds)
