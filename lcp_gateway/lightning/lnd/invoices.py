"""Invoices: made, looked up and followed at an lnd, or at our own node, which serves the same calls.

No call here can pay. The macaroon needs ``invoices:read invoices:write info:read``.
"""

import asyncio
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from types import MappingProxyType
from typing import Any, Final

import grpc.aio

from lcp_gateway.lightning import bolt11
from lcp_gateway.lightning.lnd.channel import KEEPALIVE_S, LndAddress, LndChannel, lnd_errors
from lcp_gateway.lightning.lnd.records import (
    INVOICE_PREFIXES,
    CreatedInvoice,
    InvoiceFlaw,
    InvoiceState,
    InvoiceStatus,
    LndError,
    NodeIdentity,
    SettledInvoice,
    SettlementsInterrupted,
    WrongInvoice,
)
from lcp_gateway.purchase.money import Msat
from lcp_gateway.upstream_status import UpstreamStatus

MAX_MEMO_BYTES: Final = 639
"""The longest description of an invoice."""

_HASH_BYTES = 32
_NEWEST = 1_000
_NO_SUCH_INVOICE = ("unable to locate invoice", "there are no existing invoices")

# Numbers of lnrpc.Invoice.InvoiceState. Every other one is a state in which nothing is decided.
_SETTLED = 1
_STATES = MappingProxyType({_SETTLED: InvoiceStatus.SETTLED, 2: InvoiceStatus.CANCELED, 3: InvoiceStatus.ACCEPTED})


class LndInvoices(LndChannel):
    """The invoices of one lnd.

    ``network`` is the prefix that invoices must have ("bc", "bcrt", …), None for that of lnd's own network;
    ``route_hints`` puts lnd's private channels into invoices, without which no payer finds a node that has no other
    channels; ``poll_s`` is the pause between looks for the very first settlement.
    """

    def __init__(
        self,
        address: LndAddress,
        *,
        network: str | None = None,
        route_hints: bool = False,
        timeout_s: float = 5.0,
        poll_s: float = 1.0,
        keepalive_s: float = KEEPALIVE_S,
    ) -> None:
        super().__init__(address, timeout_s=timeout_s, keepalive_s=keepalive_s)
        self._messages = self._stubs.lightning
        self._network = network
        self._route_hints = route_hints
        self._poll_s = poll_s
        self._identity: NodeIdentity | None = None

    async def identity(self) -> NodeIdentity:
        """Return the node whose invoices these are: settle indexes count for that node alone.

        Raises:
            LndError: there is no answer in time.
        """
        answer = await self._ask(self._lightning.GetInfo, self._messages.GetInfoRequest())
        network = answer.chains[0].network if answer.chains else ""
        self._identity = NodeIdentity(answer.identity_pubkey, INVOICE_PREFIXES.get(network))
        return self._identity

    async def create(self, amount_msat: int, memo: str, expiry_s: int) -> CreatedInvoice:
        """Issue an invoice, and check it as a payer would before the customer sees it.

        ``amount_msat`` and ``expiry_s`` are above zero, ``memo`` at most ``MAX_MEMO_BYTES`` in UTF-8, and readable in
        the invoice.

        Raises:
            ValueError: an argument is out of bounds.
            LndError: there is no answer in time. An invoice may exist that no customer gets.
            WrongInvoice: the answer is not the invoice that was asked for.
        """
        if amount_msat <= 0 or expiry_s <= 0:
            raise ValueError("an amount and an expiry are above zero")
        if len(memo.encode()) > MAX_MEMO_BYTES:
            raise ValueError(f"a memo has at most {MAX_MEMO_BYTES} bytes")
        if self._identity is None:
            await self.identity()
        request = self._messages.Invoice(value_msat=amount_msat, memo=memo, expiry=expiry_s, private=self._route_hints)
        answer = await self._ask(self._lightning.AddInvoice, request)
        timestamp = await self._check(
            answer.payment_request, answer.r_hash, amount_msat=amount_msat, description=memo, expiry_s=expiry_s
        )
        return CreatedInvoice(
            payment_request=answer.payment_request,
            payment_hash=answer.r_hash,
            add_index=answer.add_index,
            expires_at=datetime.fromtimestamp(timestamp, UTC) + timedelta(seconds=expiry_s),
        )

    async def _check(
        self, payment_request: str, payment_hash: bytes, *, amount_msat: int, description: str | bytes, expiry_s: int
    ) -> int:
        """Check an invoice that lnd made as a payer would, and return its timestamp; ``description`` is its hash if bytes.

        Raises:
            LndError: lnd's identity is not known, and there is no answer in time.
            WrongInvoice: it is not the invoice that was asked for.
        """
        identity = self._identity or await self.identity()
        try:
            invoice = bolt11.decode(payment_request)
        except bolt11.InvoiceError:
            raise WrongInvoice(InvoiceFlaw.MALFORMED) from None
        flaw = _flaw(
            invoice,
            identity=identity,
            network=self._network or identity.network,
            amount_msat=amount_msat,
            description=description,
            payment_hash=payment_hash,
            expiry_s=expiry_s,
        )
        if flaw is not None:
            # Another node may be behind the address by now: its identity is read again for the next invoice.
            self._identity = None
            raise WrongInvoice(flaw)
        return invoice.timestamp

    async def lookup(self, payment_hash: bytes) -> InvoiceState:
        """Return the state of an invoice; one that lnd does not know is ``UNKNOWN_TO_LND``.

        Raises:
            LndError: there is no answer in time, or it is malformed.
        """
        invoice = await self._find(payment_hash)
        if invoice is None:
            return InvoiceState(InvoiceStatus.UNKNOWN_TO_LND)
        state = _STATES.get(invoice.state, InvoiceStatus.OPEN)
        if state is not InvoiceStatus.SETTLED:
            # lnd also returns the preimage of an open invoice, which must stay secret: it proves a payment.
            return InvoiceState(state)
        fits = sha256(invoice.r_preimage).digest() == payment_hash
        return InvoiceState(
            state,
            amount_paid_msat=Msat(invoice.amt_paid_msat),
            settle_index=invoice.settle_index,
            settled_at=_time(invoice.settle_date),
            preimage=invoice.r_preimage if fits else None,
        )

    async def _find(self, payment_hash: bytes) -> Any | None:
        """Return an invoice as lnd reports it; None for one that it does not know."""
        request = self._messages.PaymentHash(r_hash=payment_hash)
        try:
            invoice = await self._ask(self._lightning.LookupInvoice, request)
        except LndError as error:
            if _is_no_such_invoice(error):
                return None
            raise
        if invoice.r_hash != payment_hash:
            raise LndError(UpstreamStatus.INTERNAL, "the answer is about another invoice", retryable=False)
        return invoice

    async def follow(self, settle_index: int) -> AsyncGenerator[SettledInvoice, None]:
        """Yield every invoice that was settled after ``settle_index``, missed ones first, then as they are settled.

        It ends with an error only. It also yields invoices of other programs at the same lnd, whose index is to be
        stored as well. With 0, for "none yet", it begins with the settled ones among lnd's newest invoices.

        Raises:
            SettlementsInterrupted: lnd is gone, cannot be reached, or does not allow it.
        """
        last = settle_index
        # For lnd, 0 means "only later ones": its very first settlement could be missed. So the gateway polls for that
        # one, and subscribes after it.
        while not last:
            for invoice in await self._newest_settled():
                last = invoice.settle_index
                yield _settled(invoice)
            if not last:
                await asyncio.sleep(self._poll_s)
        call = self._lightning.SubscribeInvoices(
            self._messages.InvoiceSubscription(settle_index=last), metadata=self._metadata
        )
        try:
            while (invoice := await self._next(call)) is not grpc.aio.EOF:
                # lnd also sends invoices that were added, and one that was paid more than once has many indexes.
                if invoice.state == _SETTLED and invoice.settle_index > last:
                    last = invoice.settle_index
                    if len(invoice.r_hash) == _HASH_BYTES:
                        yield _settled(invoice)
        finally:
            call.cancel()
        raise SettlementsInterrupted(UpstreamStatus.CANCELLED, "lnd ended the subscription", retryable=True)

    async def _newest_settled(self) -> list[Any]:
        """Return the settled ones among lnd's newest invoices, in the order of their settlement."""
        request = self._messages.ListInvoiceRequest(reversed=True, num_max_invoices=_NEWEST)
        try:
            answer = await self._ask(self._lightning.ListInvoices, request)
        except LndError as error:
            raise _interrupted(error) from error
        settled = [
            invoice
            for invoice in answer.invoices
            if invoice.state == _SETTLED and invoice.settle_index and len(invoice.r_hash) == _HASH_BYTES
        ]
        return sorted(settled, key=lambda invoice: invoice.settle_index)

    async def _next(self, call: Any) -> Any:
        try:
            async with lnd_errors():
                return await call.read()
        except LndError as error:
            raise _interrupted(error) from error


def _is_no_such_invoice(error: LndError) -> bool:
    """Return whether lnd says that it has no such invoice; the text counts too, as earlier lnds have no status for it."""
    return error.status == UpstreamStatus.NOT_FOUND or any(text in str(error) for text in _NO_SUCH_INVOICE)


def _flaw(
    invoice: bolt11.Invoice,
    *,
    identity: NodeIdentity,
    network: str | None,
    amount_msat: int,
    description: str | bytes,
    payment_hash: bytes,
    expiry_s: int,
) -> InvoiceFlaw | None:
    if network is not None and invoice.network != network:
        return InvoiceFlaw.NETWORK
    if invoice.payee != identity.node_id:
        return InvoiceFlaw.PAYEE
    if invoice.amount_msat != amount_msat:
        return InvoiceFlaw.AMOUNT
    if description != (invoice.description_hash if isinstance(description, bytes) else invoice.description):
        return InvoiceFlaw.DESCRIPTION
    if invoice.payment_hash != payment_hash:
        return InvoiceFlaw.PAYMENT_HASH
    if invoice.expiry_s != expiry_s or invoice.expires_at <= datetime.now(UTC).timestamp():
        return InvoiceFlaw.EXPIRY
    return None


def _settled(invoice: Any) -> SettledInvoice:
    return SettledInvoice(
        payment_hash=invoice.r_hash,
        amount_paid_msat=Msat(invoice.amt_paid_msat),
        settle_index=invoice.settle_index,
        settled_at=_time(invoice.settle_date),
    )


def _time(seconds: int) -> datetime:
    """Return the time of a settlement; now where lnd's is on no calendar, since the payment must be credited anyway."""
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError):
        return datetime.now(UTC)


def _interrupted(error: LndError) -> SettlementsInterrupted:
    reason = str(error).removeprefix(f"lnd: {error.status}: ")
    return SettlementsInterrupted(error.status, reason, retryable=error.retryable)
