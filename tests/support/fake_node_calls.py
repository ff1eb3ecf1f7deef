"""A node's calls with scripted answers, for the services over them."""

import asyncio
from collections.abc import AsyncGenerator
from hashlib import sha256

from lcp_gateway.node.lcp.buying_events import Ended, Outcome, ResultData, ResultHead
from lcp_gateway.node.lcp.manifests import Limits, own_manifest
from lcp_gateway.node.lcp.messages import JSON, QuoteResponse, Result, Status
from lcp_gateway.node.runtime.calls import Delivered, LocalInfo, Paid, PaymentReport, PaymentState, ReadyPeer

PEER = "02" + "ab" * 32
NODE = "03" + "cd" * 32
JOB = b"\x11" * 32
PREIMAGE = b"\x77" * 32
SETTLED = PaymentReport(
    state=PaymentState.SETTLED, payment_hash=sha256(PREIMAGE).digest(), preimage=PREIMAGE, fee_msat=7
)
STREAM = b"\x33" * 32


def result(body: bytes, **changes) -> Result:
    made = {
        "protocol_version": 2,
        "job_id": JOB,
        "msg_id": b"\x01" * 32,
        "expiry": 0,
        "status": Status.OK,
        "stream_id": STREAM,
        "sha256": sha256(body).digest(),
        "total_len": len(body),
        "content_type": JSON,
        "content_encoding": "identity",
    }
    return Result(**(made | changes))


def delivered(body: bytes) -> Delivered:
    return Delivered(Ended(Outcome.DELIVERED, paid=True), result(body), SETTLED)


def whole(*parts: bytes) -> list:
    """Return the items of a purchase that goes well."""
    return [Paid(SETTLED), ResultHead(JSON), *(ResultData(part) for part in parts), delivered(b"".join(parts))]


class FakeNodeCalls:
    """Answers what it was made with; an error among ``items`` is raised, an event is waited for."""

    def __init__(self, *, models=("model-a",), items=(), quote=None):
        self.models = models
        self.items = list(items)
        self.quote = quote
        self.asked = []
        self.accepted = []
        self.cancelled = []
        self.looked_up = []
        self.known = SETTLED
        self.bugs = []
        self.left = asyncio.Event()
        self.given = 0

    def ready_peers(self, protocol):
        return [ReadyPeer(PEER, "127.0.0.1:9735", own_manifest(protocol, Limits(), self.models))]

    async def local_info(self, protocol):
        if isinstance(self.quote, Exception):
            raise self.quote
        return LocalInfo(NODE, own_manifest(protocol, Limits()), Limits())

    async def request_quote(self, protocol, peer_id, order):
        self.asked.append((protocol, peer_id, order))
        if isinstance(self.quote, Exception):
            raise self.quote
        made = {
            "protocol_version": protocol.value,
            "job_id": JOB,
            "msg_id": b"\x01" * 32,
            "expiry": 0,
            "price_msat": 418,
            "quote_expiry": 1_795_943_066,
            "terms_hash": b"\x22" * 32,
            "payment_request": "lnbcrt1",
        }
        return QuoteResponse(**(made | (self.quote or {})))

    async def accept(self, peer_id, job_id, *, max_price_msat=None, fee_limit_msat=None) -> AsyncGenerator:
        self.accepted.append((peer_id, job_id, max_price_msat, fee_limit_msat))
        try:
            for item in self.items:
                if isinstance(item, Exception):
                    raise item
                if isinstance(item, asyncio.Event):
                    await item.wait()
                    continue
                self.given += 1
                yield item
        finally:
            self.left.set()

    async def payment(self, job_id, payment_hash):
        self.looked_up.append((job_id, payment_hash))
        if isinstance(self.known, Exception):
            raise self.known
        return self.known

    def cancel(self, peer_id, job_id, reason):
        self.cancelled.append((peer_id, job_id, reason))
