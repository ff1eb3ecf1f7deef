"""The settings of a node over lnd: its keys in TOML are the names of these fields, its tables their classes.

Amounts are msat, durations seconds, ids of peers 66 lower-case hex digits.
"""

import base64
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

from lcp_gateway.node.lcp.buying_events import PeerTimeouts
from lcp_gateway.node.lcp.judging import SoldModel
from lcp_gateway.node.lcp.manifests import Limits
from lcp_gateway.node.lcp.pricing import NO_SURGE, Surge, TokenPrice
from lcp_gateway.node.lcp.selling_events import SaleTerms
from lcp_gateway.node.runtime.bounds import Bounds, Delays, PaymentLimits
from lcp_gateway.node.toml import ConfigError

_MIB: Final = 1024 * 1024
_PEER_ID: Final = re.compile(r"0[23][0-9a-f]{64}")
_ADDRESS: Final = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[^\s@:/\[\]]+)(?::\d{1,5})?")
_U32_MAX: Final = 0xFFFF_FFFF
_AT_LEAST_ONE: Final = (
    "max_output_tokens",
    "ttl_s",
    "max_running_jobs",
    "max_jobs_per_peer",
    "max_unpaid_quotes_per_peer",
    "max_input_bytes",
    "max_input_bytes_per_peer",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LndSettings:
    """The connection with lnd: ``grpc_addr`` "host:port" (empty: no lnd), its certificate and a macaroon, as files."""

    grpc_addr: str = ""
    tls_cert: Path | None = None
    macaroon_file: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpcSettings:
    """The gRPC port that gateways call: "host:port" or "unix:/path"; TLS and a token, each where its files are set.

    ``protocol_version`` is the version of LCPDService that it speaks. An address beyond this machine needs TLS and a token, unless
    ``allow_insecure`` says otherwise.
    """

    listen: str = "127.0.0.1:50051"
    tls_cert: Path | None = None
    tls_key: Path | None = None
    token_file: Path | None = None
    protocol_version: Literal[2, 3] = 2
    allow_insecure: bool = False

    def __post_init__(self) -> None:
        if not self.listen.startswith("unix:") and ":" not in self.listen:
            raise ConfigError('listen: must be "host:port" or "unix:/path"')
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ConfigError("tls_cert and tls_key come together")


@dataclass(frozen=True, slots=True, kw_only=True)
class BuySettings:
    """Purchases: the most that a routing fee and a price may be (``max_price_msat`` 0: no cap), and how long to wait.

    A node that is not ``enabled`` to buy needs no permission to pay.
    ``payment_timeout_s`` is how long lnd tries to find a route; the others bound the silence of a seller: before its quote,
    before the first byte of a paid result, between two bytes.
    """

    enabled: bool = True
    fee_limit_msat: int = 10_000_000
    max_price_msat: int = 0
    payment_timeout_s: float = 30.0
    quote_timeout_s: float = 30.0
    first_byte_timeout_s: float = 300.0
    idle_timeout_s: float = 60.0

    @property
    def payment_limits(self) -> PaymentLimits:
        """What a purchase may cost, where its caller says nothing else."""
        return PaymentLimits(max_price_msat=self.max_price_msat or None, max_fee_msat=self.fee_limit_msat)

    @property
    def delays(self) -> Delays:
        """How long sellers may be silent, and lnd may look for ways to pay."""
        timeouts = PeerTimeouts(
            quote_s=self.quote_timeout_s, first_byte_s=self.first_byte_timeout_s, idle_s=self.idle_timeout_s
        )
        return Delays(timeouts=timeouts, payment_timeout_s=self.payment_timeout_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """A model that is sold, and its price a million tokens.

    ``max_output_tokens`` 0 takes that of all models; ``backend`` is the name of one, empty for the first.
    """

    name: str
    input_msat_per_mtok: int
    output_msat_per_mtok: int
    max_output_tokens: int = 0
    backend: str = ""

    def __post_init__(self) -> None:
        if not self.name or self.name != self.name.strip():
            raise ConfigError("name: must not be empty, nor begin or end with a blank")
        if not self.input_msat_per_mtok or not self.output_msat_per_mtok:
            raise ConfigError(f'model "{self.name}": input_msat_per_mtok and output_msat_per_mtok must be above 0')
        if self.max_output_tokens > _U32_MAX:
            raise ConfigError(f"max_output_tokens: must be at most {_U32_MAX}")


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendSettings:
    """A compute backend.

    ``kind`` "openai" is a server at ``url``, which ends where ``/chat/completions`` begins, with an API key or a file that holds
    it; "local" a model that this program runs itself, with llama.cpp's llama-server: a GGUF file at ``path`` or an ``hf_repo``;
    "echo" answers with the prompt, at ``tokens_per_second`` (0: at once); "deterministic" with the bytes of ``output_base64``.
    The timeouts of a server: until a stream begins, until a whole result comes, between two reads.
    """

    name: str = "default"
    kind: Literal["echo", "openai", "local", "deterministic"] = "openai"
    url: str = ""
    api_key: str = field(default="", repr=False)
    api_key_file: Path | None = None
    output_base64: str = field(default="", repr=False)
    tokens_per_second: float = 0.0
    stream_begin_timeout_s: float = 120.0
    whole_begin_timeout_s: float = 600.0
    idle_timeout_s: float = 60.0
    max_result_bytes: int = 16 * _MIB
    path: Path | None = None
    hf_repo: str = ""
    context_length: int = 0
    llama_server_args: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (self.path is not None) + bool(self.hf_repo) != (self.kind == "local"):
            raise ConfigError('path, hf_repo: one of them is the model of a backend of kind "local", and of no other')
        if self.kind == "openai":
            address = urlsplit(self.url)
            if address.scheme not in {"http", "https"} or not address.hostname:
                raise ConfigError("url: must be an http(s) URL")
        if self.api_key and self.api_key_file is not None:
            raise ConfigError("api_key and api_key_file exclude each other")
        try:
            base64.b64decode(self.output_base64, validate=True)
        except ValueError:
            raise ConfigError("output_base64: must be base64") from None

    @property
    def output(self) -> bytes:
        """What the kind "deterministic" answers with."""
        return base64.b64decode(self.output_base64) or b"deterministic-output"


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalSettings:
    """How the models of backends of kind "local" are loaded, as the gateway's settings ``local_models_…`` say it for its own.

    ``loaded_max`` at once, in ``memory_mib`` together (0: no bound); one that is unused for ``idle_s`` is unloaded (0: none).
    """

    llama_server: str = "llama-server"
    llama_server_args: tuple[str, ...] = ()
    loaded_max: int = 1
    memory_mib: int = 0
    idle_s: float = 600.0
    preload: bool = False

    def __post_init__(self) -> None:
        if self.loaded_max < 1:
            raise ConfigError("loaded_max: must be at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class SellSettings:
    """Sales: models, their backends, and bounds. A node with no models does not sell, nor one with ``enabled`` false.

    ``allow`` names the peers that may buy (empty: all), ``deny`` those that may not. Above ``max_running_jobs`` paid jobs
    at the backends no more quotes are given; ``max_jobs_per_peer`` is how many of a peer run at once; ``max_unpaid_quotes_per_peer`` how many quotes it may leave unpaid; the last two bound the bytes of requests
    that are held.
    ``route_hints`` puts private channels into invoices, for a node that has no others.
    ``hold_invoices``: payments are accepted, settled at the backend's first byte, and given back where it fails.
    """

    enabled: bool = True
    models: tuple[ModelSettings, ...] = ()
    backends: tuple[BackendSettings, ...] = ()
    local: LocalSettings = LocalSettings()
    max_output_tokens: int = 4_096
    ttl_s: int = 300
    invoice_slack_s: int = 5
    surge: Surge = NO_SURGE
    hold_invoices: bool = False
    route_hints: bool = False
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    max_running_jobs: int = 256
    max_jobs_per_peer: int = 256
    max_unpaid_quotes_per_peer: int = 1_024
    max_input_bytes: int = 512 * _MIB
    max_input_bytes_per_peer: int = 128 * _MIB

    def __post_init__(self) -> None:
        for name in _AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: must be at least 1")
        if self.max_output_tokens > _U32_MAX:
            raise ConfigError(f"max_output_tokens: must be at most {_U32_MAX}")
        for name in ("allow", "deny"):
            for at, peer_id in enumerate(getattr(self, name)):
                if not _PEER_ID.fullmatch(peer_id):
                    raise ConfigError(f"{name}[{at}]: must be a node's id, 66 lower-case hex digits")
        self._check_models()

    def _check_models(self) -> None:
        for name in ("models", "backends"):
            found = [each.name for each in getattr(self, name)]
            doubles = sorted({each for each in found if found.count(each) > 1})
            if doubles:
                raise ConfigError(f'{name}: "{doubles[0]}" is there twice')
        known = {backend.name for backend in self.backends}
        for at, model in enumerate(self.models):
            if model.backend and model.backend not in known:
                raise ConfigError(f'models[{at}].backend: no backend is named "{model.backend}"')
        if not self.backends:
            if self.active:
                raise ConfigError(
                    "backends: missing: models are sold, and no backend runs them (sell.backends in TOML, or LCPD_BACKEND)"
                )
            return
        runs: dict[str, str] = {}
        for model in self.models:
            backend = self.backend_of(model)
            if backend.kind == "local" and runs.setdefault(backend.name, model.name) != model.name:
                raise ConfigError(
                    f'backends: "{backend.name}" is of kind "local" and runs one model, not "{runs[backend.name]}" and "{model.name}"'
                )

    @property
    def active(self) -> bool:
        """Whether the node sells."""
        return self.enabled and bool(self.models)

    @property
    def sold(self) -> dict[str, SoldModel]:
        """The models that are sold, by name; empty where the node does not sell."""
        if not self.enabled:
            return {}
        return {
            model.name: SoldModel(
                TokenPrice(model.input_msat_per_mtok, model.output_msat_per_mtok),
                model.max_output_tokens or self.max_output_tokens,
            )
            for model in self.models
        }

    @property
    def terms(self) -> SaleTerms:
        """How long quotes live, the surcharge, and whether payments are held."""
        return SaleTerms(
            ttl_s=self.ttl_s, invoice_slack_s=self.invoice_slack_s, surge=self.surge, hold=self.hold_invoices
        )

    @property
    def bounds(self) -> Bounds:
        """What the node holds for its peers at most."""
        return Bounds(
            input_bytes_per_peer=self.max_input_bytes_per_peer,
            input_bytes=self.max_input_bytes,
            running=self.max_running_jobs,
            jobs_per_peer=self.max_jobs_per_peer,
            quotes_per_peer=self.max_unpaid_quotes_per_peer,
        )

    def backend_of(self, model: ModelSettings) -> BackendSettings:
        """Return the backend that runs a model."""
        return next(one for one in self.backends if one.name == model.backend or not model.backend)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSettings:
    """The database: its file (None: ``node.db`` in the program's state folder), and the key file beside it.

    ``at_rest`` "encrypted" keeps requests and results sealed until a job ends; "memory" keeps them off the disk: a sale that is
    interrupted by a restart is then lost, and said to be. History is bounded by days and by lines.
    """

    path: Path | None = None
    key_file: Path | None = None
    at_rest: Literal["encrypted", "memory"] = "encrypted"
    history_days: int = 90
    history_lines: int = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsSettings:
    """Where Prometheus reads the node's figures, "host:port"; empty: nowhere."""

    listen: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSettings:
    """The settings of a node over lnd. ``limits`` is what it takes of peers; ``manifest_resend_s`` 0 sends no manifest again on a timer.

    ``peers`` are those that lnd is kept connected with, each "id@host:port", or "id@host" for the port 9735.
    """

    lnd: LndSettings = LndSettings()
    grpc: GrpcSettings = GrpcSettings()
    buy: BuySettings = BuySettings()
    sell: SellSettings = SellSettings()
    store: StoreSettings = StoreSettings()
    metrics: MetricsSettings = MetricsSettings()
    limits: Limits = field(default_factory=Limits)
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    startup_timeout_s: float = 20.0
    manifest_resend_s: float = 0.0
    peers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for at, peer in enumerate(self.peers):
            peer_id, _, address = peer.partition("@")
            if not _PEER_ID.fullmatch(peer_id) or not _ADDRESS.fullmatch(address):
                raise ConfigError(f"peers[{at}]: must be a node's id and its address, ID@HOST:PORT")
        if len(self.peer_addresses) < len(self.peers):
            raise ConfigError("peers: a node's id is there twice")

    @property
    def peer_addresses(self) -> dict[str, str]:
        """The addresses of the peers that lnd is kept connected with, by id."""
        return {peer_id: address for peer_id, _, address in (peer.partition("@") for peer in self.peers)}

    @property
    def delays(self) -> Delays:
        """How long the node waits."""
        return replace(self.buy.delays, manifest_resend_s=self.manifest_resend_s)
