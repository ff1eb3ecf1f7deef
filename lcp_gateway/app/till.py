"""lnd, or the embedded node that speaks like it, as the till that customers pay in at."""

import contextlib
from collections.abc import AsyncGenerator, Awaitable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, TypeVar

from lcp_gateway.accounts.repositories import InvoiceServiceUnavailable, NewInvoice, PaidInvoice
from lcp_gateway.app.wiring import WiringError
from lcp_gateway.config import Settings, may_use_proxy
from lcp_gateway.lightning.lnd.records import LndError

if TYPE_CHECKING:
    from lcp_gateway.lightning.lnd.invoices import LndInvoices

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _PaidInvoice:
    payment_hash: bytes
    amount_paid_msat: int
    settle_index: int
    settled_at: datetime


async def open_till(settings: Settings, stack: contextlib.AsyncExitStack) -> "LndTill | None":
    """Open the till that the settings name, for as long as the stack; None where they name none.

    Raises:
        WiringError: it cannot be opened.
    """
    if not (settings.embedded or settings.lnd_grpc_addr):
        return None
    from lcp_gateway.lightning.lnd.channel import LndAddress  # noqa: PLC0415 - as above
    from lcp_gateway.lightning.lnd.invoices import LndInvoices  # noqa: PLC0415 - few gateways sell
    from lcp_gateway.lightning.lnd.stubs import LndNotInstalled  # noqa: PLC0415 - as above

    if settings.lnd_grpc_addr:
        macaroon = settings.lnd_invoice_macaroon_file or settings.lnd_macaroon_file
        proxy = may_use_proxy(settings, settings.lnd_grpc_addr)
        address = LndAddress(settings.lnd_grpc_addr, settings.lnd_tls_cert, macaroon, proxy)
    else:
        # The embedded node speaks lnd's language too.
        address = LndAddress(settings.lcpd_grpc_addr)
    try:
        return LndTill(
            await stack.enter_async_context(LndInvoices(address, network=settings.network or None))
        )
    except (LndNotInstalled, OSError) as error:
        raise WiringError(f"lnd cannot be used for top-ups: {error}") from error


class LndTill:
    """Makes invoices at an lnd, and hears of their payment."""

    def __init__(self, invoices: "LndInvoices") -> None:
        self._invoices = invoices

    async def create(self, amount_msat: int, memo: str, expiry_s: int) -> NewInvoice:
        """Have an invoice made."""
        return await _asked(self._invoices.create(amount_msat, memo, expiry_s))

    async def paid(self, payment_hash: bytes) -> PaidInvoice | None:
        """Ask whether an invoice was paid."""
        found = await _asked(self._invoices.lookup(payment_hash))
        if found.settled_at is None or found.amount_paid_msat is None:
            return None
        return _PaidInvoice(
            payment_hash, found.amount_paid_msat, found.settle_index or 0, found.settled_at
        )

    async def node_id(self) -> str:
        """Say whose invoices these are."""
        return (await _asked(self._invoices.identity())).node_id

    async def follow(self, settle_index: int) -> AsyncGenerator[PaidInvoice, None]:
        """Give every invoice that is paid after that index."""
        with _errors():
            async with contextlib.aclosing(self._invoices.follow(settle_index)) as settled:
                async for paid in settled:
                    yield paid


async def _asked(call: Awaitable[T]) -> T:
    with _errors():
        return await call


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    # Imported where it is used: what makes invoices is loaded by gateways that sell only.
    from lcp_gateway.lightning.lnd.records import WrongInvoice  # noqa: PLC0415 - see above

    try:
        yield
    except LndError as error:
        raise InvoiceServiceUnavailable(f"lnd cannot be asked right now: {error.status}") from error
    except WrongInvoice as error:
        raise InvoiceServiceUnavailable(str(error)) from error
