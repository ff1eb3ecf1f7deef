"""The client of lnd that can spend: it begins payments, and waits for their end.

It has a macaroon of its own, which needs ``info:read offchain:read offchain:write``.
"""

from typing import Any

import grpc.aio

from lcp_gateway.lightning.lnd.channel import lnd_errors
from lcp_gateway.lightning.lnd.client import LndClient, payment_record
from lcp_gateway.lightning.lnd.records import PaymentRecord


class LndPayer(LndClient):
    """An lnd that may be made to pay."""

    async def send(
        self,
        payment_request: str,
        *,
        amount_msat: int | None,
        fee_limit_msat: int,
        timeout_s: int,
        waits_s: float | None = None,
    ) -> PaymentRecord | None:
        """Make lnd pay an invoice, and return how it ended; None where the stream ended before the payment.

        ``amount_msat`` is for an invoice that names none; lnd looks for routes for ``timeout_s``, and the call waits for
        ``waits_s``, or for as long as it takes. Needs ``offchain:write``.

        Raises:
            LndError: lnd refused it, or did not answer: it may be paid all the same.
        """
        request = self._stubs.router.SendPaymentRequest(
            payment_request=payment_request,
            amt_msat=amount_msat or 0,
            fee_limit_msat=fee_limit_msat,
            timeout_seconds=timeout_s,
            no_inflight_updates=True,
        )
        return await self._first(self._router.SendPaymentV2(request, timeout=waits_s, metadata=self._metadata))

    async def end_of(self, payment_hash: bytes) -> PaymentRecord | None:
        """Return a payment once it has ended, however long that takes; None where the stream ended before the payment.

        Needs ``offchain:read``.

        Raises:
            LndError: lnd did not answer; NOT_FOUND for a payment that it does not know.
        """
        request = self._stubs.router.TrackPaymentRequest(payment_hash=payment_hash, no_inflight_updates=True)
        return await self._first(self._router.TrackPaymentV2(request, metadata=self._metadata))

    async def _first(self, call: Any) -> PaymentRecord | None:
        async with lnd_errors():
            try:
                update: Any = await call.read()
            finally:
                call.cancel()
        return None if update is grpc.aio.EOF else payment_record(update)
