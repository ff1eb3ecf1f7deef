"""The peers of the simulated node: each is a selling node of its own, linked with it over the simulated network."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from lcp_gateway.node.compute.echo import EchoBackend
from lcp_gateway.node.compute.tasks import read_choices, read_limit
from lcp_gateway.node.config import ModelConfig, NodeConfig, PeerConfig, derive_key
from lcp_gateway.node.faults import FaultInjector
from lcp_gateway.node.faulty_seller import FaultyCompute, FaultyTransport
from lcp_gateway.node.jobs import Jobs
from lcp_gateway.node.lcp.judging import RequestRefused, SoldModel
from lcp_gateway.node.lcp.manifests import Limits
from lcp_gateway.node.lcp.messages import CHAT, RESPONSES
from lcp_gateway.node.lcp.pricing import TokenPrice
from lcp_gateway.node.lcp.selling_events import SaleTerms
from lcp_gateway.node.memory.invoices import MemoryInvoices
from lcp_gateway.node.memory.network import MemoryNode, Network
from lcp_gateway.node.memory.store import NoStore
from lcp_gateway.node.ports import Compute, ComputeError, MadeInvoice
from lcp_gateway.node.runtime.bounds import Bounds, Delays
from lcp_gateway.node.runtime.node import LcpNode
from lcp_gateway.node.runtime.observer import Role
from lcp_gateway.node.toml import ConfigError

_MTOK: Final = 1_000_000
_MIB: Final = 2**20
_MANY: Final = 100_000
"""Quotes and jobs that a simulated seller holds: more than a test asks for within the life of a quote."""


@dataclass(frozen=True, slots=True)
class SimulatedModel(SoldModel):
    """A model that takes any limit, that of a Responses request too; one without a limit is charged for ``max_output_tokens``."""

    def charged_tokens(self, kind: str, document: Mapping[str, Any]) -> int:
        """Return the output tokens that a request is charged for."""
        try:
            if kind == CHAT:
                read_choices(document)
            return read_limit(kind, document) or self.max_output_tokens
        except ComputeError as error:
            raise RequestRefused(error.code, error.message) from None


def sold_model(model: ModelConfig) -> SimulatedModel:
    """Return what a seller makes of a model's settings."""
    kinds = tuple(kind for kind, there in ((CHAT, model.chat), (RESPONSES, model.responses)) if there)
    price = TokenPrice(model.prompt_token_msat * _MTOK, model.output_token_msat * _MTOK, model.base_msat)
    return SimulatedModel(price, model.default_max_tokens, kinds)


class _Invoices(MemoryInvoices):
    """The invoices of a seller, which the simulated wallet is to know by their jobs."""

    def __init__(self, lightning: MemoryNode, network: Network, jobs: Jobs) -> None:
        super().__init__(lightning.key, network.prefix, network.clock)
        self._jobs = jobs

    async def make(
        self, *, description_hash: bytes, amount_msat: int, expiry_s: int, hold_preimage: bytes | None = None
    ) -> MadeInvoice:
        """Make an invoice."""
        made = await super().make(
            description_hash=description_hash, amount_msat=amount_msat, expiry_s=expiry_s, hold_preimage=hold_preimage
        )
        self._jobs.invoice_made(description_hash, made.payment_hash, self._invoices[made.payment_hash].preimage)
        return made

    async def cancel(self, payment_hash: bytes) -> None:
        """Leave the invoice payable, as lcpd-grpcd does: a payment that is under way when its client leaves arrives."""


class Peer:
    """A selling node. ``ready`` says whether it is linked with the node that buys, and may be set."""

    def __init__(
        self,
        config: PeerConfig,
        node: NodeConfig,
        *,
        network: Network,
        buyer: MemoryNode,
        jobs: Jobs,
        backend: Compute | None,
    ) -> None:
        """``backend`` is None for the echo.

        Raises:
            ConfigError: the peer's limits are out of bounds.
        """
        self.config = config
        self.models = {model.name: model for model in config.models}
        self._network = network
        self._buyer = buyer
        self._lightning = network.node(
            node.seed, config.address or f"{config.alias.lower()}.invalid:9735", name=config.alias
        )
        self._lightning.invoices = _Invoices(self._lightning, network, jobs)
        self._lightning.transport = FaultyTransport(
            self._lightning,
            network,
            jobs,
            stranger=derive_key(node.seed, "a stranger"),
            refusals=node.fault_settings.manifest_refusals,
        )
        self.id = self._lightning.node_id
        try:
            limits = Limits(config.max_payload_bytes, config.max_stream_bytes, config.max_job_bytes)
        except ValueError as error:
            raise ConfigError(f"peers: {config.alias}: {error}") from None
        running = max(1, config.max_inflight_jobs)
        paces = {name: model.tokens_per_second or node.tokens_per_second for name, model in self.models.items()}
        compute = backend or EchoBackend(paces=paces, by_token=True)
        self._node = LcpNode(
            transport=self._lightning.transport,
            payments=self._lightning.payments,
            invoices=self._lightning.invoices,
            store=NoStore(),
            compute=FaultyCompute(compute, jobs, FaultInjector(node.fault_settings)),
            models={name: sold_model(model) for name, model in self.models.items()},
            terms=SaleTerms(ttl_s=max(1, math.ceil(node.quote_ttl_s))),
            limits=limits,
            bounds=Bounds(
                jobs_per_peer=max(running, _MANY),
                running=running,
                quotes_per_peer=_MANY,
                sales=_MANY,
                input_bytes=1024 * _MIB,
                input_bytes_per_peer=1024 * _MIB,
                result_bytes=16 * _MIB,
            ),
            delays=Delays(keep_sale_s=0),
        )

    @property
    def ready(self) -> bool:
        """Whether it is linked with the node that buys."""
        return self._network.are_linked(self.id, self._buyer.node_id)

    @ready.setter
    def ready(self, ready: bool) -> None:
        if ready:
            self._network.connect(self._buyer, self._lightning)
        else:
            self._network.disconnect(self._buyer.node_id, self.id)

    @property
    def inflight(self) -> int:
        """How many jobs it runs."""
        return self._node.figures().running.get(Role.SELLER, 0)

    async def start(self) -> None:
        """Start the node."""
        await self._node.start()

    async def stop(self) -> None:
        """Stop the node."""
        await self._node.stop()


class Peers:
    """The node's peers by id."""

    def __init__(self, peers: tuple[Peer, ...]) -> None:
        self._by_id = {peer.id: peer for peer in peers}
        self._by_alias = {peer.config.alias: peer for peer in peers}

    def __iter__(self) -> Iterator[Peer]:
        """Yield every peer, ready or not, in the order of the configuration."""
        return iter(self._by_id.values())

    def get(self, peer_id: str) -> Peer | None:
        """Return a peer by its exact id."""
        return self._by_id.get(peer_id)

    def named(self, alias: str) -> Peer:
        """Return a peer by its alias.

        Raises:
            KeyError: no peer has it.
        """
        return self._by_alias[alias]
