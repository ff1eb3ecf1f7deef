"""The gateway's metrics: one method for each event, cheap enough to call on every request."""

import asyncio
import platform
import time
from collections.abc import Callable, Collection
from itertools import product

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector

from lcp_gateway.constants import NODE_PREFIX
from lcp_gateway.telemetry.merged_metrics import Snapshot
from lcp_gateway.telemetry.metric_families import (
    ABSENT,
    Exposed,
    Families,
    KnownLabels,
    SnapshotCollector,
    exposition,
    snapshot_of,
)
from lcp_gateway.telemetry.metric_table import (
    ABSENT_AT_FIRST,
    AUTO,
    BY_NAME,
    CHANGES,
    CHANNEL_STATES,
    LABEL_WORDS,
    OTHER,
    OUTCOMES,
    SOURCES,
    SPECS,
    VERDICTS,
    WITHOUT_OTHER,
    MetricKind,
    MetricSpec,
)

MAX_MODELS = 200
MAX_PEERS = 200
MAX_NODES = 200
# Every route there is, with and without an agent's token.
_MAX_ENDPOINTS = 96
_AUTO_START = AUTO + ":"
_LCP, _NODE = SOURCES
_UP, _DOWN = CHANGES

_Add = Callable[..., None]


class _Adders(dict[tuple[str, ...], _Add]):
    """``inc``, ``set`` or ``observe`` of label children, by name and folded labels, which are few.

    A look-up costs far less than ``labels()``.
    """

    def __init__(self, families: Families) -> None:
        super().__init__()
        self._families = families

    def __missing__(self, key: tuple[str, ...]) -> _Add:
        name, *labels = key
        families = self._families
        if name in families.counters:
            counter = families.counters[name]
            adder: _Add = (counter.labels(*labels) if labels else counter).inc
        elif name in families.gauges:
            adder = families.gauges[name].labels(*labels).set
        else:
            adder = families.histograms[name].labels(*labels).observe
        self[key] = adder
        return adder


class Metrics:
    """Counts the gateway's events, in a registry of its own.

    Label values are bounded: models and peers that ``set_known`` never named, and values that the table does not list,
    are counted as ``other``. No method raises, for any value: an error here would cost a client its paid result.
    Methods may be called from the event loop's thread only, but for those that count spans.

    ``clock`` is a monotonic clock in seconds. ``before_scrape`` sets the figures of other parts in the registry before each scrape.
    """

    def __init__(
        self, registry: CollectorRegistry | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.registry = registry if registry is not None else CollectorRegistry()
        self.before_scrape: Callable[[], None] = lambda: None
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        families = Families(self.registry, SPECS)
        self._counters = families.counters
        self._gauges = families.gauges
        self._histograms = families.histograms
        self._clock = clock
        # Returns the labels of the present trace, or None; they stand beside observed times in OpenMetrics.
        self.exemplar: Callable[[], dict[str, str] | None] = lambda: None
        self._snapshot_at = clock()
        self._log_lines_lost = 0
        self._undelivered_by_others: dict[str, int] = {}
        self._node_is_up: dict[str, bool] = {}
        self._peers = KnownLabels(MAX_PEERS)
        self._nodes = KnownLabels(MAX_NODES)
        # One more than the models: ``auto``, where the request leaves the choice to the gateway, is none of them.
        self._models = KnownLabels(MAX_MODELS + 1)
        self._models.admit((AUTO,))
        self._endpoints: set[str] = set()
        self._adders = _Adders(families)
        self._streamed: _Add = self._counters["streamed_bytes_total"].inc
        self._commit: _Add = self._histograms["journal_commit_duration_seconds"].observe
        self._entries: _Add = self._counters["journal_entries_total"].inc
        self._in_flight = self._gauges["jobs_in_flight"]
        self._lag: _Add = self._histograms["event_loop_lag_seconds"].observe
        self._gauges["snapshot_age_seconds"].set_function(lambda: self._clock() - self._snapshot_at)
        for name in ABSENT_AT_FIRST:
            self._gauges[name].set(ABSENT)
        self._start_at_zero()
        self._start_peer_at_zero(OTHER)
        self._start_model_at_zero(OTHER)

    # A counter whose first sample is already 1 shows no increase, so counters of money and errors start at 0.

    def _start_at_zero(self) -> None:
        for spec in SPECS:
            if spec.kind is MetricKind.COUNTER and spec.labels and set(spec.labels) <= set(LABEL_WORDS):
                for labels in product(*map(_words_of, spec.labels)):
                    self._counters[spec.name].labels(*labels)
        for source in SOURCES:
            self._histograms["routing_score"].labels(source)
            self._counters["routing_choices_total"].labels(source, OTHER)

    def _start_peer_at_zero(self, peer: str) -> None:
        for name in _PEER_COUNTERS:
            for labels in product(*(_words_of(it) for it in BY_NAME[name].labels if it != "peer")):
                self._counters[name].labels(*labels, peer)
        if peer != OTHER:
            source = _NODE if peer.startswith(NODE_PREFIX) else _LCP
            self._counters["routing_choices_total"].labels(source, peer)

    def _start_model_at_zero(self, model: str) -> None:
        for outcome in OUTCOMES:
            self._counters["model_payment_msat_total"].labels(outcome, model)

    def set_known(self, models: Collection[str], peers: Collection[str]) -> None:
        """Name the models and peers of the catalog; only these ever become a label value."""
        for model in self._models.admit(models):
            self._start_model_at_zero(model)
        self._admit_peers(peers)

    def _admit_peers(self, peer_ids: Collection[str]) -> None:
        for peer in self._peers.admit(peer_ids):
            self._start_peer_at_zero(peer)

    # -- by the table ---------------------------------------------------------------------------

    def _count(self, name: str, *labels: str, by: float = 1) -> None:
        """Count; labels are folded by the table, but for peers and models, which the caller folds."""
        self._adders[name, *map(_fold, BY_NAME[name].labels, labels)](by)

    def _set(self, name: str, value: float) -> None:
        self._gauges[name].set(value)

    # -- a request, in the order of its events ----------------------------------------------------

    def job_started(self) -> None:
        """Count a job that was admitted."""
        self._in_flight.inc()

    def job_ended(self) -> None:
        """Count the end of a job; once for each that started."""
        self._in_flight.dec()

    def refusal(self, reason: str) -> None:
        """Count a request that was refused before anything was paid."""
        self._count("refusals_total", reason)

    def choice(self, source: str, provider_id: str, score: float) -> None:
        """Count a choice that was made for a request, with its score from 0 to 1."""
        source = _fold("source", source)
        self._adders["routing_choices_total", source, self._peers.fold(provider_id)](1)
        self._adders["routing_score", source](score)

    def quote(self, peer_id: str, model: str, duration_s: float, price_msat: int) -> None:
        """Count a quote: its time and its price."""
        latency = self._adders["quote_duration_seconds", self._peers.fold(peer_id)]
        latency(duration_s, self.exemplar())
        self._adders["quote_price_msat", self._models.fold(model)](price_msat)

    def mismatch(self, peer_id: str, reason: str) -> None:
        """Count a quote that was refused for ``reason``, a value of ``lightning.checks.Mismatch``."""
        self._count("quote_mismatches_total", reason, self._peers.fold(peer_id))

    def runner_up_saving(self, msat: int) -> None:
        """Count by how much the quote that is taken is below the next best; a dearer one counts as 0."""
        self._count("runner_up_saving_msat_total", by=max(0, msat))

    def failover(self, reason: str, source: str = _LCP) -> None:
        """Count a provider that failed before payment: its quote was ``refused``, or it ``failed``."""
        self._count("failovers_total", reason, source)

    def joined(self, how: str) -> None:
        """Count a repeat that was not bought again.

        It joined one that is ``running``, had its answer ``replayed``, or was told that the answer is ``lost``.
        """
        self._count("joined_total", how)

    def payment(self, outcome: str, peer_id: str, model: str, price_msat: int) -> None:
        """Count a payment by its state when its call ended: ``settled``, ``unknown`` or ``not_paid``."""
        peer, model = self._peers.fold(peer_id), self._models.fold(model)
        outcome = _fold("outcome", outcome)
        self._adders["payments_total", outcome, peer](1)
        self._adders["payment_msat_total", outcome, peer](price_msat)
        self._adders["model_payment_msat_total", outcome, model](price_msat)

    def execute(self, peer_id: str, model: str, duration_s: float) -> None:  # noqa: ARG002 - peers x models would be too many histograms; the caller need not know
        """Count a paid call that ended, well or not, with its time."""
        self._adders["execute_duration_seconds", self._peers.fold(peer_id)](duration_s, self.exemplar())

    def first_byte(self, endpoint: str, model: str, duration_s: float) -> None:
        """Count the first byte of an answer, timed from the request's head."""
        labels = (self._fold_endpoint(endpoint), self._fold_asked(model))
        self._adders["first_byte_duration_seconds", *labels](duration_s, self.exemplar())

    def streamed(self, byte_count: int) -> None:
        """Count bytes of a result that were written to a client."""
        self._streamed(byte_count)

    def undelivered(self, peer_id: str, price_msat: int) -> None:
        """Count a purchase that was paid and brought no whole and right result, by its provider's fault."""
        peer = self._peers.fold(peer_id)
        self._count("undelivered_total", peer)
        self._count("undelivered_msat_total", peer, by=price_msat)

    def client_disconnect(self, phase: str) -> None:
        """Count a client that disconnected during ``quote``, ``execute`` or ``stream``."""
        self._count("client_disconnects_total", phase)

    def grpc_error(self, method: str, code: str) -> None:
        """Count a failed call to the daemon; both as gRPC spells them (``RequestQuote``, ``UNAVAILABLE``)."""
        self._count("grpc_errors_total", method, code)

    def request(self, endpoint: str, model: str, status: int, verdict: str, stream: bool, duration_s: float) -> None:
        """Count an answered request.

        ``endpoint`` is the template of its route, ``verdict`` the payment verdict of the answer.
        """
        endpoint, streamed = self._fold_endpoint(endpoint), "true" if stream else "false"
        is_status = 100 <= status <= 599  # noqa: PLR2004 - the range of HTTP status codes
        self._adders[
            "requests_total",
            endpoint,
            self._fold_asked(model),
            str(status) if is_status else OTHER,
            verdict if verdict in VERDICTS else OTHER,
            streamed,
        ](1)
        self._adders["request_duration_seconds", endpoint, streamed](duration_s, self.exemplar())

    def _fold_asked(self, model: str) -> str:
        # ``auto:fast`` and the like are one: a client makes up the part after the colon.
        return AUTO if model.startswith(_AUTO_START) else self._models.fold(model)

    def _fold_endpoint(self, endpoint: str) -> str:
        if endpoint in self._endpoints:
            return endpoint
        if len(self._endpoints) >= _MAX_ENDPOINTS:
            return OTHER
        self._endpoints.add(endpoint)
        return endpoint

    # -- providers ------------------------------------------------------------------------------

    def snapshot(self, peers: int, models: int) -> None:
        """Record a fresh snapshot of the catalog; its age is counted from now."""
        self._snapshot_at = self._clock()
        self._set("peers", peers)
        self._set("models", models)
        self._count("snapshots_total")

    def daemon_up(self, up: bool) -> None:
        """Set whether the daemon answered its last call."""
        self._set("daemon_up", up)

    def provider_speed(
        self, provider_id: str, source: str, first_byte_s: float | None, tokens_per_s: float | None
    ) -> None:
        """Set a provider's decayed averages; None leaves the last one as it is.

        Providers that are not known by name are left out: one number for several of them would mean nothing.
        """
        provider = self._peers.fold(provider_id)
        if provider == OTHER:
            return
        for name, value in (
            ("provider_first_byte_seconds", first_byte_s),
            ("provider_tokens_per_second", tokens_per_s),
        ):
            if value is not None:
                self._adders[name, _fold("source", source), provider](value)

    def node_up(self, name: str, up: bool) -> None:
        """Set whether a virtual node is up: at first, and whenever that may have changed.

        A node becomes a label like a peer of the catalog, also while it is down. Nodes beyond the limit are left out.
        """
        for node in self._nodes.admit((name,)):
            self._admit_peers((NODE_PREFIX + node,))
            for word in CHANGES:
                self._counters["node_changes_total"].labels(node, word)
        if self._nodes.fold(name) == OTHER:
            return
        if self._node_is_up.get(name, up) != up:
            self._counters["node_changes_total"].labels(name, _UP if up else _DOWN).inc()
        self._node_is_up[name] = up
        self._gauges["node_up"].labels(name).set(up)

    def node_gone(self, name: str) -> None:
        """Remove the state of a node that is no longer watched; its counts stay."""
        if self._node_is_up.pop(name, None) is not None:
            self._gauges["node_up"].remove(name)

    # -- journal, budgets, lnd ------------------------------------------------------------------

    def journal_commit(self, entries: int, seconds: float) -> None:
        """Count a commit of the journal with its entries and its time."""
        self._commit(seconds)
        self._entries(max(0, entries))

    def watch_journal(self, has_trouble: Callable[[], bool]) -> None:
        """Call ``has_trouble`` at each scrape: whether the journal cannot be written."""
        self._gauges["journal_trouble"].set_function(has_trouble)

    def answers_held(self, byte_count: int) -> None:
        """Set the bytes of answers that are held for repeats."""
        self._set("answers_held_bytes", byte_count)

    def budget(self, period: str, limit_msat: int, spent_msat: int) -> None:
        """Set a budget of the whole gateway in its present period; a limit of 0 removes it."""
        word = _fold("period", period)
        left_msat = max(0, limit_msat - spent_msat) if limit_msat else ABSENT
        self._gauges["budget_limit_msat"].labels(word).set(limit_msat or ABSENT)
        self._gauges["budget_left_msat"].labels(word).set(left_msat)

    def outstanding(self, unknown_msat: int, unknown_count: int, oldest_unknown_s: float) -> None:
        """Set the journal's unknown payments; the age of the oldest is counted on until the next call."""
        self._set("outstanding_unknown_msat", unknown_msat)
        self._set("outstanding_unknown_purchases", unknown_count)
        began = self._clock() - oldest_unknown_s
        self._gauges["oldest_unknown_age_seconds"].set_function(lambda: self._clock() - began if unknown_count else 0.0)

    def peer_undelivered_msat(self, peer_id: str, msat: int) -> None:
        """Set the amount that a peer was paid for results it did not deliver, over all that the journal holds.

        A peer that the journal names becomes a label like one of the catalog: it is seldom still there.
        """
        self._admit_peers((peer_id,))
        peer = self._peers.fold(peer_id)
        if peer == OTHER:
            self._undelivered_by_others[peer_id] = msat
            msat = sum(self._undelivered_by_others.values())
        self._gauges["peer_undelivered_msat"].labels(peer).set(msat)

    def lnd(self, up: bool, synced: bool, local_msat: int, channels_active: int, channels_inactive: int) -> None:
        """Set the state of lnd; while it is not ``up`` the other numbers are not exposed."""
        self._set("lnd_up", up)
        self._set("lnd_synced", synced if up else ABSENT)
        self._set("lnd_local_balance_msat", local_msat if up else ABSENT)
        for state, count in zip(CHANNEL_STATES, (channels_active, channels_inactive), strict=True):
            self._gauges["lnd_channels"].labels(state).set(count if up else ABSENT)

    def fees_missing(self, purchases: int) -> None:
        """Set how many purchases of the last minutes have no fee yet, although lnd was asked."""
        self._set("lnd_fees_missing", purchases)

    def reconciled(self, outcome: str) -> None:
        """Count lnd's answer about an unknown payment: settled, not_paid, still_unknown or error."""
        self._count("reconciled_total", outcome)

    # -- customers ------------------------------------------------------------------------------

    def customers(self, accounts: int, balance_msat: int, held_msat: int) -> None:
        """Set the number of accounts and the sums of their balances."""
        self._set("customers", accounts)
        self._set("customers_balance_msat", balance_msat)
        self._set("customers_held_msat", held_msat)

    def watch_dialled_in(self, connected: Callable[[], float]) -> None:
        """Call this at each scrape."""
        self._gauges["nodes_dialled_in"].set_function(connected)

    def node_disconnected(self, reason: str) -> None:
        """Count a node that had dialled in and is gone."""
        self._count("node_disconnects_total", reason)

    def usage_refuted(self) -> None:
        """Count a result whose stated usage was not believed."""
        self._count("usage_refuted_total")

    def watch_keys(self, age_s: Callable[[], float], is_stale: Callable[[], bool]) -> None:
        """Call these at each scrape."""
        self._gauges["keys_age_seconds"].set_function(age_s)
        self._gauges["keys_stale"].set_function(is_stale)

    def topup(self, received_msat: int) -> None:
        """Count a top-up that was credited."""
        self._count("topups_total")
        self._count("topups_msat_total", by=received_msat)

    def charged(self, msat: int) -> None:
        """Count a customer's charge for a purchase that ended."""
        self._count("charged_msat_total", by=msat)

    def refund(self, refund: str, amount_msat: int) -> None:
        """Count the refund of a charge: ``given``, ``withheld``, ``granted`` or ``denied``."""
        self._count("refunds_total", refund)
        self._count("refunds_msat_total", refund, by=amount_msat)

    def refunds_withheld(self, count: int, amount_msat: int) -> None:
        """Set the refunds that wait for the operator's decision."""
        self._set("refunds_withheld", count)
        self._set("refunds_withheld_msat", amount_msat)

    def earning(self, earned_msat: int, commission_msat: int) -> None:
        """Count what a delivered answer brought the owner of its node, and the operator."""
        self._count("node_earnings_msat_total", by=earned_msat)
        self._count("node_commissions_msat_total", by=commission_msat)

    def withdrawal(self, ended: str, amount_msat: int, fee_msat: int) -> None:
        """Count a withdrawal that ended: ``settled`` or ``failed``."""
        self._count("withdrawals_total", ended)
        self._count("withdrawals_msat_total", ended, by=amount_msat)
        self._count("withdrawal_fees_msat_total", by=fee_msat)

    def withdrawals_open(self, stage: str, count: int, amount_msat: int) -> None:
        """Set the withdrawals in a state, and what they hold."""
        self._gauges["withdrawals_open"].labels(stage).set(count)
        self._gauges["withdrawals_open_msat"].labels(stage).set(amount_msat)

    def withdrawal_unknown_age(self, age_s: float) -> None:
        """Set the age of the oldest withdrawal whose outcome is unknown."""
        self._set("withdrawal_oldest_unknown_seconds", age_s)

    def settlements_leader(self, leads: bool) -> None:
        """Set whether this gateway follows the settlements."""
        self._set("settlements_leader", leads)

    # -- stored responses -----------------------------------------------------------------------

    def stored(self, items: int, byte_count: int) -> None:
        """Set how much is stored in all."""
        self._set("stored_items", items)
        self._set("stored_bytes", byte_count)

    def stored_removed(self, why: str) -> None:
        """Count an item that was removed without its client's request: by ``count``, ``bytes`` or ``age``."""
        self._count("stored_removed_total", why)

    def not_stored(self) -> None:
        """Count an answer that was to be stored and could not be."""
        self._count("not_stored_total")

    def background_jobs(self, running: int, ended_as: str) -> None:
        """Set the jobs in the background; ``ended_as`` is the status of one that has just ended, else empty."""
        self._set("background_jobs_running", running)
        if ended_as:
            self._count("background_jobs_total", ended_as)

    # -- the process ----------------------------------------------------------------------------

    def concurrency_limit(self, limit: int) -> None:
        """Set the most jobs that are admitted at once; 0 for no limit."""
        self._set("jobs_limit", limit)

    def build_info(self, version: str, protocol: str) -> None:
        """Set the versions that run; a later call replaces an earlier one, as when the daemon reports its protocol."""
        gauge = self._gauges["build_info"]
        gauge.clear()
        gauge.labels(version, platform.python_version(), protocol).set(1)

    def lcpd_protocol_version(self, version: int) -> None:
        """Set the version of the protocol that the daemon speaks."""
        self._set("lcpd_protocol_version", version)

    def lcpd_transport(self, name: str) -> None:
        """Set how calls reach the daemon."""
        self._gauges["lcpd_transport"].labels(name).set(1)

    def task_restarted(self, task: str) -> None:
        """Count a background task that ended and is started again."""
        self._count("task_restarts_total", task)

    def log_lines_lost(self, in_all: int) -> None:
        """Count the log lines lost since the start, of which some may have been counted before."""
        self._count("log_lines_lost_total", by=in_all - self._log_lines_lost)
        self._log_lines_lost = in_all

    def loop_lag(self, lag_s: float) -> None:
        """Count the lateness of a timer on the event loop."""
        self._lag(lag_s)

    def spans_exported(self, count: int) -> None:
        """Count spans that a collector took; from any thread."""
        self._counters["trace_spans_exported_total"].inc(count)

    def spans_lost(self, count: int) -> None:
        """Count spans that no collector will get; from any thread."""
        self._counters["trace_spans_lost_total"].inc(count)

    # -- exposition -----------------------------------------------------------------------------

    def render(self, accept: str = "", of_all: Snapshot | None = None) -> tuple[bytes, str]:
        """Return the body of ``/metrics`` and its content type, as ``exposition`` does.

        ``of_all`` are the metrics of all workers, where this process is one of several.
        """
        return exposition(Exposed(self.registry) if of_all is None else SnapshotCollector(of_all), accept)

    async def expose(self, accept: str = "", of_all: Snapshot | None = None) -> tuple[bytes, str]:
        """Do the same in a thread: with hundreds of peers and models it takes long enough to hold up streams."""
        self.before_scrape()
        return await asyncio.to_thread(self.render, accept, of_all)

    async def families(self) -> Snapshot:
        """Return the families that are exposed as data, for the sum over several workers; from a thread, as above."""
        return await asyncio.to_thread(snapshot_of, self.registry)


def _is_peer_counter(spec: MetricSpec) -> bool:
    return spec.kind is MetricKind.COUNTER and spec.labels[-1:] == ("peer",) and "source" not in spec.labels


_PEER_COUNTERS = tuple(spec.name for spec in SPECS if _is_peer_counter(spec))


def _words_of(label: str) -> tuple[str, ...]:
    words = LABEL_WORDS[label]
    return words if label in WITHOUT_OTHER else (*words, OTHER)


def _fold(label: str, value: str) -> str:
    """Return a value of a label that has a fixed list, or ``other``; a value of any other label as it is."""
    words = LABEL_WORDS.get(label)
    return value if words is None or value in words else OTHER
