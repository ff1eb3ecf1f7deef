"""A node over a simulated Lightning network, with its sellers: the real node where tests of the gateway use the embedded one.

A world is described by the embedded node's ``NodeConfig``: each of its peers is a seller of its own, and Mallory, who is there with
``faults``, sells models that misbehave in the ways of ``node/faults.py``, as far as a peer, a payment or the node's call can.

As a program it is run with the embedded node's command line: ``python -m tests.support.lcp_world node|serve …``.
"""

import asyncio
import contextlib
import os
import signal
import sys
import traceback
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from unittest import mock

from lcp_gateway._gen.lcpd import lcpd_pb2 as pb
from lcp_gateway._gen.lcpd import lcpd_v03_pb2 as pb3
from lcp_gateway.cli.serve.embedded import node_options
from lcp_gateway.cli.serve.in_process import InProcessTransport
from lcp_gateway.config import load
from lcp_gateway.lightning import bolt11
from lcp_gateway.node import faults
from lcp_gateway.node.compute.echo import EchoBackend
from lcp_gateway.node.compute.routes import ComputeRoutes
from lcp_gateway.node.config import ModelConfig, NodeConfig, PeerConfig, default_peers
from lcp_gateway.node.events import EventKind, EventLog
from lcp_gateway.node.faults import FaultScript, Stage
from lcp_gateway.node.lcp.judging import SoldModel
from lcp_gateway.node.lcp.manifests import Limits
from lcp_gateway.node.lcp.messages import Protocol
from lcp_gateway.node.lcp.pricing import TokenPrice
from lcp_gateway.node.lcp.selling_events import SaleTerms
from lcp_gateway.node.lcp.table import read_params
from lcp_gateway.node.memory.hooks import Hooks
from lcp_gateway.node.memory.network import MemoryNode, Network
from lcp_gateway.node.memory.store import MemoryStore
from lcp_gateway.node.ports import PaymentRefused, PaymentSucceeded
from lcp_gateway.node.rpc.server import RpcServer, ServerOptions
from lcp_gateway.node.rpc.service import RpcService
from lcp_gateway.node.runtime.calls import CallFailed, Delivered, Paid
from lcp_gateway.node.runtime.node import LcpNode
from lcp_gateway.upstream_status import UpstreamStatus
from tests.support.faulty_peer import FaultyCompute, FaultyTransport

MTOK = 1_000_000


class World:
    """The node, its peers and their network. ``calls`` is what clients of the node use, ``events`` what they did."""

    def __init__(self, config: NodeConfig) -> None:
        self.config = config
        self.events = EventLog(config.events_path)
        self.script = FaultScript(by_model_name=config.faults)
        self.network = Network(prefix=config.network, hooks=_Payments(self))
        self.own = self.network.node(f"{config.seed} node", "127.0.0.1:9735")
        self.node = LcpNode(
            transport=self.own.transport, payments=_PayingTwice(self), invoices=self.own.invoices, store=MemoryStore()
        )
        self.calls = ScriptedCalls(self)
        self.peers: dict[str, _Seller] = {}
        # By payment hash: what is known of the job that an invoice is for.
        self.jobs: dict[bytes, dict] = {}
        found = list(config.peers or default_peers())
        if config.faults:
            models = tuple(ModelConfig(faults.model_name(name)) for name in faults.names())
            found.append(PeerConfig(faults.PEER_ALIAS, models))
        for peer in found:
            self.peers[peer.alias] = _Seller(self, peer)

    async def start(self) -> None:
        await self.node.start()
        for seller in self.peers.values():
            await seller.node.start()
            if seller.config.ready:
                self.set_ready(seller.config.alias, ready=True)
        async with asyncio.timeout(60):
            ready = sum(seller.config.ready for seller in self.peers.values())
            while any(len(self.node.ready_peers(protocol)) < ready for protocol in Protocol):
                await asyncio.sleep(0.01)

    async def stop(self) -> None:
        await self.node.stop()
        for seller in self.peers.values():
            await seller.node.stop()
        self.events.close()

    def peer_id(self, alias: str) -> str:
        return self.peers[alias].lightning.node_id

    def set_ready(self, alias: str, *, ready: bool) -> None:
        seller = self.peers[alias].lightning
        if ready:
            self.network.connect(self.own, seller)
        else:
            self.network.disconnect(self.own.node_id, seller.node_id)

    def record(self, kind: EventKind, job: dict, detail: str = "") -> None:
        self.events.record(kind, **job, detail=detail)

    def fault_of(self, invoice) -> str:
        model = self.jobs.get(invoice.payment_hash, {}).get("model", "")
        fault = self.script.next(Stage.EXECUTE, model)
        return "" if fault is None else fault.name


class _Seller:
    """One peer of the node: a node that sells."""

    def __init__(self, world: World, config: PeerConfig) -> None:
        self.config = config
        self.lightning: MemoryNode = world.network.node(f"{world.config.seed} {config.alias}", config.address)
        pace = world.config.tokens_per_second
        # At a pace, each token comes by itself, which faults in mid-stream need.
        paces = {it.name: it.tokens_per_second or pace or (10_000 if _is_faulty(it) else 0) for it in config.models}
        compute = ComputeRoutes({name: EchoBackend(tokens_per_second) for name, tokens_per_second in paces.items()})
        compute = FaultyCompute(compute, world.config.fault_settings)
        transport = FaultyTransport(self.lightning.transport, world.config, config, self.lightning.invoices)
        self.node = LcpNode(
            transport=transport,
            payments=self.lightning.payments,
            invoices=self.lightning.invoices,
            store=MemoryStore(),
            compute=compute,
            models={it.name: _sold(it) for it in config.models},
            terms=SaleTerms(ttl_s=max(1, int(world.config.quote_ttl_s))),
            limits=Limits(config.max_payload_bytes, config.max_stream_bytes, config.max_job_bytes),
        )


def _is_faulty(model: ModelConfig) -> bool:
    return model.name.startswith(faults.MODEL_PREFIX)


def _sold(model: ModelConfig) -> SoldModel:
    # A job has a price: of one whose tokens are free, the least that there is, which ``FaultyTransport`` takes off again.
    price = TokenPrice(model.prompt_token_msat * MTOK, model.output_token_msat * MTOK or 1)
    if model.name == "fault/expensive":
        price = TokenPrice(1, 2_000_000 * MTOK)
    return SoldModel(price, model.default_max_tokens)


class _Payments(Hooks):
    """Payments between the nodes, as the wallet's settings say, and without a route where a fault asks for it."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def before_payment(self, payer, invoice):
        wallet = self._world.config.wallet
        if wallet.payment_latency_s:
            await asyncio.sleep(wallet.payment_latency_s)
        job = self._world.jobs.get(invoice.payment_hash)
        if (invoice.amount_msat or 0) < wallet.min_htlc_msat or (job and job["model"] == "fault/no-route"):
            if job:
                self._world.record(EventKind.UNPAID, job)
            return "FAILURE_REASON_NO_ROUTE"
        if job:
            job["fee_msat"] = self.fee_msat(payer, invoice)
            self._world.record(EventKind.PAID, job)
        return None

    async def after_payment(self, payer, invoice):
        if job := self._world.jobs.get(invoice.payment_hash):
            self._world.record(EventKind.SETTLED, job)

    def fee_msat(self, payer, invoice):
        wallet = self._world.config.wallet
        return wallet.fee_base_msat + (invoice.amount_msat or 0) * wallet.fee_ppm // 1_000_000


class _PayingTwice:
    """The node's payments; where a fault asks for it, the Lightning node says that it has paid before."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._payments = world.own.payments

    async def pay(self, payment_request, payment_hash, **how):
        end = await self._payments.pay(payment_request, payment_hash, **how)
        job = self._world.jobs.get(payment_hash)
        if job and job["model"] == "fault/already-paid" and isinstance(end, PaymentSucceeded):
            raise PaymentRefused("invoice is already paid", already_paid=True)
        return end

    async def track(self, payment_hash):
        return await self._payments.track(payment_hash)


class ScriptedCalls:
    """The node's calls, recorded as events; a fault that names a gRPC status fails the call with it."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._refusals: Counter[str] = Counter()

    def ready_peers(self, protocol):
        return self._world.node.ready_peers(protocol)

    async def local_info(self, protocol):
        return await self._world.node.local_info(protocol)

    async def request_quote(self, protocol, peer_id, order):
        world = self._world
        model, _ = read_params(order.params or b"")
        fault = world.script.next(Stage.QUOTE, model)
        if fault is not None and fault.code is not None:
            raise CallFailed(UpstreamStatus[fault.code.name], "scripted failure instead of a quote")
        quote = await world.node.request_quote(protocol, peer_id, order)
        job = {
            "job_id": quote.job_id,
            "payment_hash": _payment_hash(quote.payment_request),
            "peer_id": peer_id,
            "model": model,
            "price_msat": quote.price_msat,
            "fee_msat": 0,
        }
        world.jobs[job["payment_hash"]] = world.jobs[quote.job_id] = job
        world.record(EventKind.QUOTE, job)
        if fault is not None and fault.name == "short-job-id":
            return replace(quote, job_id=quote.job_id[:16])
        return quote

    async def accept(self, peer_id, job_id, **limits) -> AsyncGenerator:
        world = self._world
        job = world.jobs.get(job_id)
        fault = None
        if job is not None:
            world.record(EventKind.ACCEPT, job)
            fault = world.script.next(Stage.EXECUTE, job["model"])
        async with aclosing(world.node.accept(peer_id, job_id, **limits)) as items:
            async for item in items:
                if isinstance(item, Paid) and fault is not None and fault.code is not None:
                    raise CallFailed(UpstreamStatus[fault.code.name], "scripted failure after payment")
                if isinstance(item, Delivered) and job is not None:
                    world.record(EventKind.RESULT, job, str(item.ended.outcome))
                yield item

    def cancel(self, peer_id, job_id, reason):
        if (job := self._world.jobs.get(job_id)) is not None:
            self._world.record(EventKind.CANCEL, job)
        self._world.node.cancel(peer_id, job_id, reason)


def _payment_hash(payment_request: str) -> bytes:
    with contextlib.suppress(bolt11.InvoiceError):
        return bolt11.decode(payment_request).payment_hash
    return b""


class Recording(RpcService):
    """The node's service, which records the messages that came in and went out, as version 2's, by the name of their call."""

    def __init__(self, calls, protocol, received) -> None:
        super().__init__(calls, protocol)
        self._received = received
        self._is_v03 = protocol is Protocol.V03

    def unary(self, path):
        call, name = super().unary(path), path.rpartition("/")[2]
        if call is None:
            return None

        async def answer(request, metadata):
            self._received.calls.append((name, self._read(f"{name}Request", request)))
            answered = await call(request, metadata)
            self._received.answers.append((name, self._read(f"{name}Response", answered)))
            return answered

        return answer

    def stream(self, path):
        call, name = super().stream(path), path.rpartition("/")[2]
        if call is None:
            return None

        async def answers(request, metadata):
            self._received.calls.append((name, self._read(f"{name}Request", request)))
            chunks = bytearray()
            self._received.streams.append(chunks)
            async with aclosing(call(request, metadata)) as messages:
                async for message in messages:
                    chunks += pb.AcceptAndExecuteStreamResponse.FromString(message).result_chunk.data
                    yield message

        return answers

    def _read(self, name: str, data: bytes):
        """Read a message; those of version 3 that differ on the wire are put into version 2's."""
        if self._is_v03 and name == "RequestQuoteRequest":
            asked = pb3.RequestQuoteRequest.FromString(data)
            spec = asked.call.method.removesuffix(".v1").replace(".", "_") + "_v1"
            task = {"request_json": asked.call.request_bytes, "params": {"model": read_params(asked.call.params)[0]}}
            return pb.RequestQuoteRequest(peer_id=asked.peer_id, task={spec: task})
        if self._is_v03 and name == "AcceptAndExecuteResponse":
            complete = pb3.AcceptAndExecuteResponse.FromString(data).complete
            result = pb.Result(
                status=complete.status,
                result=complete.response_bytes,
                result_hash=complete.response_hash,
                result_len=complete.response_len,
                content_type=complete.response_content_type,
            )
            return pb.AcceptAndExecuteResponse(result=result)
        return getattr(pb, name).FromString(data)


@dataclass
class _PeerView:
    """A peer as the embedded node shows it."""

    server: "WorldServer"
    alias: str

    @property
    def id(self) -> str:
        return self.server.world.peer_id(self.alias)

    @property
    def models(self) -> list[str]:
        return [model.name for model in self.server.world.peers[self.alias].config.models]


class WorldServer:
    """A world behind a gRPC port; ``received`` records the messages, if it is given."""

    def __init__(self, config: NodeConfig, received=None) -> None:
        self.config = config
        self.world = World(config)
        self._received = received
        self._server = None

    @property
    def peers(self) -> list[_PeerView]:
        return [_PeerView(self, alias) for alias in self.world.peers]

    async def start(self) -> str:
        await self.world.start()
        options = ServerOptions(listen=self.config.listen, protocol=Protocol(self.config.protocol_version))
        made = RpcService if self._received is None else partial(Recording, received=self._received)
        with mock.patch("lcp_gateway.node.rpc.server.RpcService", made):
            self._server = RpcServer(self.world.calls, options, on_bug=_print_bug)
        return await self._server.start()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(0)
        await self.world.stop()


class WorldInProcess:
    """A world in the gateway's process, in place of a daemon."""

    def __init__(self, config: NodeConfig) -> None:
        self._config = config

    @contextlib.asynccontextmanager
    async def running(self, metrics):
        world = World(self._config)
        await world.start()
        transport = InProcessTransport(RpcService(world.calls, Protocol.V02), on_bug=_print_bug)
        try:
            yield transport
        finally:
            await transport.close()
            await world.stop()


def _print_bug(name, error) -> None:
    sys.stderr.write(f"bug in {name}: {''.join(traceback.format_exception(error))}\n")


def _config() -> NodeConfig:
    """Return the description of the embedded node in the environment."""
    return node_options(load(flags={}, environ=os.environ).settings, listen="127.0.0.1:0").node_config()


async def _serve_node() -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    server = WorldServer(_config())
    print(f"node ready on {await server.start()}", flush=True)
    await stop.wait()
    await server.stop()


def main() -> int:
    if sys.argv[1] == "node":
        asyncio.run(_serve_node())
        return 0
    import lcp_gateway.app
    from lcp_gateway.cli import main as command_line

    run, daemon = lcp_gateway.app.run, WorldInProcess(_config())
    lcp_gateway.app.run = lambda *settings, **more: run(*settings, **(more | {"local_daemon": daemon}))
    return command_line()


if __name__ == "__main__":
    sys.exit(main())
