"""The payments of a node at an lnd: begun at most once, and followed to their end.

The macaroon needs the calls that ``lightning.lnd.permissions.NODE_BUYING`` lists.
"""

import asyncio
import math
import re
from types import MappingProxyType
from typing import Final

from lcp_gateway.lightning import bolt11
from lcp_gateway.lightning.lnd.channel import NOT_ALLOWED, NOT_READY, LndAddress
from lcp_gateway.lightning.lnd.payer import LndPayer
from lcp_gateway.lightning.lnd.records import FailureReason, LndError, PaymentRecord, PaymentState
from lcp_gateway.node.lnd.transport import KEEPALIVE_S, away
from lcp_gateway.node.ports import PaymentEnd, PaymentLost, PaymentRefused, PaymentSucceeded, PaymentUnderWay
from lcp_gateway.upstream_status import UpstreamStatus

UNKNOWN_FOR_S: Final = 60.0
"""How long lnd has to say that it knows no such payment. A call that was on its way arrives sooner, or never."""

UNKNOWN_PAYMENT: Final = "lnd knows no such payment"
"""The reason of a payment that never began."""

# lnd's texts for a payment that it did not begin, found in its code; another text may also come from a payment under way.
_NOT_BEGUN: Final = re.compile(
    r"invoice expired|self-payments not allowed|amount must|not for current active network|invoice not for|"
    r"server is still in the process of starting|invalid bech32|checksum"
)
_NOT_BEGUN_STATUSES: Final = frozenset(
    {
        UpstreamStatus.UNIMPLEMENTED,
        UpstreamStatus.INVALID_ARGUMENT,
        UpstreamStatus.PERMISSION_DENIED,
        UpstreamStatus.UNAUTHENTICATED,
    }
)
_REASONS: Final = MappingProxyType(
    {
        FailureReason.TIMEOUT: "FAILURE_REASON_TIMEOUT",
        FailureReason.NO_ROUTE: "FAILURE_REASON_NO_ROUTE",
        FailureReason.ERROR: "FAILURE_REASON_ERROR",
        FailureReason.INCORRECT_PAYMENT_DETAILS: "FAILURE_REASON_INCORRECT_PAYMENT_DETAILS",
        FailureReason.INSUFFICIENT_BALANCE: "FAILURE_REASON_INSUFFICIENT_BALANCE",
        FailureReason.CANCELLED: "FAILURE_REASON_CANCELED",
    }
)
_NO_REASON: Final = "FAILURE_REASON_NONE"


class LndJobPayments(LndPayer):
    """The ``Payments`` of a node over lnd. Made and used in one event loop.

    ``unknown_for_s`` is how long lnd has to say that it knows no such payment, ``pause_s`` the pause before lnd is asked
    again, ``timeout_s`` how long a payment may wait for the connection.

    Raises:
        LndNotInstalled: the extra is missing.
        OSError: the certificate or the macaroon cannot be read.
    """

    def __init__(
        self,
        address: LndAddress,
        *,
        timeout_s: float = 10.0,
        keepalive_s: float = KEEPALIVE_S,
        unknown_for_s: float = UNKNOWN_FOR_S,
        pause_s: float = 1.0,
    ) -> None:
        super().__init__(address, timeout_s=timeout_s, keepalive_s=keepalive_s)
        self._unknown_for_s = unknown_for_s
        self._pause_s = pause_s

    async def pay(
        self, payment_request: str, payment_hash: bytes, *, amount_msat: int, fee_limit_msat: int, timeout_s: float
    ) -> PaymentEnd:
        """Pay an invoice, once, and return the end of the payment, however long it takes."""
        _check(payment_request, payment_hash, amount_msat)
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._channel.channel_ready()
        except TimeoutError:
            raise PaymentRefused("lnd is away") from None
        try:
            record = await self.send(
                payment_request,
                # The invoice names it.
                amount_msat=None,
                fee_limit_msat=fee_limit_msat,
                timeout_s=max(1, math.ceil(timeout_s)),
                waits_s=None,
            )
        except LndError as error:
            if error.status == UpstreamStatus.ALREADY_EXISTS:
                raise PaymentRefused(error.message, already_paid=True) from error
            if _is_not_begun(error):
                raise PaymentRefused(error.message) from error
            record = None
        # The connection broke, or lnd did: the payment may have begun, and lnd knows.
        return _ended(record) or await self.track(payment_hash)

    async def track(self, payment_hash: bytes) -> PaymentEnd:
        """Return the end of a payment that may have been begun, however long it takes."""
        clock = asyncio.get_running_loop().time
        unknown_since: float | None = None
        while True:
            try:
                if (end := _ended(await self.end_of(payment_hash))) is not None:
                    return end
                unknown_since = None
            except LndError as error:
                if error.status != UpstreamStatus.NOT_FOUND:
                    unknown_since = None
                elif unknown_since is None:
                    unknown_since = clock()
                elif clock() - unknown_since >= self._unknown_for_s:
                    return PaymentLost(UNKNOWN_PAYMENT)
            await asyncio.sleep(self._pause_s)

    async def find(self, payment_hash: bytes) -> PaymentEnd | PaymentUnderWay | None:
        """Return the present state of a payment."""
        with away():
            record = await self.payment(payment_hash)
        return None if record.state is PaymentState.UNKNOWN_TO_LND else _ended(record) or PaymentUnderWay()


def _check(payment_request: str, payment_hash: bytes, amount_msat: int) -> None:
    """Check that the invoice is the one that the caller judged: lnd pays what the invoice says."""
    try:
        invoice = bolt11.decode(payment_request)
    except bolt11.InvoiceError as error:
        raise PaymentRefused(str(error)) from None
    if invoice.payment_hash != payment_hash or invoice.amount_msat != amount_msat:
        raise PaymentRefused(f"the invoice is not the one of {amount_msat} msat with hash {payment_hash.hex()}")


def _is_not_begun(error: LndError) -> bool:
    return error.status in _NOT_BEGUN_STATUSES or any(
        texts.search(error.message) for texts in (NOT_ALLOWED, NOT_READY, _NOT_BEGUN)
    )


def _ended(record: PaymentRecord | None) -> PaymentEnd | None:
    match record:
        case PaymentRecord(state=PaymentState.SETTLED, preimage=bytes() as preimage):
            return PaymentSucceeded(preimage, record.fee_msat or 0)
        case PaymentRecord(state=PaymentState.FAILED, failure=failure):
            return PaymentLost(_NO_REASON if failure is None else _REASONS.get(failure, _NO_REASON))
    return None
