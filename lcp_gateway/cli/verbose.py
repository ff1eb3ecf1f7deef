"""What ``verbose`` tells at the start: every setting in force and where it came from, without the secrets."""

from lcp_gateway.config import Loaded, specs, written


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
