"""The providers that may do a task (candidates), and the quotes that they give for it."""

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from datetime import datetime
from typing import Protocol

from lcp_gateway.constants import NODE_PREFIX, PPM
from lcp_gateway.purchase.money import Msat
from lcp_gateway.purchase.order import Task
from lcp_gateway.values import value


def unchanged(task: Task) -> Task:
    """Return the task unchanged: the adaptation where the client named a model of a provider."""
    return task


class Comparison(Protocol):
    """Compares the candidates of one order by what they ask. They are named by their places."""

    def next(self, asked: Mapping[int, Msat], left: Sequence[int], *, peers_too: bool) -> int | None:
        """Return which of ``left`` is to be asked as well before one is paid; None where none is."""
        ...

    def best(self, asked: Mapping[int, Msat]) -> int:
        """Return the place of the one to pay."""
        ...

    def taken(self, place: int, asked: Mapping[int, Msat]) -> Mapping[str, object] | None:
        """Record which one is paid; return the explanation of the choice for the client, None where it gets none."""
        ...


@value
class Candidate:
    """One provider that routing found.

    ``adapt`` makes the task that the provider gets of the one that was asked for; it is pure, so that it can be applied
    again when a quote is taken later. ``adapter`` names what also has to be done with the result, and is empty where its
    bytes go out as they come. ``routing`` is the explanation of the choice for the client, None where the client chose.
    ``comparison`` weighs its quote against those of other candidates, where the gateway made the choice; ``place`` is its
    place there.
    """

    provider_id: str
    adapt: Callable[[Task], Task] = unchanged
    adapter: str = ""
    routing: Mapping[str, object] | None = field(default=None)
    comparison: Comparison | None = field(default=None, compare=False, repr=False)
    place: int = 0


class ProviderSource(enum.StrEnum):
    """Where compute is bought: from a Lightning peer, or from a virtual node that is reached over HTTP."""

    LCP = "lcp"
    NODE = "node"

    @classmethod
    def of(cls, provider_id: str) -> "ProviderSource":
        """Return the source of a provider, which its id shows."""
        return cls.NODE if provider_id.startswith(NODE_PREFIX) else cls.LCP


@value
class Payee:
    """The owner of a node that dialled in, who is paid when the result is delivered; ``commission_ppm`` of the price stay with the operator."""

    node_id: str
    account_id: str
    commission_ppm: int

    def earned_msat(self, price_msat: int) -> Msat:
        """Return the owner's part of a price; the commission is rounded up."""
        return Msat(price_msat + -price_msat * self.commission_ppm // PPM)


@value
class Earning:
    """What a delivered result brought the owner of its node, and the operator's commission."""

    node_id: str
    earned_msat: int
    commission_msat: int


@value
class Quote:
    """The terms that a provider offers for one task.

    ``peer_id`` is the provider's id: a peer's public key, or ``node:<name>``. ``job_id`` and ``terms_hash`` are 32
    bytes, ``expires_at`` is aware UTC, ``payment_request`` is BOLT11, and empty where the provider is a node. A node's
    ``price_msat`` is the most that it can come to. ``on_delivery`` says that its provider is paid for a whole result only:
    a node that dialled in, whose owner is the ``payee`` unless it is the operator's own.
    ``protocol_version`` is that of the daemon which the quote came through, 0 where the provider is a node; the types of
    the response are terms of version 3, both there or neither.
    """

    peer_id: str
    job_id: bytes
    price_msat: Msat
    expires_at: datetime
    terms_hash: bytes
    payment_request: str
    protocol_version: int
    source: ProviderSource = ProviderSource.LCP
    on_delivery: bool = False
    payee: Payee | None = None
    response_content_type: str | None = None
    response_content_encoding: str | None = None

    @property
    def is_free(self) -> bool:
        """Whether nothing is paid for it at all: a node without a price."""
        return self.price_msat == 0 and self.source is ProviderSource.NODE
