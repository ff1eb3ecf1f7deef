"""The metrics of traces: spans that went out and that were lost, and the trace that an observed time belongs to."""

from collections.abc import Callable

from lcp_gateway.telemetry.metric_families import Families


class SpanMetrics:
    """The part of ``Metrics`` that counts spans. No method raises; those that count may be called from any thread.

    ``exemplar`` gives the labels of the present trace, or None; they stand beside the times that are observed for those
    who read OpenMetrics.
    """

    def __init__(self, families: Families) -> None:
        self.exemplar: Callable[[], dict[str, str] | None] = lambda: None
        self._spans_exported = families.counters["trace_spans_exported_total"].inc
        self._spans_lost = families.counters["trace_spans_lost_total"].inc

    def spans_exported(self, count: int) -> None:
        """Count spans that a collector took."""
        self._spans_exported(count)

    def spans_lost(self, count: int) -> None:
        """Count spans that no collector will get."""
        self._spans_lost(count)
