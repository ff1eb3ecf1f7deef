"""Makes the gateway: what lasts, and what one configuration makes of it, which is exchanged as a whole when settings change."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from aiohttp import web

from lcp_gateway.__about__ import __version__
from lcp_gateway.app.buying import BuyingParts, buying_parts
from lcp_gateway.app.measuring import Measuring, Observers
from lcp_gateway.app.runtime import Runtime
from lcp_gateway.app.wiring.accounts import AccessParts
from lcp_gateway.app.wiring.responses import open_stored_state, responses_parts, store_limits
from lcp_gateway.app.wiring.routing import RoutingParts, routing_parts
from lcp_gateway.config import Settings, known_hosts, may_use_proxy
from lcp_gateway.http.application import Routes, build_application, build_metrics_application
from lcp_gateway.http.browser_guard import BrowserGuard
from lcp_gateway.http.cors import Cors
from lcp_gateway.http.gateway.health import HealthRoutes
from lcp_gateway.http.gateway.receipts import ReceiptRoutes
from lcp_gateway.http.gateway.route import RankingRoutes
from lcp_gateway.http.gateway.welcome import WelcomeRoutes
from lcp_gateway.http.middleware import RequestMiddleware
from lcp_gateway.http.openai.create import CreateRoutes
from lcp_gateway.http.openai.models import ModelRoutes
from lcp_gateway.http.openai.response import ResponseWriter
from lcp_gateway.purchase.execution import utc_now
from lcp_gateway.purchase.held_quotes import HeldQuotes
from lcp_gateway.purchase.money import Budget
from lcp_gateway.purchase.service import PurchaseService
from lcp_gateway.routing.route_query import explain_no_match, rank_models
from lcp_gateway.store.database.engines import DatabaseUnavailable
from lcp_gateway.telemetry.logs import get_logger
from lcp_gateway.upstreams.lcpd.adapter import SUPPORTED_VERSIONS
from lcp_gateway.upstreams.lcpd.channel import LcpdAddress, TlsFiles

OPEN_PATHS = frozenset({"/", "/v1", "/v1/", "/healthz", "/readyz"})
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
        target=settings.lcpd_grpc_addr,
        tls=tls,
        metadata=tuple(settings.lcpd_metadata.items()),
        proxy=may_use_proxy(settings, settings.lcpd_grpc_addr),
    )


@dataclass(frozen=True, slots=True)
class Parts:
    """What one configuration makes: parts without a state of their own. A request is served by one set from end to end."""

    settings: Settings
    routing: RoutingParts
    selling: AccessParts
    buying: BuyingParts


@dataclass(frozen=True, slots=True)
class Configured:
    """The parts with the applications that they are reached by; ``metrics_app`` is the metrics' own."""

    parts: Parts
    app: web.Application
    metrics_app: web.Application


class Gateway:
    """What serves requests.

    Raises:
        LedgerError: something that the settings ask for cannot be had.
    """

    def __init__(self, settings: Settings, lasting: Runtime) -> None:
        opened = lasting.opened
        metrics = opened.metrics
        metrics.build_info(__version__, ",".join(str(v) for v in sorted(SUPPORTED_VERSIONS)))
        metrics.concurrency_limit(settings.max_concurrent_requests)
        self.lasting = lasting
        self._started = int(time.time())
        parts = self._parts(settings)
        buying = parts.buying
        self.service = PurchaseService(
            market=buying.market,
            buyer=buying.buyer,
            routing=parts.routing.chooser,
            memory=lasting.memory,
            book=HeldQuotes(utc_now),
            brake=lasting.brake,
            bounds=buying.bounds,
            patience=buying.patience,
            background=lasting.background.start,
            observer=Observers(
                [Measuring(lasting.records, opened.standings, metrics), opened.accounting]
            ),
            clock=time.monotonic,
            shared=buying.shared,
            tracing=opened.tracing,
        )
        self.kept = open_stored_state(
            settings,
            service=self.service,
            ledgers=opened.ledgers,
            jobs=lasting.jobs,
            metrics=metrics,
            api_limits=opened.shop.api_limits,
            log=get_logger("stored"),
        )
        self.made = self._applications(parts)

    def budgets(self) -> Sequence[Budget]:
        """Give the budgets of the whole gateway that are in force."""
        return self.made.parts.buying.limits.budgets_for("")

    def make(self, settings: Settings) -> Configured:
        """Make what other settings say, and change nothing yet.

        Raises:
            LedgerError: something that they ask for cannot be had.
        """
        return self._applications(self._parts(settings))

    def use(self, made: Configured) -> None:
        """Buy and remember by other settings from now on; whoever routes requests has to go to their application."""
        settings, buying = made.parts.settings, made.parts.buying
        self.lasting.use(settings, made.parts.routing.registry)
        self.lasting.opened.metrics.concurrency_limit(settings.max_concurrent_requests)
        self.kept.store.use(store_limits(settings))
        self.service.use(
            market=buying.market,
            buyer=buying.buyer,
            routing=made.parts.routing.chooser,
            bounds=buying.bounds,
            patience=buying.patience,
            shared=buying.shared,
        )
        self.made = made

    def _parts(self, settings: Settings) -> Parts:
        lasting, opened = self.lasting, self.lasting.opened
        routing = routing_parts(
            settings,
            catalogs=lasting.catalogs,
            records=lasting.records,
            standings=opened.standings,
            metrics=opened.metrics,
            log=get_logger("gateway"),
        )
        return Parts(
            settings=settings,
            routing=routing,
            selling=opened.shop.parts(settings, routing.registry),
            buying=buying_parts(settings, lasting),
        )

    def _applications(self, parts: Parts) -> Configured:
        settings, opened = parts.settings, self.lasting.opened
        health = self._health(settings)
        cors = Cors(settings.cors_origins)
        guard = BrowserGuard(cors, known_hosts(settings), log=get_logger("request"))
        middleware = RequestMiddleware(
            authenticator=parts.selling.door,
            cors=cors,
            guard=guard,
            metrics=opened.metrics,
            log=get_logger("request"),
            open_paths=OPEN_PATHS,
            max_header_bytes=settings.max_header_bytes,
            unavailable=(DatabaseUnavailable,),
            tracing=opened.tracing,
        )
        return Configured(
            parts=parts,
            app=build_application(
                self._routes(parts, health),
                middleware,
                max_body_bytes=settings.max_body_bytes,
                with_metrics=not settings.metrics_addr,
                api_limits=opened.shop.api_limits,
            ),
            metrics_app=build_metrics_application(health, guard),
        )

    def _health(self, settings: Settings) -> HealthRoutes:
        opened = self.lasting.opened
        return HealthRoutes(
            catalog=self.lasting.catalogs,
            daemon_problem=lambda: opened.peers.problem,
            nodes=lambda: opened.nodes.watch.states,
            jobs=self.lasting.jobs,
            metrics=opened.metrics,
            stale_s=settings.peers_stale_s,
            other_reasons=lambda: (
                *opened.ledgers.problems(),
                *opened.shop.problems(),
                *opened.tasks.reasons(),
            ),
            tasks=opened.tasks.report,
            lnd_report=opened.lnd_report,
        )

    def _routes(self, parts: Parts, health: HealthRoutes) -> Routes:
        settings, routing, selling = parts.settings, parts.routing, parts.selling
        lasting, opened = self.lasting, self.lasting.opened
        limits, chooser = parts.buying.limits, routing.chooser
        standings = opened.standings
        relay_limit_s = settings.timeout_execute_s + _RELAY_SLACK_S
        stateful = responses_parts(
            settings,
            self.kept,
            routing=routing,
            admission=selling.admission,
            counter=opened.nodes.counter,
            relay_limit_s=relay_limit_s,
        )
        return Routes(
            create=CreateRoutes(
                service=self.service,
                limits=limits,
                jobs=lasting.jobs,
                metrics=opened.metrics,
                admission=selling.admission,
                charges=selling.charging,
                history=stateful.stateful,
                background=self.kept.background,
                writer=ResponseWriter(
                    service=self.service,
                    metrics=opened.metrics,
                    charges=selling.charging,
                    heartbeat_s=settings.heartbeat_s,
                    relay_limit_s=relay_limit_s,
                ),
                follow=stateful.responses.follow,
                explain=chooser.explain,
                default_model=settings.default_model,
                read_timeout_s=settings.request_read_timeout_s,
            ),
            input_tokens=stateful.input_tokens,
            responses=stateful.responses,
            chats=stateful.chats,
            models=ModelRoutes(
                catalog=lambda: lasting.catalogs.catalog,
                offers=chooser.offers,
                rules=routing.rules,
                registry=routing.registry,
                records=lasting.records,
                is_there=lambda provider_id: bool(standings.readiness(provider_id)),
                lists_auto=settings.list_auto,
                started=self._started,
                charge=limits.tariff.charge_msat if selling.wallet_routes is not None else None,
            ),
            welcome=WelcomeRoutes(
                asks_for_key=settings.auth == "accounts" or bool(settings.api_keys)
            ),
            ranking=RankingRoutes(
                lambda query: rank_models(query, chooser.offers(), routing.auto),
                why_nothing=lambda query: explain_no_match(query, chooser.offers()),
                read_timeout_s=settings.request_read_timeout_s,
            ),
            health=health,
            receipts=ReceiptRoutes(opened.ledgers.receipt),
            wallet=selling.wallet_routes,
            admin=selling.admin_routes,
            refunds=selling.refund_routes,
        )
