"""Bounds of a node: how much it holds for its peers and its clients, and how long it is patient."""

from dataclasses import dataclass, field
from typing import Final

from lcp_gateway.node.lcp.buying_events import PeerTimeouts

_MIB: Final = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What a node holds at most. A peer that asks for more gets error 7 (8 in version 0.3)."""

    input_bytes_per_peer: int = 128 * _MIB
    """Bytes of requests of a peer's jobs that are held, announced ones included."""
    input_bytes: int = 512 * _MIB
    """The same of all peers."""
    jobs_per_peer: int = 256
    """Paid jobs of a peer that run at once, and jobs whose request is still coming."""
    running: int = 256
    """Paid jobs of all peers that run at once: while there are as many, no quotes are given. What is paid runs all the same."""
    quotes_per_peer: int = 1_024
    """Quotes of a peer that are neither paid nor expired. Clients that compare prices leave most quotes unpaid."""
    sales: int = 10_000
    """Jobs that are sold to all peers, with those that are kept to be sent again."""
    purchases: int = 10_000
    """Jobs that are bought, with ended ones until their quotes expire."""
    result_bytes: int = 256 * _MIB
    """Bytes of results that are kept to be sent again; the oldest are forgotten first."""
    window_bytes: int = 256 * 1024
    """Bytes of one job that wait to be sent, before the backend that produces them has to wait."""
    cut_input_bytes: int = 32 * _MIB
    """Bytes of long requests that wait to be sent as messages, to all peers; further ones wait their turn."""
    gathered_bytes: int = 64 * 1024
    """Bytes of small pieces of a result that are put together while their caller takes none; 0 keeps each by itself."""
    peers: int = 10_000
    """Peers that are remembered after they left."""
    manifest_bytes: int = 64 * _MIB
    """Bytes of all peers' manifests, as they came; one has up to 64 KiB, and each version its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentLimits:
    """What a purchase may cost, where its caller says nothing else: msat; None is no limit. The fee's is lcpd-grpcd's."""

    max_price_msat: int | None = None
    max_fee_msat: int = 10_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Delays:
    """How long a node waits or remembers, in seconds."""

    timeouts: PeerTimeouts = field(default_factory=PeerTimeouts)
    """How long a seller may be silent."""
    payment_timeout_s: float = 30
    """How long the Lightning node may look for ways to pay; lcpd-grpcd's."""
    keep_sale_s: float = 180
    """How long a paid job and its result are kept after its quote has expired: the result can be sent again until then."""
    claim_s: float = 5
    """How long a job whose payment an earlier run began stays stored after its end, for a caller that asks for its result."""
    gather_s: float = 0.010
    """How long a backend is not asked for more while bytes of its job still wait to be sent: then more comes as one piece."""
    sweep_s: float = 5
    """How often jobs are looked through for expired ones."""
    manifest_resend_s: float = 0
    """How often this node's manifests are sent to every connected peer again; 0: only to a peer that seems to need them."""
    regone_s: float = 10
    """How long after a break of the Lightning node's stream a peer may be missing before it counts as gone."""
