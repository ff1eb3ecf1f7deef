"""A quote: what a peer asks for a task, and until when."""

from dataclasses import dataclass
from datetime import datetime

from lcp_gateway.purchase.money import Msat


@dataclass(frozen=True, slots=True)
class Quote:
    """The terms that a peer offers for one task.

    ``job_id`` and ``terms_hash`` are 32 bytes, ``expires_at`` is aware UTC, ``payment_request`` is BOLT11.
    """

    peer_id: str
    job_id: bytes
    price_msat: Msat
    expires_at: datetime
    terms_hash: bytes
    payment_request: str
    protocol_version: int
