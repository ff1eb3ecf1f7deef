"""The node's own invoices: signed, held in memory, and followed in the order in which they are added and settled."""

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Callable, Reversible
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import islice, takewhile
from operator import attrgetter
from typing import Final

import grpc

from lcp_gateway.lightning import bolt11
from lcp_gateway.node.config import derive_key, public_id
from lcp_gateway.node.events import EventKind, EventLog

MAX_INVOICES: Final = 10_000
DEFAULT_EXPIRY_S: Final = 86_400

_HASH_BYTES = 32
_MAX_DESCRIPTION_BYTES = 639
_MAX_EXPIRY_S = 365 * 86_400
_MIN_FINAL_CLTV = 80

_add_index = attrgetter("add_index")
_settle_index = attrgetter("settle_index")


class CallError(Exception):
    """Ends a call of the simulated lnd with a gRPC status and lnd's text."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.code = code
        self.details = details


@dataclass(slots=True, eq=False)
class Invoice:
    """An invoice of the node. ``amount_msat`` 0 lets the payer choose; times are Unix seconds.

    ``settle_index``, ``settled_at`` and ``paid_msat`` are 0 until it is settled.
    """

    payment_hash: bytes
    preimage: bytes = field(repr=False)
    payment_secret: bytes = field(repr=False)
    payment_request: str
    amount_msat: int
    memo: str
    description_hash: bytes
    created_at: int
    expiry_s: int
    add_index: int
    in_flight: bool = False
    settle_index: int = 0
    settled_at: int = 0
    paid_msat: int = 0

    @property
    def settled(self) -> bool:
        """Whether it was paid."""
        return self.settle_index > 0

    @property
    def expired(self) -> bool:
        """Whether it can no longer be paid; one that is being paid has not expired."""
        too_late = time.time() >= self.created_at + self.expiry_s
        return too_late and not self.settled and not self.in_flight


class InvoiceBook:
    """Invoices by payment hash; unpaid ones are dropped before settled ones, and the oldest first.

    Indexes only ever grow, and those of a later run begin above those of an earlier one: a gateway that stored the last
    settle index misses no settlement after a restart of the node.
    """

    def __init__(
        self, seed: str, network: str, events: EventLog, max_invoices: int = MAX_INVOICES, owner: str = "node"
    ) -> None:
        """``owner`` names the party whose key signs the invoices."""
        self._key = derive_key(seed, owner)
        self._network = network
        self._events = events
        self._max_invoices = max_invoices
        self.node_id = public_id(self._key)
        # Three orders of the same invoices, each the order of insertion: added, not yet paid, settled.
        self._all: dict[bytes, Invoice] = {}
        self._unpaid: dict[bytes, Invoice] = {}
        self._settled: dict[bytes, Invoice] = {}
        self._add_index = self._settle_index = time.time_ns() // 1_000
        self._changed = asyncio.Event()
        self._closed = False

    def __len__(self) -> int:
        return len(self._all)

    def add(
        self,
        amount_msat: int,
        *,
        memo: str = "",
        description_hash: bytes = b"",
        expiry_s: int = 0,
        preimage: bytes = b"",
    ) -> Invoice:
        """Add an invoice. Arguments left out take lnd's default, or a random value.

        Raises:
            CallError: UNKNOWN with the reason, as lnd has it: a value is out of bounds, or there is no room.
        """
        _check(amount_msat, memo, description_hash, expiry_s, preimage)
        preimage = preimage or os.urandom(_HASH_BYTES)
        payment_hash, secret = sha256(preimage).digest(), os.urandom(_HASH_BYTES)
        if payment_hash in self._all:
            raise lnd_refusal("invoice with payment hash already exists")
        now, expiry_s = int(time.time()), expiry_s or DEFAULT_EXPIRY_S
        try:
            payment_request = bolt11.encode(
                self._key,
                network=self._network,
                timestamp=now,
                payment_hash=payment_hash,
                payment_secret=secret,
                amount_msat=amount_msat or None,
                description=None if description_hash else memo,
                description_hash=description_hash or None,
                expiry_s=expiry_s,
                min_final_cltv=_MIN_FINAL_CLTV,
            )
        except bolt11.InvoiceError as error:
            raise lnd_refusal(str(error)) from error
        self._make_room()
        self._add_index += 1
        invoice = Invoice(
            payment_hash=payment_hash,
            preimage=preimage,
            payment_secret=secret,
            payment_request=payment_request,
            amount_msat=amount_msat,
            memo=memo,
            description_hash=description_hash,
            created_at=now,
            expiry_s=expiry_s,
            add_index=self._add_index,
        )
        self._all[payment_hash] = self._unpaid[payment_hash] = invoice
        self._record(EventKind.INVOICE, invoice, amount_msat)
        return invoice

    def find(self, payment_hash: bytes) -> Invoice | None:
        """Return an invoice by its payment hash."""
        return self._all.get(payment_hash)

    def settle(self, invoice: Invoice, paid_msat: int) -> None:
        """Record that an invoice was paid."""
        self._settle_index += 1
        invoice.settle_index = self._settle_index
        invoice.settled_at = int(time.time())
        invoice.paid_msat = paid_msat
        invoice.in_flight = False
        del self._unpaid[invoice.payment_hash]
        self._settled[invoice.payment_hash] = invoice
        self._record(EventKind.INVOICE_PAID, invoice, paid_msat)

    def page(self, offset: int, limit: int, *, newest_first: bool, pending_only: bool) -> list[Invoice]:
        """Return invoices after an add index, or before it when ``newest_first``; always in the order of adding."""
        pending = (it for it in self._all.values() if not it.settled and not it.expired)
        chosen: list[Invoice] = list(pending) if pending_only else list(self._all.values())
        if newest_first:
            return [it for it in chosen if not offset or it.add_index < offset][-limit:]
        return list(islice((it for it in chosen if it.add_index > offset), limit))

    async def follow(self, add_index: int, settle_index: int) -> AsyncGenerator[Invoice, None]:
        """Yield each invoice when it is added and again when it is settled, until the book is closed.

        Those after the given indexes come first; an index of 0 asks for none of the past.
        """
        added = add_index or self._add_index
        settled = settle_index or self._settle_index
        while not self._closed:
            changed = self._changed
            for invoice in _after(added, self._all.values(), _add_index):
                added = invoice.add_index
                yield invoice
            for invoice in _after(settled, self._settled.values(), _settle_index):
                settled = invoice.settle_index
                yield invoice
            await changed.wait()

    def close(self) -> None:
        """End every ``follow``."""
        self._closed = True
        self._announce()

    def _make_room(self) -> None:
        if len(self._all) < self._max_invoices:
            return
        idle = (it for it in self._unpaid.values() if not it.in_flight)
        oldest = next(idle, None) or next(iter(self._settled.values()), None)
        if oldest is None:
            raise lnd_refusal("too many invoices are being paid")
        for kept in (self._all, self._unpaid, self._settled):
            kept.pop(oldest.payment_hash, None)

    def _record(self, kind: EventKind, invoice: Invoice, amount_msat: int) -> None:
        self._events.record(
            kind, job_id=b"", payment_hash=invoice.payment_hash, peer_id=self.node_id, model="", price_msat=amount_msat
        )
        self._announce()

    def _announce(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def lnd_refusal(reason: str) -> CallError:
    """Return lnd's refusal of a request; it has one status for every reason."""
    return CallError(grpc.StatusCode.UNKNOWN, reason)


def read_invoice(payment_request: str, network: str) -> bolt11.Invoice:
    """Read an invoice that is to be paid on a network.

    Raises:
        CallError: UNKNOWN with the reason, as lnd has it.
    """
    try:
        invoice = bolt11.decode(payment_request)
    except bolt11.InvoiceError as error:
        raise lnd_refusal(str(error)) from None
    if invoice.network != network:
        raise lnd_refusal("invoice not for current active network")
    return invoice


def _after(index: int, invoices: Reversible[Invoice], index_of: Callable[[Invoice], int]) -> list[Invoice]:
    """Return the invoices with a higher index, lowest first; they stand at the end."""
    return list(takewhile(lambda it: index_of(it) > index, reversed(invoices)))[::-1]


def _check(amount_msat: int, memo: str, description_hash: bytes, expiry_s: int, preimage: bytes) -> None:
    if amount_msat < 0:
        raise lnd_refusal(f"payments of negative value are not allowed, value is {amount_msat}")
    size = len(memo.encode())
    if size > _MAX_DESCRIPTION_BYTES:
        raise lnd_refusal(f"memo too large: {size} bytes (maxsize={_MAX_DESCRIPTION_BYTES})")
    if description_hash and len(description_hash) != _HASH_BYTES:
        raise lnd_refusal(f"description hash is {len(description_hash)} bytes, must be {_HASH_BYTES}")
    if preimage and len(preimage) != _HASH_BYTES:
        raise lnd_refusal(f"preimage is {len(preimage)} bytes, must be {_HASH_BYTES}")
    if not 0 <= expiry_s <= _MAX_EXPIRY_S:
        raise lnd_refusal(f"expiry of {expiry_s} seconds is out of bounds")
