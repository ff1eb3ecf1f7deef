"""Makes the gateway's parts from its settings and wires them."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from aiohttp import web
from structlog.typing import FilteringBoundLogger

from lcp_gateway.__about__ import __version__
from lcp_gateway.app.accounting import Accounting, QuoteFailures, QuoteNotes
from lcp_gateway.app.ledgers import Ledgers
from lcp_gateway.app.measuring import Measuring, Observers
from lcp_gateway.app.replicas import memory_limits
from lcp_gateway.app.routing import NodeParts, RoutingParts, model_limits
from lcp_gateway.app.selling import SellingParts, tariff
from lcp_gateway.config import Settings
from lcp_gateway.http.application import Routes, build_application, build_metrics_application
from lcp_gateway.http.background import Background
from lcp_gateway.http.cors import Cors
from lcp_gateway.http.edge import Edge
from lcp_gateway.http.health import Health
from lcp_gateway.http.inference import Inference
from lcp_gateway.http.jobs import Jobs
from lcp_gateway.http.models import Models
from lcp_gateway.http.ranking import Ranking
from lcp_gateway.http.receipts import Receipts
from lcp_gateway.lightning.checks import QuoteMismatch, check
from lcp_gateway.purchase.answers import Bounds
from lcp_gateway.purchase.book import QuoteBook
from lcp_gateway.purchase.brake import LoopBrake
from lcp_gateway.purchase.flow import Buyer, utc_now
from lcp_gateway.purchase.journal import Period
from lcp_gateway.purchase.limits import FeeReckoning, SpendingLimits
from lcp_gateway.purchase.market import Asking, Market
from lcp_gateway.purchase.memory import AnswerMemory
from lcp_gateway.purchase.order import Order
from lcp_gateway.purchase.ports import Upstream
from lcp_gateway.purchase.quote import Quote, Source
from lcp_gateway.purchase.service import Patience, PurchaseService
from lcp_gateway.purchase.shared import SharedAnswers
from lcp_gateway.routing.query import answer
from lcp_gateway.routing.standing import Standings
from lcp_gateway.store.engine import DatabaseUnavailable
from lcp_gateway.telemetry.logs import get_logger
from lcp_gateway.telemetry.metrics import Metrics
from lcp_gateway.upstreams.channel import LcpdAddress, TlsFiles
from lcp_gateway.upstreams.lcpd import SUPPORTED_VERSIONS
from lcp_gateway.upstreams.peers import PeerWatch

OPEN_PATHS = frozenset({"/healthz", "/readyz"})
# What a client has for the rest of an answer after its provider's time is over.
_RELAY_SLACK_S = 5.0


def lcpd_address(settings: Settings) -> LcpdAddress:
    """Where the settings say that the daemon listens."""
    tls = None
    if settings.lcpd_tls:
        tls = TlsFiles(
            ca=settings.lcpd_tls_ca,
            certificate=settings.lcpd_tls_cert,
            key=settings.lcpd_tls_key,
            server_name=settings.lcpd_tls_server_name or None,
        )
    return LcpdAddress(
        target=settings.lcpd_grpc_addr, tls=tls, metadata=tuple(settings.lcpd_metadata.items())
    )


def spending_limits(settings: Settings) -> SpendingLimits:
    """What the settings say may be spent."""
    model_max_price_msat, model_max_total_msat = model_limits(settings)
    return SpendingLimits(
        max_price_msat=settings.max_price_msat,
        max_total_msat=settings.max_total_msat,
        model_max_total_msat=model_max_total_msat,
        model_max_price_msat=model_max_price_msat,
        budgets={
            Period.HOUR: settings.budget_hour_msat,
            Period.DAY: settings.budget_day_msat,
            Period.MONTH: settings.budget_month_msat,
        },
        key_budgets={
            Period.HOUR: settings.key_budget_hour_msat,
            Period.DAY: settings.key_budget_day_msat,
            Period.MONTH: settings.key_budget_month_msat,
        },
        fee=FeeReckoning(settings.fee_ppm, settings.fee_base_msat),
        tariff=tariff(settings),
        refund_undelivered=settings.refund_undelivered,
    )


@dataclass(frozen=True, slots=True)
class Gateway:
    """The parts that start, stop and are asked about."""

    app: web.Application
    metrics_app: web.Application | None
    jobs: Jobs
    background: Background
    service: PurchaseService
    accounting: Accounting
    health: Health
    standings: Standings
    limits: SpendingLimits


class Inspector:
    """Looks at a quote before it may be bought: is it what it says, within the limits, and its peer trusted with it?"""

    def __init__(
        self,
        *,
        limits: SpendingLimits,
        standings: Standings,
        network: Callable[[], str | None],
        metrics: Metrics,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._limits = limits
        self._standings = standings
        self._network = network
        self._metrics = metrics
        self._now = now

    def __call__(self, order: Order, quote: Quote) -> bytes | None:
        """Give the payment hash of the quote's invoice; a node's quote has none.

        Raises:
            Refused: it may not be bought.
        """
        if quote.source is Source.NODE:
            # The gateway itself reckoned the price, from what the operator set.
            self._limits.check_price(order, quote)
            self._standings.weigh(quote)
            return None
        try:
            invoice = check(order.task, quote, self._now(), network=self._network())
        except QuoteMismatch as mismatch:
            self._metrics.mismatch(quote.peer_id, mismatch.reason.value)
            raise
        self._standings.quoted(quote.peer_id)
        self._limits.check_price(order, quote)
        # Weighed, not held: most quotes are asked for and not taken. The flow holds it before it pays.
        self._standings.weigh(quote)
        return invoice.payment_hash


def assemble(
    settings: Settings,
    *,
    upstream: Upstream,
    watch: PeerWatch,
    nodes: NodeParts | None,
    routing: RoutingParts,
    selling: SellingParts,
    shared: SharedAnswers | None,
    ledgers: Ledgers,
    metrics: Metrics,
    log: FilteringBoundLogger,
) -> Gateway:
    """Wire everything that serves requests."""
    metrics.build_info(__version__, ",".join(str(v) for v in sorted(SUPPORTED_VERSIONS)))
    metrics.concurrency_limit(settings.max_concurrent_requests)
    limits = spending_limits(settings)
    standings = routing.standings
    jobs = Jobs(settings.max_concurrent_requests, metrics)
    background = Background(lambda error: log.info("cancel job failed", grpc_code=error.status))
    inspector = Inspector(
        limits=limits,
        standings=standings,
        network=lambda: settings.network or ledgers.network,
        metrics=metrics,
    )
    accounting = Accounting(metrics, get_logger("purchase"))
    service = _service(
        settings,
        upstream,
        routing,
        shared,
        ledgers,
        limits,
        inspector,
        background,
        metrics,
        accounting,
    )
    health = Health(
        catalog=routing.catalogs,
        daemon_problem=lambda: watch.problem,
        nodes=(lambda: nodes.watch.states) if nodes is not None else dict,
        jobs=jobs,
        metrics=metrics,
        stale_s=settings.peers_stale_s,
        other_reasons=ledgers.problems,
    )
    routes = Routes(
        inference=Inference(
            service=service,
            limits=limits,
            jobs=jobs,
            metrics=metrics,
            read_timeout_s=settings.request_read_timeout_s,
            heartbeat_s=settings.heartbeat_s,
            relay_limit_s=settings.timeout_execute_s + _RELAY_SLACK_S,
            admission=selling.admission,
            charging=selling.charging,
            explain=routing.chooser.explain,
        ),
        models=Models(
            catalog=lambda: routing.catalogs.catalog,
            offers=routing.chooser.offers,
            rules=routing.rules,
            registry=routing.registry,
            records=routing.records,
            is_there=lambda provider_id: bool(standings.readiness(provider_id)),
            charge=limits.tariff.charge_msat if selling.wallet_routes is not None else None,
        ),
        ranking=Ranking(
            lambda query: answer(query, routing.chooser.offers(), routing.auto),
            read_timeout_s=settings.request_read_timeout_s,
        ),
        health=health,
        receipts=Receipts(ledgers.receipt),
        wallet=selling.wallet_routes,
        admin=selling.admin_routes,
    )
    edge = Edge(
        door=selling.door,
        cors=Cors(settings.cors_origins),
        metrics=metrics,
        log=get_logger("request"),
        open_paths=OPEN_PATHS,
        max_header_bytes=settings.max_header_bytes,
        away=(DatabaseUnavailable,),
    )
    apart = bool(settings.metrics_addr)
    return Gateway(
        app=build_application(
            routes, edge, max_body_bytes=settings.max_body_bytes, with_metrics=not apart
        ),
        metrics_app=build_metrics_application(health) if apart else None,
        jobs=jobs,
        background=background,
        service=service,
        accounting=accounting,
        health=health,
        standings=standings,
        limits=limits,
    )


def _service(
    settings: Settings,
    upstream: Upstream,
    routing: RoutingParts,
    shared: SharedAnswers | None,
    ledgers: Ledgers,
    limits: SpendingLimits,
    inspector: Inspector,
    background: Background,
    metrics: Metrics,
    accounting: Accounting,
) -> PurchaseService:
    standings = routing.standings
    memory = AnswerMemory(memory_limits(settings), on_held=metrics.answers_held)
    return PurchaseService(
        market=Market(
            upstream,
            Asking(
                at_once=settings.quote_fanout,
                at_most=settings.quote_attempts,
                timeout_s=settings.timeout_quote_s,
            ),
            inspect=inspector,
            background=background.start,
            cancel_timeout_s=settings.cancel_timeout_s,
            on_quote=QuoteNotes(metrics, routing.records),
            on_failure=QuoteFailures(metrics, standings, routing.records),
        ),
        buyer=Buyer(
            upstream,
            journal=ledgers.journal,
            inspect=inspector,
            limits=limits,
            exposure=standings,
            execute_timeout_s=settings.timeout_execute_s,
        ),
        routing=routing.chooser,
        memory=memory,
        book=QuoteBook(utc_now),
        brake=LoopBrake(settings.loop_brake_per_minute),
        bounds=Bounds(window_bytes=settings.stream_buffer_bytes),
        patience=Patience(settings.join_grace_s, settings.cancel_timeout_s, settings.timeout_s),
        background=background.start,
        observer=Observers([Measuring(routing.records, standings, metrics), accounting]),
        clock=time.monotonic,
        shared=shared,
    )
