"""Invoices of a simulated node: real BOLT 11, signed with the node's key; plain ones and hold invoices."""

import asyncio
import os
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final

from coincurve import PrivateKey

from lcp_gateway.lightning import bolt11
from lcp_gateway.node.config import public_id
from lcp_gateway.node.ports import InvoicePaid, InvoiceState, LightningAway, MadeInvoice

MAX_INVOICES: Final = 10_000
"""How many invoices are remembered; the oldest that are settled or cancelled are forgotten first, then the oldest."""

_HASH_BYTES: Final = 32
_MIN_FINAL_CLTV: Final = 80


@dataclass(slots=True, eq=False)
class _Invoice:
    preimage: bytes = field(repr=False)
    is_hold: bool
    amount_msat: int
    expires_at: int
    state: InvoiceState = InvoiceState.OPEN
    settle_index: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class MemoryInvoices:
    """The invoices port of one node, and the end of the payments to it."""

    def __init__(self, key: PrivateKey, prefix: str, clock: Callable[[], float]) -> None:
        self.is_away = False
        self._key = key
        self.node_id = public_id(self._key)
        self._prefix = prefix
        self._clock = clock
        self._invoices: dict[bytes, _Invoice] = {}
        self._settle_index = 0
        # None breaks a stream.
        self._streams: set[asyncio.Queue[InvoicePaid | None]] = set()

    async def make(
        self, *, description_hash: bytes, amount_msat: int, expiry_s: int, hold_preimage: bytes | None = None
    ) -> MadeInvoice:
        """Make an invoice."""
        self._check()
        preimage = hold_preimage or os.urandom(_HASH_BYTES)
        payment_hash, now = sha256(preimage).digest(), int(self._clock())
        if payment_hash in self._invoices:
            raise LightningAway("invoice with payment hash already exists")
        request = bolt11.encode(
            self._key,
            network=self._prefix,
            timestamp=now,
            payment_hash=payment_hash,
            payment_secret=os.urandom(_HASH_BYTES),
            amount_msat=amount_msat,
            description_hash=description_hash,
            expiry_s=expiry_s,
            min_final_cltv=_MIN_FINAL_CLTV,
        )
        self._invoices[payment_hash] = _Invoice(preimage, hold_preimage is not None, amount_msat, now + expiry_s)
        self._forget_oldest()
        return MadeInvoice(request, payment_hash)

    async def state(self, payment_hash: bytes) -> InvoiceState:
        """Return an invoice's state; one that has expired unpaid is cancelled."""
        self._check()
        invoice = self._invoices.get(payment_hash)
        if invoice is None or self._expired(invoice):
            return InvoiceState.CANCELLED
        return invoice.state

    async def settle(self, preimage: bytes) -> None:
        """Take the payment of an accepted hold invoice."""
        self._check()
        payment_hash = sha256(preimage).digest()
        invoice = self._invoices.get(payment_hash)
        if invoice is None or invoice.state in {InvoiceState.OPEN, InvoiceState.CANCELLED}:
            raise LightningAway("the invoice is not accepted")
        if invoice.state is InvoiceState.ACCEPTED:
            self._settled(payment_hash, invoice)

    async def cancel(self, payment_hash: bytes) -> None:
        """Make an invoice unpayable; a settled one stays settled."""
        self._check()
        invoice = self._invoices.get(payment_hash)
        if invoice is not None and invoice.state is not InvoiceState.SETTLED:
            invoice.state = InvoiceState.CANCELLED
            invoice.changed.set()

    async def paid(self, settle_index: int) -> AsyncGenerator[InvoicePaid, None]:
        """Return invoices settled after that index, and all that are paid from now on."""
        self._check()
        stream: asyncio.Queue[InvoicePaid | None] = asyncio.Queue()
        past = [
            (one.settle_index, payment_hash)
            for payment_hash, one in self._invoices.items()
            if one.settle_index > settle_index
        ]
        for index, payment_hash in sorted(past):
            stream.put_nowait(InvoicePaid(payment_hash, InvoiceState.SETTLED, index))
        self._streams.add(stream)
        try:
            while (event := await stream.get()) is not None:
                yield event
        finally:
            self._streams.discard(stream)
        raise LightningAway("the stream of invoices has ended")

    async def take(self, payment_hash: bytes, amount_msat: int) -> bytes | None:
        """Take a payment that has arrived, and return its preimage; None where it is refused, or a hold invoice cancelled."""
        invoice = self._invoices.get(payment_hash)
        if invoice is None or invoice.state is not InvoiceState.OPEN or self._expired(invoice):
            return None
        if amount_msat != invoice.amount_msat:
            return None
        if not invoice.is_hold:
            self._settled(payment_hash, invoice)
            return invoice.preimage
        invoice.state = InvoiceState.ACCEPTED
        self._report(InvoicePaid(payment_hash, InvoiceState.ACCEPTED))
        await invoice.changed.wait()
        # The state was changed by another task meanwhile.
        return invoice.preimage if invoice.settle_index else None

    def break_streams(self) -> None:
        """End all streams of invoices, as a Lightning node does that restarts cleanly."""
        self._report(None)
        self._streams.clear()

    def stop(self) -> None:
        """End all streams, and fail every call from now on."""
        self.is_away = True
        self.break_streams()

    def _settled(self, payment_hash: bytes, invoice: _Invoice) -> None:
        self._settle_index += 1
        invoice.state, invoice.settle_index = InvoiceState.SETTLED, self._settle_index
        invoice.changed.set()
        self._report(InvoicePaid(payment_hash, InvoiceState.SETTLED, self._settle_index))

    def _expired(self, invoice: _Invoice) -> bool:
        return invoice.state is InvoiceState.OPEN and self._clock() > invoice.expires_at

    def _report(self, event: InvoicePaid | None) -> None:
        for stream in self._streams:
            stream.put_nowait(event)

    def _forget_oldest(self) -> None:
        if len(self._invoices) <= MAX_INVOICES:
            return
        over = {InvoiceState.SETTLED, InvoiceState.CANCELLED}
        oldest = next(
            (key for key, one in self._invoices.items() if one.state in over or self._expired(one)),
            next(iter(self._invoices)),
        )
        del self._invoices[oldest]

    def _check(self) -> None:
        if self.is_away:
            raise LightningAway("the Lightning node is away")
