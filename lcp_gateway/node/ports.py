"""The ports of a node: what it needs of Lightning, of a compute backend and of a disk, as interfaces without a library.

``lnd/`` and ``memory/`` implement transport, payments and invoices; ``storage/`` the store. Amounts are msat, times Unix seconds,
ids of peers 66 lower-case hex digits, hashes and preimages 32 bytes.
"""

import enum
from collections.abc import AsyncGenerator
from typing import Protocol as Interface

from lcp_gateway.lightning.error_codes import ErrorCode
from lcp_gateway.node.lcp.buying_events import KeepPurchase, Order
from lcp_gateway.node.lcp.effects import Send
from lcp_gateway.node.lcp.messages import Manifest, Protocol
from lcp_gateway.node.lcp.selling_events import KeepSale
from lcp_gateway.values import value


class LightningAway(Exception):
    """The Lightning node does not answer, or refuses; the text holds no secret. What was asked for may have happened or not."""


@value
class PeerConnected:
    """A direct peer is connected; ``address`` is "host:port" or empty."""

    peer_id: str
    address: str


@value
class PeerDisconnected:
    """A direct peer is no longer connected."""

    peer_id: str


@value
class MessageReceived:
    """A direct peer sent a custom message."""

    peer_id: str
    message_type: int
    payload: bytes


TransportEvent = PeerConnected | PeerDisconnected | MessageReceived


class Transport(Interface):
    """Custom messages between this node and its direct peers."""

    async def identity(self) -> tuple[str, str]:
        """Return this node's id, and the prefix of its network's invoices ("bcrt" for instance).

        Raises:
            LightningAway: the Lightning node does not answer.
        """
        ...

    def events(self) -> AsyncGenerator[TransportEvent, None]:
        """Return peers and messages as they come, first a ``PeerConnected`` for each peer that is connected already.

        Messages are received before the first event is returned, so that no answer is lost. The iterator raises
        ``LightningAway`` when it breaks, also after a clean end of the Lightning node; the caller asks again, and takes
        every peer that is not named anew for disconnected.
        """
        ...

    async def send(self, peer_id: str, message_type: int, payload: bytes) -> None:
        """Hand a message over for a peer, in the order of the calls.

        Raises:
            LightningAway: it was not taken: the peer or the Lightning node is away.
        """
        ...

    async def connect(self, peer_id: str, address: str) -> None:
        """Connect with a peer at "host:port", and return once it is connected. One that is connected already is no error.

        Raises:
            LightningAway: it is not connected; the text says why.
        """
        ...

    async def disconnect(self, peer_id: str) -> None:
        """End the connection with a peer.

        Raises:
            LightningAway: the Lightning node does not answer, or has channels with the peer, which stays connected.
        """
        ...


@value
class PaymentSucceeded:
    """The payment arrived."""

    preimage: bytes
    fee_msat: int


@value
class PaymentLost:
    """The payment failed for good, no part of it is on its way. ``reason`` is lnd's name, "FAILURE_REASON_NO_ROUTE" for instance."""

    reason: str


PaymentEnd = PaymentSucceeded | PaymentLost


@value
class PaymentUnderWay:
    """The payment was begun, and has not ended."""


class PaymentRefused(Exception):
    """The Lightning node refused to begin this payment: by this call nothing was paid. ``already_paid``: an earlier one was."""

    def __init__(self, reason: str, *, already_paid: bool = False) -> None:
        super().__init__(reason)
        self.already_paid = already_paid


class Payments(Interface):
    """Payments of this node."""

    async def pay(
        self, payment_request: str, payment_hash: bytes, *, amount_msat: int, fee_limit_msat: int, timeout_s: float
    ) -> PaymentEnd:
        """Pay an invoice, once, and return the end of the payment, however long it takes.

        Where the connection breaks in between, the payment is tracked by its hash; it is never begun a second time.

        Raises:
            PaymentRefused: it was not begun.
        """
        ...

    async def track(self, payment_hash: bytes) -> PaymentEnd:
        """Return the end of a payment that may have been begun before a restart, however long it takes.

        A Lightning node that knows no such payment counts as ``PaymentLost`` only once it has said so for a minute: a call may
        still have been on its way.
        """
        ...

    async def find(self, payment_hash: bytes) -> PaymentEnd | PaymentUnderWay | None:
        """Return the present state of a payment; None for one that the Lightning node does not know.

        Raises:
            LightningAway: the Lightning node does not answer.
        """
        ...


class PaymentHashUsed(Exception):
    """The payment hash of a purchase is that of another one, open or paid: one payment would count for both."""


class InvoiceState(enum.StrEnum):
    """The state of an invoice of this node. ``ACCEPTED`` is a hold invoice whose payment waits to be settled or cancelled."""

    OPEN = "open"
    ACCEPTED = "accepted"
    SETTLED = "settled"
    CANCELLED = "cancelled"


@value
class MadeInvoice:
    """An invoice that was made."""

    payment_request: str
    payment_hash: bytes


@value
class InvoicePaid:
    """An invoice was settled, the ``settle_index``-th of the Lightning node; or a hold invoice accepted, without an index."""

    payment_hash: bytes
    state: InvoiceState
    settle_index: int | None = None


class Invoices(Interface):
    """Invoices of this node, whose payee is its id."""

    async def make(
        self, *, description_hash: bytes, amount_msat: int, expiry_s: int, hold_preimage: bytes | None = None
    ) -> MadeInvoice:
        """Make an invoice; with ``hold_preimage`` a hold invoice, whose payment waits for ``settle`` or ``cancel``.

        Raises:
            LightningAway: it was not made, or the caller does not learn of it: then it is never shown to a peer.
        """
        ...

    async def state(self, payment_hash: bytes) -> InvoiceState:
        """Return an invoice's state; ``CANCELLED`` for one that the Lightning node does not know.

        Raises:
            LightningAway: the Lightning node does not answer.
        """
        ...

    async def settle(self, preimage: bytes) -> None:
        """Take the payment of an accepted hold invoice. Settling it twice is no error.

        Raises:
            LightningAway: it is not known to be settled.
        """
        ...

    async def cancel(self, payment_hash: bytes) -> None:
        """Make an invoice unpayable; of an accepted hold invoice the payer gets its money back.

        Twice is no error, and neither is that of a settled invoice, which stays so: the payment came first.

        Raises:
            LightningAway: it is not known to be cancelled.
        """
        ...

    def paid(self, settle_index: int) -> AsyncGenerator[InvoicePaid, None]:
        """Return invoices as they are settled after that index, and hold invoices as they are accepted.

        Those are the hold invoices that were made here, and after a restart those whose ``state`` was asked for. An
        acceptance may come twice. Indexes are those of one Lightning node: with another one, the caller begins with 0.

        The iterator raises ``LightningAway`` when it breaks, also after a clean end; the caller asks again from its last index.
        """
        ...


class ComputeError(Exception):
    """The backend has no result, or broke off. ``message`` goes to the peer: it quotes nothing of the request."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Compute(Interface):
    """A backend that runs jobs that are sold."""

    async def models(self) -> tuple[str, ...]:
        """Return the models that the backend has now; empty where it cannot tell.

        Raises:
            ComputeError: it does not answer.
        """
        ...

    def run(
        self, *, job_id: bytes, task_kind: str, model: str, body: bytes, stream: bool
    ) -> AsyncGenerator[bytes, None]:
        """Run a job and return its result's bytes as they come. The generator is closed to stop the job.

        The generator raises ``ComputeError`` where there is no result, or no more of it.
        """
        ...

    async def close(self) -> None:
        """Close all connections."""
        ...


@value(kw_only=True)
class StoredPurchase:
    """A purchase that was being paid when the node ended: what a ``Buying`` needs to go on.

    ``payer`` is the id of the Lightning node that pays: another one knows nothing of the payment. Empty where it is not known.
    """

    peer_id: str
    protocol: Protocol
    order: Order
    kept: KeepPurchase
    manifest: Manifest
    payer: str


@value(kw_only=True)
class EndedPurchase:
    """What is kept of a purchase that was to be paid and has ended; ``fee_msat`` and ``preimage`` where it was paid."""

    payment_hash: bytes
    paid: bool
    fee_msat: int | None
    preimage: bytes | None


@value(kw_only=True)
class StoredSale:
    """A job that is sold: what a ``Selling`` needs to go on. ``hold_preimage`` is that of a hold invoice."""

    peer_id: str
    protocol: Protocol
    kept: KeepSale
    sent: tuple[Send, ...] = ()
    hold_preimage: bytes | None = None


class Store(Interface):
    """What survives a restart. Each method returns once it is durable, and raises ``OSError`` where it is not.

    Requests and results are encrypted at rest, or never written, as the operator chose. Then a sale comes back after a restart
    with an empty body, without the messages of its result but the last, and without its hold preimage: it cannot be run. Its
    invoice is cancelled if it is not settled; a paid one that has not ended is answered with an error.
    """

    @property
    def keeps_jobs(self) -> bool:
        """Whether sales are kept at all; where they are not, ``keep_sale`` and ``keep_sent`` need not be called."""
        ...

    async def manifests(self) -> dict[tuple[str, Protocol], Manifest]:
        """Return the last manifest of each peer in each version."""
        ...

    async def keep_manifest(self, peer_id: str, protocol: Protocol, manifest: Manifest | None) -> None:
        """Keep a peer's manifest; None removes it."""
        ...

    async def keep_purchase(self, purchase: StoredPurchase) -> None:
        """Keep a purchase before it is paid. Its request's bytes are not kept: asking again for a result takes none.

        Raises:
            PaymentHashUsed: another purchase that is open, or was paid, has its payment hash; it is not kept.
        """
        ...

    async def end_purchase(
        self,
        job_id: bytes,
        *,
        outcome: str,
        paid: bool,
        ended_at: int,
        fee_msat: int | None = None,
        preimage: bytes | None = None,
    ) -> None:
        """Remove a purchase, and keep a line of it for the operator; the fee and the preimage where they are known."""
        ...

    async def ended_purchase(self, job_id: bytes) -> EndedPurchase | None:
        """Return what is kept of a purchase that has ended; None where there is no line of it, or none any more."""
        ...

    async def is_hash_used(self, payment_hash: bytes, *, but_for: bytes) -> bool:
        """Return whether another purchase than that job's, open or paid, has a payment hash."""
        ...

    async def forgotten_until(self) -> int:
        """Return the time (Unix seconds) up to which lines may be gone: of every purchase that began later one is kept."""
        ...

    async def job_key(self) -> bytes:
        """Return 32 random bytes, made with the store and always the same: by them the node knows ids of its jobs again."""
        ...

    async def purchases(self) -> list[StoredPurchase]:
        """Return the purchases that have not ended, the order's ``request`` empty."""
        ...

    async def keep_sale(self, sale: StoredSale) -> None:
        """Keep a sale before its quote goes out."""
        ...

    async def keep_sent(self, peer_id: str, job_id: bytes, messages: tuple[Send, ...]) -> None:
        """Append messages of a sale's result before they are sent; without effect for a sale that is not kept."""
        ...

    async def end_sale(
        self,
        peer_id: str,
        job_id: bytes,
        *,
        outcome: str,
        price_msat: int,
        paid: bool,
        line: bool,
        model: str,
        ended_at: int,
    ) -> None:
        """Record that a sale has ended; what it holds stays for a peer that asks again, until ``forget_sale``.

        With ``line`` the operator gets a line of it, one however often it is called: a cancelled job may be paid later.
        """
        ...

    async def forget_sale(self, peer_id: str, job_id: bytes) -> None:
        """Remove a sale, with its request and its result."""
        ...

    async def sales(self) -> list[StoredSale]:
        """Return the sales that are kept, ended or not."""
        ...

    async def settle_index(self, node_id: str) -> int:
        """Return the index of the last settled invoice of that Lightning node that was taken in; 0 at first."""
        ...

    async def keep_settle_index(self, node_id: str, index: int) -> None:
        """Keep that index."""
        ...
