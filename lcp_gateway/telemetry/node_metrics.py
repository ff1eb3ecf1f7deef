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
    LINK_STATES,
    NODE_SPECS,
    OTHER,
    ROLES,
)

MAX_MODELS = 200
_VERSIONS = ("2", "3")
_BUYER, _SELLER = ROLES
_IN, _OUT = DIRECTIONS
# The seller was paid, and its buyer has no whole result.
_UNDELIVERED = frozenset({"failed", "lost", "cancelled"})


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
    """Counts a node's events. It is a ``NodeObserver``; no method raises, and all are called on the event loop's thread.

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
        counters = families.counters
        self._models = KnownLabels(MAX_MODELS)
        self._models.admit(models)
        jobs = counters["lcp_jobs_total"]
        self._jobs = {labels: jobs.labels(*labels) for labels in product(ROLES, JOB_ENDS)}
        earned = counters["lcp_earned_msat_total"]
        self._earned = {self._models.fold(model): earned.labels(self._models.fold(model)) for model in (*models, OTHER)}
        self._undelivered = counters["lcp_undelivered_msat_total"]
        self._spent = counters["lcp_spent_msat_total"]
        self._fees = counters["lcp_fees_msat_total"]
        self._messages = {
            (direction, version): (
                counters["lcp_messages_total"].labels(direction, version),
                counters["lcp_message_bytes_total"].labels(direction, version),
            )
            for direction, version in product(DIRECTIONS, (*_VERSIONS, OTHER))
        }
        for name in ("lcp_invoices_up", "lcp_lnd_up"):
            self._gauges[name].set(ABSENT)

    def build_info(self, version: str) -> None:
        """Set the versions that run, where this node is a process of its own."""
        self._gauges["build_info"].labels(version, platform.python_version(), "+".join(_VERSIONS)).set(1)

    def message(self, *, sent: bool, protocol: int, byte_count: int) -> None:
        """Count a message to or from a peer."""
        version = str(protocol)
        count, size = self._messages[_OUT if sent else _IN, version if version in _VERSIONS else OTHER]
        count.inc()
        size.inc(max(0, byte_count))

    def job_ended(self, *, role: str, end: str, model: str, paid_msat: int = 0, fee_msat: int = 0) -> None:
        """Count a job that ended, and its money where the payment settled."""
        if (counter := self._jobs.get((role, end))) is None:
            return
        counter.inc()
        paid_msat, fee_msat = max(0, paid_msat), max(0, fee_msat)
        if role == _SELLER:
            self._earned[self._models.fold(model)].inc(paid_msat)
            if end in _UNDELIVERED:
                self._undelivered.inc(paid_msat)
        else:
            self._spent.inc(paid_msat)
            self._fees.inc(fee_msat)

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
