"""lnd as the settings say: the client, its watcher, the reader of fees and the reconciler, and the issuer of invoices."""

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from structlog.typing import FilteringBoundLogger

from lcp_gateway.app.background_tasks import BackgroundTask
from lcp_gateway.app.wiring import WiringError
from lcp_gateway.app.wiring.journal import JournalParts
from lcp_gateway.config import Settings, may_use_proxy
from lcp_gateway.lightning.lnd.payment_details import PaymentDetailsReader
from lcp_gateway.lightning.lnd.watcher import LndState, LndWatcher
from lcp_gateway.lightning.reconcile import OpenPayment, Reconciler, ReconcilerTiming
from lcp_gateway.purchase.purchase import Purchase
from lcp_gateway.routing.peer_trust import PeerTrust
from lcp_gateway.store.database.engines import Database
from lcp_gateway.store.journal.payment_details import PaymentDetails
from lcp_gateway.store.journal.queries import Books
from lcp_gateway.store.journal.unknown_payments import UnknownPayments
from lcp_gateway.telemetry.metrics import Metrics
from lcp_gateway.telemetry.observers import LndObserver
from lcp_gateway.upstreams.lcpd.adapter import LcpdUpstream
from lcp_gateway.upstreams.lcpd.peer_watch import PeerWatch

if TYPE_CHECKING:
    from lcp_gateway.lightning.lnd.channel import LndAddress
    from lcp_gateway.lightning.lnd.client import LndClient
    from lcp_gateway.lightning.lnd.invoice_issuer import InvoiceIssuer
    from lcp_gateway.lightning.lnd.payouts import LndPayouts


@contextlib.asynccontextmanager
async def open_lnd(settings: Settings) -> "AsyncIterator[LndClient | None]":
    """Open lnd for the block; None where the settings name none.

    Raises:
        WiringError: its files or its stubs are missing.
    """
    if not settings.lnd_grpc_addr:
        yield None
        return
    from lcp_gateway.lightning.lnd.client import LndClient  # noqa: PLC0415 - an optional extra
    from lcp_gateway.lightning.lnd.stubs import LndNotInstalled  # noqa: PLC0415 - as above

    if settings.lnd_tls_cert is None or settings.lnd_macaroon_file is None:
        raise WiringError("lnd_grpc_addr needs lnd_tls_cert and lnd_macaroon_file")
    try:
        lnd = LndClient(_lnd_address(settings, settings.lnd_macaroon_file))
    except (LndNotInstalled, OSError) as error:
        raise WiringError(f"lnd cannot be used: {error}") from error
    async with lnd:
        yield lnd


@contextlib.asynccontextmanager
async def open_invoice_issuer(settings: Settings) -> "AsyncIterator[InvoiceIssuer | None]":
    """Open the lnd, or the embedded node, that issues invoices of top-ups; None where the settings name none.

    Raises:
        WiringError: its files or its stubs are missing.
    """
    if not (settings.embedded or settings.lnd_grpc_addr):
        yield None
        return
    from lcp_gateway.lightning.lnd.invoice_issuer import InvoiceIssuer  # noqa: PLC0415 - few gateways sell
    from lcp_gateway.lightning.lnd.invoices import LndInvoices  # noqa: PLC0415 - as above
    from lcp_gateway.lightning.lnd.stubs import LndNotInstalled  # noqa: PLC0415 - as above

    try:
        invoices = LndInvoices(invoice_address(settings, settings.lcpd_grpc_addr), network=settings.network or None)
    except (LndNotInstalled, OSError) as error:
        raise WiringError(f"lnd cannot be used for top-ups: {error}") from error
    async with invoices:
        yield InvoiceIssuer(invoices)


@contextlib.asynccontextmanager
async def open_payouts(settings: Settings) -> "AsyncIterator[LndPayouts | None]":
    """Open the lnd, or the embedded node, that pays withdrawals; None where the settings name none.

    Raises:
        WiringError: its files or its stubs are missing.
    """
    if not (settings.embedded or settings.lnd_withdrawal_macaroon_file):
        yield None
        return
    from lcp_gateway.lightning.lnd.channel import LndAddress  # noqa: PLC0415 - few gateways pay out
    from lcp_gateway.lightning.lnd.payer import LndPayer  # noqa: PLC0415 - as above
    from lcp_gateway.lightning.lnd.payouts import LndPayouts  # noqa: PLC0415 - as above
    from lcp_gateway.lightning.lnd.stubs import LndNotInstalled  # noqa: PLC0415 - as above

    address = LndAddress(settings.lcpd_grpc_addr)
    if not settings.embedded:
        address = _lnd_address(settings, settings.lnd_withdrawal_macaroon_file)
    try:
        payer = LndPayer(address)
    except (LndNotInstalled, OSError) as error:
        raise WiringError(f"lnd cannot be used for withdrawals: {error}") from error
    async with payer:
        yield LndPayouts(payer)


def invoice_address(settings: Settings, own_node: str) -> "LndAddress":
    """Return the address of the lnd that issues invoices, else that of our own node, which serves the same calls."""
    from lcp_gateway.lightning.lnd.channel import LndAddress  # noqa: PLC0415 - loads gRPC

    if not settings.lnd_grpc_addr:
        return LndAddress(own_node)
    return _lnd_address(settings, settings.lnd_invoice_macaroon_file or settings.lnd_macaroon_file)


def _lnd_address(settings: Settings, macaroon: Path | None) -> "LndAddress":
    from lcp_gateway.lightning.lnd.channel import LndAddress  # noqa: PLC0415 - loads gRPC

    may_proxy = may_use_proxy(settings, settings.lnd_grpc_addr)
    return LndAddress(settings.lnd_grpc_addr, settings.lnd_tls_cert, macaroon, may_proxy)


@dataclass(frozen=True, slots=True)
class LndParts:
    """The parts that work with lnd; ``reader`` and ``reconciler`` need a journal."""

    watcher: LndWatcher
    observer: LndObserver
    reader: PaymentDetailsReader | None = None
    reconciler: Reconciler | None = None

    def report(self) -> Mapping[str, object]:
        """Return lnd's state for ``/readyz``."""
        return self.watcher.state.report()

    def settled(self, purchase: Purchase) -> None:
        """Have the fee and the preimage of a paid purchase read soon, beside the purchases."""
        if self.reader is not None and purchase.payment_hash is not None:
            self.reader.settled()

    def tasks(self) -> list[BackgroundTask]:
        """Return the tasks to run beside the requests. Each is independent of the others."""
        tasks = [BackgroundTask("lnd", self.watcher.run)]
        if self.reader is not None:
            tasks.append(BackgroundTask("learning", self.reader.run))
        if (reconciler := self.reconciler) is not None:
            observer = self.observer
            tasks.append(
                BackgroundTask("reconciler", lambda: reconciler.run(observer.reconciled, observer.reconcile_failed))
            )
        return tasks


def lnd_parts(
    lnd: "LndClient",
    journal: JournalParts,
    *,
    daemon_node_id: Callable[[], str],
    trust: PeerTrust,
    interval_s: float,
    metrics: Metrics,
    log: FilteringBoundLogger,
) -> LndParts:
    """Wire the parts of an lnd; unknown payments are looked up every ``interval_s``.

    ``daemon_node_id`` returns the id of the node that pays: only its lnd can prove that a payment was never made.
    """
    observer = LndObserver(metrics, trust, log)

    def on_state(state: LndState) -> None:
        if state.reachable:
            journal.network = state.invoice_prefix
        observer.state(state)

    watcher = LndWatcher(lnd, daemon_node_id=daemon_node_id, log=log, on_state=on_state)
    reader = reconciler = None
    if journal.database is not None and journal.books is not None:
        reader = PaymentDetailsReader(
            lnd,
            PaymentDetails(journal.database),
            on_pass=observer.details_read,
            on_error=observer.details_failed,
            on_missing=metrics.fees_missing,
        )
        unknowns = _unknown_payments(journal.database, journal.books, journal, observer)
        reconciler = Reconciler(
            lookup=lambda payment: lnd.payment(payment.payment_hash or b""),
            open_payments=unknowns.read,
            resolve=unknowns.resolve,
            lnd_pays=lambda: watcher.pays,
            timing=ReconcilerTiming(interval_s=interval_s),
        )
    return LndParts(watcher, observer, reader, reconciler)


def reconciler_by_node(
    daemon: LcpdUpstream,
    peers: PeerWatch,
    journal: JournalParts,
    *,
    trust: PeerTrust,
    interval_s: float,
    timeout_s: float,
    metrics: Metrics,
    log: FilteringBoundLogger,
) -> BackgroundTask | None:
    """Return the task that resolves unknown payments without lnd, where the daemon is a node that knows them.

    While it is none, the task looks nothing up. None without a journal.
    """
    if journal.database is None or journal.books is None:
        return None
    observer = LndObserver(metrics, trust, log)
    unknowns = _unknown_payments(journal.database, journal.books, journal, observer)

    async def open_payments() -> AsyncIterator[OpenPayment]:
        if peers.info is not None and peers.info.software.looks_payments_up:
            async for payment in unknowns.read():
                yield payment

    reconciler = Reconciler(
        lookup=lambda payment: daemon.payment(payment.job_id, payment.payment_hash or b"", timeout_s),
        open_payments=open_payments,
        resolve=unknowns.resolve,
        # It says that nothing was paid of its own purchases only.
        lnd_pays=lambda: True,
        timing=ReconcilerTiming(interval_s=interval_s),
    )
    return BackgroundTask("reconciler", lambda: reconciler.run(observer.reconciled, observer.reconcile_failed))


def _unknown_payments(
    database: Database, books: Books, journal: JournalParts, observer: LndObserver
) -> UnknownPayments:
    return UnknownPayments(
        database,
        books,
        refund_limits=lambda: journal.refund_limits,
        on_refund=journal.on_refund,
        on_resolved=observer.resolved,
    )
