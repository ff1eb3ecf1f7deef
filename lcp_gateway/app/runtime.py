"""What lasts while settings change: connections, books, what was measured and remembered, what is under way."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lcp_gateway.app.accounting import Accounting
from lcp_gateway.app.background_tasks import BackgroundTasks, ShortTasks
from lcp_gateway.app.wiring.accounts import Access
from lcp_gateway.app.wiring.journal import Ledgers
from lcp_gateway.app.wiring.routing import NodeParts, standing_rules
from lcp_gateway.app.wiring.shared_results import SharedResults, memory_limits
from lcp_gateway.config import Settings
from lcp_gateway.http.openai.admission import JobsInFlight
from lcp_gateway.purchase.idempotency import IdempotencyCache, RepeatHashes
from lcp_gateway.purchase.limits import LoopBrake
from lcp_gateway.purchase.ports import Upstream
from lcp_gateway.purchase.quoting import PaidJobs
from lcp_gateway.purchase.tracing import Tracing
from lcp_gateway.routing.measurements import Measurements
from lcp_gateway.routing.model_registry import ModelRegistry
from lcp_gateway.routing.peer_trust import PeerTrust
from lcp_gateway.telemetry.logs import get_logger
from lcp_gateway.telemetry.metrics import Metrics
from lcp_gateway.upstreams.lcpd.peer_watch import PeerWatch
from lcp_gateway.upstreams.merged_catalog import MergedCatalog


@dataclass(frozen=True, slots=True)
class Opened:
    """What is opened for as long as the gateway runs. ``lnd_report`` says how lnd is; None where there is none."""

    metrics: Metrics
    upstream: Upstream
    peers: PeerWatch
    nodes: NodeParts
    ledgers: Ledgers
    shop: Access
    sharing: SharedResults
    standings: PeerTrust
    accounting: Accounting
    tracing: Tracing
    tasks: BackgroundTasks
    lnd_report: Callable[[], Mapping[str, object]] | None = None


class Runtime:
    """All that has a state. Other settings are taken in by ``use``, which cannot fail."""

    def __init__(self, settings: Settings, opened: Opened) -> None:
        metrics = opened.metrics
        self.opened = opened
        self.catalogs = MergedCatalog(opened.peers, opened.nodes.watch)
        self.records = Measurements(half_life_s=settings.routing_half_life_s, clock=time.monotonic)
        self.jobs = JobsInFlight(settings.max_concurrent_requests, metrics)
        log = get_logger("gateway")
        self.background = ShortTasks(
            lambda error: log.info("cancel job failed", grpc_code=error.status),
            lambda error: log.error("work after a request failed", exc_info=error),
        )
        self.memory = IdempotencyCache(
            memory_limits(settings),
            on_held=metrics.answers_held,
            hashes=RepeatHashes(opened.ledgers.repeat_secret),
        )
        self.paid_jobs = PaidJobs()
        self.brake = LoopBrake(settings.loop_brake_per_minute)

    def use(self, settings: Settings, registry: ModelRegistry) -> None:
        """Go by other settings from now on; nothing that is under way ends for it."""
        opened = self.opened
        opened.peers.use(refresh_s=settings.peers_refresh_s, timeout_s=settings.timeout_quote_s)
        opened.nodes.use(settings, registry)
        opened.shop.use(settings)
        opened.standings.use(standing_rules(settings))
        opened.ledgers.use(settings)
        self.jobs.use(settings.max_concurrent_requests)
        self.memory.use(memory_limits(settings))
        self.brake.use(settings.loop_brake_per_minute)
