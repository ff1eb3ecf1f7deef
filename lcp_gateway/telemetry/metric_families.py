"""The table of metrics as live families in a registry, and label values that stay few."""

from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator
from math import isnan

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar, Sample

from lcp_gateway.telemetry.merged_metrics import Family, Snapshot
from lcp_gateway.telemetry.metric_table import ANY_THREAD, OTHER, MetricKind, MetricSpec

MAX_LABEL_LENGTH = 128


class KnownLabels:
    """The values that one label may take: at most ``limit``, admitted once and for good.

    A value stays admitted when its model or peer goes away, so that a peer that reconnects keeps one unbroken series,
    and a purchase from it a moment ago is still counted as its own.
    """

    __slots__ = ("_limit", "_values")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._values: set[str] = set()

    def admit(self, values: Collection[str]) -> list[str]:
        """Admit values, sorted, while there is room; return those that are new."""
        added: list[str] = []
        for value in sorted(set(values) - self._values):
            if len(self._values) >= self._limit:
                break
            if value != OTHER and _is_fit(value):
                self._values.add(value)
                added.append(value)
        return added

    @property
    def values(self) -> tuple[str, ...]:
        """The values that were admitted, sorted."""
        return tuple(sorted(self._values))

    def fold(self, value: str) -> str:
        """Return the value when it was admitted, else ``other``."""
        return value if value in self._values else OTHER


def _is_fit(value: str) -> bool:
    # Not printable covers line breaks, escapes and lone surrogates, which no exposition format can carry.
    return 0 < len(value) <= MAX_LABEL_LENGTH and value.isprintable()


ABSENT = float("nan")
"""The value of a gauge that is left out of the exposition."""


class LoopCounter(Counter):
    """A counter of one thread, the event loop's: it needs no lock, and most calls carry no exemplar."""

    def inc(self, amount: float = 1, exemplar: dict[str, str] | None = None) -> None:
        """Add an amount."""
        if exemplar or amount < 0:
            super().inc(amount, exemplar)
        else:
            self._value._value += amount  # noqa: SLF001 - what ``inc`` does, without its lock


class LoopGauge(Gauge):
    """A gauge of one thread, as above. One that is computed at a scrape is as in the client library."""

    def inc(self, amount: float = 1) -> None:
        """Add an amount."""
        self._value._value += amount  # noqa: SLF001 - as above

    def dec(self, amount: float = 1) -> None:
        """Take an amount off."""
        self._value._value -= amount  # noqa: SLF001 - as above

    def set(self, value: float) -> None:
        """Set the value."""
        self._value._value = float(value)  # noqa: SLF001 - as above


class LoopHistogram(Histogram):
    """A histogram of one thread, as above; its bucket is found by bisection."""

    def observe(self, amount: float, exemplar: dict[str, str] | None = None) -> None:
        """Count an amount in."""
        if exemplar or isnan(amount):
            super().observe(amount, exemplar)
            return
        self._sum._value += amount  # noqa: SLF001 - what ``inc`` does, without its lock
        self._buckets[bisect_left(self._upper_bounds, amount)]._value += 1  # noqa: SLF001 - as above


class Families:
    """One counter, gauge or histogram for each of some rows of the table, by its name without the prefix."""

    def __init__(self, registry: CollectorRegistry, specs: Iterable[MetricSpec]) -> None:
        self.counters: dict[str, Counter] = {}
        self.gauges: dict[str, Gauge] = {}
        self.histograms: dict[str, Histogram] = {}
        for spec in specs:
            name, text, labels = spec.full_name, spec.help, spec.labels
            if spec.kind is MetricKind.COUNTER:
                counter = Counter if spec.name in ANY_THREAD else LoopCounter
                self.counters[spec.name] = counter(name, text, labels, registry=registry)
            elif spec.kind is MetricKind.GAUGE:
                self.gauges[spec.name] = LoopGauge(name, text, labels, registry=registry)
            else:
                self.histograms[spec.name] = LoopHistogram(name, text, labels, buckets=spec.buckets, registry=registry)


class Exposed(Collector):
    """A view of a registry without ``_created`` series and gauges that are ``ABSENT``.

    The client library's own switch for ``_created`` is a global of the process.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        """Yield the families that are exposed."""
        for metric in self._registry.collect():
            metric.samples = [
                sample for sample in metric.samples if not isnan(sample.value) and not sample.name.endswith("_created")
            ]
            yield metric


def exposition(families: Collector, accept: str) -> tuple[bytes, str]:
    """Return the body of ``/metrics`` and its content type: OpenMetrics where ``accept`` asks for it, else text 0.0.4."""
    encode, content_type = choose_encoder(accept)
    return encode(families), content_type


def snapshot_of(registry: CollectorRegistry) -> Snapshot:
    """Return the exposed families of a registry as data."""
    families: dict[str, Family] = {}
    for metric in Exposed(registry).collect():
        family = families[metric.name] = Family(metric.name, metric.type, metric.documentation)
        for sample in metric.samples:
            key = (sample.name, tuple(sample.labels.items()))
            family.samples[key] = sample.value
            if sample.exemplar is not None:
                at = sample.exemplar.timestamp
                family.exemplars[key] = (
                    tuple(sample.exemplar.labels.items()),
                    sample.exemplar.value,
                    None if at is None else float(at),
                )
    return families


class SnapshotCollector(Collector):
    """Families that are data, as the exposition reads them."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        """Yield them."""
        for family in self._snapshot.values():
            metric = Metric(family.name, family.help, family.kind)
            for key, value in family.samples.items():
                name, labels = key
                exemplar = None
                if (held := family.exemplars.get(key)) is not None:
                    exemplar = Exemplar(dict(held[0]), held[1], held[2])
                metric.samples.append(Sample(name, dict(labels), value, None, exemplar))
            yield metric
