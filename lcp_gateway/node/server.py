"""Builds a node, serves it, and runs it as a program until a signal or the end of its parent."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace

import grpc

from lcp_gateway._gen.lcpd import lcpd_pb2_grpc
from lcp_gateway.node import faults
from lcp_gateway.node.compute.backend import Backend
from lcp_gateway.node.compute.echo import EchoBackend
from lcp_gateway.node.config import ECHO, ModelConfig, NodeConfig, PeerConfig, default_peers
from lcp_gateway.node.events import EventLog
from lcp_gateway.node.execution import Executor
from lcp_gateway.node.faults import FaultInjector, FaultScript
from lcp_gateway.node.invoices import InvoiceBook
from lcp_gateway.node.jobs import Jobs
from lcp_gateway.node.lcp.messages import Protocol
from lcp_gateway.node.lnd_service import LndService, LndServiceHandler
from lcp_gateway.node.payments import Payments
from lcp_gateway.node.peers import Peers
from lcp_gateway.node.quoting import Quoter
from lcp_gateway.node.service import LcpdService
from lcp_gateway.node.service_v03 import handler_v03
from lcp_gateway.node.toml import ConfigError
from lcp_gateway.node.wallets import CustomerWallet, Wallet

_MAX_WAITING_CALLS = 100_000
_SERVER_OPTIONS = (
    # Otherwise a second node would share the port without an error.
    ("grpc.so_reuseport", 0),
    # Otherwise a burst of more than a thousand calls would see some of them cancelled at random: gRPC's C core
    # sheds load in this way, the daemon's Go does not.
    ("grpc.server.max_pending_requests", _MAX_WAITING_CALLS),
    ("grpc.server.max_pending_requests_hard_limit", _MAX_WAITING_CALLS),
)
"""All other options stay at gRPC's defaults, as on the daemon: 4 MiB to receive, and a closed connection for keepalive
pings more often than every five minutes."""

_NO_LIMIT_BYTES = 2**40


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
        self._backend = _make_backend(config)
        self._server: grpc.aio.Server | None = None
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
        config = self.config
        models = await self._backend.start()
        self._peers = Peers(_all_peers(config, models), config.seed, config.protocol_version)
        executor = Executor(self._backend, FaultInjector(config.fault_settings), self.events, config.tokens_per_second)
        service = LcpdService(
            config,
            peers=self._peers,
            jobs=self.jobs,
            wallet=self.wallet,
            quoter=Quoter(config),
            executor=executor,
            script=self.faults,
            events=self.events,
        )
        server = grpc.aio.server(options=_SERVER_OPTIONS)
        if config.protocol_version == Protocol.V03:
            server.add_generic_rpc_handlers((handler_v03(service),))
        else:
            lcpd_pb2_grpc.add_LCPDServiceServicer_to_server(service, server)
        lnd = LndService(
            config.network,
            book=self.invoices,
            customer=self.customer,
            wallet=self.wallet,
            payments=self.payments,
            peers=self._peers,
        )
        server.add_generic_rpc_handlers((LndServiceHandler(lnd),))
        try:
            port = server.add_insecure_port(config.listen)
        except RuntimeError as error:
            await self._backend.close()
            raise ConfigError(f"listen: cannot listen on {config.listen}") from error
        await server.start()
        self._server = server
        if config.listen.startswith("unix:"):
            return config.listen
        return f"{config.listen.rpartition(':')[0]}:{port}"

    async def stop(self, grace_s: float = 0.0) -> None:
        """Accept no more calls, let running ones end within ``grace_s``, and close everything."""
        # Subscriptions to settlements end in good order, as at lnd, before calls are cut off.
        self.invoices.close()
        if self._server is not None:
            await self._server.stop(grace_s)
            self._server = None
        await self.payments.close()
        await self.customer.close()
        await self.wallet.close()
        await self._backend.close()
        self.events.close()


def _make_backend(config: NodeConfig) -> Backend:
    if config.backend == ECHO:
        return EchoBackend()
    # Only this backend needs aiohttp, which takes longer to import than the rest of the node to start.
    from lcp_gateway.node.compute.http import HttpBackend  # noqa: PLC0415 - said above

    return HttpBackend(config.backend, config.backend_api_key, discover=not _models_are_named(config))


def _models_are_named(config: NodeConfig) -> bool:
    return bool(config.peers or config.backend_models)


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
    if any(peer.alias == faults.PEER_ALIAS for peer in peers):
        raise ConfigError(f"peers: {faults.PEER_ALIAS} is the name of the peer that faults adds")
    models = tuple(ModelConfig(faults.model_name(name)) for name in faults.names())
    # The reader has to stop its flood, not a limit in its own manifest.
    peer = replace(
        PeerConfig(faults.PEER_ALIAS, models), max_stream_bytes=_NO_LIMIT_BYTES, max_job_bytes=_NO_LIMIT_BYTES
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
