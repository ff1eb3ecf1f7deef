"""``lcp-gateway serve``: the gateway, with a node beside it where that is asked for."""

import contextlib
import dataclasses
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType, TracebackType

import typer

from lcp_gateway.cli.options import GroupedHelp, load_settings, setting_flags
from lcp_gateway.cli.output import USAGE_ERROR, CommandFailed
from lcp_gateway.cli.serve.embedded import NO_REAL_MONEY, EmbeddedNode
from lcp_gateway.cli.serve.node_process import NodeOptions
from lcp_gateway.cli.service.instances import background_files, is_background
from lcp_gateway.config import Loaded, Settings, load, specs, spending_cautions, written

# With an embedded node these are not what was configured, but where that node is.
_OF_THE_DAEMON = (
    "lcpd_grpc_addr",
    "lcpd_tls",
    "lcpd_tls_ca",
    "lcpd_tls_cert",
    "lcpd_tls_key",
    "lcpd_tls_server_name",
    "lcpd_metadata",
)


def settings_reader(
    settings: Settings, flags: Mapping[str, object], config: Path | None
) -> Callable[[], Loaded]:
    """Give what reads the same flags, the environment and the file as it is then; ``settings`` are those in force.

    It raises ``ConfigError`` where they cannot be used.
    """
    kept = {name: getattr(settings, name) for name in _OF_THE_DAEMON} if settings.embedded else {}

    def read() -> Loaded:
        loaded = load(flags=flags, environ=os.environ, config_path=config)
        return dataclasses.replace(loaded, settings=loaded.settings.model_copy(update=kept))

    return read


def log_settings(loaded: Loaded) -> None:
    """Log a line for each setting, if that is wanted; to be called before the gateway runs."""
    settings = loaded.settings
    if not settings.verbose:
        return
    from lcp_gateway.telemetry.logs import configure_logging, get_logger  # noqa: PLC0415 - only this needs them so early

    # The gateway will do the same: its lines and these look alike.
    configure_logging("debug", settings.log_format)
    log = get_logger("settings")
    for name, spec in specs().items():
        value = written(spec.shown(getattr(settings, name)))
        log.debug("setting", name=name, value=value, source=str(loaded.source_of(name)))


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command(cls=GroupedHelp)
@setting_flags()
def serve(config: Path | None, flags: Mapping[str, object]) -> int:
    """Run the gateway until it is told to stop."""
    # It means that the settings are to be read anew: until somebody can, it must not end us.
    signal.signal(signal.SIGHUP, lambda *_: None)
    background = is_background()
    loaded = load_settings(flags, config)
    with contextlib.ExitStack() as stack:
        if background:
            stack.enter_context(background_files(loaded.settings))
        _load_structlog_without_rich()
        from lcp_gateway.telemetry.log_queue import queued_standard_streams  # noqa: PLC0415 - loads structlog

        # Before the node is started, which writes to the same standard error.
        streams = stack.enter_context(queued_standard_streams())
        settings = stack.enter_context(daemon_for(loaded.settings))
        # Imported after the node's process was started, so that both load at the same time.
        from lcp_gateway.app import run  # noqa: PLC0415 - see above

        log_settings(loaded)
        banner = [NO_REAL_MONEY] if settings.embedded else []
        warnings = [*loaded.warnings, *spending_cautions(settings)]
        return run(
            settings,
            banner=banner,
            loaded_warnings=warnings,
            read_settings=settings_reader(settings, flags, config),
            lost_log_lines=streams.lost_lines,
        )


@contextlib.contextmanager
def daemon_for(settings: Settings) -> Iterator[Settings]:
    """Give settings whose daemon is there for the block: the embedded node's address where that is asked for.

    Raises:
        CommandFailed: the node is described wrongly.
    """
    if not settings.embedded:
        yield settings
        return
    options = node_options(settings)
    check_node(settings)
    leaver = _SigtermHandler()
    before = signal.signal(signal.SIGTERM, leaver)
    try:
        with EmbeddedNode(options, tell=_log) as node, leaver:
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


def check_node(settings: Settings) -> None:
    """Say what is wrong with an embedded node's description here, where it is one line and not a silent daemon.

    Raises:
        CommandFailed: something is.
    """
    if not settings.embedded:
        return
    from lcp_gateway.node.config import ConfigError  # noqa: PLC0415 - needed for an embedded node only

    try:
        node_options(settings).node_config()
    except ConfigError as error:
        raise CommandFailed(f"node: {error}", exit_code=USAGE_ERROR) from None


class _SigtermHandler:
    """Handles SIGTERM before the gateway's own handlers are there: it ends the ``with`` block, never what is around it.

    A signal while the node is being started or ended waits, so that no process and no socket is forgotten.
    """

    def __init__(self) -> None:
        self._inside = False
        self._asked = 0

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        self._asked = number
        if self._inside:
            raise SystemExit(128 + number)

    def __enter__(self) -> None:
        self._inside = True
        if self._asked:
            raise SystemExit(128 + self._asked)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._inside = False


def _load_structlog_without_rich() -> None:
    """Spare the start 0.15 s and 4 MiB: structlog loads rich, where it finds it, for tracebacks that nobody asks for."""
    hidden = sys.modules.get("rich")
    if hidden is None and "structlog" not in sys.modules:
        sys.modules["rich"] = None  # type: ignore[assignment]  # an import then fails, which structlog expects
        try:
            import structlog  # noqa: F401, PLC0415 - loaded for those who come after
        finally:
            del sys.modules["rich"]


def _log(message: str) -> None:
    from lcp_gateway.telemetry.logs import get_logger  # noqa: PLC0415 - needed when a node died, if ever

    get_logger("embedded").warning(message)
