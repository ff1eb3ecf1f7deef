"""The gateway: its runtime state, and the parts of one configuration, which a reload exchanges as a whole."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from aiohttp import web

from lcp_gateway.__about__ import __version__
from lcp_gateway.app.background_tasks import BackgroundTasks, ShortTasks
from lcp_gateway.app.wiring.accounts import Access, AccessParts
from lcp_gateway.app.wiring.books import ProviderParts, book_routes, event_hub
from lcp_gateway.app.wiring.console import Console
from lcp_gateway.app.wiring.dialin import DialinParts
from lcp_gateway.app.wiring.journal import JournalParts
from lcp_gateway.app.wiring.purchase import PurchaseParts, purchase_parts
from lcp_gateway.app.wiring.responses import open_stored_state, responses_parts, store_limits
from lcp_gateway.app.wiring.routing import NodeParts, RoutingParts, routing_parts, trust_rules
from lcp_gateway.app.wiring.shared_results import SharedResults, memory_limits
from lcp_gateway.app.wiring.shared_trust import SharedTrust
from lcp_gateway.clock import utc_now
from lcp_gateway.config import Settings, auth_mode, known_hosts, openclaw_id, serves_console
from lcp_gateway.http.application import ConsoleRoutes, Routes, build_application
from lcp_gateway.http.browser_guard import BrowserGuard
from lcp_gateway.http.console.assets import CONSOLE_PATHS
from lcp_gateway.http.console.cookie_routes import OPEN_ROUTES
from lcp_gateway.http.cors import Cors
from lcp_gateway.http.gateway.events import EventRoutes
from lcp_gateway.http.gateway.health import HealthRoutes
from lcp_gateway.http.gateway.node_connect import NODE_CONNECT
from lcp_gateway.http.gateway.route import RankingRoutes
from lcp_gateway.http.gateway.welcome import WelcomeRoutes
from lcp_gateway.http.metrics_page import build_metrics_application
from lcp_gateway.http.middleware import RequestMiddleware
from lcp_gateway.http.openai.admission import JobsInFlight
from lcp_gateway.http.openai.create import CreateRoutes
from lcp_gateway.http.openai.models import ModelRoutes
from lcp_gateway.http.openai.response import ResponseWriter
from lcp_gateway.http.openapi.document import PATH as API_DESCRIPTION
from lcp_gateway.purchase.held_quotes import HeldQuotes
from lcp_gateway.purchase.idempotency import IdempotencyCache
from lcp_gateway.purchase.limits import LoopBrake
from lcp_gateway.purchase.money import Budget
from lcp_gateway.purchase.ports import Upstream
from lcp_gateway.purchase.quoting import PaidJobs
from lcp_gateway.purchase.service import PurchaseService
from lcp_gateway.purchase.tracing import Tracing
from lcp_gateway.routing.measurements import Measurements
from lcp_gateway.routing.peer_models import PeerModels
from lcp_gateway.routing.peer_trust import PeerTrust
from lcp_gateway.routing.route_query import explain_no_match, rank_models
from lcp_gateway.store.database.engines import DatabaseUnavailable
from lcp_gateway.supervisor.link import WorkerLink
from lcp_gateway.telemetry.logs import get_logger
from lcp_gateway.telemetry.metrics import Metrics
from lcp_gateway.telemetry.observers import PurchaseObserver
from lcp_gateway.upstreams.lcpd.adapter import DIALECTS
from lcp_gateway.upstreams.lcpd.peer_watch import PeerWatch
from lcp_gateway.upstreams.sources import MergedCatalog

# A node that dials in has a token of its own, which its route checks.
OPEN_PATHS = frozenset(
    {"/", "/v1", "/v1/", "/healthz", "/readyz", API_DESCRIPTION, NODE_CONNECT, *CONSOLE_PATHS, *OPEN_ROUTES}
)
# How long a client may go on reading after its provider's time is over.
_RELAY_SLACK_S = 5.0


@dataclass(frozen=True, slots=True)
class Runtime:
    """The state that outlives a change of settings: connections, the journal, measurements, purchases under way.

    ``link`` leads to the supervisor, where this process is one of several workers. ``lnd_report`` returns lnd's state for ``/readyz``; None where no lnd is configured.
    """

    metrics: Metrics
    tracing: Tracing
    tasks: BackgroundTasks
    short_tasks: ShortTasks
    peers: PeerWatch
    peer_models: PeerModels
    nodes: NodeParts
    dialin: DialinParts
    catalog: MergedCatalog
    upstream: Upstream
    journal: JournalParts
    access: Access
    console: Console
    shared_results: SharedResults
    trust: PeerTrust
    measurements: Measurements
    observer: PurchaseObserver
    jobs: JobsInFlight
    cache: IdempotencyCache
    paid_jobs: PaidJobs
    shared_trust: SharedTrust
    brake: LoopBrake
    lnd_report: Callable[[], Mapping[str, object]] | None = None
    link: WorkerLink | None = None


@dataclass(frozen=True, slots=True)
class Configured:
    """The parts of one configuration, without state of their own. Each request is served by one of these.

    ``metrics_app`` is for ``metrics_addr``.
    """

    settings: Settings
    routing: RoutingParts
    access: AccessParts
    purchase: PurchaseParts
    health: HealthRoutes
    app: web.Application
    metrics_app: web.Application


class Gateway:
    """Serves requests by the settings in force.

    Raises:
        WiringError: a part cannot be made as the settings say.
    """

    def __init__(self, settings: Settings, runtime: Runtime) -> None:
        metrics = runtime.metrics
        metrics.build_info(__version__, ",".join(str(v) for v in sorted(DIALECTS)))
        metrics.lcpd_transport(runtime.peers.transport)
        metrics.concurrency_limit(settings.max_concurrent_requests)
        self.runtime = runtime
        self._started = int(time.time())
        routing, access, purchase = self._parts(settings)
        self.service = PurchaseService(
            quoting=purchase.quoting,
            executor=purchase.executor,
            routing=routing.selector,
            journal=runtime.journal.purchases,
            cache=runtime.cache,
            held_quotes=HeldQuotes(utc_now),
            brake=runtime.brake,
            buffer_limits=purchase.buffer_limits,
            timeouts=purchase.timeouts,
            background=runtime.short_tasks.start,
            observer=runtime.observer,
            clock=time.monotonic,
            shared=purchase.shared,
            tracing=runtime.tracing,
        )
        self.stored = open_stored_state(
            settings,
            service=self.service,
            journal=runtime.journal,
            jobs=runtime.jobs,
            metrics=metrics,
            api_limits=runtime.access.api_limits,
            sharing=runtime.shared_results,
            log=get_logger("stored"),
        )
        self.events = event_hub(
            runtime.journal,
            runtime.access.keys,
            catalog=runtime.catalog,
            reasons=lambda: self.configured.health.reasons(),  # noqa: PLW0108 - it is another one after a reload
            is_ending=lambda: runtime.jobs.draining,
        )
        self.configured = self._configure(settings, routing, access, purchase)

    def budgets(self) -> Sequence[Budget]:
        """Return the budgets of the whole gateway that are in force."""
        return self.configured.purchase.limits.budgets_for("")

    def configure(self, settings: Settings) -> Configured:
        """Make the parts of other settings, and change nothing yet.

        Raises:
            WiringError: a part cannot be made as the settings say.
        """
        return self._configure(settings, *self._parts(settings))

    def use(self, configured: Configured) -> None:
        """Buy and store by other settings from now on; cannot fail. The listeners have to use their applications."""
        settings, purchase, runtime = configured.settings, configured.purchase, self.runtime
        runtime.peers.use(refresh_s=settings.peers_refresh_s, timeout_s=settings.timeout_quote_s)
        runtime.peer_models.use(settings.peer_models, settings.model_map)
        runtime.nodes.use(settings, configured.routing.registry)
        runtime.dialin.use(settings, configured.routing.registry)
        runtime.access.use(settings)
        runtime.trust.use(trust_rules(settings))
        runtime.journal.use(settings)
        runtime.jobs.use(settings.max_concurrent_requests)
        runtime.cache.use(memory_limits(settings))
        runtime.brake.use(settings.loop_brake_per_minute)
        runtime.metrics.concurrency_limit(settings.max_concurrent_requests)
        self.stored.use(store_limits(settings))
        self.service.use(
            quoting=purchase.quoting,
            executor=purchase.executor,
            routing=configured.routing.selector,
            buffer_limits=purchase.buffer_limits,
            timeouts=purchase.timeouts,
            shared=purchase.shared,
        )
        self.configured = configured

    def _parts(self, settings: Settings) -> tuple[RoutingParts, AccessParts, PurchaseParts]:
        runtime = self.runtime
        routing = routing_parts(
            settings,
            catalog=runtime.catalog,
            measurements=runtime.measurements,
            trust=runtime.trust,
            metrics=runtime.metrics,
            log=get_logger("gateway"),
        )
        purchase = purchase_parts(
            settings,
            upstream=runtime.upstream,
            journal=runtime.journal,
            trust=runtime.trust,
            observer=runtime.observer,
            background=runtime.short_tasks.start,
            paid_jobs=runtime.paid_jobs,
            shared=runtime.shared_results.results(settings),
            reserve=runtime.shared_trust.reserve,
            metrics=runtime.metrics,
            tracing=runtime.tracing,
        )
        return routing, runtime.access.parts(settings, routing.registry), purchase

    def _configure(
        self, settings: Settings, routing: RoutingParts, access: AccessParts, purchase: PurchaseParts
    ) -> Configured:
        runtime = self.runtime
        health = HealthRoutes(
            catalog=runtime.catalog,
            daemon_problem=lambda: runtime.peers.problem,
            transport=runtime.peers.transport,
            protocol_version=lambda: runtime.peers.info.protocol_version if runtime.peers.info else None,
            nodes=lambda: {**runtime.nodes.watch.states, **runtime.dialin.hub.own_states},
            jobs=runtime.jobs,
            metrics=runtime.metrics,
            stale_s=settings.peers_stale_s,
            other_reasons=lambda: (*runtime.journal.problems(), *runtime.access.problems(), *runtime.tasks.reasons()),
            tasks=runtime.tasks.report,
            lnd_report=runtime.lnd_report,
            workers=runtime.link,
        )
        cors = Cors(settings.cors_origins)
        guard = BrowserGuard(cors, known_hosts(settings), log=get_logger("request"))
        authenticator, console = runtime.console.parts(settings, access.authenticator)
        middleware = RequestMiddleware(
            authenticator=authenticator,
            cors=cors,
            guard=guard,
            metrics=runtime.metrics,
            log=get_logger("request"),
            open_paths=OPEN_PATHS,
            max_header_bytes=settings.max_header_bytes,
            unavailable=(DatabaseUnavailable,),
            tracing=runtime.tracing,
        )
        return Configured(
            settings=settings,
            routing=routing,
            access=access,
            purchase=purchase,
            health=health,
            app=build_application(
                self._routes(settings, routing, access, purchase, health, console),
                middleware,
                max_body_bytes=settings.max_body_bytes,
                with_metrics=not settings.metrics_addr,
                api_limits=runtime.access.api_limits,
            ),
            metrics_app=build_metrics_application(health, guard),
        )

    def _routes(
        self,
        settings: Settings,
        routing: RoutingParts,
        access: AccessParts,
        purchase: PurchaseParts,
        health: HealthRoutes,
        console: ConsoleRoutes,
    ) -> Routes:
        runtime, selector, trust = self.runtime, routing.selector, self.runtime.trust
        sells = access.wallet_routes is not None
        relay_limit_s = settings.timeout_execute_s + _RELAY_SLACK_S
        responses = responses_parts(
            settings,
            self.stored,
            routing=routing,
            admission=access.admission,
            counter=runtime.nodes.counter,
            relay_limit_s=relay_limit_s,
        )
        books = book_routes(
            settings,
            journal=runtime.journal,
            access=runtime.access,
            limits=purchase.limits,
            providers=ProviderParts(
                catalog=runtime.catalog,
                nodes=lambda: runtime.nodes.watch.states,
                daemon_problem=lambda: runtime.peers.problem,
                measurements=runtime.measurements,
                trust=trust,
                lnd=runtime.lnd_report,
            ),
            health=health,
            metrics=runtime.metrics,
        )
        return Routes(
            create=CreateRoutes(
                service=self.service,
                limits=purchase.limits,
                jobs=runtime.jobs,
                metrics=runtime.metrics,
                admission=access.admission,
                charges=access.charges,
                payment_required=access.payment_required,
                history=responses.history,
                background=self.stored.background,
                writer=ResponseWriter(
                    service=self.service,
                    metrics=runtime.metrics,
                    charges=access.charges,
                    heartbeat_s=settings.heartbeat_s,
                    relay_limit_s=relay_limit_s,
                ),
                follow=responses.responses.follow,
                explain=selector.explain,
                default_model=settings.default_model,
                read_timeout_s=settings.request_read_timeout_s,
            ),
            input_tokens=responses.input_tokens,
            responses=responses.responses,
            chats=responses.chats,
            models=ModelRoutes(
                catalog=lambda: runtime.catalog.catalog,
                offers=selector.offers,
                rules=routing.rules,
                registry=routing.registry,
                records=runtime.measurements,
                is_ready=lambda provider_id: bool(trust.readiness(provider_id)),
                lists_auto=settings.list_auto,
                openclaw_id=openclaw_id(settings),
                started=self._started,
                charge=purchase.limits.tariff.charge_msat if sells else None,
            ),
            welcome=WelcomeRoutes(asks_for_key=auth_mode(settings) != "none", has_console=serves_console(settings)),
            console=console,
            ranking=RankingRoutes(
                lambda query: rank_models(query, selector.offers(), routing.auto),
                why_nothing=lambda query: explain_no_match(query, selector.offers()),
                read_timeout_s=settings.request_read_timeout_s,
            ),
            health=health,
            purchases=books.purchases,
            usage=books.usage,
            budgets=books.budgets,
            providers=books.providers,
            overview=books.overview,
            events=EventRoutes(self.events, api_limits=runtime.access.api_limits),
            wallet=access.wallet_routes,
            admin=access.admin_routes,
            keys=access.key_routes,
            refunds=access.refund_routes,
            withdrawals=access.withdrawal_routes,
            node_connect=runtime.dialin.routes(),
            nodes=access.node_routes,
        )
