"""The program that is a node over lnd and nothing else: it serves LCPDService until a signal."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any, Final

from lcp_gateway.__about__ import __version__
from lcp_gateway.cli.node.assembly import running_node, server_options, wait_for_lnd
from lcp_gateway.cli.node.local_models import local_models_for
from lcp_gateway.cli.node.logs import NodeEvents, bug_logger
from lcp_gateway.cli.output import CommandFailed
from lcp_gateway.node.rpc.server import CannotServe, RpcServer
from lcp_gateway.node.runtime.node import LcpNode
from lcp_gateway.node.settings.model import NodeSettings
from lcp_gateway.supervisor.systemd import Notifier
from lcp_gateway.telemetry.logs import LogFormat, configure_logging, get_logger
from lcp_gateway.telemetry.node_metrics import NodeMetrics

GRACE_S: Final = 60.0
"""How long calls and sales under way may take to end once the node is told to stop; a second signal ends the wait."""

_FAILING_S: Final = 2.0
"""How long a client may take to read that its call has failed."""


def run_node(settings: NodeSettings, store: Path, log_format: LogFormat = "auto") -> None:
    """Run a node until SIGTERM or SIGINT.

    Raises:
        CommandFailed: it cannot start.
    """
    configure_logging(settings.log_level, log_format)
    with local_models_for(settings, tell=get_logger("node").warning) as using_models:
        if sys.platform == "win32":
            asyncio.run(_run(using_models, store))
        else:
            import uvloop  # noqa: PLC0415 - not there on Windows

            uvloop.run(_run(using_models, store))


async def _run(settings: NodeSettings, store: Path) -> None:
    log = get_logger("node")
    notifier = Notifier.from_environ(os.environ)
    options = server_options(settings.grpc)
    stop, hurry = _on_signals()
    if not await _before(stop, wait_for_lnd(settings)):
        return
    metrics = NodeMetrics(models=settings.sell.sold)
    metrics.build_info(__version__)
    async with (
        running_node(settings, store, observer=metrics, log=NodeEvents(metrics, log)) as node,
        _metrics_page(settings.metrics.listen, metrics, node),
    ):
        server = RpcServer(node, options, on_bug=bug_logger(log))
        try:
            address = await server.start()
        except CannotServe as error:
            raise CommandFailed(f"node: {error}") from None
        sys.stdout.write(
            f"node ready on {address} - lnd {settings.lnd.grpc_addr}, LCP version {options.protocol.value}\n"
        )
        sys.stdout.flush()
        notifier.ready(f"serving on {address}")
        log.info("node started", address=address, lnd=settings.lnd.grpc_addr, models=len(settings.sell.sold))
        watching = asyncio.create_task(notifier.watch(lambda: True))
        try:
            await stop.wait()
            notifier.stopping()
            log.info("shutting down")
            await _end_calls(server, node, hurry)
        finally:
            watching.cancel()
    log.info("stopped")


def _on_signals() -> tuple[asyncio.Event, asyncio.Event]:
    """Return two events: the first signal to stop, and the second."""
    stop, hurry = asyncio.Event(), asyncio.Event()

    def signalled() -> None:
        (hurry if stop.is_set() else stop).set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signalled)
    return stop, hurry


async def _end_calls(server: RpcServer, node: LcpNode, hurry: asyncio.Event) -> None:
    """Let calls and sales end. Calls that have not in time fail, without a cancel of their jobs: the next run goes on with them."""
    stopping = asyncio.create_task(server.stop(GRACE_S + _FAILING_S))
    draining = asyncio.create_task(node.drain())
    await _before(hurry, _wait(GRACE_S, stopping, draining))
    draining.cancel()
    node.fail_callers()
    await _wait(_FAILING_S, stopping)
    await server.stop(0)
    await asyncio.gather(stopping, draining, return_exceptions=True)


async def _wait(timeout_s: float, *tasks: asyncio.Task[None]) -> None:
    await asyncio.wait(tasks, timeout=timeout_s)


async def _before(event: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Run ``work`` until it ends or the event comes, which cancels it; return whether it ended."""
    running, coming = asyncio.create_task(work), asyncio.create_task(event.wait())
    try:
        await asyncio.wait([running, coming], return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
        return running.done()
    finally:
        for task in (running, coming):
            task.cancel()
        await asyncio.gather(running, coming, return_exceptions=True)


@contextlib.asynccontextmanager
async def _metrics_page(listen: str, metrics: NodeMetrics, node: LcpNode) -> AsyncIterator[None]:
    """Serve the node's metrics for the block, where the settings name an address."""
    if not listen:
        yield
        return
    from lcp_gateway.http.metrics_page import serve_node_metrics  # noqa: PLC0415 - loads aiohttp
    from lcp_gateway.http.server.listener import CannotListen  # noqa: PLC0415 - as above

    host, _, port = listen.rpartition(":")
    try:
        async with serve_node_metrics(host, int(port), metrics, node.figures):
            yield
    except CannotListen as error:
        raise CommandFailed(f"metrics: {error}") from None
