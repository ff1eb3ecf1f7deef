"""The metrics of the choice: who is chosen, how well, who falls out, how fast each is, and which nodes are up."""

from collections.abc import Callable, Collection

from lcp_gateway.constants import NODE_PREFIX
from lcp_gateway.telemetry.metric_families import Families, KnownLabels
from lcp_gateway.telemetry.metric_table import CHANGES, FAILOVER_CAUSES, OTHER, SOURCES

MAX_NODES = 200

_LCP, _NODE = SOURCES
_UP, _DOWN = CHANGES


class RoutingMetrics:
    """The part of ``Metrics`` that counts choices, failovers, speeds and the health of virtual nodes.

    A source is ``lcp`` or ``node``. No method raises, whatever the words and numbers.
    """

    def __init__(
        self,
        families: Families,
        providers: KnownLabels,
        admit: Callable[[Collection[str]], None],
    ) -> None:
        """``admit`` lets ids in among the ``providers``, which are then known by name."""
        self._routing = families
        self._providers = providers
        self._admit_providers = admit
        self._nodes = KnownLabels(MAX_NODES)
        self._node_is_up: dict[str, bool] = {}
        self._choices: dict[tuple[str, str], Callable[[], None]] = {}
        self._scores: dict[str, Callable[[float], None]] = {}
        for source in SOURCES:
            families.histograms["routing_score"].labels(source)
            families.counters["routing_choices_total"].labels(source, OTHER)
            for cause in (*FAILOVER_CAUSES, OTHER):
                families.counters["failovers_total"].labels(cause, source)

    def _start_choices_at_zero(self, provider: str) -> None:
        source = _NODE if provider.startswith(NODE_PREFIX) else _LCP
        self._routing.counters["routing_choices_total"].labels(source, provider)

    def choice(self, source: str, provider_id: str, score: float) -> None:
        """Count a choice that was made for a request, with its score from 0 to 1."""
        source = _source(source)
        key = (source, self._providers.fold(provider_id))
        count = self._choices.get(key)
        if count is None:
            count = self._routing.counters["routing_choices_total"].labels(*key).inc
            self._choices[key] = count
        observe = self._scores.get(source)
        if observe is None:
            observe = self._routing.histograms["routing_score"].labels(source).observe
            self._scores[source] = observe
        count()
        observe(score)

    def failover(self, reason: str, source: str = _LCP) -> None:
        """Count a provider that fell out before payment: its quote was ``refused``, or it ``failed``."""
        cause = reason if reason in FAILOVER_CAUSES else OTHER
        self._routing.counters["failovers_total"].labels(cause, _source(source)).inc()

    def provider_speed(
        self,
        provider_id: str,
        source: str,
        first_byte_s: float | None,
        tokens_per_s: float | None,
    ) -> None:
        """Note a provider's decayed averages; what is None was not measured, and leaves what was told before.

        Providers that are not known by name are left out: one number for several of them would be nobody's.
        """
        provider = self._providers.fold(provider_id)
        if provider == OTHER:
            return
        for name, value in (
            ("provider_first_byte_seconds", first_byte_s),
            ("provider_tokens_per_second", tokens_per_s),
        ):
            if value is not None:
                self._routing.gauges[name].labels(_source(source), provider).set(value)

    def node_up(self, name: str, up: bool) -> None:
        """Note whether a virtual node is up: at first, and whenever that may have changed.

        A node becomes a label like a peer of the catalog, also while it is down and in no catalog. Nodes beyond the limit are left out, since the health of several in one number is nobody's.
        """
        for node in self._nodes.admit((name,)):
            self._admit_providers((NODE_PREFIX + node,))
            for word in CHANGES:
                self._routing.counters["node_changes_total"].labels(node, word)
        if self._nodes.fold(name) == OTHER:
            return
        if self._node_is_up.get(name, up) != up:
            self._routing.counters["node_changes_total"].labels(name, _UP if up else _DOWN).inc()
        self._node_is_up[name] = up
        self._routing.gauges["node_up"].labels(name).set(1 if up else 0)

    def node_gone(self, name: str) -> None:
        """Note that a node is no longer watched: its health is nobody's, and its counts stay."""
        if self._node_is_up.pop(name, None) is not None:
            self._routing.gauges["node_up"].remove(name)


def _source(word: str) -> str:
    return word if word in SOURCES else OTHER
