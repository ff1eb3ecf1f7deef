"""Opens what lasts: the daemon, the nodes, the books, lnd and the shop; and finds those who have to be there."""

import asyncio
import contextlib
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeVar

from structlog.typing import FilteringBoundLogger

from lcp_gateway.app.accounting import Accounting
from lcp_gateway.app.background_tasks import BackgroundTask, BackgroundTasks
from lcp_gateway.app.gateway import lcpd_address
from lcp_gateway.app.lnd import LndWatch, open_lnd
from lcp_gateway.app.runtime import Opened
from lcp_gateway.app.wiring.accounts import open_access
from lcp_gateway.app.wiring.journal import Ledgers, WiringError, open_ledgers
from lcp_gateway.app.wiring.routing import NodeParts, node_parts, standing_rules
from lcp_gateway.app.wiring.shared_results import SharedResults
from lcp_gateway.app.wiring.telemetry import TracingUnavailable, open_tracing
from lcp_gateway.config import Settings
from lcp_gateway.purchase.errors import UpstreamError
from lcp_gateway.purchase.tracing import Tracing
from lcp_gateway.routing.catalog import Catalog
from lcp_gateway.routing.model_registry import read_name
from lcp_gateway.routing.peer_trust import PeerTrust
from lcp_gateway.telemetry.logs import get_logger
from lcp_gateway.telemetry.metrics import Metrics
from lcp_gateway.upstreams.lcpd.adapter import LcpdUpstream, UnsupportedVersion
from lcp_gateway.upstreams.lcpd.peer_watch import PeerWatch
from lcp_gateway.upstreams.sources import UpstreamBySource

if TYPE_CHECKING:
    from lcp_gateway.lightning.lnd.client import LndClient

T = TypeVar("T")

_PREFLIGHT_PAUSE_S = 0.05


class StartError(Exception):
    """The gateway cannot start; the message says why and what to do."""


class _DaemonAway(StartError):
    """The daemon did not answer."""


async def open_parts(
    settings: Settings,
    stack: contextlib.AsyncExitStack,
    metrics: Metrics,
    tasks: BackgroundTasks,
    log: FilteringBoundLogger,
) -> tuple[Opened, list[BackgroundTask]]:
    """Open everything for as long as the stack; return it with what has to run beside the requests.

    Raises:
        StartError: something that must be there is not.
    """
    tracing = await _enter(stack, open_tracing(settings, metrics, get_logger("tracing")))
    daemon = _open_daemon(settings, metrics, tracing)
    stack.push_async_callback(daemon.close)
    nodes = node_parts(settings, metrics, tracing, tasks.starter("nodes"), log)
    stack.push_async_callback(nodes.upstream.close)
    stack.push_async_callback(nodes.counter.close)
    peers = PeerWatch(
        daemon,
        refresh_s=settings.peers_refresh_s,
        timeout_s=settings.timeout_quote_s,
        on_refresh=_Refreshed(metrics, log, nodes),
        prepare=_read_names,
    )
    ledgers, lnd = await _prepare(stack, daemon, peers, nodes, settings, metrics, tasks, log)
    shop = await _enter(stack, open_access(settings, ledgers, metrics, tasks, log))
    sharing = SharedResults(settings.redis_url, ledgers, metrics, tasks.starter("claims"), log)
    stack.push_async_callback(sharing.close)
    standings = PeerTrust(standing_rules(settings))
    accounting = Accounting(metrics, get_logger("purchase"))
    lasting = [
        BackgroundTask("peers", peers.run),
        BackgroundTask("nodes", nodes.watch.run),
        *shop.tasks,
    ]
    lnd_report = None
    if lnd is not None:
        lnd_watch = LndWatch(
            lnd,
            ledgers,
            daemon_node_id=lambda: peers.info.node_id if peers.info else "",
            standings=standings,
            interval_s=settings.reconcile_interval_s,
            metrics=metrics,
            log=log,
        )
        lasting += lnd_watch.tasks()
        accounting.on_settled = lnd_watch.settled
        lnd_report = lnd_watch.report
    opened = Opened(
        metrics=metrics,
        upstream=UpstreamBySource(daemon, nodes.upstream),
        peers=peers,
        nodes=nodes,
        ledgers=ledgers,
        shop=shop,
        sharing=sharing,
        standings=standings,
        accounting=accounting,
        tracing=tracing,
        tasks=tasks,
        lnd_report=lnd_report,
    )
    return opened, lasting


def _open_daemon(settings: Settings, metrics: Metrics, tracing: Tracing) -> LcpdUpstream:
    try:
        return LcpdUpstream(
            lcpd_address(settings),
            on_error=metrics.grpc_error,
            on_odd_peer=_tell_odd_peer,
            tracing=tracing,
        )
    except OSError as error:
        raise StartError(f"a TLS file for the daemon cannot be read: {error}") from error


def _read_names(catalog: Catalog) -> None:
    """Have the names of all models read, which is remembered."""
    for name in catalog.models():
        read_name(name)


def _tell_odd_peer(peer_id: str, problem: str) -> None:
    get_logger("peers").warning("a peer is listed in part", peer=peer_id, problem=problem)


async def _enter(
    stack: contextlib.AsyncExitStack, parts: contextlib.AbstractAsyncContextManager[T]
) -> T:
    try:
        return await stack.enter_async_context(parts)
    except (WiringError, TracingUnavailable) as error:
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
) -> "tuple[Ledgers, LndClient | None]":
    """Find daemon and nodes and open the journal, at the same time: each mostly waits for somebody else."""
    ledgers = open_ledgers(settings, metrics, tasks.starter("journal"), log)
    opening = asyncio.create_task(stack.enter_async_context(ledgers))
    finding = asyncio.create_task(_preflight(daemon, peers, settings))
    # A node that is away is no reason not to start: it is taken in when it comes.
    looking = asyncio.create_task(nodes.watch.refresh())
    await asyncio.wait([opening, finding, looking])
    try:
        try:
            await finding
        except _DaemonAway as error:
            if not nodes.watch.providers:
                raise
            log.warning("starting with nodes alone", problem=str(error))
        return await opening, await stack.enter_async_context(open_lnd(settings))
    except WiringError as error:
        raise StartError(str(error)) from error


async def _preflight(daemon: LcpdUpstream, peers: PeerWatch, settings: Settings) -> None:
    """Find the daemon before the port is bound, unless that is not wanted.

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
            raise _DaemonAway(
                f"the daemon at {settings.lcpd_grpc_addr} did not answer within "
                f"{settings.preflight_timeout_s:g} s ({error.status}). Start lcpd-grpcd, set "
                "lcpd_grpc_addr, try --embedded, or start without asking it: --no-preflight"
            ) from error
        break
    await peers.refresh()


class _Refreshed:
    """Counts and logs what a refresh of the peers brought."""

    def __init__(self, metrics: Metrics, log: FilteringBoundLogger, nodes: NodeParts) -> None:
        self._metrics = metrics
        self._log = log
        self._nodes = nodes
        self._was_up: bool | None = None
        self._counted: tuple[object, object, int] = (None, None, 0)

    def _count(self, catalog: Catalog) -> None:
        """Count the models, where they are others than before: there may be thousands."""
        peers, nodes = catalog.providers, self._nodes.watch.providers
        if self._counted[0] is not peers or self._counted[1] is not nodes:
            models = catalog.models()
            of_nodes: Mapping[str, object] = Catalog(nodes, 0.0).models()
            self._metrics.set_known({*models, *of_nodes}, [provider.peer_id for provider in peers])
            self._counted = (peers, nodes, len(models))
        self._metrics.snapshot(len(peers), self._counted[2])

    def __call__(self, catalog: Catalog | None) -> None:
        up = catalog is not None
        self._metrics.daemon_up(up)
        if catalog is not None:
            self._count(catalog)
        if up is not self._was_up and (self._was_up is not None or not up):
            if up:
                self._log.info("the daemon is back")
            else:
                self._log.warning("the daemon cannot be used")
        self._was_up = up
