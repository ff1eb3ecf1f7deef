"""Traces kept in memory: the real tracing, without a collector."""

from dataclasses import dataclass, field

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

from lcp_gateway.purchase.tracing import error_type
from lcp_gateway.telemetry.tracing import OtelTracing


@dataclass
class Kept:
    """Tracing whose spans the test inspects."""

    ratio: float = 1.0
    exporter: InMemorySpanExporter = field(default_factory=InMemorySpanExporter)

    def __post_init__(self) -> None:
        provider = TracerProvider(sampler=ParentBased(TraceIdRatioBased(self.ratio)), shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracing = OtelTracing(provider.get_tracer("test"), error_type)

    @property
    def spans(self) -> list[ReadableSpan]:
        return list(self.exporter.get_finished_spans())

    @property
    def names(self) -> list[str]:
        """In the order in which they ended."""
        return [span.name for span in self.spans]

    def __getitem__(self, name: str) -> ReadableSpan:
        (found,) = [span for span in self.spans if span.name == name]
        return found

    def everything(self) -> str:
        """Everything that would be exported, as text."""
        return "\n".join(span.to_json() for span in self.spans)
