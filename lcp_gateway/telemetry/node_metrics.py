"""The metrics of a node over lnd: an observer of its work, and figures that are set at each scrape."""

import asyncio
import platform
from collections.abc import Collection, Mapping
from itertools import product
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector

from lcp_gateway.telemetry.metric_families import ABSENT, Exposed, Families, KnownLabels, exposition
from lcp_gateway.telemetry.metric_table import (
    BY_NAME,
    DIRECTIONS,
    JOB_ENDS,
    JOB_STATES,
    LABEL_WORDS,
    LINK_STATES,
    NODE_SPECS,
    OTHER,
    ROLES,
    WITHOUT_OTHER,
    MetricKind,
)

MAX_MODELS = 200
_VERSIONS = ("2", "3")
_, _SELLER = ROLES
_IN, _OUT = DIRECTIONS
_DELIVERED = JOB_ENDS[0]
_BY_NAME = {spec.name: spec for spec in NODE_SPECS}


class Figures(Protocol):
    """A node at one moment, as ``node.runtime.observer.NodeFigures`` describes it."""

    @property
    def lightning_up(self) -> bool:
        """Whether lnd delivers peers and messages."""
        ...

    @property
    def invoices_up(self) -> bool | None:
        """Whether settled invoices are reported; None where nothing is sold."""
        ...

    @property
    def links(self) -> Mapping[tuple[str, int], int]:
        """Peers by state and version."""
        ...

    @property
    def quoted(self) -> Mapping[Any, int]:
        """Unpaid quotes by role."""
        ...

    @property
    def running(self) -> Mapping[Any, int]:
        """Paid jobs by role."""
        ...

    @property
    def queued_messages(self) -> int:
        """Messages that wait, over all peers."""
        ...

    @property
    def queued_bytes(self) -> int:
        """Their bytes."""
        ...

    @property
    def deepest_queue_messages(self) -> int:
        """The longest queue of one peer."""
        ...


class NodeMetrics:
    """Counts a node's events: it is a ``NodeObserver``, and counts for a node's log. No method raises, and all are called on the event loop's thread.

    ``registry`` is that of a gateway in the same process; without one the node has its own, with ``build_info`` and the
    metrics of its process. ``models`` are those that are sold: others are counted as ``other``.
    """

    def __init__(self, registry: CollectorRegistry | None = None, *, models: Collection[str] = ()) -> None:
        specs = NODE_SPECS
        if registry is None:
            registry = CollectorRegistry()
            for collector in (ProcessCollector, PlatformCollector, GCCollector):
                collector(registry=registry)
            specs = (*NODE_SPECS, BY_NAME["build_info"])
        self._registry = registry
        families = Families(registry, specs)
        self._gauges = families.gauges
        self._counters = families.counters
        self._models = KnownLabels(MAX_MODELS)
        self._models.admit(models)
        # A counter whose first sample is already 1 shows no increase.
        for spec in NODE_SPECS:
            if spec.kind is MetricKind.COUNTER and spec.labels:
                for labels in product(*map(self._words_of, spec.labels)):
                    self._counters[spec.name].labels(*labels)
        for name in ("lcp_invoices_up", "lcp_lnd_up"):
            self._gauges[name].set(ABSENT)

    def _words_of(self, label: str) -> tuple[str, ...]:
        if label == "model":
            return (*self._models.values, OTHER)
        words = _VERSIONS if label == "protocol" else LABEL_WORDS[label]
        return words if label in WITHOUT_OTHER else (*words, OTHER)

    def _count(self, name: str, *labels: str, by: float = 1) -> None:
        counter = self._counters[name]
        folded = [_fold(label, value) for label, value in zip(_BY_NAME[name].labels, labels, strict=True)]
        (counter.labels(*folded) if folded else counter).inc(max(0, by))

    def build_info(self, version: str) -> None:
        """Set the versions that run, where this node is a process of its own."""
        self._gauges["build_info"].labels(version, platform.python_version(), "+".join(_VERSIONS)).set(1)

    def message(self, *, sent: bool, protocol: int, byte_count: int) -> None:
        """Count a message to or from a peer."""
        direction = _OUT if sent else _IN
        self._count("lcp_messages_total", direction, str(protocol))
        self._count("lcp_message_bytes_total", direction, str(protocol), by=byte_count)

    def job_ended(self, *, role: str, end: str, model: str, paid_msat: int = 0, fee_msat: int = 0) -> None:
        """Count a job that ended, and its money where the payment settled."""
        self._count("lcp_jobs_total", role, end)
        if role == _SELLER:
            self._count("lcp_earned_msat_total", self._models.fold(model), by=paid_msat)
            if end != _DELIVERED:
                self._count("lcp_undelivered_msat_total", by=paid_msat)
        else:
            self._count("lcp_spent_msat_total", by=paid_msat)
            self._count("lcp_fees_msat_total", by=fee_msat)

    def message_dropped(self, reason: str) -> None:
        """Count a message of a peer that was not taken."""
        self._count("lcp_messages_dropped_total", reason)

    def job_refused(self, code: str) -> None:
        """Count a request for a quote that was refused."""
        self._count("lcp_refused_total", code)

    def problem(self, part: str) -> None:
        """Count an error of a part that goes on."""
        self._count("lcp_problems_total", part)

    def set_figures(self, figures: Figures) -> None:
        """Set the figures of this moment."""
        gauges = self._gauges
        gauges["lcp_lnd_up"].set(figures.lightning_up)
        gauges["lcp_invoices_up"].set(ABSENT if figures.invoices_up is None else figures.invoices_up)
        for state, version in product(LINK_STATES, _VERSIONS):
            gauges["lcp_links"].labels(state, version).set(figures.links.get((state, int(version)), 0))
        for state, by_role in zip(JOB_STATES, (figures.quoted, figures.running), strict=True):
            for role in ROLES:
                gauges["lcp_jobs_open"].labels(role, state).set(by_role.get(role, 0))
        gauges["lcp_queue_messages"].set(figures.queued_messages)
        gauges["lcp_queue_bytes"].set(figures.queued_bytes)
        gauges["lcp_deepest_queue_messages"].set(figures.deepest_queue_messages)

    async def expose(self, accept: str = "") -> tuple[bytes, str]:
        """Return the body of ``/metrics`` and its content type, rendered in a thread."""
        return await asyncio.to_thread(exposition, Exposed(self._registry), accept)


def _fold(label: str, value: str) -> str:
    words = _VERSIONS if label == "protocol" else LABEL_WORDS.get(label)
    return value if words is None or value in words else OTHER
