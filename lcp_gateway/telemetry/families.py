"""The table of metrics as live families in a registry."""

from collections.abc import Iterator
from math import isnan

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from lcp_gateway.telemetry.names import BY_NAME, Kind

ABSENT = float("nan")
"""The value of a gauge that has nothing to tell: it is left out of the exposition."""


class Families:
    """One counter, gauge or histogram for each row of the table, by its name without the prefix."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.counters: dict[str, Counter] = {}
        self.gauges: dict[str, Gauge] = {}
        self.histograms: dict[str, Histogram] = {}
        for spec in BY_NAME.values():
            name, text, labels = spec.full_name, spec.help, spec.labels
            if spec.kind is Kind.COUNTER:
                self.counters[spec.name] = Counter(name, text, labels, registry=registry)
            elif spec.kind is Kind.GAUGE:
                self.gauges[spec.name] = Gauge(name, text, labels, registry=registry)
            else:
                self.histograms[spec.name] = Histogram(
                    name, text, labels, buckets=spec.buckets, registry=registry
                )


class Exposed(Collector):
    """A view of a registry without what tells nothing: ``_created`` series, and gauges that are ``ABSENT``.

    The client library's own switch for ``_created`` is a global of the process.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        """Give the families that are exposed."""
        for metric in self._registry.collect():
            metric.samples = [
                sample
                for sample in metric.samples
                if not isnan(sample.value) and not sample.name.endswith("_created")
            ]
            yield metric
