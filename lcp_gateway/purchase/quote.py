"""A quote: what a peer asks for a task, and until when."""

import enum
from dataclasses import dataclass
from datetime import datetime

from lcp_gateway.purchase.money import Msat


class Source(enum.StrEnum):
    """Where compute is bought: from a Lightning peer, or from a virtual node that is reached over HTTP."""

    LCP = "lcp"
    NODE = "node"


@dataclass(frozen=True, slots=True)
class Quote:
    """The terms that a provider offers for one task.

    ``peer_id`` is the provider's id: a peer's public key, or ``node:<name>``. ``job_id`` and ``terms_hash`` are 32
    bytes, ``expires_at`` is aware UTC, ``payment_request`` is BOLT11, and empty where the provider is a node. A node's
    ``price_msat`` is the most that it can come to.
    """

    peer_id: str
    job_id: bytes
    price_msat: Msat
    expires_at: datetime
    terms_hash: bytes
    payment_request: str
    protocol_version: int
    source: Source = Source.LCP

    @property
    def is_free(self) -> bool:
        """Tell whether nothing is paid for it at all: a node without a price."""
        return self.source is Source.NODE and self.price_msat == 0
