"""The settings of a node: its peers, their models and prices, its wallet and its backend.

Read from TOML, with errors that name the key.
"""

from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Final

from coincurve import PrivateKey

from lcp_gateway.node.toml import ConfigError, read_dataclass, read_toml

ECHO: Final = "echo"
"""The backend that needs no other server."""

_MIB = 1024 * 1024
_LCP_VERSION = 2


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A model and its price: ``base_msat`` a task, plus msat per prompt token and per output token allowed.

    A task that names no limit of its own is priced for ``default_max_tokens``. ``tokens_per_second`` 0 means no
    pause between tokens.
    """

    name: str
    base_msat: int = 2_000
    prompt_token_msat: int = 2
    output_token_msat: int = 14
    default_max_tokens: int = 4_096
    tokens_per_second: float = 0.0
    chat: bool = True
    responses: bool = True


@dataclass(frozen=True, slots=True)
class PeerConfig:
    """A peer and its manifest's limits (bytes; jobs at once). A peer that is not ready is not listed."""

    alias: str
    models: tuple[ModelConfig, ...]
    address: str = ""
    ready: bool = True
    quote_latency_s: float = 0.0
    max_payload_bytes: int = 16_384
    max_stream_bytes: int = 4 * _MIB
    max_job_bytes: int = 8 * _MIB
    max_inflight_jobs: int = 4_096


@dataclass(frozen=True, slots=True)
class WalletConfig:
    """The wallet that pays: its balance, the cost and time of a route, and the smallest payment that finds one.

    ``customer_balance_msat`` is the balance of the demonstration's customer, which pays the node's own invoices.
    """

    balance_msat: int = 10_000_000_000
    customer_balance_msat: int = 10_000_000_000
    fee_base_msat: int = 1_000
    fee_ppm: int = 100
    payment_latency_s: float = 0.0
    min_htlc_msat: int = 1_000


@dataclass(frozen=True, slots=True)
class FaultConfig:
    """Sizes and paces of the scripted failures."""

    flood_bytes: int = 100 * _MIB
    flood_chunk_bytes: int = 65_536
    big_result_bytes: int = 4 * _MIB
    chunks_before_failure: int = 5
    slow_chunk_s: float = 1.0
    manifest_refusals: int = 2
    expensive_msat: int = 5_767_650_000


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """The settings that a node starts with.

    ``listen`` is "host:port" (port 0 picks one) or "unix:/path". ``backend`` is "echo" or the base URL of an
    OpenAI-compatible server. ``seed`` decides every key, so that peers keep their ids across restarts. With
    ``faults`` an extra peer offers a model for every scripted failure. ``events_path`` names a file that gets one
    JSON line per event. ``tokens_per_second`` is the pace of models that set none.
    """

    listen: str = "127.0.0.1:50051"
    peers: tuple[PeerConfig, ...] = ()
    backend: str = ECHO
    backend_api_key: str = field(default="", repr=False)
    backend_models: tuple[str, ...] = ()
    tokens_per_second: float = 0.0
    protocol_version: int = _LCP_VERSION
    seed: str = "lcp-gateway"
    network: str = "bcrt"
    quote_ttl_s: float = 300.0
    wallet: WalletConfig = WalletConfig()
    faults: bool = False
    fault_settings: FaultConfig = FaultConfig()
    events_path: Path | None = None

    def __post_init__(self) -> None:
        """Check the values beyond their types."""
        if self.backend != ECHO and not self.backend.startswith(("http://", "https://")):
            raise ConfigError(f'backend: must be "{ECHO}" or an http(s) URL')
        if not self.listen.startswith("unix:") and ":" not in self.listen:
            raise ConfigError('listen: must be "host:port" or "unix:/path"')
        aliases = [peer.alias for peer in self.peers]
        if len(set(aliases)) != len(aliases):
            raise ConfigError("peers: two peers have the same alias")
        for at, peer in enumerate(self.peers):
            names = [model.name for model in peer.models]
            if len(set(names)) != len(names):
                raise ConfigError(f"peers[{at}].models: two models have the same name")

    @classmethod
    def from_toml(cls, path: Path) -> "NodeConfig":
        """Read a node from a TOML file whose keys are this class's fields; tables nest as the classes do.

        Raises:
            ConfigError: the file cannot be read, or a key is unknown, missing or has a wrong value; it names the key.
        """
        return read_dataclass(cls, read_toml(path))


def default_peers() -> tuple[PeerConfig, ...]:
    """Three peers: two sell echo-1 at different prices, one a slow model, one a small and cheap one."""
    return (
        PeerConfig("Alice", (ModelConfig("echo-1"), ModelConfig("echo-mini", 1_500, 1, 4))),
        PeerConfig("Bob", (ModelConfig("echo-1", 2_500, 3, 16),)),
        PeerConfig("Carol", (ModelConfig("echo-slow", tokens_per_second=20.0),)),
    )


def derive_key(seed: str, name: str) -> PrivateKey:
    """Return one party's private key, the same after a restart. Simulation only: a seed is easily guessed."""
    return PrivateKey(sha256(f"lcp-gateway node\n{seed}\n{name}".encode()).digest())


def public_id(key: PrivateKey) -> str:
    """Return a party's public key as Lightning writes it, 66 lower-case hex digits."""
    return key.public_key.format().hex()
