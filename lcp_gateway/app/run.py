"""The gateway's life: preflight, start, signals, and the end in good order."""

import asyncio
import contextlib
import gc
import signal
import sys
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import uvloop
from aiohttp import web
from structlog.typing import FilteringBoundLogger

from lcp_gateway.__about__ import __version__
from lcp_gateway.app.assembly import Gateway, assemble, lcpd_address
from lcp_gateway.app.ledgers import (
    LedgerError,
    Ledgers,
    open_ledgers,
    remember_peers,
    watch_books,
)
from lcp_gateway.app.lnd import LndWatch, open_lnd
from lcp_gateway.app.replicas import shared_answers
from lcp_gateway.app.routing import NodeParts, model_registry, node_parts, routing_parts
from lcp_gateway.app.selling import open_selling
from lcp_gateway.config import Settings, parse_host_port
from lcp_gateway.http.jobs import Jobs
from lcp_gateway.http.protocol import GatewayRunner
from lcp_gateway.purchase.errors import UpstreamError
from lcp_gateway.purchase.service import Reason
from lcp_gateway.routing.catalog import Catalog
from lcp_gateway.telemetry.logs import configure_logging, get_logger
from lcp_gateway.telemetry.loop import watch_loop
from lcp_gateway.telemetry.metrics import Metrics
from lcp_gateway.upstreams.lcpd import LcpdUpstream, UnsupportedVersion
from lcp_gateway.upstreams.peers import PeerWatch
from lcp_gateway.upstreams.several import Upstreams

if TYPE_CHECKING:
    from lcp_gateway.lightning.lnd import Lnd

T = TypeVar("T")

_PREFLIGHT_PAUSE_S = 0.05
# A request makes thousands of short-lived objects and hardly a cycle among them: the collector looks less often.
_GC_THRESHOLDS = (20_000, 20, 20)


class StartError(Exception):
    """The gateway cannot start; the message says why and what to do."""


class _DaemonAway(StartError):
    """The daemon did not answer."""


def run(settings: Settings, *, banner: Sequence[str], loaded_warnings: Sequence[str]) -> int:
    """Run the gateway until SIGTERM or SIGINT; gives the exit code."""
    # Nothing that start-up makes is garbage worth looking for; see where it is turned on again.
    gc.disable()
    configure_logging(settings.log_level, settings.log_format)
    log = get_logger("gateway")
    for warning in loaded_warnings:
        log.warning(warning)
    try:
        uvloop.run(_serve(settings, banner, log))
    except StartError as error:
        sys.stderr.write(f"lcp-gateway: {error}\n")
        return 1
    return 0


def _open_upstream(settings: Settings, metrics: Metrics) -> LcpdUpstream:
    try:
        return LcpdUpstream(lcpd_address(settings), on_error=metrics.grpc_error)
    except OSError as error:
        raise StartError(f"a TLS file for the daemon cannot be read: {error}") from error


class _Refreshed:
    """Counts and logs what a refresh of the peers brought."""

    def __init__(
        self, metrics: Metrics, log: FilteringBoundLogger, nodes: NodeParts | None
    ) -> None:
        self._metrics = metrics
        self._log = log
        self._nodes = nodes
        self._was_up: bool | None = None

    def __call__(self, catalog: Catalog | None) -> None:
        up = catalog is not None
        self._metrics.daemon_up(up)
        if catalog is not None:
            models = catalog.models()
            self._metrics.snapshot(len(catalog.providers), len(models))
            known = Catalog(self._nodes.watch.providers, 0.0).models() if self._nodes else {}
            self._metrics.set_known(
                {*models, *known}, [provider.peer_id for provider in catalog.providers]
            )
        if up is not self._was_up and (self._was_up is not None or not up):
            if up:
                self._log.info("the daemon is back")
            else:
                self._log.warning("the daemon cannot be used")
        self._was_up = up


async def _serve(settings: Settings, banner: Sequence[str], log: FilteringBoundLogger) -> None:
    metrics = Metrics()
    async with contextlib.AsyncExitStack() as stack:
        upstream = _open_upstream(settings, metrics)
        stack.push_async_callback(upstream.close)
        registry = model_registry(settings)
        nodes = node_parts(settings, registry, metrics, log)
        if nodes is not None:
            stack.push_async_callback(nodes.upstream.close)
        watch = PeerWatch(
            upstream,
            refresh_s=settings.peers_refresh_s,
            timeout_s=settings.timeout_quote_s,
            on_refresh=_Refreshed(metrics, log, nodes),
        )
        ledgers, lnd = await _prepare(stack, upstream, watch, nodes, settings, metrics, log)
        routing = routing_parts(
            settings, peers=watch, nodes=nodes, registry=registry, metrics=metrics, log=log
        )
        selling = await _open(stack, open_selling(settings, ledgers, metrics, log))
        try:
            shared = shared_answers(settings, ledgers, stack, metrics, log)
        except LedgerError as error:
            raise StartError(str(error)) from error
        gateway = assemble(
            settings,
            upstream=upstream if nodes is None else Upstreams(upstream, nodes.upstream),
            watch=watch,
            nodes=nodes,
            routing=routing,
            selling=selling,
            shared=shared,
            ledgers=ledgers,
            metrics=metrics,
            log=log,
        )
        try:
            await remember_peers(ledgers, gateway.standings)
        except LedgerError as error:
            raise StartError(str(error)) from error
        stop = asyncio.Event()
        _on_signals(stop, gateway.jobs)
        works = [
            watch.run(),
            watch_loop(metrics.loop_lag),
            watch_books(ledgers, gateway.limits.budgets_for(""), metrics),
        ]
        if nodes is not None:
            works.append(nodes.watch.run())
        works.extend(work() for work in selling.works)
        if lnd is not None:
            lnd_watch = LndWatch(
                lnd,
                ledgers,
                daemon_node_id=lambda: watch.info.node_id if watch.info else "",
                standings=gateway.standings,
                interval_s=settings.reconcile_interval_s,
                metrics=metrics,
                log=log,
            )
            works.append(lnd_watch.run())
            gateway.accounting.on_settled = lnd_watch.settled
            gateway.health.lnd_report = lnd_watch.report
        for work in works:
            await stack.enter_async_context(_running(work, log))
        port = await stack.enter_async_context(
            _listening(gateway.app, settings.http_addr, settings)
        )
        if gateway.metrics_app is not None:
            await stack.enter_async_context(
                _listening(gateway.metrics_app, settings.metrics_addr, settings)
            )
        _greet(routing.catalogs.catalog, settings, banner, port)
        # What start-up made stays: the collector need not look at it again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*_GC_THRESHOLDS)
        gc.enable()
        await stop.wait()
        await _wind_down(gateway, settings, log)
    log.info("stopped")


async def _open(
    stack: contextlib.AsyncExitStack, parts: contextlib.AbstractAsyncContextManager[T]
) -> T:
    """Open something for as long as the gateway runs.

    Raises:
        StartError: it cannot be opened.
    """
    try:
        return await stack.enter_async_context(parts)
    except LedgerError as error:
        raise StartError(str(error)) from error


async def _prepare(
    stack: contextlib.AsyncExitStack,
    upstream: LcpdUpstream,
    watch: PeerWatch,
    nodes: NodeParts | None,
    settings: Settings,
    metrics: Metrics,
    log: FilteringBoundLogger,
) -> "tuple[Ledgers, Lnd | None]":
    """Find daemon and nodes and open the journal, at the same time: each mostly waits for somebody else."""
    opening = asyncio.create_task(stack.enter_async_context(open_ledgers(settings, metrics, log)))
    finding = asyncio.create_task(_preflight(upstream, watch, settings))
    together = [opening, finding]
    if nodes is not None:
        # A node that is away is no reason not to start: it is taken in when it comes.
        together.append(asyncio.create_task(nodes.watch.refresh()))
    await asyncio.wait(together)
    try:
        try:
            await finding
        except _DaemonAway as error:
            if nodes is None or not nodes.watch.providers:
                raise
            log.warning("starting with nodes alone", problem=str(error))
        return await opening, await stack.enter_async_context(open_lnd(settings))
    except LedgerError as error:
        raise StartError(str(error)) from error


async def _wind_down(gateway: Gateway, settings: Settings, log: FilteringBoundLogger) -> None:
    log.info("shutting down", jobs_in_flight=len(gateway.jobs))
    ended = await gateway.jobs.drain(
        settings.shutdown_grace_s,
        lambda: gateway.service.interrupt_all(Reason.SHUTTING_DOWN),
    )
    if ended:
        log.warning("purchases were ended before they were done", purchases=ended)
    await gateway.service.wait_idle()
    await gateway.background.close()


def _on_signals(stop: asyncio.Event, jobs: Jobs) -> None:
    def stopped() -> None:
        if stop.is_set():
            jobs.hurry()
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped)


async def _preflight(upstream: LcpdUpstream, watch: PeerWatch, settings: Settings) -> None:
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
            await upstream.local_info(left_s)
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
    await watch.refresh()


@contextlib.asynccontextmanager
async def _running(
    work: Coroutine[Any, Any, None], log: FilteringBoundLogger
) -> AsyncIterator[None]:
    def ended(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            # None of them is meant to end: whatever it was, somebody must hear of it.
            log.error(
                "a background task ended", task=getattr(work, "__qualname__", ""), exc_info=error
            )

    task = asyncio.create_task(work)
    task.add_done_callback(ended)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


@contextlib.asynccontextmanager
async def _listening(app: web.Application, address: str, settings: Settings) -> AsyncIterator[int]:
    """Serve on an address for the block; gives the port, which may have been left to the system."""
    runner = GatewayRunner(
        app,
        protocol_options={
            "head_timeout_s": settings.request_read_timeout_s,
            "keepalive_timeout": settings.keepalive_timeout_s,
            # How long the rest of a refused body is read, so that its sender can read the answer.
            "lingering_time": 2.0,
            "max_line_size": settings.max_header_bytes,
            "max_field_size": settings.max_header_bytes,
            # The request's bytes go on as they came; compressed ones are refused, not unpacked.
            "auto_decompress": False,
            "access_log": None,
            "logger": get_logger("http"),
            "on_refused": lambda _status: None,
        },
    )
    await runner.setup()
    try:
        where = parse_host_port(address)
        try:
            await web.TCPSite(runner, where.host or None, where.port, backlog=1024).start()
        except OSError as error:
            raise StartError(f"cannot listen on {address}: {error.strerror or error}") from error
        port: int = runner.addresses[0][1]
        yield port
    finally:
        await runner.cleanup()


def _greet(catalog: Catalog, settings: Settings, banner: Sequence[str], port: int) -> None:
    host = parse_host_port(settings.http_addr).host or "0.0.0.0"  # noqa: S104 - says what was asked for
    host = f"[{host}]" if ":" in host else host
    listening = (
        f"lcp-gateway {__version__} listening on http://{host}:{port} ({len(catalog.providers)} peers, "
        f"{len(catalog.models())} models, daemon {settings.lcpd_grpc_addr})"
    )
    sys.stdout.write("\n".join([*banner, listening]) + "\n")
    sys.stdout.flush()
