"""lnd, where there is one: how it is, what became of unknown payments, and what the others really cost."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from structlog.typing import FilteringBoundLogger

from lcp_gateway.app.background_tasks import BackgroundTask
from lcp_gateway.app.wiring import WiringError
from lcp_gateway.app.wiring.journal import Ledgers
from lcp_gateway.config import Settings, may_use_proxy
from lcp_gateway.lightning.lnd.payment_details import PaymentDetailsReader, ReadSummary
from lcp_gateway.lightning.lnd.records import LndError
from lcp_gateway.lightning.reconcile import (
    OpenPayment,
    PaymentResolution,
    Reconciler,
    ReconcilerSummary,
    ReconcilerTiming,
    open_payment,
)
from lcp_gateway.purchase.journal import JournalUnavailable
from lcp_gateway.purchase.purchase import Purchase
from lcp_gateway.purchase.states import State
from lcp_gateway.routing.peer_trust import PeerTrust
from lcp_gateway.store.database.engines import DatabaseUnavailable
from lcp_gateway.store.journal.payment_details import PaymentDetails
from lcp_gateway.store.journal.recovery import NotUnknown, resolve
from lcp_gateway.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from lcp_gateway.lightning.lnd.client import LndClient

_WATCH_S = 5.0
_ALL_OPEN = 10_000


@contextlib.asynccontextmanager
async def open_lnd(settings: Settings) -> "AsyncIterator[LndClient | None]":
    """Open lnd, where the settings name one.

    Raises:
        WiringError: its files or its stubs are missing.
    """
    if not settings.lnd_grpc_addr:
        yield None
        return
    # Imported where it is used: lnd's stubs are an optional extra.
    from lcp_gateway.lightning.lnd.client import LndAddress, LndClient, LndNotInstalled  # noqa: PLC0415 - see above

    if settings.lnd_tls_cert is None or settings.lnd_macaroon_file is None:
        raise WiringError("lnd_grpc_addr needs lnd_tls_cert and lnd_macaroon_file")
    address = LndAddress(
        settings.lnd_grpc_addr,
        settings.lnd_tls_cert,
        settings.lnd_macaroon_file,
        may_use_proxy(settings, settings.lnd_grpc_addr),
    )
    try:
        lnd = LndClient(address)
    except (LndNotInstalled, OSError) as error:
        raise WiringError(f"lnd cannot be used: {error}") from error
    async with lnd:
        yield lnd


class LndWatch:
    """Asks lnd how it is, and what became of unknown payments."""

    def __init__(
        self,
        lnd: "LndClient",
        ledgers: Ledgers,
        *,
        daemon_node_id: Callable[[], str],
        standings: PeerTrust,
        interval_s: float,
        metrics: Metrics,
        log: FilteringBoundLogger,
    ) -> None:
        """``daemon_node_id`` is the node that pays: only its lnd can prove that a payment never was."""
        self._lnd = lnd
        self._ledgers = ledgers
        self._daemon_node_id = daemon_node_id
        self._standings = standings
        self._interval_s = interval_s
        self._metrics = metrics
        self._log = log
        self._pays = False
        self._is_warned = False
        self._report: Mapping[str, object] = {"reachable": False}
        self._learning_fails = False
        self._learner: PaymentDetailsReader | None = None
        if ledgers.database is not None:
            self._learner = PaymentDetailsReader(
                lnd,
                PaymentDetails(ledgers.database),
                on_pass=self._learning_passed,
                on_error=self._learning_failed,
                on_missing=metrics.fees_missing,
            )

    def report(self) -> Mapping[str, object]:
        """Give how lnd was when it was last asked, for whoever looks."""
        return self._report

    def settled(self, purchase: Purchase) -> None:
        """Have the fees and preimages of what was paid learnt soon, beside the purchases."""
        if self._learner is not None and purchase.payment_hash is not None:
            self._learner.settled()

    def tasks(self) -> Iterable[BackgroundTask]:
        """Yield what has to run beside the requests. None of them ends with another."""
        yield BackgroundTask("lnd", self._watch)
        if self._learner is not None:
            yield BackgroundTask("learning", self._learner.run)
        if self._ledgers.books is not None:
            reconciler = self._reconciler()
            yield BackgroundTask("reconciler", lambda: reconciler.run(self._passed, self._erred))

    async def _watch(self) -> None:
        while True:
            try:
                info = await self._lnd.info()
                balance = await self._lnd.balance()
            except LndError as error:
                self._unreachable(error.status)
            except Exception as error:
                # An answer that cannot be understood: what was known before is not to be believed any longer.
                self._unreachable(type(error).__name__)
                raise
            else:
                self._compare(info.identity, self._daemon_node_id())
                self._ledgers.network = info.invoice_prefix
                self._report = {
                    "reachable": True,
                    "synced_to_chain": info.synced_to_chain,
                    "network": info.network,
                    "local_msat": balance.local_msat,
                    "channels_active": info.channels_active,
                    "channels_inactive": info.channels_inactive,
                    "pays": self._pays,
                }
                self._metrics.lnd(
                    True,
                    info.synced_to_chain and info.synced_to_graph,
                    balance.local_msat,
                    info.channels_active,
                    info.channels_inactive,
                )
            await asyncio.sleep(_WATCH_S)

    def _compare(self, node_id: str, daemon_node_id: str) -> None:
        """Note whether this is the lnd that pays, and warn once of one that is not."""
        self._pays = node_id == daemon_node_id
        if not self._pays and daemon_node_id and not self._is_warned:
            self._log.warning(
                "lnd_grpc_addr is not the lnd that the daemon pays with: no fee can be learnt there, "
                "and no unknown payment proven not to be paid",
                lnd_node_id=node_id,
                daemon_node_id=daemon_node_id,
            )
        self._is_warned = not self._pays and bool(daemon_node_id)

    def _unreachable(self, problem: str) -> None:
        self._report = {"reachable": False, "problem": problem}
        self._metrics.lnd(False, False, 0, 0, 0)

    def _learning_failed(self, error: Exception) -> None:
        if not self._learning_fails:
            self._log.warning(
                "fees and preimages cannot be learnt from lnd; it is asked again",
                problem=str(error),
            )
        self._learning_fails = True

    def _learning_passed(self, summary: ReadSummary) -> None:
        self._learning_fails = False
        if summary.learnt:
            self._log.debug(
                "fees were learnt", purchases=summary.learnt, looked_up=summary.looked_up
            )

    def _reconciler(self) -> Reconciler:
        return Reconciler(
            lookup=self._lnd.payment,
            open_payments=self._open_payments,
            resolve=self._resolve,
            lnd_pays=lambda: self._pays,
            timing=ReconcilerTiming(interval_s=self._interval_s),
        )

    async def _open_payments(self) -> AsyncIterator[OpenPayment]:
        assert self._ledgers.books is not None  # noqa: S101 - the reconciler runs only with books
        try:
            found = await self._ledgers.books.unknowns(limit=_ALL_OPEN)
        except DatabaseUnavailable as error:
            raise JournalUnavailable(str(error)) from error
        for record in found:
            yield open_payment(
                record.job_id, record.payment_request, record.expires_at, record.paying_at
            )

    async def _resolve(self, payment: OpenPayment, resolution: PaymentResolution) -> bool:
        database = self._ledgers.database
        assert database is not None  # noqa: S101 - as above
        try:
            resolved = await resolve(
                database,
                payment.job_id,
                resolution.state,
                resolution.at,
                resolution.learnt,
                self._ledgers.refund_limits,
            )
        except NotUnknown:
            return False
        except DatabaseUnavailable as error:
            raise JournalUnavailable(str(error)) from error
        await self._tell_standings(payment.job_id, resolved.state)
        for decision in resolved.refunds:
            self._ledgers.on_refund(decision)
        self._log.info(
            "an unknown payment was resolved",
            job_id=payment.job_id.hex(),
            state=resolved.state.value,
            evidence=resolution.evidence.value,
        )
        return True

    async def _tell_standings(self, job_id: bytes, state: State) -> None:
        assert self._ledgers.books is not None  # noqa: S101 - as above
        with contextlib.suppress(DatabaseUnavailable):
            if record := await self._ledgers.books.purchase(job_id):
                self._standings.resolved(record.peer_id, job_id, record.price_msat, state)
                if state is State.UNDELIVERED:
                    self._metrics.undelivered(record.peer_id, record.price_msat)

    def _passed(self, summary: ReconcilerSummary) -> None:
        for _ in range(summary.settled):
            self._metrics.reconciled(State.SETTLED.value)
        for _ in range(summary.not_paid):
            self._metrics.reconciled(State.NOT_PAID.value)
        for _ in range(summary.still_open):
            self._metrics.reconciled("still_unknown")

    def _erred(self, error: Exception) -> None:
        self._metrics.reconciled("error")
        self._log.warning("reconciling with lnd failed", exc_info=error)
