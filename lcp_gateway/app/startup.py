"""The start: opens the daemon, the nodes, the journal, lnd and the accounts, and fails where a needed one is missing."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TypeVar

from structlog.typing import FilteringBoundLogger

from lcp_gateway.app.background_tasks import BackgroundTask, BackgroundTasks, ShortTasks
from lcp_gateway.app.gateway import Runtime
from lcp_gateway.app.wiring import WiringError
from lcp_gateway.app.wiring.accounts import open_access
from lcp_gateway.app.wiring.console import Console
from lcp_gateway.app.wiring.dialin import dialin_parts
from lcp_gateway.app.wiring.journal import JournalParts, open_journal
from lcp_gateway.app.wiring.lnd import lnd_parts, open_lnd, reconciler_by_node
from lcp_gateway.app.wiring.routing import NodeParts, lcpd_address, model_registry, node_parts, peer_models, trust_rules
from lcp_gateway.app.wiring.shared_redis import open_redis
from lcp_gateway.app.wiring.shared_results import SharedResults, memory_limits
from lcp_gateway.app.wiring.shared_trust import open_shared_trust
from lcp_gateway.app.wiring.telemetry import open_tracing
from lcp_gateway.config import Settings, fee_warnings
from lcp_gateway.http.openai.admission import JobsInFlight
from lcp_gateway.purchase.errors import UpstreamError
from lcp_gateway.purchase.idempotency import IdempotencyCache, RepeatHashes
from lcp_gateway.purchase.limits import LoopBrake
from lcp_gateway.purchase.quoting import PaidJobs
from lcp_gateway.purchase.tracing import Tracing
from lcp_gateway.routing.catalog import Catalog
from lcp_gateway.routing.measurements import Measurements
from lcp_gateway.routing.model_registry import read_name
from lcp_gateway.routing.peer_models import PeerModels
from lcp_gateway.routing.peer_trust import PeerTrust
from lcp_gateway.supervisor.link import WorkerLink
from lcp_gateway.telemetry.logs import get_logger
from lcp_gateway.telemetry.metrics import Metrics
from lcp_gateway.telemetry.observers import PeersObserver, PurchaseObserver
from lcp_gateway.upstreams.lcpd.adapter import LcpdUpstream, LocalInfo
from lcp_gateway.upstreams.lcpd.dialect import UnsupportedVersion
from lcp_gateway.upstreams.lcpd.peer_watch import PeerWatch
from lcp_gateway.upstreams.lcpd.transport import Transport
from lcp_gateway.upstreams.sources import MergedCatalog, UpstreamBySource

if TYPE_CHECKING:
    from lcp_gateway.lightning.lnd.client import LndClient

T = TypeVar("T")

_PREFLIGHT_PAUSE_S = 0.05


class StartError(Exception):
    """The gateway cannot start; the message says why and what to do."""


class LocalDaemon(Protocol):
    """A daemon that runs in this process."""

    def running(self, metrics: Metrics) -> contextlib.AbstractAsyncContextManager[Transport]:
        """Run it for the block, and yield the transport to it."""
        ...


class _DaemonUnreachable(StartError):
    """The daemon did not answer."""


async def open_runtime(
    settings: Settings,
    stack: contextlib.AsyncExitStack,
    metrics: Metrics,
    tasks: BackgroundTasks,
    log: FilteringBoundLogger,
    link: WorkerLink | None = None,
    local_daemon: LocalDaemon | None = None,
) -> tuple[Runtime, list[BackgroundTask]]:
    """Open everything for as long as the stack; return it with the tasks that have to run beside the requests.

    ``link`` leads to the supervisor, where this process is one of several workers. ``local_daemon`` is used in place of the
    daemon of the settings.

    Raises:
        StartError: a needed part is missing.
    """
    tracing = await _enter(stack, open_tracing(settings, metrics, get_logger("tracing")))
    transport = None if local_daemon is None else await stack.enter_async_context(local_daemon.running(metrics))
    models = peer_models(settings)

    def on_daemon(info: LocalInfo) -> None:
        metrics.lcpd_protocol_version(info.protocol_version)
        get_logger("peers").info(
            "the daemon's version is known", protocol_version=info.protocol_version, software=info.software.name
        )
        # Of several workers the first speaks for all.
        if link is None or not link.boot.place:
            for warning in fee_warnings(settings, limits_fees=info.software.limits_fees):
                log.warning(warning)
        peers.refresh_soon()

    daemon = _open_daemon(settings, metrics, tracing, transport, models, on_daemon)
    stack.push_async_callback(daemon.close)
    nodes = node_parts(settings, metrics, tracing, tasks.starter("nodes"), log)
    stack.push_async_callback(nodes.upstream.close)
    stack.push_async_callback(nodes.counter.close)
    peers = PeerWatch(
        daemon,
        refresh_s=settings.peers_refresh_s,
        timeout_s=settings.timeout_quote_s,
        on_refresh=PeersObserver(metrics, log, lambda: nodes.watch.providers),
        prepare=_read_names,
    )
    journal, lnd = await _prepare(stack, daemon, peers, nodes, settings, metrics, tasks, log)
    redis = await _enter(stack, open_redis(settings.redis_url))
    access = await _enter(stack, open_access(settings, journal, metrics, tasks, log, redis))
    console = Console(journal.database, access.customers, access.api_limits, get_logger("console"), redis=redis)
    run_secret = "" if link is None else link.boot.run_secret
    shared_results = SharedResults(redis, run_secret, journal, metrics, tasks.starter("claims"), log)
    trust = PeerTrust(trust_rules(settings))
    measurements = Measurements(half_life_s=settings.routing_half_life_s, clock=time.monotonic)
    paid_jobs = PaidJobs()
    shared_trust = await stack.enter_async_context(
        open_shared_trust(settings, link, trust, measurements, paid_jobs, log, redis)
    )
    access.share_keys(shared_trust)
    observer = PurchaseObserver(metrics, measurements, trust, get_logger("purchase"))
    short_tasks = ShortTasks(
        lambda error: log.info("cancel job failed", grpc_code=error.status),
        lambda error: log.error("work after a request failed", exc_info=error),
    )
    dialin = dialin_parts(
        settings,
        model_registry(settings),
        accounts=access.nodes(),
        place=(0, 1) if link is None else (link.boot.place, link.boot.workers),
        metrics=metrics,
        start=short_tasks.start,
        # A node that lies about its work is preferred less.
        on_refuted=measurements.failed,
        log=log,
    )
    stack.push_async_callback(dialin.hub.close)
    observer.on_node_end = dialin.hub.ended
    observer.on_delivered = lambda it: models.bought(it.quote.peer_id, it.order.task.kind, it.order.task.model)
    access.node_connections = lambda: dialin.hub.states
    background = [
        BackgroundTask("peers", peers.run),
        BackgroundTask("nodes", nodes.watch.run),
        dialin.task(),
        *access.tasks,
        *shared_trust.tasks(),
    ]
    background += console.tasks(settings)
    lnd_report = None
    if lnd is not None:
        watched = lnd_parts(
            lnd,
            journal,
            daemon_node_id=lambda: peers.info.node_id if peers.info else "",
            trust=trust,
            interval_s=settings.reconcile_interval_s,
            metrics=metrics,
            log=log,
        )
        background += watched.tasks()
        observer.on_settled = watched.settled
        lnd_report = watched.report
    elif (
        task := reconciler_by_node(
            daemon,
            peers,
            journal,
            trust=trust,
            interval_s=settings.reconcile_interval_s,
            timeout_s=settings.timeout_quote_s,
            metrics=metrics,
            log=log,
        )
    ) is not None:
        background.append(task)
    runtime = Runtime(
        metrics=metrics,
        tracing=tracing,
        tasks=tasks,
        short_tasks=short_tasks,
        peers=peers,
        peer_models=models,
        nodes=nodes,
        dialin=dialin,
        catalog=MergedCatalog(peers, nodes.watch, dialin.hub),
        upstream=UpstreamBySource(daemon, nodes.upstream, dialin.upstream),
        journal=journal,
        access=access,
        console=console,
        shared_results=shared_results,
        trust=trust,
        measurements=measurements,
        observer=observer,
        jobs=JobsInFlight(settings.max_concurrent_requests, metrics, None if link is None else link.count),
        cache=IdempotencyCache(
            memory_limits(settings), on_held=metrics.answers_held, hashes=RepeatHashes(journal.repeat_secret)
        ),
        paid_jobs=paid_jobs,
        shared_trust=shared_trust,
        brake=LoopBrake(settings.loop_brake_per_minute),
        lnd_report=lnd_report,
        link=link,
    )
    return runtime, background


def _open_daemon(
    settings: Settings,
    metrics: Metrics,
    tracing: Tracing,
    transport: Transport | None,
    models: PeerModels,
    on_daemon: Callable[[LocalInfo], None],
) -> LcpdUpstream:
    try:
        return LcpdUpstream(
            lcpd_address(settings),
            on_error=metrics.grpc_error,
            on_odd_peer=_log_odd_peer,
            on_daemon=on_daemon,
            models=models,
            tracing=tracing,
            transport=transport,
            fee_limit_msat=settings.fee_limit_msat,
        )
    except OSError as error:
        raise StartError(f"a TLS file for the daemon cannot be read: {error}") from error


def _read_names(catalog: Catalog) -> None:
    """Parse the names of all models, whose results are cached."""
    for name in catalog.models():
        read_name(name)


def _log_odd_peer(peer_id: str, problem: str) -> None:
    get_logger("peers").warning("a peer is listed in part", peer=peer_id, problem=problem)


async def _enter(stack: contextlib.AsyncExitStack, parts: contextlib.AbstractAsyncContextManager[T]) -> T:
    try:
        return await stack.enter_async_context(parts)
    except WiringError as error:
        raise StartError(str(error)) from error


async def _prepare(
    stack: contextlib.AsyncExitStack,
    daemon: LcpdUpstream,
    peers: PeerWatch,
    nodes: NodeParts,
    settings: Settings,
    metrics: Metrics,
    tasks: BackgroundTasks,
    log: FilteringBoundLogger,
) -> "tuple[JournalParts, LndClient | None]":
    """Reach the daemon and the nodes and open the journal, at the same time, since each waits for another process."""
    journal = open_journal(settings, metrics, tasks.starter("journal"), log)
    opening = asyncio.create_task(stack.enter_async_context(journal))
    finding = asyncio.create_task(_preflight(daemon, peers, settings))
    # A node that is down does not prevent the start: it is used once it is up.
    looking = asyncio.create_task(nodes.watch.refresh())
    await asyncio.wait([opening, finding, looking])
    try:
        try:
            await finding
        except _DaemonUnreachable as error:
            if not nodes.watch.providers and not settings.dialin_nodes and not settings.dialin_accounts:
                raise
            log.warning("starting with nodes alone", problem=str(error))
        return await opening, await stack.enter_async_context(open_lnd(settings))
    except WiringError as error:
        raise StartError(str(error)) from error


async def _preflight(daemon: LcpdUpstream, peers: PeerWatch, settings: Settings) -> None:
    """Reach the daemon before the port is bound, unless ``preflight`` is off.

    Raises:
        StartError: it did not answer in time, or speaks another version.
    """
    if not settings.preflight:
        return
    deadline = time.monotonic() + settings.preflight_timeout_s
    while True:
        left_s = max(deadline - time.monotonic(), _PREFLIGHT_PAUSE_S)
        try:
            await daemon.local_info(left_s)
        except UnsupportedVersion as error:
            raise StartError(error.message) from error
        except UpstreamError as error:
            if time.monotonic() + _PREFLIGHT_PAUSE_S < deadline:
                await asyncio.sleep(_PREFLIGHT_PAUSE_S)
                continue
            raise _DaemonUnreachable(
                f"the daemon at {settings.lcpd_grpc_addr} did not answer within "
                f"{settings.preflight_timeout_s:g} s ({error.status}). Start lcpd-grpcd, set "
                "lcpd_grpc_addr, try --embedded, or start without asking it: --no-preflight"
            ) from error
        break
    await peers.refresh()
