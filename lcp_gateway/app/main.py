"""The gateway's process: start, signals, reloads, and the graceful end."""

import asyncio
import contextlib
import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import uvloop
from structlog.typing import FilteringBoundLogger

from lcp_gateway.__about__ import __version__
from lcp_gateway.app.background_tasks import BackgroundTask, BackgroundTasks
from lcp_gateway.app.gateway import Gateway
from lcp_gateway.app.reload import Reload
from lcp_gateway.app.serving import Serving, log_level, open_serving
from lcp_gateway.app.startup import LocalDaemon, StartError, open_runtime
from lcp_gateway.app.wiring import WiringError
from lcp_gateway.app.wiring.journal import journal_tasks, load_peer_models, load_trust
from lcp_gateway.config import Loaded, Settings, parse_host_port, serves_console
from lcp_gateway.http.server.listener import CannotListen
from lcp_gateway.http.server.tls import BadCertificate
from lcp_gateway.purchase.purchase import InterruptReason
from lcp_gateway.supervisor.link import WorkerLink
from lcp_gateway.supervisor.messages import Message, Ready, ReloadResult
from lcp_gateway.supervisor.systemd import Notifier
from lcp_gateway.telemetry.event_loop import SlowCallbacks, watch_loop
from lcp_gateway.telemetry.logs import configure_logging, get_logger
from lcp_gateway.telemetry.merged_metrics import Snapshot
from lcp_gateway.telemetry.metrics import Metrics

# A request makes thousands of short-lived objects and hardly a cycle among them: the garbage collector runs less often.
_GC_THRESHOLDS = (20_000, 20, 20)
_STANDARD_STREAMS = (0, 1, 2)
_CALLED_AS = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}  # noqa: S104 - for the message


def run(
    settings: Settings,
    *,
    banner: Sequence[str],
    loaded_warnings: Sequence[str],
    read_settings: Callable[[], Loaded],
    lost_log_lines: Callable[[], int] = lambda: 0,
    link: WorkerLink | None = None,
    local_daemon: LocalDaemon | None = None,
) -> int:
    """Run the gateway until SIGTERM or SIGINT; return the exit code.

    ``read_settings`` is called at each SIGHUP; it raises ``ConfigError`` where the settings cannot be used.
    ``lost_log_lines`` returns how many lines for standard output and error were lost so far. ``link`` leads to the supervisor,
    where this process is one of several workers. ``local_daemon`` runs in this process, in place of the daemon of the settings.
    """
    # The start makes hardly any garbage; the garbage collector is turned on again below.
    gc.disable()
    configure_logging(log_level(settings), settings.log_format)
    log = get_logger("gateway")
    for warning in loaded_warnings:
        log.warning(warning)
    notifier = Notifier.from_environ(os.environ)
    try:
        uvloop.run(_serve(settings, banner, read_settings, lost_log_lines, notifier, log, link, local_daemon))
    except (StartError, CannotListen, BadCertificate) as error:
        sys.stderr.write(f"lcp-gateway: {error}\n")
        return 1
    finally:
        # The process ends: another collection would take seconds after a busy day.
        gc.disable()
        gc.freeze()
    return 0


async def _serve(
    settings: Settings,
    banner: Sequence[str],
    read_settings: Callable[[], Loaded],
    lost_log_lines: Callable[[], int],
    notifier: Notifier,
    log: FilteringBoundLogger,
    link: WorkerLink | None,
    local_daemon: LocalDaemon | None,
) -> None:
    metrics = Metrics()

    def record_pulse(lag_s: float) -> None:
        metrics.loop_lag(lag_s)
        metrics.log_lines_lost(lost_log_lines())

    stop, reload_wanted = asyncio.Event(), asyncio.Event()
    async with contextlib.AsyncExitStack() as stack:
        if link is None:
            stack.enter_context(_hang_ups(stop, reload_wanted))
        if settings.slow_callback_ms:
            limit_s = settings.slow_callback_ms / 1000
            stack.enter_context(SlowCallbacks(limit_s, partial(_log_slow_callback, log)))
        tasks = BackgroundTasks(log, on_restart=metrics.task_restarted)
        runtime, background = await open_runtime(settings, stack, metrics, tasks, log, link, local_daemon)
        try:
            gateway = Gateway(settings, runtime)
            await load_trust(runtime.journal, runtime.trust)
            await load_peer_models(runtime.journal, runtime.peer_models)
            await runtime.shared_trust.load()
        except WiringError as error:
            raise StartError(str(error)) from error
        stopped = _on_stop(stop, gateway)
        background += [
            BackgroundTask("loop", lambda: watch_loop(record_pulse)),
            *journal_tasks(runtime.journal, gateway.budgets, runtime.trust, metrics, log),
            BackgroundTask("events", gateway.events.run),
            *gateway.stored.tasks(),
        ]
        if notifier.has_watchdog:
            background.append(BackgroundTask("watchdog", lambda: notifier.watch(lambda: True)))
        for task in background:
            await stack.enter_async_context(tasks.running(task))
        serving = await stack.enter_async_context(open_serving(settings, gateway, link))
        reload = Reload(
            settings, wanted=reload_wanted, read=read_settings, renew=serving.renew, notifier=notifier, log=log
        )
        greeting = _greeting(gateway, serving, settings)
        if link is None:
            sys.stdout.write("\n".join([*banner, *greeting]) + "\n")
            sys.stdout.flush()
            notifier.ready(_status(gateway))
            steering = BackgroundTask("reload", reload.run)
        else:
            steering = _steered_by(link, reload, gateway, serving, stopped)
        # The objects of the start live as long as the process: the garbage collector need not scan them again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*_GC_THRESHOLDS)
        gc.enable()
        async with tasks.running(steering):
            if link is not None:
                link.served(Ready(_status(gateway), greeting))
            await stop.wait()
        notifier.stopping()
        await _wind_down(gateway, reload.settings, log)
    log.info("stopped")


async def _wind_down(gateway: Gateway, settings: Settings, log: FilteringBoundLogger) -> None:
    runtime = gateway.runtime
    log.info("shutting down", jobs_in_flight=len(runtime.jobs))
    # They finish what they work on, and dial in again once the next gateway is up.
    runtime.dialin.hub.drain()
    ended = await runtime.jobs.drain(
        settings.shutdown_grace_s, lambda: gateway.service.interrupt_all(InterruptReason.SHUTTING_DOWN)
    )
    if ended:
        log.warning("purchases were ended before they were done", purchases=ended)
    await gateway.service.wait_idle()
    await runtime.dialin.hub.close()
    await runtime.short_tasks.close()


def _log_slow_callback(log: FilteringBoundLogger, held_s: float, frames: list[str]) -> None:
    log.warning("the event loop was held up", held_ms=round(held_s * 1000), frames=frames)


def _steered_by(
    link: WorkerLink, reload: Reload, gateway: Gateway, serving: Serving, stopped: Callable[[], None]
) -> BackgroundTask:
    """Return the task that does what the supervisor says. Without a supervisor a worker ends, and listens no longer."""

    async def snapshot(_content: object) -> Snapshot:
        return await gateway.runtime.metrics.families()

    async def take(loaded: Loaded) -> ReloadResult:
        return await reload.take(loaded)

    async def stop(_content: object) -> None:
        stopped()

    def orphaned() -> None:
        get_logger("gateway").error("the supervisor is gone: this worker ends once its jobs have")
        # Another gateway may start on the same address meanwhile.
        serving.stop_listening()
        stopped()

    link.handle(Message.SNAPSHOT, snapshot)
    link.handle(Message.RELOAD, take)
    link.handle(Message.STOP, stop)
    link.handle(Message.ACCEPT_FOR, serving.accept_for)
    link.handle(Message.ACCEPT_NO_MORE_FOR, serving.accept_no_more_for)
    return BackgroundTask("supervisor", lambda: link.run(orphaned))


def _on_stop(stop: asyncio.Event, gateway: Gateway) -> Callable[[], None]:
    """Stop at SIGTERM and SIGINT, and when the returned function is called; a second time: at once."""

    def stopped() -> None:
        if stop.is_set():
            gateway.runtime.jobs.hurry()
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped)
    return stopped


@contextlib.contextmanager
def _hang_ups(stop: asyncio.Event, reload_wanted: asyncio.Event) -> Iterator[None]:
    """Reload at SIGHUP, or stop if the gateway's terminal was closed. After the block SIGHUP is ignored."""
    terminal = next((number for number in _STANDARD_STREAMS if os.isatty(number)), None)

    def hung_up() -> None:
        if terminal is not None and not os.isatty(terminal):
            stop.set()
        else:
            reload_wanted.set()

    loop = asyncio.get_running_loop()
    # Not a handler of the loop, which would restore the default when it is closed: the signal would end the process.
    signal.signal(signal.SIGHUP, lambda *_: loop.call_soon_threadsafe(hung_up))
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)


def _greeting(gateway: Gateway, serving: Serving, settings: Settings) -> Sequence[str]:
    host = parse_host_port(settings.http_addr).host or "0.0.0.0"  # noqa: S104 - for the message
    host = f"[{host}]" if ":" in host else host
    listening = (
        f"lcp-gateway {__version__} listening on {serving.scheme}://{host}:{serving.port} "
        f"({_status(gateway)}, daemon {settings.lcpd_grpc_addr})"
    )
    # A gateway on all interfaces is reached at the loopback address.
    called = _CALLED_AS.get(host, host)
    usage = f"base URL for OpenAI clients: {serving.scheme}://{called}:{serving.port}/v1 (model auto)"
    if not serves_console(settings):
        return listening, usage
    return listening, usage, f"web console: {serving.scheme}://{called}:{serving.port}/console/"


def _status(gateway: Gateway) -> str:
    catalog = gateway.runtime.catalog.catalog
    return f"{len(catalog.providers)} peers, {len(catalog.models())} models"
