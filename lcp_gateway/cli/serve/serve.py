"""``lcp-gateway serve``: the gateway, with a node beside it where that is asked for."""

import contextlib
import dataclasses
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from lcp_gateway.cli.options import GroupedHelp, command_app, load_settings, setting_flags
from lcp_gateway.cli.serve.embedded import banner_of, children_for
from lcp_gateway.cli.service.instances import background_files, is_background
from lcp_gateway.config import Loaded, Settings, load, specs, spending_warnings, worker_count, written

app = command_app()


@app.command(cls=GroupedHelp)
@setting_flags()
def serve(config: Path | None, flags: Mapping[str, object]) -> int:
    """Run the gateway until it is stopped."""
    # SIGHUP asks for the settings to be read again: it must not end the process before a handler can do so.
    signal.signal(signal.SIGHUP, lambda *_: None)
    background = is_background()
    loaded = load_settings(flags, config)
    if worker_count(loaded.settings) > 1:
        # Imported where it is used: one process needs none of it.
        from lcp_gateway.cli.serve.workers import serve_with_workers  # noqa: PLC0415 - see above

        return serve_with_workers(loaded, flags, config, background=background)
    with contextlib.ExitStack() as stack:
        if background:
            stack.enter_context(background_files(loaded.settings))
        load_structlog_without_rich()
        from lcp_gateway.telemetry.log_output import queued_standard_streams  # noqa: PLC0415 - loads structlog

        # Before the node is started, which writes to the same standard error.
        streams = stack.enter_context(queued_standard_streams())
        using_children = stack.enter_context(children_for(loaded.settings))
        if loaded.settings.lnd:
            using_children = _using_node_here(using_children)
        settings = using_children(loaded.settings)
        # Imported after the node's process was started, so that both load at the same time.
        from lcp_gateway.app import run  # noqa: PLC0415 - see above

        local_daemon = None
        if settings.lnd:
            from lcp_gateway.cli.serve.local_node import LocalNode  # noqa: PLC0415 - few gateways have a node

            local_daemon = stack.enter_context(LocalNode.of(settings))

        log_settings(loaded)
        warnings = [*loaded.warnings, *spending_warnings(settings)]
        return run(
            settings,
            banner=banner_of(settings),
            loaded_warnings=warnings,
            read_settings=settings_reader(using_children, flags, config),
            lost_log_lines=streams.lost_lines,
            local_daemon=local_daemon,
        )


def _using_node_here(change: Callable[[Settings], Settings]) -> Callable[[Settings], Settings]:
    """Have messages say that the daemon is in this process: no address leads to it."""
    return lambda read: change(read).model_copy(update={"lcpd_grpc_addr": "in this process"})


def log_settings(loaded: Loaded) -> None:
    """With ``verbose``, log a line for each setting and where it came from; secrets are not shown."""
    settings = loaded.settings
    if not settings.verbose:
        return
    from lcp_gateway.telemetry.logs import configure_logging, get_logger  # noqa: PLC0415 - before the gateway does so

    # As the gateway will configure it: its lines and these look alike.
    configure_logging("debug", settings.log_format)
    log = get_logger("settings")
    for name, spec in specs().items():
        value = written(spec.shown(getattr(settings, name)))
        log.debug("setting", name=name, value=value, source=str(loaded.source_of(name)))


def settings_reader(
    using_children: Callable[[Settings], Settings], flags: Mapping[str, object], config: Path | None
) -> Callable[[], Loaded]:
    """Return the function that reads the same flags, the environment and the file as they are then.

    It raises ``ConfigError`` where they cannot be used. ``using_children`` has settings use the processes that run here.
    """

    def read() -> Loaded:
        loaded = load(flags=flags, environ=os.environ, config_path=config)
        return dataclasses.replace(loaded, settings=using_children(loaded.settings))

    return read


def load_structlog_without_rich() -> None:
    """Save 0.15 s and 4 MiB at the start: structlog loads rich, where it finds it, for tracebacks that are not used."""
    hidden = sys.modules.get("rich")
    if hidden is None and "structlog" not in sys.modules:
        sys.modules["rich"] = None  # type: ignore[assignment]  # an import then fails, which structlog expects
        try:
            import structlog  # noqa: F401, PLC0415 - loaded for the modules that import it later
        finally:
            del sys.modules["rich"]
