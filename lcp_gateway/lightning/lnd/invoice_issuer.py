"""The invoices of top-ups as accounts know them, at an lnd or at our own node."""

import contextlib
from collections.abc import AsyncGenerator, Iterator

from lcp_gateway.accounts.repositories import InvoiceServiceUnavailable
from lcp_gateway.lightning.lnd.invoices import LndInvoices
from lcp_gateway.lightning.lnd.records import CreatedInvoice, LndError, SettledInvoice, WrongInvoice


class InvoiceIssuer:
    """The ``InvoiceService`` of accounts at an lnd."""

    def __init__(self, invoices: LndInvoices) -> None:
        self._invoices = invoices

    async def create(self, amount_msat: int, memo: str, expiry_s: int) -> CreatedInvoice:
        """Issue an invoice; see ``LndInvoices.create``."""
        with _as_unavailable():
            return await self._invoices.create(amount_msat, memo, expiry_s)

    async def paid(self, payment_hash: bytes) -> SettledInvoice | None:
        """Return an invoice if it was paid."""
        with _as_unavailable():
            found = await self._invoices.lookup(payment_hash)
        if found.settled_at is None or found.amount_paid_msat is None:
            return None
        return SettledInvoice(payment_hash, found.amount_paid_msat, found.settle_index or 0, found.settled_at)

    async def node_id(self) -> str:
        """Return the id of the node that issues the invoices."""
        with _as_unavailable():
            return (await self._invoices.identity()).node_id

    async def follow(self, settle_index: int) -> AsyncGenerator[SettledInvoice, None]:
        """Yield every invoice that is paid after that index."""
        with _as_unavailable():
            async with contextlib.aclosing(self._invoices.follow(settle_index)) as settled:
                async for paid in settled:
                    yield paid


@contextlib.contextmanager
def _as_unavailable() -> Iterator[None]:
    """Raise the accounts' own error in place of lnd's."""
    try:
        yield
    except LndError as error:
        raise InvoiceServiceUnavailable(f"lnd cannot be asked right now: {error.status}") from error
    except WrongInvoice as error:
        raise InvoiceServiceUnavailable(str(error)) from error
