"""Builds the simulated node, serves it, and runs it as a program until a signal or the end of its parent.

It is a node that buys, and one that sells for each of its peers, all over one simulated Lightning network.
"""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from lcp_gateway.lightning.bolt11 import Invoice
from lcp_gateway.node.config import ECHO, ModelConfig, NodeConfig, PeerConfig, default_peers
from lcp_gateway.node.events import EventLog
from lcp_gateway.node.faults import FAULTS, MODEL_PREFIX, PEER_ALIAS, FaultInjector, FaultScript
from lcp_gateway.node.faulty_daemon import FaultyDaemon
from lcp_gateway.node.faulty_seller import QUOTE_TYPES
from lcp_gateway.node.invoices import InvoiceBook
from lcp_gateway.node.jobs import Jobs
from lcp_gateway.node.lcp.messages import Protocol
from lcp_gateway.node.lnd_service import LndService, LndServiceHandler
from lcp_gateway.node.memory.hooks import Hooks, PassingMessage
from lcp_gateway.node.memory.network import Network
from lcp_gateway.node.memory.payments import NO_ROUTE
from lcp_gateway.node.memory.store import NoStore
from lcp_gateway.node.payments import Payments
from lcp_gateway.node.peers import Peer, Peers
from lcp_gateway.node.ports import Compute
from lcp_gateway.node.rpc.server import CannotServe, RpcServer, ServerOptions
from lcp_gateway.node.runtime.bounds import Bounds
from lcp_gateway.node.runtime.calls import NodeCalls
from lcp_gateway.node.runtime.log import NodeLog
from lcp_gateway.node.runtime.node import LcpNode
from lcp_gateway.node.toml import ConfigError
from lcp_gateway.node.wallets import CustomerWallet, Wallet

_PURCHASES: Final = 100_000
"""Jobs that are bought at once: tests leave more quotes unpaid than clients do."""
_LINK_TIMEOUT_S: Final = 30.0
_NO_LIMIT_BYTES: Final = 2**40


class SimulatedLightning(Hooks):
    """The hooks of the simulated network: the wallet pays for jobs, and quotes of slow peers come late."""

    def __init__(self, config: NodeConfig, wallet: Wallet, jobs: Jobs) -> None:
        self.latencies_s: dict[str, float] = {}
        self._latency_s = config.wallet.payment_latency_s
        self._wallet = wallet
        self._jobs = jobs

    def deliveries(self, message: PassingMessage) -> tuple[float, ...]:
        """Delay quotes of slow peers."""
        late = message.message_type in QUOTE_TYPES
        return (self.latencies_s.get(message.sender, 0.0) if late else 0.0,)

    async def before_payment(self, _payer: str, invoice: Invoice) -> str | None:
        """Take the money out of the wallet."""
        job = self._jobs.paid_by(invoice.payment_hash)
        if job is None or (job.fault is not None and job.fault.name == "no-route"):
            return NO_ROUTE
        reason = self._wallet.begin(job)
        if reason is None and self._latency_s > 0:
            await asyncio.sleep(self._latency_s)
        return reason

    async def after_payment(self, _payer: str, invoice: Invoice) -> None:
        """Record the end of a payment."""
        job = self._jobs.paid_by(invoice.payment_hash)
        if job is not None:
            self._wallet.settle(job)

    def payment_failed(self, _payer: str, invoice: Invoice, reason: str) -> None:
        """Give the money back."""
        job = self._jobs.paid_by(invoice.payment_hash)
        if job is not None:
            self._wallet.fail(job, reason)

    def fee_msat(self, _payer: str, invoice: Invoice) -> int:
        """Return the wallet's routing fee."""
        return self._wallet.fee_msat(invoice.amount_msat or 0)


class _Links(NodeLog):
    """Waits for the links of the node that buys."""

    def __init__(self) -> None:
        self._ready: set[tuple[str, Protocol]] = set()
        self._changed = asyncio.Event()

    def link(self, peer_id: str, protocol: Protocol, *, ready: bool) -> None:
        """Take it that a peer became ready in a version, or is no longer."""
        (self._ready.add if ready else self._ready.discard)((peer_id, protocol))
        self._changed.set()

    async def until(self, wanted: set[tuple[str, Protocol]]) -> None:
        """Return once those are ready."""
        while not wanted <= self._ready:
            self._changed.clear()
            await self._changed.wait()


class Node:
    """A node: peers, wallet and compute behind one gRPC server. Start it once."""

    def __init__(self, config: NodeConfig) -> None:
        self.config = config
        self.events = EventLog(config.events_path)
        self.wallet = Wallet(config.wallet, self.events)
        self.invoices = InvoiceBook(config.seed, config.network, self.events)
        self.customer = CustomerWallet(
            config.wallet,
            config.network,
            book=self.invoices,
            wallet=self.wallet,
            invoices=InvoiceBook(config.seed, config.network, self.events, owner="customer"),
        )
        self.payments = Payments(
            config.wallet,
            config.network,
            wallet=self.wallet,
            node_id=self.invoices.node_id,
            payee=self.customer.invoices,
        )
        self.faults = FaultScript(by_model_name=config.faults)
        self.jobs = Jobs()
        hooks = self._hooks = SimulatedLightning(config, self.wallet, self.jobs)
        self._network = Network(prefix=config.network, hooks=hooks)
        self._lightning = self._network.node(config.seed, "127.0.0.1:9735")
        self._backend = _make_backend(config)
        self._links = _Links()
        self._buyer = LcpNode(
            transport=self._lightning.transport,
            payments=self._lightning.payments,
            invoices=self._lightning.invoices,
            store=NoStore(),
            bounds=Bounds(purchases=_PURCHASES, gathered_bytes=0),
            log=self._links,
            ids=self.jobs.new_id,
        )
        self._server: RpcServer | None = None
        self._peers: Peers | None = None

    @property
    def peers(self) -> Peers:
        """The node's peers, known once it has started.

        Raises:
            RuntimeError: it has not.
        """
        if self._peers is None:
            raise RuntimeError("the node has not started")
        return self._peers

    async def start(self) -> str:
        """Start the backend, listen, and return the address as a client would dial it.

        Raises:
            ConfigError: the address cannot be listened on, or there is nothing to offer.
            ComputeError: the backend's models are needed and it does not answer.
        """
        try:
            return await self._serve(await self.start_calls())
        except BaseException:
            await self.stop()
            raise

    async def start_calls(self, *, reports_payments: bool = False) -> NodeCalls:
        """Start the backend and the peers, and return the calls, for clients in this process; ``start`` serves them on a port.

        lcpd-grpcd does not report payments to its clients, a node of ours does.

        Raises:
            ConfigError, ComputeError: as ``start``.
        """
        await self._start_peers()
        return FaultyDaemon(
            self.config,
            self._buyer,
            peers=self.peers,
            jobs=self.jobs,
            payments=self._lightning.payments,
            script=self.faults,
            injector=FaultInjector(self.config.fault_settings),
            events=self.events,
            clock=time.time,
            reports_payments=reports_payments,
        )

    async def _start_peers(self) -> None:
        config, backend = self.config, self._backend
        is_named = config.peers or config.backend_models
        names = await backend.models() if backend is not None and not is_named else ()
        peers = self._peers = Peers(
            tuple(
                Peer(one, config, network=self._network, buyer=self._lightning, jobs=self.jobs, backend=backend)
                for one in _all_peers(config, names)
            )
        )
        await self._buyer.start()
        for peer in peers:
            self._hooks.latencies_s[peer.id] = peer.config.quote_latency_s
            await peer.start()
            peer.ready = peer.config.ready
        protocol = _protocol(config)
        async with asyncio.timeout(_LINK_TIMEOUT_S):
            await self._links.until({(peer.id, protocol) for peer in peers if peer.config.ready})

    async def _serve(self, calls: NodeCalls) -> str:
        config = self.config
        lnd = LndService(
            config.network,
            book=self.invoices,
            customer=self.customer,
            wallet=self.wallet,
            payments=self.payments,
            peers=self.peers,
        )
        options = ServerOptions(listen=config.listen, protocol=_protocol(config), allow_insecure=True)
        server = RpcServer(calls, options, on_bug=_on_bug, handlers=[LndServiceHandler(lnd)])
        try:
            address = await server.start()
        except CannotServe:
            raise ConfigError(f"listen: cannot listen on {config.listen}") from None
        self._server = server
        return address

    async def stop(self, grace_s: float = 0.0) -> None:
        """Accept no more calls, let running ones end within ``grace_s``, and close everything."""
        # Subscriptions to settlements end in good order, as at lnd, before calls are cut off.
        self.invoices.close()
        if self._server is not None:
            await self._server.stop(grace_s)
            self._server = None
        await self._buyer.stop()
        for peer in self._peers or ():
            await peer.stop()
        await self._lightning.payments.close()
        await self.payments.close()
        await self.customer.close()
        if self._backend is not None:
            await self._backend.close()
        self.events.close()


def _on_bug(name: str, error: BaseException) -> None:
    # The text of an error may quote a prompt.
    sys.stderr.write(f"node: {name} failed: {type(error).__name__}\n")


def _protocol(config: NodeConfig) -> Protocol:
    return Protocol.V03 if config.protocol_version == Protocol.V03.value else Protocol.V02


def _make_backend(config: NodeConfig) -> Compute | None:
    """Return the backend of all peers; None for the echo, of which each peer has its own."""
    if config.backend == ECHO:
        return None
    # Only this backend needs aiohttp, which takes longer to import than the rest of the node to start.
    from lcp_gateway.node.compute.http import HttpBackend  # noqa: PLC0415 - said above

    return HttpBackend(config.backend, config.backend_api_key)


def _all_peers(config: NodeConfig, discovered: tuple[str, ...]) -> tuple[PeerConfig, ...]:
    """Return the peers to run: those configured, else those that fit the backend; and the peer that fails on demand."""
    if config.peers:
        peers = config.peers
    elif config.backend == ECHO:
        peers = default_peers()
    else:
        names = config.backend_models or discovered
        if not names:
            raise ConfigError("backend: it offers no models; name them in backend_models")
        peers = (PeerConfig("Backend", tuple(ModelConfig(name) for name in dict.fromkeys(names))),)
    if not config.faults:
        return peers
    if any(peer.alias == PEER_ALIAS for peer in peers):
        raise ConfigError(f"peers: {PEER_ALIAS} is the name of the peer that faults adds")
    models = {name: ModelConfig(MODEL_PREFIX + name) for name in FAULTS}
    price_msat = config.fault_settings.expensive_msat
    models["expensive"] = replace(models["expensive"], base_msat=price_msat, prompt_token_msat=0, output_token_msat=0)
    # The reader has to stop its flood, not a limit in its own manifest.
    peer = PeerConfig(
        PEER_ALIAS, tuple(models.values()), max_stream_bytes=_NO_LIMIT_BYTES, max_job_bytes=_NO_LIMIT_BYTES
    )
    return (*peers, peer)


_GRACE_S = 1.0
_STDIN = 0


async def run(config: NodeConfig, *, ready: Callable[[str], None] | None = None, exit_with_stdin: bool = False) -> None:
    """Run a node until SIGTERM, SIGINT or, if asked for, the end of standard input.

    ``ready`` is called once with the address.

    Raises:
        ConfigError, ComputeError: as ``Node.start``.
    """
    node = Node(config)
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    watching = exit_with_stdin and _watch_stdin(loop, stopped)
    try:
        address = await node.start()
        (ready or _announce)(address)
        await stopped.wait()
    finally:
        if watching:
            loop.remove_reader(_STDIN)
        await node.stop(_GRACE_S)


def run_forever(config: NodeConfig, exit_with_stdin: bool = False) -> None:
    """Run a node on a loop of its own, on uvloop where there is one; returns when the node has stopped.

    Raises:
        ConfigError, ComputeError: as ``Node.start``.
    """
    main = run(config, exit_with_stdin=exit_with_stdin)
    if sys.platform == "win32":
        asyncio.run(main)
    else:
        import uvloop  # noqa: PLC0415 - not there on Windows

        uvloop.run(main)


def _announce(address: str) -> None:
    sys.stdout.write(f"node ready on {address} - Lightning is simulated here, no real money moves\n")
    sys.stdout.flush()


def _watch_stdin(loop: asyncio.AbstractEventLoop, stopped: asyncio.Event) -> bool:
    """Set ``stopped`` when standard input ends; return whether it can be watched at all."""

    def read() -> None:
        try:
            ended = not os.read(_STDIN, 4096)
        except BlockingIOError:
            return
        except OSError:
            ended = True
        if ended:
            loop.remove_reader(_STDIN)
            stopped.set()

    try:
        os.set_blocking(_STDIN, False)
        loop.add_reader(_STDIN, read)
    except OSError:
        # A file, or closed: there is no parent at the other end.
        return False
    return True
