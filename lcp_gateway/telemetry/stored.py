"""The metrics of what is stored for clients, and of jobs in the background."""

from lcp_gateway.telemetry.metric_families import Families
from lcp_gateway.telemetry.metric_table import BACKGROUND_STATUSES, OTHER, REMOVED


class StoredMetrics:
    """The part of ``Metrics`` that counts stored items. No method raises."""

    def __init__(self, families: Families) -> None:
        self._stored = families
        for why in (*REMOVED, OTHER):
            families.counters["stored_removed_total"].labels(why)
        for status in (*BACKGROUND_STATUSES, OTHER):
            families.counters["background_jobs_total"].labels(status)

    def stored(self, items: int, byte_count: int) -> None:
        """Note how much is stored in all."""
        self._stored.gauges["stored_items"].set(items)
        self._stored.gauges["stored_bytes"].set(byte_count)

    def stored_removed(self, why: str) -> None:
        """Count an item that went before its client had it deleted: ``count``, ``bytes`` or ``age``."""
        label = why if why in REMOVED else OTHER
        self._stored.counters["stored_removed_total"].labels(label).inc()

    def not_stored(self) -> None:
        """Count an answer that was to be stored and could not be."""
        self._stored.counters["not_stored_total"].inc()

    def background_jobs(self, running: int, ended_as: str) -> None:
        """Note how many jobs run in the background; ``ended_as`` is the status of one that has just ended, else empty."""
        self._stored.gauges["background_jobs_running"].set(running)
        if ended_as:
            label = ended_as if ended_as in BACKGROUND_STATUSES else OTHER
            self._stored.counters["background_jobs_total"].labels(label).inc()
