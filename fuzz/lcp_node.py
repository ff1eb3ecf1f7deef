"""``python -m fuzz.lcp_node``: a node that buys and sells, and a peer that sends it whatever: broken, repeated, out of order.

Each input is one custom message: of the vectors, mutated; or of a job that the peer buys or sells, whole, cut, repeated, mixed with
others. Between them links break, invoices are paid, and the node buys of the peer. No part of the node may fail but for what the
ports allow, its counts stay within their bounds, no invoice is paid twice, and an honest peer is served at the end of each round.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from hashlib import sha256

import psutil
import uvloop

from fuzz.lcp import mutated, seeds
from lcp_gateway.lightning import bolt11
from lcp_gateway.lightning.error_codes import ErrorCode
from lcp_gateway.lightning.terms import Terms, hash_terms
from lcp_gateway.node.compute.echo import EchoBackend
from lcp_gateway.node.lcp.buying_events import Order, PeerTimeouts
from lcp_gateway.node.lcp.chunks import StreamWriter
from lcp_gateway.node.lcp.judging import SoldModel
from lcp_gateway.node.lcp.manifests import Limits, own_manifest
from lcp_gateway.node.lcp.messages import (
    CHAT,
    IDENTITY,
    JSON,
    SSE,
    Cancel,
    Error,
    Message,
    Protocol,
    QuoteRequest,
    QuoteResponse,
    Result,
    Status,
    StreamKind,
)
from lcp_gateway.node.lcp.pricing import TokenPrice
from lcp_gateway.node.lcp.selling_events import SaleTerms
from lcp_gateway.node.lcp.table import hash_params, read_message, write_message, write_params
from lcp_gateway.node.lcp.tlv import WireError
from lcp_gateway.node.memory.network import MemoryNode, Network
from lcp_gateway.node.memory.store import MemoryStore
from lcp_gateway.node.ports import LightningAway, MessageReceived, PaymentRefused
from lcp_gateway.node.runtime.bounds import Bounds, Delays
from lcp_gateway.node.runtime.calls import CallFailed, Delivered
from lcp_gateway.node.runtime.log import NodeLog
from lcp_gateway.node.runtime.node import LcpNode
from lcp_gateway.node.runtime.observer import JobEnd, Role, Unobserved

_MODEL = "m"
_SOLD = {_MODEL: SoldModel(TokenPrice(1_000_000, 1_000_000), 20)}
_BOUNDS = Bounds(jobs_per_peer=20, quotes_per_peer=40, sales=200, purchases=200, input_bytes_per_peer=2**20)
_DELAYS = Delays(timeouts=PeerTimeouts(0.05, 0.05, 0.05), keep_sale_s=0.5, sweep_s=0.1)
_TTL_S = 2
_BODY = json.dumps({"model": _MODEL, "messages": [{"role": "user", "content": "x " * 60}]}).encode()
_MIB = 2**20
Wire = tuple[int, bytes]


class _Strict(NodeLog, Unobserved):
    """Keeps the errors that no port raises, and counts how jobs ended."""

    def __init__(self, ends: Counter[str]) -> None:
        self.failures: list[str] = []
        self._ends = ends

    def job_ended(self, *, role: Role, end: JobEnd, model: str, paid_msat: int = 0, fee_msat: int = 0) -> None:  # noqa: ARG002 - as below
        self._ends[f"{role} {end}"] += 1

    def problem(self, part: str, error: BaseException, *, again_in_s: float | None = None) -> None:  # noqa: ARG002 - the signature is the log's
        if not isinstance(error, LightningAway | PaymentRefused):
            self.failures.append(f"{part}: {error!r}")


def _ids(rng: random.Random) -> bytes:
    return rng.randbytes(32)


def _fields(rng: random.Random, protocol: Protocol, job_id: bytes) -> dict:
    expiry = int(time.time()) + rng.choice((300, 300, 300, 1, -1))
    return {"protocol_version": protocol.value, "job_id": job_id, "msg_id": _ids(rng), "expiry": expiry}


def _stream(rng: random.Random, protocol: Protocol, job_id: bytes, kind: StreamKind, data: bytes) -> Iterator[Wire]:
    writer = StreamWriter(
        protocol,
        protocol_version=protocol.value,
        job_id=job_id,
        expiry=int(time.time()) + 300,
        stream_id=_ids(rng),
        kind=kind,
        content_type=rng.choice((JSON, JSON, SSE)) if kind is StreamKind.RESULT else JSON,
        max_payload_bytes=rng.choice((260, 400, 16_384)),
        new_id=lambda: _ids(rng),
    )
    named = kind is StreamKind.INPUT or rng.random() < 0.5
    yield writer.begin(total_len=len(data), sha256=sha256(data).digest()) if named else writer.begin()
    yield from writer.chunks(data)
    digest = writer.digest
    yield writer.end()
    if kind is StreamKind.RESULT:
        yield write_message(
            protocol,
            Result(
                **_fields(rng, protocol, job_id),
                status=Status.OK,
                stream_id=_ids(rng),
                sha256=digest,
                total_len=len(data),
                content_type=JSON,
                content_encoding=IDENTITY,
            ),
        )


def _request(rng: random.Random, protocol: Protocol, job_id: bytes) -> list[Wire]:
    params = write_params(_MODEL if rng.random() < 0.9 else "another")
    asked = QuoteRequest(**_fields(rng, protocol, job_id), task_kind=CHAT, params=params)
    body = _BODY if rng.random() < 0.9 else rng.randbytes(300)
    return [write_message(protocol, asked), *_stream(rng, protocol, job_id, StreamKind.INPUT, body)]


def _shuffled(rng: random.Random, messages: Iterable[Wire]) -> list[Wire]:
    """Return messages as a bad link or a bad peer would send them."""
    found = list(messages)
    match rng.randrange(8):
        case 0:
            rng.shuffle(found)
        case 1:
            del found[rng.randrange(len(found)) :]
        case 2:
            del found[rng.randrange(len(found))]
        case 3:
            found = [one for one in found for _ in range(rng.choice((1, 1, 2)))]
        case 4:
            at = rng.randrange(len(found))
            number, payload = found[at]
            found[at] = (number, mutated(rng, payload, payload))
    return found


class _Mallory:
    """The peer: it buys and sells as it likes, and pays some of the invoices that it gets."""

    def __init__(self, rng: random.Random, lightning: MemoryNode, target: str) -> None:
        self.sent = 0
        self._rng = rng
        self._lightning = lightning
        self._target = target
        self._seeds = seeds()
        self._jobs: list[tuple[Protocol, bytes]] = []
        self._paying: set[asyncio.Task[None]] = set()

    async def listen(self) -> None:
        with contextlib.suppress(LightningAway):
            async for event in self._lightning.transport.events():
                if isinstance(event, MessageReceived):
                    await self._heard(event)

    async def _heard(self, event: MessageReceived) -> None:
        with contextlib.suppress(WireError):
            read = read_message(event.message_type, event.payload)
            if read is None:
                return
            protocol, message = read
            match message:
                case QuoteResponse(payment_request=request) if self._rng.random() < 0.5:
                    task = asyncio.create_task(self._pay(request))
                    self._paying.add(task)
                    task.add_done_callback(self._paying.discard)
                case QuoteRequest():
                    await self._sell(protocol, message)

    async def _pay(self, request: str) -> None:
        with contextlib.suppress(PaymentRefused, LightningAway):
            await self._lightning.payments.pay(
                request, b"", amount_msat=_price(request), fee_limit_msat=10**6, timeout_s=1
            )

    async def _sell(self, protocol: Protocol, asked: QuoteRequest) -> None:
        rng = self._rng
        job_id = asked.job_id
        self._jobs.append((protocol, job_id))
        price, expiry = rng.choice((1_000, 50_000)), int(time.time()) + _TTL_S
        terms = Terms(
            protocol_version=protocol.value,
            job_id=job_id,
            price_msat=price,
            quote_expiry=expiry,
            task_kind=CHAT,
            request_sha256=sha256(_BODY).digest(),
            params_sha256=hash_params(protocol, asked.params),
            request_bytes=len(_BODY),
            content_type=JSON,
            content_encoding=IDENTITY,
        )
        digest = hash_terms(protocol, terms)
        made = await self._lightning.invoices.make(description_hash=digest, amount_msat=price, expiry_s=_TTL_S)
        quote = QuoteResponse(
            **_fields(rng, protocol, job_id),
            price_msat=price,
            quote_expiry=expiry,
            terms_hash=digest,
            payment_request=made.payment_request,
        )
        answer = [
            write_message(protocol, quote),
            *_stream(rng, protocol, job_id, StreamKind.RESULT, rng.randbytes(900)),
        ]
        await self.send(_shuffled(rng, answer) if rng.random() < 0.5 else answer)

    async def say(self) -> None:
        """Send the next few messages."""
        rng = self._rng
        protocol = rng.choice(tuple(Protocol))
        match rng.randrange(10):
            case 0 | 1 | 2 | 3:
                number, payload = rng.choice(self._seeds)
                await self.send([(number, mutated(rng, payload, rng.choice(self._seeds)[1]))])
            case 4 | 5 | 6:
                job_id = self._known(rng, protocol)[1] if rng.random() < 0.2 else _ids(rng)
                self._jobs.append((protocol, job_id))
                asked = _request(rng, protocol, job_id)
                await self.send(asked if rng.random() < 0.5 else _shuffled(rng, asked))
            case 7:
                protocol, job_id = self._known(rng, protocol)
                await self.send([write_message(protocol, self._single(protocol, job_id))])
            case 8:
                models = rng.choice(((), (_MODEL,), (_MODEL, "b")))
                limits = Limits(rng.choice((200, 16_384)), rng.choice((100, 4 * _MIB)), rng.choice((500, 8 * _MIB)))
                await self.send([write_message(protocol, own_manifest(protocol, limits, models))])
            case 9:
                protocol, job_id = self._known(rng, protocol)
                data = rng.randbytes(rng.choice((0, 50, 3_000)))
                await self.send(_shuffled(rng, _stream(rng, protocol, job_id, rng.choice(tuple(StreamKind)), data)))
        del self._jobs[:-500]

    def _known(self, rng: random.Random, protocol: Protocol) -> tuple[Protocol, bytes]:
        return rng.choice(self._jobs) if self._jobs else (protocol, _ids(rng))

    def _single(self, protocol: Protocol, job_id: bytes) -> Message:
        fields = _fields(self._rng, protocol, job_id)
        match self._rng.randrange(3):
            case 0:
                return Cancel(**fields)
            case 1:
                return Error(**fields, code=self._rng.choice(tuple(ErrorCode)).number(protocol), message="no")
            case _:
                return Result(**fields, status=self._rng.choice((Status.FAILED, Status.CANCELLED)), message="no")

    async def send(self, messages: Iterable[Wire]) -> None:
        for number, payload in messages:
            self.sent += 1
            with contextlib.suppress(LightningAway):
                await self._lightning.transport.send(self._target, number & 0xFFFF, payload[:65_533])


def _price(request: str) -> int:
    return bolt11.decode(request).amount_msat or 0


_ORDER = Order(task_kind=CHAT, params=write_params(_MODEL), request=_BODY, params_content_type=None)


async def _buy(node: LcpNode, seller_id: str, protocol: Protocol, *, timeout_s: float) -> bool:
    """Buy one job; return whether its result came."""
    with contextlib.suppress(CallFailed, TimeoutError):
        async with asyncio.timeout(timeout_s):
            quote = await node.request_quote(protocol, seller_id, _ORDER)
            async with contextlib.aclosing(node.accept(seller_id, quote.job_id)) as items:
                async for item in items:
                    if isinstance(item, Delivered):
                        return item.result is not None and item.result.status is Status.OK
    return False


class _Round:
    """One node with its two peers, over some thousand messages."""

    def __init__(self, seed: int, ends: Counter[str]) -> None:
        self._rng = random.Random(seed)
        self._network = Network()
        self._log = _Strict(ends)
        self._node_lightning = self._network.node("node")
        self._honest_lightning = self._network.node("honest")
        self._bad_lightning = self._network.node("mallory")
        self._node = self._make(self._node_lightning, self._log)
        self._honest = self._make(self._honest_lightning, NodeLog(), timeouts=PeerTimeouts(20, 20, 20))
        self._mallory = _Mallory(self._rng, self._bad_lightning, self._node_lightning.node_id)

    def _make(self, lightning: MemoryNode, log: NodeLog, timeouts: PeerTimeouts | None = None) -> LcpNode:
        return LcpNode(
            transport=lightning.transport,
            payments=lightning.payments,
            invoices=lightning.invoices,
            store=MemoryStore(),
            compute=EchoBackend(),
            models=_SOLD,
            terms=SaleTerms(ttl_s=_TTL_S, invoice_slack_s=0),
            bounds=_BOUNDS,
            delays=Delays(timeouts=timeouts) if timeouts else _DELAYS,
            log=log,
            observer=log if isinstance(log, _Strict) else None,
        )

    async def run(self, inputs: int) -> int:
        """Send at least so many messages, and return how many they were."""
        rng, network = self._rng, self._network
        await self._node.start()
        await self._honest.start()
        network.connect(self._node_lightning, self._honest_lightning)
        network.connect(self._node_lightning, self._bad_lightning)
        listening = asyncio.create_task(self._mallory.listen())
        buying: set[asyncio.Task[bool]] = set()
        while self._mallory.sent < inputs:
            await self._mallory.say()
            # An even type has the node end the link, which some nodes reopen.
            network.connect(self._node_lightning, self._bad_lightning)
            if rng.random() < 0.01:
                network.disconnect(self._node_lightning.node_id, self._bad_lightning.node_id)
            if rng.random() < 0.02 and len(buying) < 20:
                bought = _buy(self._node, self._bad_lightning.node_id, rng.choice(tuple(Protocol)), timeout_s=1)
                task = asyncio.create_task(bought)
                buying.add(task)
                task.add_done_callback(buying.discard)
            if rng.random() < 0.3:
                await asyncio.sleep(rng.choice((0, 0, 0, 0.001)))
            self._check()
        await self._serves_an_honest_peer()
        for task in (listening, *buying):
            task.cancel()
        await asyncio.gather(listening, *buying, return_exceptions=True)
        await self._node.stop()
        await self._honest.stop()
        self._check()
        return self._mallory.sent

    def _check(self) -> None:
        if self._log.failures:
            raise AssertionError(self._log.failures[0])
        figures = self._node.figures()
        assert max(figures.quoted.values(), default=0) <= _BOUNDS.quotes_per_peer * 2
        assert max(figures.running.values(), default=0) <= _BOUNDS.purchases

    async def _serves_an_honest_peer(self) -> None:
        for protocol in Protocol:
            if not await _buy(self._honest, self._node_lightning.node_id, protocol, timeout_s=30):
                raise AssertionError(f"an honest peer is not served any more, in version {protocol}")


async def _main(inputs: int, seed: int) -> None:
    started, sent, process, rss, ends = time.monotonic(), 0, psutil.Process(), [], Counter()
    for number in itertools.count(seed):
        if sent >= inputs:
            break
        try:
            sent += await _Round(number, ends).run(min(5_000, inputs - sent))
        except Exception:
            print(f"failed with --seed {number} --inputs 5000", file=sys.stderr)
            raise
        rss.append(process.memory_info().rss / _MIB)
    took_s = time.monotonic() - started
    print(f"{sent} messages, {took_s:.0f} s; memory {rss[0]:.0f} -> {rss[-1]:.0f} MiB: nothing broke")
    print(", ".join(f"{count} {end}" for end, count in sorted(ends.items())))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m fuzz.lcp_node", description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    uvloop.run(_main(arguments.inputs, arguments.seed))


if __name__ == "__main__":
    main()
