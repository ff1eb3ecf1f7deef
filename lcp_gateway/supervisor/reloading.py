"""The log lines of a reload: ``lcp-gateway reload`` reads them, so they are written at any level, once for a gateway."""

from collections.abc import Sequence

from structlog.typing import FilteringBoundLogger

from lcp_gateway.supervisor.messages import ReloadResult
from lcp_gateway.telemetry.logs import log_always


def log_reload(log: FilteringBoundLogger, result: ReloadResult) -> None:
    """Log that settings are in force."""
    for warning in result.warnings:
        log.warning(warning)
    # Names alone: a value may be a secret.
    log_always(
        log, "configuration reloaded", changed=sorted(result.changed), needs_restart=sorted(result.needs_restart)
    )


def log_refusal(log: FilteringBoundLogger, problems: Sequence[str]) -> None:
    """Log that nothing has changed, and why."""
    log.error("configuration not reloaded", problems=list(problems))
