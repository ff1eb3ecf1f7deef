"""Puts a node together and serves it: the only place that knows all of its parts."""

from dataclasses import replace

import grpc

from lcp_gateway._gen.lcpd import lcpd_pb2_grpc
from lcp_gateway.node import faults
from lcp_gateway.node.compute.base import Backend
from lcp_gateway.node.compute.echo.backend import EchoBackend
from lcp_gateway.node.config import (
    ECHO,
    ConfigError,
    ModelConfig,
    NodeConfig,
    PeerConfig,
    default_peers,
)
from lcp_gateway.node.customer import CustomerWallet
from lcp_gateway.node.events import EventLog
from lcp_gateway.node.execution import Executor
from lcp_gateway.node.faults import FaultScript
from lcp_gateway.node.invoices import InvoiceBook
from lcp_gateway.node.jobs import JobLog, Jobs
from lcp_gateway.node.little_lnd import LittleLnd, LittleLndHandler
from lcp_gateway.node.peers import Peers
from lcp_gateway.node.quoting import Quoter
from lcp_gateway.node.sabotage import Saboteur
from lcp_gateway.node.service import Service
from lcp_gateway.node.wallet import Wallet

_MAX_WAITING_CALLS = 100_000
_SERVER_OPTIONS = (
    # Otherwise a second node would share the port in silence.
    ("grpc.so_reuseport", 0),
    # Otherwise a burst of more than a thousand calls would see some of them cancelled at random: gRPC's C core
    # sheds load in this way, the daemon's Go does not.
    ("grpc.server.max_pending_requests", _MAX_WAITING_CALLS),
    ("grpc.server.max_pending_requests_hard_limit", _MAX_WAITING_CALLS),
)
"""Everything else stays at gRPC's defaults, as on the daemon: 4 MiB to receive, and no patience with keepalive pings
more often than every five minutes."""

_NO_LIMIT_BYTES = 2**40


class Node:
    """A node: peers, wallet and compute behind one gRPC server. Start it once."""

    def __init__(self, config: NodeConfig) -> None:
        self.config = config
        self.events = EventLog(config.events_path)
        self._log = JobLog(self.events)
        self.wallet = Wallet(config.wallet, self._log)
        self.invoices = InvoiceBook(config.seed, config.network, self.events)
        self.customer = CustomerWallet(
            config.wallet, config.network, book=self.invoices, wallet=self.wallet
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
        """Get the backend ready, listen, and give the address as a client would dial it.

        Raises:
            ConfigError: the address cannot be listened on, or there is nothing to offer.
            BackendUnavailable: the backend's models are needed and it does not answer.
        """
        config = self.config
        models = await self._backend.start()
        self._peers = Peers(_with_mallory(config, models), config.seed, config.protocol_version)
        executor = Executor(
            self._backend, Saboteur(config.fault_settings), self._log, config.tokens_per_second
        )
        service = Service(
            config,
            peers=self._peers,
            jobs=self.jobs,
            wallet=self.wallet,
            quoter=Quoter(config),
            executor=executor,
            script=self.faults,
            log=self._log,
        )
        server = grpc.aio.server(options=_SERVER_OPTIONS)
        lcpd_pb2_grpc.add_LCPDServiceServicer_to_server(service, server)
        lnd = LittleLnd(
            config.network,
            book=self.invoices,
            customer=self.customer,
            wallet=self.wallet,
            peers=self._peers,
        )
        server.add_generic_rpc_handlers((LittleLndHandler(lnd),))
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
        """Take no more calls, give running ones ``grace_s`` to end, and let go of everything."""
        # Who waits for settlements hears the end of it, as lnd has it, and is not cut off.
        self.invoices.close()
        if self._server is not None:
            await self._server.stop(grace_s)
            self._server = None
        await self.customer.close()
        await self.wallet.close()
        await self._backend.close()
        self.events.close()

    async def wait(self) -> None:
        """Wait until the node is stopped."""
        if self._server is not None:
            await self._server.wait_for_termination()


def _make_backend(config: NodeConfig) -> Backend:
    if config.backend == ECHO:
        return EchoBackend()
    # Only this backend needs aiohttp, which takes longer to import than the rest of the node to start.
    from lcp_gateway.node.compute.http import HttpBackend  # noqa: PLC0415 - said above

    return HttpBackend(
        config.backend, config.backend_api_key, discover=not _models_are_named(config)
    )


def _models_are_named(config: NodeConfig) -> bool:
    return bool(config.peers or config.backend_models)


def _with_mallory(config: NodeConfig, discovered: tuple[str, ...]) -> tuple[PeerConfig, ...]:
    """Give the peers to run: those configured, else those that fit the backend; and the one that fails on demand."""
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
    # Its flood is to be stopped by its reader, not by a limit that it named itself.
    peer = replace(
        PeerConfig(faults.PEER_ALIAS, models),
        max_stream_bytes=_NO_LIMIT_BYTES,
        max_job_bytes=_NO_LIMIT_BYTES,
    )
    return (*peers, peer)
