"""The composition root: makes the parts from the settings, wires them, and runs them until told to stop."""

import asyncio
import contextlib
import gc
import signal
import sys
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

import uvloop
from aiohttp import web
from structlog.typing import FilteringBoundLogger

from lcp_gateway.__about__ import __version__
from lcp_gateway.config import Settings, parse_host_port
from lcp_gateway.http.application import Routes, build_application, build_metrics_application
from lcp_gateway.http.auth import BearerKeys
from lcp_gateway.http.background import Background
from lcp_gateway.http.cors import Cors
from lcp_gateway.http.edge import Edge
from lcp_gateway.http.health import Health
from lcp_gateway.http.inference import Inference
from lcp_gateway.http.jobs import Jobs
from lcp_gateway.http.models import Models
from lcp_gateway.http.protocol import GatewayRunner
from lcp_gateway.purchase.errors import UpstreamError
from lcp_gateway.purchase.flow import Buyer, Unwritten
from lcp_gateway.purchase.guards import not_expired, price_limit
from lcp_gateway.routing.catalog import Catalog
from lcp_gateway.routing.choice import RoutingRules
from lcp_gateway.telemetry.logs import configure_logging, get_logger
from lcp_gateway.telemetry.loop import watch_loop
from lcp_gateway.telemetry.metrics import Metrics
from lcp_gateway.upstreams.channel import LcpdAddress, TlsFiles
from lcp_gateway.upstreams.lcpd import SUPPORTED_VERSIONS, LcpdUpstream, UnsupportedVersion
from lcp_gateway.upstreams.peers import PeerWatch

OPEN_PATHS = frozenset({"/healthz", "/readyz"})
_PREFLIGHT_PAUSE_S = 0.05
# What a client has for the rest of an answer after its provider's time is over.
_RELAY_SLACK_S = 5.0


class StartError(Exception):
    """The gateway cannot start; the message says why and what to do."""


def run(settings: Settings, *, banner: Sequence[str], loaded_warnings: Sequence[str]) -> int:
    """Run the gateway until SIGTERM or SIGINT; gives the exit code."""
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


def routing_rules(settings: Settings) -> RoutingRules:
    """What the settings say about who gets a task."""
    return RoutingRules(
        model_peers=settings.model_map,
        default_peer_id=settings.default_peer_id or None,
        allowlist=frozenset(settings.model_allowlist),
        allow_unlisted=settings.allow_unlisted_models,
    )


@dataclass(frozen=True, slots=True)
class _Gateway:
    """The parts that start, stop and are asked about."""

    app: web.Application
    metrics_app: web.Application | None
    jobs: Jobs
    background: Background
    upstream: LcpdUpstream
    watch: PeerWatch
    metrics: Metrics


def _build(settings: Settings, log: FilteringBoundLogger) -> _Gateway:
    metrics = Metrics()
    metrics.build_info(__version__, ",".join(str(v) for v in sorted(SUPPORTED_VERSIONS)))
    metrics.concurrency_limit(settings.max_concurrent_requests)

    upstream = _open_upstream(settings, metrics)
    watch = PeerWatch(
        upstream,
        refresh_s=settings.peers_refresh_s,
        timeout_s=settings.timeout_quote_s,
        on_refresh=_Refreshed(metrics, log),
    )
    rules = routing_rules(settings)
    jobs = Jobs(settings.max_concurrent_requests, metrics)
    background = Background(lambda error: log.info("cancel job failed", grpc_code=error.status))
    buyer = Buyer(
        upstream,
        journal=Unwritten(),
        guards=(price_limit(settings.max_price_msat), not_expired),
        quote_timeout_s=settings.timeout_quote_s,
        execute_timeout_s=settings.timeout_execute_s,
    )
    health = Health(catalog=watch, jobs=jobs, metrics=metrics, stale_s=settings.peers_stale_s)
    routes = Routes(
        inference=Inference(
            buyer=buyer,
            catalog=watch,
            rules=rules,
            jobs=jobs,
            background=background,
            metrics=metrics,
            read_timeout_s=settings.request_read_timeout_s,
            cancel_timeout_s=settings.cancel_timeout_s,
            heartbeat_s=settings.heartbeat_s,
            relay_limit_s=settings.timeout_execute_s + _RELAY_SLACK_S,
        ),
        models=Models(watch, rules),
        health=health,
    )
    edge = Edge(
        keys=BearerKeys(settings.api_keys),
        cors=Cors(settings.cors_origins),
        metrics=metrics,
        log=get_logger("request"),
        open_paths=OPEN_PATHS,
        max_header_bytes=settings.max_header_bytes,
    )
    apart = bool(settings.metrics_addr)
    return _Gateway(
        app=build_application(
            routes, edge, max_body_bytes=settings.max_body_bytes, with_metrics=not apart
        ),
        metrics_app=build_metrics_application(health) if apart else None,
        jobs=jobs,
        background=background,
        upstream=upstream,
        watch=watch,
        metrics=metrics,
    )


def _open_upstream(settings: Settings, metrics: Metrics) -> LcpdUpstream:
    try:
        return LcpdUpstream(
            lcpd_address(settings),
            stream_buffer_bytes=settings.stream_buffer_bytes,
            on_error=metrics.grpc_error,
        )
    except OSError as error:
        raise StartError(f"a TLS file for the daemon cannot be read: {error}") from error


class _Refreshed:
    """Counts and logs what a refresh of the peers brought."""

    def __init__(self, metrics: Metrics, log: FilteringBoundLogger) -> None:
        self._metrics = metrics
        self._log = log
        self._was_up: bool | None = None

    def __call__(self, catalog: Catalog | None) -> None:
        up = catalog is not None
        self._metrics.daemon_up(up)
        if catalog is not None:
            models = catalog.models()
            self._metrics.snapshot(len(catalog.providers), len(models))
            self._metrics.set_known(models, [p.peer_id for p in catalog.providers])
        if up is not self._was_up and (self._was_up is not None or not up):
            if up:
                self._log.info("the daemon is back")
            else:
                self._log.warning("the daemon cannot be used")
        self._was_up = up


async def _serve(settings: Settings, banner: Sequence[str], log: FilteringBoundLogger) -> None:
    stop = asyncio.Event()
    gateway = _build(settings, log)
    _on_signals(stop, gateway.jobs)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(gateway.upstream.close)
        if settings.preflight:
            await _preflight(gateway, settings)
        for work in (gateway.watch.run(), watch_loop(gateway.metrics.loop_lag)):
            await stack.enter_async_context(_running(work))
        port = await stack.enter_async_context(
            _listening(gateway.app, settings.http_addr, settings)
        )
        if gateway.metrics_app is not None:
            await stack.enter_async_context(
                _listening(gateway.metrics_app, settings.metrics_addr, settings)
            )
        _greet(gateway, settings, banner, port)
        # What start-up made stays: the collector need not look at it again.
        gc.collect()
        gc.freeze()
        await stop.wait()
        log.info("shutting down", jobs_in_flight=len(gateway.jobs))
        ended = await gateway.jobs.drain(settings.shutdown_grace_s)
        if ended:
            log.warning("jobs were ended before they were done", jobs=ended)
        await gateway.background.close()
    log.info("stopped")


def _on_signals(stop: asyncio.Event, jobs: Jobs) -> None:
    def stopped() -> None:
        if stop.is_set():
            jobs.hurry()
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped)


async def _preflight(gateway: _Gateway, settings: Settings) -> None:
    """Find the daemon before the port is bound.

    Raises:
        StartError: it did not answer in time, or speaks another version.
    """
    deadline = time.monotonic() + settings.preflight_timeout_s
    while True:
        left_s = max(deadline - time.monotonic(), _PREFLIGHT_PAUSE_S)
        try:
            await gateway.upstream.local_info(left_s)
        except UnsupportedVersion as error:
            raise StartError(error.message) from error
        except UpstreamError as error:
            if time.monotonic() + _PREFLIGHT_PAUSE_S < deadline:
                await asyncio.sleep(_PREFLIGHT_PAUSE_S)
                continue
            raise StartError(
                f"the daemon at {settings.lcpd_grpc_addr} did not answer within "
                f"{settings.preflight_timeout_s:g} s ({error.status}). Start lcpd-grpcd, set "
                "lcpd_grpc_addr, try --embedded, or start without asking it: --no-preflight"
            ) from error
        break
    await gateway.watch.refresh()


@contextlib.asynccontextmanager
async def _running(
    work: Coroutine[Any, Any, None],
) -> AsyncIterator[None]:
    task = asyncio.create_task(work)
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


def _greet(gateway: _Gateway, settings: Settings, banner: Sequence[str], port: int) -> None:
    catalog = gateway.watch.catalog
    host = parse_host_port(settings.http_addr).host or "0.0.0.0"  # noqa: S104 - says what was asked for
    host = f"[{host}]" if ":" in host else host
    listening = (
        f"lcp-gateway {__version__} listening on http://{host}:{port} ({len(catalog.providers)} peers, "
        f"{len(catalog.models())} models, daemon {settings.lcpd_grpc_addr})"
    )
    sys.stdout.write("\n".join([*banner, listening]) + "\n")
    sys.stdout.flush()
