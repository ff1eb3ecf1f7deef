"""Invoices that others pay to us: made, looked up and followed, by lnd or by the node of our own, which speaks the same.

Nothing in this module can pay. The macaroon needs ``invoices:read invoices:write info:read``.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from types import MappingProxyType, TracebackType
from typing import Any, Final, Self

import grpc.aio

from lcp_gateway.lightning import bolt11
from lcp_gateway.lightning.lnd.channel import LndAddress, call_metadata, lnd_errors, open_channel
from lcp_gateway.lightning.lnd.client import INVOICE_PREFIXES
from lcp_gateway.lightning.lnd.records import (
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
from lcp_gateway.lightning.lnd.stubs import LndNotInstalled, load_stubs
from lcp_gateway.purchase.money import Msat
from lcp_gateway.upstream_status import UpstreamStatus

__all__ = [
    "MAX_MEMO_BYTES",
    "CreatedInvoice",
    "InvoiceFlaw",
    "InvoiceState",
    "InvoiceStatus",
    "LndAddress",
    "LndError",
    "LndInvoices",
    "LndNotInstalled",
    "NodeIdentity",
    "SettledInvoice",
    "SettlementsInterrupted",
    "WrongInvoice",
]

MAX_MEMO_BYTES: Final = 639
"""What fits into an invoice's description."""

_HASH_BYTES = 32
_NEWEST = 1_000
_NO_SUCH_INVOICE = ("unable to locate invoice", "there are no existing invoices")

# Numbers of lnrpc.Invoice.InvoiceState. Every other one, ACCEPTED too, is a state in which nothing is decided.
_SETTLED = 1
_CANCELED = 2
_STATES = MappingProxyType({_SETTLED: InvoiceStatus.SETTLED, _CANCELED: InvoiceStatus.CANCELED})


class LndInvoices:
    """The invoices of one lnd. It is dialled on the first call, and again by itself after it was away.

    ``network`` is the prefix that invoices must have ("bc", "bcrt", …), None for the one that lnd says it is on;
    ``route_hints`` puts lnd's private channels into invoices, without which a node that has no others is not found;
    ``poll_s`` is the pause between looks for the very first settlement. Made and used in one event loop.

    Raises:
        LndNotInstalled: the extra is missing.
        OSError: the certificate or the macaroon cannot be read.
    """

    def __init__(
        self,
        address: LndAddress,
        *,
        network: str | None = None,
        route_hints: bool = False,
        timeout_s: float = 5.0,
        poll_s: float = 1.0,
    ) -> None:
        stubs = load_stubs()
        self._messages = stubs.lightning
        self._network = network
        self._route_hints = route_hints
        self._timeout_s = timeout_s
        self._poll_s = poll_s
        self._metadata = call_metadata(address)
        self._channel = open_channel(address)
        self._lightning = stubs.lightning_grpc.LightningStub(self._channel)
        self._identity: NodeIdentity | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the channel. Calls that are open are cancelled, and none may follow."""
        await self._channel.close()

    async def identity(self) -> NodeIdentity:
        """Ask whose invoices these are: settle indexes count for that node alone.

        Raises:
            LndError: there is no answer in time.
        """
        answer = await self._ask(self._lightning.GetInfo, self._messages.GetInfoRequest())
        network = answer.chains[0].network if answer.chains else ""
        self._identity = NodeIdentity(answer.identity_pubkey, INVOICE_PREFIXES.get(network))
        return self._identity

    async def create(self, amount_msat: int, memo: str, expiry_s: int) -> CreatedInvoice:
        """Have an invoice made, and check it as a payer would before anybody sees it.

        ``amount_msat`` and ``expiry_s`` are above zero, ``memo`` at most ``MAX_MEMO_BYTES`` in UTF-8; everybody who
        sees the invoice can read it.

        Raises:
            ValueError: an argument is out of bounds.
            LndError: there is no answer in time. An invoice may exist that nobody will ever see.
            WrongInvoice: the answer is not the invoice that was asked for.
        """
        if amount_msat <= 0 or expiry_s <= 0:
            raise ValueError("an amount and an expiry are above zero")
        if len(memo.encode()) > MAX_MEMO_BYTES:
            raise ValueError(f"a memo has at most {MAX_MEMO_BYTES} bytes")
        identity = self._identity or await self.identity()
        request = self._messages.Invoice(
            value_msat=amount_msat, memo=memo, expiry=expiry_s, private=self._route_hints
        )
        answer = await self._ask(self._lightning.AddInvoice, request)
        try:
            invoice = bolt11.decode(answer.payment_request)
        except bolt11.InvoiceError:
            raise WrongInvoice(InvoiceFlaw.MALFORMED) from None
        flaw = _flaw(
            invoice,
            identity=identity,
            network=self._network or identity.network,
            amount_msat=amount_msat,
            memo=memo,
            payment_hash=answer.r_hash,
            expiry_s=expiry_s,
        )
        if flaw is not None:
            # Another node may be behind the address by now. The next invoice is held against what that one says.
            self._identity = None
            raise WrongInvoice(flaw)
        return CreatedInvoice(
            payment_request=answer.payment_request,
            payment_hash=answer.r_hash,
            add_index=answer.add_index,
            expires_at=datetime.fromtimestamp(invoice.timestamp, UTC) + timedelta(seconds=expiry_s),
        )

    async def lookup(self, payment_hash: bytes) -> InvoiceState:
        """Ask how an invoice stands; one that lnd does not know is ``UNKNOWN_TO_LND``.

        Raises:
            LndError: there is no answer in time, or it makes no sense.
        """
        request = self._messages.PaymentHash(r_hash=payment_hash)
        try:
            invoice = await self._ask(self._lightning.LookupInvoice, request)
        except LndError as error:
            if error.status == UpstreamStatus.NOT_FOUND or any(
                text in str(error) for text in _NO_SUCH_INVOICE
            ):
                return InvoiceState(InvoiceStatus.UNKNOWN_TO_LND)
            raise
        if invoice.r_hash != payment_hash:
            raise LndError(
                UpstreamStatus.INTERNAL, "the answer is about another invoice", retryable=False
            )
        state = _STATES.get(invoice.state, InvoiceStatus.OPEN)
        if state is not InvoiceStatus.SETTLED:
            # lnd gives the preimage of an invoice that is still open, too. That one is worth money.
            return InvoiceState(state)
        fits = sha256(invoice.r_preimage).digest() == payment_hash
        return InvoiceState(
            state,
            amount_paid_msat=Msat(invoice.amt_paid_msat),
            settle_index=invoice.settle_index,
            settled_at=_time(invoice.settle_date),
            preimage=invoice.r_preimage if fits else None,
        )

    async def follow(self, settle_index: int) -> AsyncGenerator[SettledInvoice, None]:
        """Give every invoice that was settled after ``settle_index``, what was missed first, then as it happens.

        It never ends but with an error. Invoices of others at the same lnd are among them: their index is to be kept
        as well. With 0, for "none yet", it begins with the settled ones among lnd's newest invoices.

        Raises:
            SettlementsInterrupted: lnd is gone, cannot be reached, or does not allow it.
        """
        last = settle_index
        # To lnd, 0 means "only what is to come": the first settlement of its life could be missed and never be told of
        # again. So it is looked for, and only then listened from.
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
                # Invoices that were added are told of as well, and one that was paid more than once has many indexes.
                if invoice.state == _SETTLED and invoice.settle_index > last:
                    last = invoice.settle_index
                    if len(invoice.r_hash) == _HASH_BYTES:
                        yield _settled(invoice)
        finally:
            call.cancel()
        raise SettlementsInterrupted(
            UpstreamStatus.CANCELLED, "lnd ended the subscription", retryable=True
        )

    async def _newest_settled(self) -> list[Any]:
        """Give the settled ones among lnd's newest invoices, in the order of their settlement."""
        request = self._messages.ListInvoiceRequest(reversed=True, num_max_invoices=_NEWEST)
        try:
            answer = await self._ask(self._lightning.ListInvoices, request)
        except LndError as error:
            raise _interrupted(error) from error
        settled = [
            invoice
            for invoice in answer.invoices
            if invoice.state == _SETTLED
            and invoice.settle_index
            and len(invoice.r_hash) == _HASH_BYTES
        ]
        return sorted(settled, key=lambda invoice: invoice.settle_index)

    async def _next(self, call: Any) -> Any:
        try:
            async with lnd_errors():
                return await call.read()
        except LndError as error:
            raise _interrupted(error) from error

    async def _ask(self, method: Callable[..., Awaitable[Any]], request: Any) -> Any:
        async with lnd_errors():
            return await method(request, timeout=self._timeout_s, metadata=self._metadata)


def _flaw(
    invoice: bolt11.Invoice,
    *,
    identity: NodeIdentity,
    network: str | None,
    amount_msat: int,
    memo: str,
    payment_hash: bytes,
    expiry_s: int,
) -> InvoiceFlaw | None:
    if network is not None and invoice.network != network:
        return InvoiceFlaw.NETWORK
    if invoice.payee != identity.node_id:
        return InvoiceFlaw.PAYEE
    if invoice.amount_msat != amount_msat:
        return InvoiceFlaw.AMOUNT
    if invoice.description != memo:
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
    """Return the time of a settlement; now where lnd's is on no calendar, since what was paid must be told all the same."""
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError):
        return datetime.now(UTC)


def _interrupted(error: LndError) -> SettlementsInterrupted:
    reason = str(error).removeprefix(f"lnd: {error.status}: ")
    return SettlementsInterrupted(error.status, reason, retryable=error.retryable)
