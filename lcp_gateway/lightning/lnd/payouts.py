"""Pays withdrawals at an lnd, or at our own node, which serves the same calls.

A payment is begun by ``SendPaymentV2``, never twice for an invoice, and its outcome is read from ``TrackPaymentV2``.
"""

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime
from hashlib import sha256
from types import MappingProxyType
from typing import Final

from lcp_gateway.accounts.withdrawals import (
    FailedBecause,
    InvalidInvoice,
    PayableInvoice,
    PayingNode,
    Payout,
    PayoutState,
    PayoutsUnavailable,
)
from lcp_gateway.lightning import bolt11
from lcp_gateway.lightning.lnd.payer import LndPayer
from lcp_gateway.lightning.lnd.records import FailureReason, LndError, PaymentRecord, PaymentState
from lcp_gateway.purchase.money import Msat

# lnd ends a payment that has found no route by then; what is in flight may take longer, and the stream with it.
_LONGER_THAN_LND_S: Final = 15.0

_REASONS = MappingProxyType(
    {
        FailureReason.TIMEOUT: FailedBecause.TIMEOUT,
        FailureReason.NO_ROUTE: FailedBecause.NO_ROUTE,
        FailureReason.ERROR: FailedBecause.NODE_ERROR,
        FailureReason.INCORRECT_PAYMENT_DETAILS: FailedBecause.INCORRECT_PAYMENT_DETAILS,
        FailureReason.INSUFFICIENT_BALANCE: FailedBecause.INSUFFICIENT_LIQUIDITY,
        FailureReason.CANCELLED: FailedBecause.CANCELLED,
    }
)


class LndPayouts:
    """The ``PayoutService`` of accounts at an lnd."""

    def __init__(self, payer: LndPayer) -> None:
        self._payer = payer

    def read(self, payment_request: str) -> PayableInvoice:
        """Read an invoice.

        Raises:
            InvalidInvoice: it is none.
        """
        try:
            invoice = bolt11.decode(payment_request)
            expires_at = datetime.fromtimestamp(invoice.expires_at, UTC)
        except bolt11.InvoiceError as error:
            raise InvalidInvoice(f"this is no invoice that can be paid: {error}") from None
        except (ValueError, OverflowError, OSError):
            raise InvalidInvoice("this is no invoice that can be paid: its expiry is on no calendar") from None
        if invoice.amount_msat == 0:
            raise InvalidInvoice("this is no invoice that can be paid: it is for nothing")
        return PayableInvoice(invoice.network, invoice.payee, invoice.payment_hash, invoice.amount_msat, expires_at)

    async def node(self) -> PayingNode:
        """Return the node that pays."""
        with _as_unavailable():
            info = await self._payer.info()
        return PayingNode(info.identity, info.invoice_prefix)

    async def spendable_msat(self) -> Msat:
        """Return what the active channels can send, their reserves taken off."""
        with _as_unavailable():
            return (await self._payer.channels()).spendable_msat

    async def pay(
        self, payment_request: str, *, amount_msat: int | None, fee_limit_msat: int, timeout_s: int
    ) -> Payout:
        """Make the one call that pays, and wait for its end; never raises."""
        try:
            record = await self._payer.send(
                payment_request,
                amount_msat=amount_msat,
                fee_limit_msat=fee_limit_msat,
                timeout_s=timeout_s,
                waits_s=timeout_s + _LONGER_THAN_LND_S,
            )
        except LndError as error:
            return Payout(PayoutState.UNCLEAR if error.status.is_unanswered else PayoutState.REFUSED)
        return Payout(PayoutState.UNCLEAR) if record is None else _payout(record)

    async def track(self, payment_hash: bytes) -> Payout:
        """Return the state of a payment by its hash."""
        with _as_unavailable():
            return _payout(await self._payer.payment(payment_hash))


def _payout(record: PaymentRecord) -> Payout:
    match record.state:
        case PaymentState.SETTLED if record.preimage and sha256(record.preimage).digest() == record.payment_hash:
            return Payout(PayoutState.SETTLED, record.fee_msat or 0, record.preimage)
        case PaymentState.FAILED:
            reason = FailedBecause.NODE_ERROR if record.failure is None else _REASONS.get(record.failure)
            return Payout(PayoutState.FAILED, reason=reason or FailedBecause.NODE_ERROR)
        case PaymentState.UNKNOWN_TO_LND:
            return Payout(PayoutState.ABSENT)
        case _:
            # In flight; or settled with a preimage that does not fit, which proves nothing.
            return Payout(PayoutState.IN_FLIGHT)


@contextlib.contextmanager
def _as_unavailable() -> Iterator[None]:
    """Raise the accounts' own error in place of lnd's."""
    try:
        yield
    except LndError as error:
        raise PayoutsUnavailable(f"the node that pays cannot be asked right now: {error.status}") from error
