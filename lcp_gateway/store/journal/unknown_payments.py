"""The journal's unknown payments, as the reconciler reads and resolves them."""

from collections.abc import AsyncIterator, Callable
from dataclasses import KW_ONLY, dataclass

from lcp_gateway.lightning.reconcile import OpenPayment, PaymentResolution, open_payment
from lcp_gateway.purchase.journal import JournalUnavailable
from lcp_gateway.purchase.money import RefundDecision, RefundLimits
from lcp_gateway.purchase.records import NotUnknown
from lcp_gateway.purchase.states import State
from lcp_gateway.store.database.engines import Database, DatabaseUnavailable
from lcp_gateway.store.journal.queries import Books
from lcp_gateway.store.journal.recovery import resolve

_AT_MOST = 10_000

OnResolved = Callable[[bytes, State, PaymentResolution, tuple[str, int] | None], None]
"""Gets the job, its new state, the resolution, and its provider and price, None where they cannot be read."""


@dataclass(frozen=True, slots=True)
class UnknownPayments:
    """Reads unknown payments and records their resolutions; errors are ``JournalUnavailable``."""

    database: Database
    books: Books
    _: KW_ONLY
    refund_limits: Callable[[], RefundLimits]
    on_refund: Callable[[RefundDecision], None]
    on_resolved: OnResolved

    async def read(self) -> AsyncIterator[OpenPayment]:
        """Yield each purchase in state ``unknown`` once, the oldest first."""
        try:
            found = await self.books.unknowns(limit=_AT_MOST)
        except DatabaseUnavailable as error:
            raise JournalUnavailable(str(error)) from error
        for record in found:
            yield open_payment(record.job_id, record.payment_request, record.expires_at, record.paying_at)

    async def resolve(self, payment: OpenPayment, resolution: PaymentResolution) -> bool:
        """Record a resolution; return False where the payment was resolved before."""
        try:
            resolved = await resolve(
                self.database, payment.job_id, resolution.state, resolution.at, resolution.update, self.refund_limits()
            )
        except NotUnknown:
            return False
        except DatabaseUnavailable as error:
            raise JournalUnavailable(str(error)) from error
        self.on_resolved(payment.job_id, resolved.state, resolution, await self._bought(payment.job_id))
        for decision in resolved.refunds:
            self.on_refund(decision)
        return True

    async def _bought(self, job_id: bytes) -> tuple[str, int] | None:
        try:
            record = await self.books.purchase(job_id)
        except DatabaseUnavailable:
            return None
        return None if record is None else (record.peer_id, record.price_msat)
