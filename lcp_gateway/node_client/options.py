"""What a node joins a gateway with: plain values, read and checked by the caller."""

from dataclasses import dataclass, field

from lcp_gateway.node_protocol.messages import Price


@dataclass(frozen=True, slots=True)
class BackendOptions:
    """An OpenAI-compatible server whose models are served. ``base_url`` ends where ``/chat/completions`` begins.

    ``models`` is empty where all that it lists are served. ``concurrent`` bounds the requests to each model; 0 does not.
    """

    base_url: str
    api_key: str = field(default="", repr=False)
    models: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ("chat", "completions", "embeddings")
    concurrent: int = 0
    price: Price = field(default_factory=Price)
    max_output_tokens: int = 4096


@dataclass(frozen=True, slots=True)
class JoinOptions:
    """``backends`` is empty where the usual servers on this machine are looked for; ``found`` then describes them."""

    url: str
    token: str = field(repr=False)
    name: str
    backends: tuple[BackendOptions, ...]
    found: BackendOptions
    concurrent: int = 4
    request_bytes: int = 32 * 2**20
    refresh_s: float = 15.0
    drain_s: float = 120.0
    proxy: bool = False
    """Whether the proxy that the environment names may be used for the gateway. A backend is reached without one."""
