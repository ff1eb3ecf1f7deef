"""``lcp-gateway serve``: the gateway, with a node beside it where that is asked for."""

import contextlib
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import NoReturn

import typer

from lcp_gateway.cli.embedded import NO_REAL_MONEY, EmbeddedNode
from lcp_gateway.cli.flags import load_or_complain, setting_flags
from lcp_gateway.cli.node_options import NodeOptions
from lcp_gateway.config import Settings

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
@setting_flags()
def serve(config: Path | None, flags: Mapping[str, object]) -> int:
    """Run the gateway until it is told to stop."""
    loaded = load_or_complain(flags, config)
    with daemon_for(loaded.settings) as settings:
        # Imported after the node's process was started, so that both load at the same time.
        from lcp_gateway.app import run  # noqa: PLC0415 - see above

        banner = [NO_REAL_MONEY] if settings.embedded else []
        return run(settings, banner=banner, loaded_warnings=loaded.warnings)


@contextlib.contextmanager
def daemon_for(settings: Settings) -> Iterator[Settings]:
    """Give settings whose daemon is there for the block: the embedded node's address where that is asked for."""
    if not settings.embedded:
        yield settings
        return
    # Until the gateway's own handlers are in place, a SIGTERM must not skip the clean-up either.
    before = signal.signal(signal.SIGTERM, _leave)
    try:
        with EmbeddedNode(node_options(settings), tell=_log) as node:
            yield settings.model_copy(
                update={
                    "lcpd_grpc_addr": node.address,
                    "lcpd_tls": False,
                    "lcpd_tls_ca": None,
                    "lcpd_tls_cert": None,
                    "lcpd_tls_key": None,
                    "lcpd_tls_server_name": "",
                    "lcpd_metadata": {},
                }
            )
    finally:
        signal.signal(signal.SIGTERM, before)


def node_options(settings: Settings, *, listen: str = "", protocol_version: int = 0) -> NodeOptions:
    """Pick out what the settings say about the node; ``listen`` is used where they name no address."""
    return NodeOptions(
        listen=settings.node_listen or listen,
        backend=settings.node_backend,
        backend_api_key=settings.node_backend_api_key,
        peers_file=str(settings.node_peers_file or ""),
        faults=settings.node_faults,
        events_file=str(settings.node_events_file or ""),
        tokens_per_second=settings.node_tokens_per_second,
        protocol_version=protocol_version,
    )


def _leave(number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def _log(message: str) -> None:
    from lcp_gateway.telemetry.logs import get_logger  # noqa: PLC0415 - needed when a node died, if ever

    get_logger("embedded").warning(message)
