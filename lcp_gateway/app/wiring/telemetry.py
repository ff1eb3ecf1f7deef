"""Traces as the settings say."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from structlog.typing import FilteringBoundLogger

from lcp_gateway.__about__ import __version__
from lcp_gateway.app.wiring import WiringError
from lcp_gateway.config import Settings, may_use_proxy
from lcp_gateway.purchase.tracing import NO_TRACING, Tracing, error_type
from lcp_gateway.telemetry.metrics import Metrics


@asynccontextmanager
async def open_tracing(settings: Settings, metrics: Metrics, log: FilteringBoundLogger) -> AsyncIterator[Tracing]:
    """Trace for the block, at whose end all spans are exported. Without a collector OpenTelemetry is not imported.

    Raises:
        WiringError: the extra is missing, or a variable of OpenTelemetry's own is invalid.
    """
    if not settings.otlp_endpoint:
        yield NO_TRACING
        return
    try:
        from lcp_gateway.telemetry.trace_export import ExportCounts, TraceExport  # noqa: PLC0415 - an optional extra
        from lcp_gateway.telemetry.tracing import OtelTracing  # noqa: PLC0415 - as above

        export = TraceExport(
            settings.otlp_endpoint,
            headers=settings.otlp_headers,
            ratio=settings.trace_ratio,
            version=__version__,
            proxy=may_use_proxy(settings, settings.otlp_endpoint),
            counts=ExportCounts(on_exported=metrics.spans_exported, on_lost=metrics.spans_lost, log=log),
        )
    except ImportError as error:
        raise WiringError("otlp_endpoint needs the extra: pip install 'lcp-gateway[tracing]'") from error
    except ValueError as error:
        raise WiringError(f"the environment's settings of OpenTelemetry (OTEL_…) are invalid: {error}") from error
    tracing = OtelTracing(export.tracer, error_type)
    metrics.exemplar = tracing.exemplar
    try:
        yield tracing
    finally:
        await export.close()
