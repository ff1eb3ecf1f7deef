"""The export of spans to a collector: a thread of its own, a bounded queue, and at most one log line a minute."""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import requests
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from structlog.typing import FilteringBoundLogger

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

SCOPE: Final = "lcp_gateway"
"""The name of the spans' instrumentation scope."""
_PATH: Final = "/v1/traces"
_QUEUE_SPANS: Final = 4096
# Small enough that the event loop hardly notices the thread that writes one out.
_BATCH_SPANS: Final = 128
_FLUSH_S: Final = 5.0
# Where the collector is away.
_FLUSH_AWAY_S: Final = 0.5
_LOG_EVERY_S: Final = 60.0


class ExportCounts:
    """Counts spans that are exported and lost, and logs losses: a line a minute at most.

    ``on_exported`` and ``on_lost`` get numbers of spans, from any thread.
    """

    def __init__(
        self,
        *,
        on_exported: Callable[[int], None],
        on_lost: Callable[[int], None],
        log: FilteringBoundLogger,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._on_exported = on_exported
        self._on_lost = on_lost
        self._log = log
        self._clock = clock
        # Each is written by one thread: the loop's counts those queued and dropped, the exporter's those taken and failed.
        self._queued = 0
        self._dropped = 0
        self._taken = 0
        self._failed = 0
        self._logged = 0
        self._logged_at = -_LOG_EVERY_S
        self.is_away = False

    def admit(self) -> bool:
        """Return whether the queue has room for one more span, and count it."""
        if self._queued - self._taken >= _QUEUE_SPANS:
            self._dropped += 1
            self._on_lost(1)
            return False
        self._queued += 1
        return True

    def took(self, spans: int) -> None:
        """Count spans that were taken out of the queue."""
        self._taken += spans

    def ended(self, spans: int, *, well: bool) -> None:
        """Count a batch by its outcome."""
        if well:
            self._on_exported(spans)
        else:
            self._on_lost(spans)
            self._failed += spans
        self.is_away = not well
        lost = self._failed + self._dropped
        if lost == self._logged or self._clock() - self._logged_at < _LOG_EVERY_S:
            return
        self._log.warning(
            "traces are lost",
            problem="the collector takes spans again" if well else "the collector takes no spans",
            spans=lost - self._logged,
        )
        self._logged_at, self._logged = self._clock(), lost


class _CountingExporter(SpanExporter):
    """An exporter whose every batch is counted."""

    def __init__(self, exporter: SpanExporter, counts: ExportCounts) -> None:
        self._exporter = exporter
        self._counts = counts

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self._counts.took(len(spans))
        result = SpanExportResult.FAILURE
        try:
            result = self._exporter.export(spans)
        finally:
            self._counts.ended(len(spans), well=result is SpanExportResult.SUCCESS)
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()


class _BoundedProcessor(BatchSpanProcessor):
    """A queue that drops spans when it is full, and never waits."""

    def __init__(self, exporter: SpanExporter, counts: ExportCounts) -> None:
        super().__init__(
            _CountingExporter(exporter, counts), max_queue_size=_QUEUE_SPANS, max_export_batch_size=_BATCH_SPANS
        )
        self._counts = counts

    def on_end(self, span: ReadableSpan) -> None:
        if span.context.trace_flags.sampled and self._counts.admit():
            super().on_end(span)


class TraceExport:
    """Exports spans to ``endpoint``, a collector's base URL, or that of its traces."""

    def __init__(
        self,
        endpoint: str,
        *,
        headers: Mapping[str, str],
        ratio: float,
        version: str,
        counts: ExportCounts,
        proxy: bool = False,
    ) -> None:
        """``ratio`` is the share of requests that are traced, unless they come with a trace.

        ``proxy`` says whether the proxy that the environment names may be used.

        Raises:
            ValueError: a variable of OpenTelemetry's own (``OTEL_…``) is not valid.
        """
        url = endpoint if endpoint.endswith(_PATH) else endpoint + _PATH
        session = requests.Session()
        session.trust_env = proxy
        exporter = OTLPSpanExporter(url, headers=dict(headers), session=session)
        self._counts = counts
        self._exporter = exporter
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(ratio)), resource=_resource(version), shutdown_on_exit=False
        )
        self._provider.add_span_processor(_BoundedProcessor(exporter, counts))
        self.tracer: Tracer = self._provider.get_tracer(SCOPE, version)
        # Losses are logged by the counts; the libraries would add a line for each try.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)

    async def close(self) -> None:
        """Export the spans in the queue, within a time limit."""
        closed = asyncio.Event()
        loop = asyncio.get_running_loop()

        def close() -> None:
            self._provider.shutdown()
            # After the time limit the loop may be gone.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(closed.set)

        # Not a thread of the loop's pool, which would be waited for.
        threading.Thread(target=close, name="close-traces", daemon=True).start()
        try:
            async with asyncio.timeout(_FLUSH_AWAY_S if self._counts.is_away else _FLUSH_S):
                await closed.wait()
        except TimeoutError:
            # Retries are given up.
            self._exporter.shutdown()  # type: ignore[no-untyped-call]


def _resource(version: str) -> Resource:
    """Return the resource of the spans; OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES take precedence."""
    from_environment = OTELResourceDetector().detect().attributes
    return Resource.create({"service.name": "lcp-gateway", "service.version": version, **from_environment})
