"""The peers of the simulated node: each is a selling node of its own, linked with it over the simulated network."""

import math
from collections.abc import AsyncGenerator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from lcp_gateway.lightning.error_codes import ErrorCode
from lcp_gateway.node.compute.echo import EchoBackend
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
from lcp_gateway.node.ports import Compute, MadeInvoice
from lcp_gateway.node.runtime.bounds import Bounds, Delays
from lcp_gateway.node.runtime.node import LcpNode
from lcp_gateway.node.runtime.observer import Role
from lcp_gateway.node.toml import ConfigError

_MTOK: Final = 1_000_000
_MAX_OUTPUT_TOKENS: Final = 1 << 31
_MAX_CHOICES: Final = 128
_LIMIT_NAMES: Final = {CHAT: ("max_completion_tokens", "max_tokens"), RESPONSES: ("max_output_tokens",)}
_MIB: Final = 2**20
_MANY: Final = 100_000
"""Quotes and jobs that a simulated seller holds: more than a test asks for within the life of a quote."""


@dataclass(frozen=True, slots=True)
class SimulatedModel(SoldModel):
    """A model that takes any limit, that of a Responses request too; one without a limit is charged for ``max_output_tokens``."""

    def charged_tokens(self, kind: str, document: Mapping[str, Any]) -> int:
        """Return the output tokens that a request is charged for."""
        choices = document.get("n")
        if kind == CHAT and isinstance(choices, int) and choices > _MAX_CHOICES:
            raise RequestRefused(ErrorCode.UNSUPPORTED_PARAMS, "n is too large")
        for name in _LIMIT_NAMES[kind]:
            limit = document.get(name)
            if isinstance(limit, int) and not isinstance(limit, bool) and limit > 0:
                if limit > _MAX_OUTPUT_TOKENS:
                    raise RequestRefused(ErrorCode.UNSUPPORTED_PARAMS, f"{name} is too large")
                return limit
        return self.max_output_tokens


def sold_model(model: ModelConfig) -> SimulatedModel:
    """Return what a seller makes of a model's settings."""
    kinds = tuple(kind for kind, there in ((CHAT, model.chat), (RESPONSES, model.responses)) if there)
    price = TokenPrice(model.prompt_token_msat * _MTOK, model.output_token_msat * _MTOK, model.base_msat)
    return SimulatedModel(price, model.default_max_tokens, kinds)


class PacedEcho:
    """The echo as a backend: each model at its pace, one piece a token."""

    def __init__(self, models: Mapping[str, ModelConfig], tokens_per_second: float) -> None:
        self._echo = EchoBackend()
        self._paces = {name: model.tokens_per_second or tokens_per_second for name, model in models.items()}

    async def models(self) -> tuple[str, ...]:
        """Return no models: it echoes for any."""
        return ()

    def run(
        self, *, job_id: bytes, task_kind: str, model: str, body: bytes, stream: bool
    ) -> AsyncGenerator[bytes, None]:
        """Return the echo of a request; see ``ports.Compute``."""
        pace = self._paces.get(model, 0.0)
        return self._echo.pieces(job_id, task_kind, model, body, stream=stream, pace=pace)

    async def close(self) -> None:
        """Close nothing."""


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
        compute = backend or PacedEcho(self.models, node.tokens_per_second)
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
