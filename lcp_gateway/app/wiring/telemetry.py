"""Traces as the settings say, and what is counted and logged of the peers."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from structlog.typing import FilteringBoundLogger

from lcp_gateway.__about__ import __version__
from lcp_gateway.app.wiring import WiringError
from lcp_gateway.config import Settings, may_use_proxy
from lcp_gateway.purchase.tracing import NO_TRACING, Tracing, error_type
from lcp_gateway.routing.catalog import Catalog
from lcp_gateway.telemetry.metrics import Metrics
from lcp_gateway.upstreams.openai.node_watch import NodeWatch


@asynccontextmanager
async def open_tracing(
    settings: Settings, metrics: Metrics, log: FilteringBoundLogger
) -> AsyncIterator[Tracing]:
    """Trace for the block, at whose end what was traced goes out.

    Raises:
        NoTraces: the extra is missing, or a variable of OpenTelemetry's own makes no sense.
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
            counts=ExportCounts(
                on_exported=metrics.spans_exported, on_lost=metrics.spans_lost, log=log
            ),
        )
    except ImportError as error:
        raise WiringError(
            "otlp_endpoint needs the extra: pip install 'lcp-gateway[tracing]'"
        ) from error
    except ValueError as error:
        raise WiringError(
            f"the environment's settings of OpenTelemetry (OTEL_…) are invalid: {error}"
        ) from error
    tracing = OtelTracing(export.tracer, error_type)
    metrics.exemplar = tracing.exemplar
    try:
        yield tracing
    finally:
        await export.close()


class PeersObserver:
    """Counts the peers and models of each refresh, and logs whether the daemon can be used."""

    def __init__(self, metrics: Metrics, log: FilteringBoundLogger, nodes: NodeWatch) -> None:
        self._metrics = metrics
        self._log = log
        self._nodes = nodes
        self._was_up: bool | None = None
        self._counted: tuple[object, object, int] = (None, None, 0)

    def _count(self, catalog: Catalog) -> None:
        """Count the models if they have changed: there may be thousands."""
        peers, nodes = catalog.providers, self._nodes.providers
        if self._counted[0] is not peers or self._counted[1] is not nodes:
            models = catalog.models()
            of_nodes: Mapping[str, object] = Catalog(nodes, 0.0).models()
            self._metrics.set_known({*models, *of_nodes}, [provider.peer_id for provider in peers])
            self._counted = (peers, nodes, len(models))
        self._metrics.snapshot(len(peers), self._counted[2])

    def __call__(self, catalog: Catalog | None) -> None:
        """Record a refresh; without a catalog the daemon could not be asked."""
        up = catalog is not None
        self._metrics.daemon_up(up)
        if catalog is not None:
            self._count(catalog)
        if up is not self._was_up and (self._was_up is not None or not up):
            if up:
                self._log.info("the daemon is back")
            else:
                self._log.warning("the daemon cannot be used")
        self._was_up = up
