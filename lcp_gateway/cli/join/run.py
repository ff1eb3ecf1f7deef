"""Runs a node in the foreground: joins, serves, drains at SIGTERM, and keeps its state in a file."""

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

from structlog.typing import FilteringBoundLogger

from lcp_gateway.cli.join.options import JoinFiles
from lcp_gateway.cli.output import CommandFailed
from lcp_gateway.cli.service.instances import background_files, make_folder
from lcp_gateway.cli.service.processes import find_process
from lcp_gateway.config import Settings
from lcp_gateway.node_client.catalog import ModelCatalog
from lcp_gateway.node_client.options import JoinOptions
from lcp_gateway.node_client.reconnect import CannotJoin, Joiner
from lcp_gateway.node_client.statistics import Statistics
from lcp_gateway.purchase.money import Msat, format_sat
from lcp_gateway.supervisor.systemd import Notifier
from lcp_gateway.telemetry.logs import configure_logging, get_logger

_WRITE_EVERY_S = 1.0
_TOTALS_EVERY_S = 60.0


def run_node(settings: Settings, options: JoinOptions, files: JoinFiles, *, background: bool) -> int:
    """Run the node until SIGTERM or SIGINT; return the exit code.

    Raises:
        CommandFailed: the gateway refuses it.
    """
    import uvloop  # noqa: PLC0415 - only a node that runs needs it

    configure_logging("debug" if settings.verbose else settings.log_level, settings.log_format)
    with background_files(settings, files=files) if background else contextlib.nullcontext():
        try:
            uvloop.run(_run(options, files.status_file, get_logger("node")))
        except CannotJoin as error:
            raise CommandFailed(str(error)) from None
        except OSError as error:
            raise CommandFailed(f"{error.filename or files.status_file}: cannot be used: {error.strerror}") from None
    return 0


async def _run(options: JoinOptions, status_file: Path, log: FilteringBoundLogger) -> None:
    stop, notifier = asyncio.Event(), Notifier.from_environ(os.environ)
    loop = asyncio.get_running_loop()

    def stopped() -> None:
        if stop.is_set():
            # Asked twice: the running requests are not waited for.
            raise SystemExit(1)
        notifier.stopping()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped)
    statistics = Statistics(since=datetime.now(UTC), gateway=options.url)
    catalog = ModelCatalog(options.backends, options.found)
    async with _shown(statistics, status_file, log):
        notifier.ready(f"joining {options.url}")
        await Joiner(options, catalog, statistics, log).run(stop)
    log.info("stopped", **_totals(statistics))


@contextlib.asynccontextmanager
async def _shown(statistics: Statistics, path: Path, log: FilteringBoundLogger) -> AsyncIterator[None]:
    """Keep the state in its file while it changes, and log the totals of a busy node each minute."""
    make_folder(path.parent)
    ourselves = find_process(os.getpid())
    started = ourselves.started if ourselves is not None else ""
    changed = asyncio.Event()
    statistics.on_change = changed.set

    async def write() -> None:
        while True:
            _write(path, started, statistics)
            await changed.wait()
            changed.clear()
            await asyncio.sleep(_WRITE_EVERY_S)

    async def tell() -> None:
        told = 0
        while True:
            await asyncio.sleep(_TOTALS_EVERY_S)
            if statistics.requests != told:
                told = statistics.requests
                log.info("totals", **_totals(statistics))

    tasks = [asyncio.create_task(write()), asyncio.create_task(tell())]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        statistics.state = "stopped"
        _write(path, started, statistics)


def _totals(statistics: Statistics) -> dict[str, object]:
    return {
        "requests": statistics.requests,
        "failed": statistics.failed,
        "input_tokens": statistics.input_tokens,
        "output_tokens": statistics.output_tokens,
        "earned": format_sat(Msat(statistics.earned_msat)),
    }


def _write(path: Path, started: str, statistics: Statistics) -> None:
    """Write the state as a whole or not at all. A full disk is no reason for a node to end.

    ``started`` tells this process from another that gets its number later.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    document = {"pid": os.getpid(), "started": started, **statistics.document()}
    with contextlib.suppress(OSError):
        temporary.write_text(json.dumps(document), encoding="utf-8")
        temporary.replace(path)
