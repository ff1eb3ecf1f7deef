"""The gateway's metrics: one method for each thing that happens, cheap enough to call on every request."""

import asyncio
import platform
import time
from collections.abc import Callable, Collection

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder

from lcp_gateway.telemetry.metric_families import Exposed, Families, KnownLabels
from lcp_gateway.telemetry.metric_table import (
    AUTO,
    BY_NAME,
    GRPC_CODES,
    GRPC_METHODS,
    OTHER,
    OUTCOMES,
    PHASES,
    REASONS,
    TASKS,
    VERDICTS,
)
from lcp_gateway.telemetry.money import MoneyMetrics
from lcp_gateway.telemetry.routing import RoutingMetrics
from lcp_gateway.telemetry.selling import SellingMetrics
from lcp_gateway.telemetry.spans import SpanMetrics
from lcp_gateway.telemetry.stored import StoredMetrics

MAX_MODELS = 200
MAX_PEERS = 200
# Every route there is, with and without an agent's token.
_MAX_ENDPOINTS = 96
_AUTO_START = AUTO + ":"

_Add = Callable[[float], None]
_Observe = Callable[[float, dict[str, str] | None], None]
_PEER_FAMILIES = ("payments_total", "payment_msat_total", "undelivered_total", "undelivered_msat_total")  # fmt: skip


class Metrics(MoneyMetrics, RoutingMetrics, SellingMetrics, SpanMetrics, StoredMetrics):
    """Counts what the gateway does, in a registry of its own.

    Label values are bounded: models and peers that ``set_known`` never named, and words that the table does not
    list, are counted as ``other``. Methods may be called from the event loop's thread only.

    ``clock`` is a monotonic clock in seconds.
    """

    def __init__(
        self,
        registry: CollectorRegistry | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.registry = registry if registry is not None else CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        families = Families(self.registry)
        peers = KnownLabels(MAX_PEERS)
        MoneyMetrics.__init__(self, families, peers, clock)
        RoutingMetrics.__init__(self, families, peers, self._admit_peers)
        SellingMetrics.__init__(self, families)
        SpanMetrics.__init__(self, families)
        StoredMetrics.__init__(self, families)
        self._counters = families.counters
        self._gauges = families.gauges
        self._histograms = families.histograms
        self._snapshot_at = clock()
        self._log_lines_lost = 0
        # One more than the models: what a request asks for where it leaves the choice to the gateway is none of them.
        self._models = KnownLabels(MAX_MODELS + 1)
        self._models.admit((AUTO,))
        self._endpoints: set[str] = set()
        # Bound methods of label children, by folded label values: looking one up costs far less than labels().
        self._request: dict[tuple[str, str, int, str, bool], tuple[_Add, _Observe]] = {}
        self._first_byte: dict[tuple[str, str], _Observe] = {}
        self._quote_latency: dict[str, _Observe] = {}
        self._price: dict[str, _Add] = {}
        self._execute: dict[str, _Observe] = {}
        self._payment: dict[tuple[str, str], tuple[_Add, _Add]] = {}
        self._model_payment: dict[tuple[str, str], _Add] = {}
        self._streamed: _Add = self._counters["streamed_bytes_total"].inc
        self._in_flight = self._gauges["jobs_in_flight"]
        self._lag: _Add = self._histograms["event_loop_lag_seconds"].observe
        self._gauges["snapshot_age_seconds"].set_function(lambda: self._clock() - self._snapshot_at)
        self._start_at_zero()

    def _start_at_zero(self) -> None:
        # A counter whose first sample is already 1 shows no increase: money and errors must be there from the start.
        for reason in (*REASONS, OTHER):
            self._counters["refusals_total"].labels(reason)
        for task in (*TASKS, OTHER):
            self._counters["task_restarts_total"].labels(task)
        for phase in (*PHASES, OTHER):
            self._counters["client_disconnects_total"].labels(phase)
        for method in GRPC_METHODS:
            for code in GRPC_CODES:
                self._counters["grpc_errors_total"].labels(method, code)
        self._start_peer_at_zero(OTHER)
        self._start_model_at_zero(OTHER)

    def _start_peer_at_zero(self, peer: str) -> None:
        super()._start_peer_at_zero(peer)
        if peer != OTHER:
            self._start_choices_at_zero(peer)
        for name in _PEER_FAMILIES:
            counter = self._counters[name]
            if "outcome" in BY_NAME[name].labels:
                for outcome in OUTCOMES:
                    counter.labels(outcome, peer)
            else:
                counter.labels(peer)

    def _start_model_at_zero(self, model: str) -> None:
        for outcome in OUTCOMES:
            self._counters["model_payment_msat_total"].labels(outcome, model)

    def set_known(self, models: Collection[str], peers: Collection[str]) -> None:
        """Name the models and peers of the catalog; only what was named here ever becomes a label value."""
        for model in self._models.admit(models):
            self._start_model_at_zero(model)
        self._admit_peers(peers)

    # -- a request, in the order in which things happen -----------------------------------------

    def job_started(self) -> None:
        """Count a job that was let in."""
        self._in_flight.inc()

    def job_ended(self) -> None:
        """Count a job out again; once for each that started."""
        self._in_flight.dec()

    def refusal(self, reason: str) -> None:
        """Count a request that was refused before anything was paid."""
        self._counters["refusals_total"].labels(reason if reason in REASONS else OTHER).inc()

    def quote(self, peer_id: str, model: str, duration_s: float, price_msat: int) -> None:
        """Count a quote: how long it took and what it asks."""
        peer, model = self._peers.fold(peer_id), self._models.fold(model)
        latency = self._quote_latency.get(peer)
        if latency is None:
            latency = self._histograms["quote_duration_seconds"].labels(peer).observe
            self._quote_latency[peer] = latency
        price = self._price.get(model)
        if price is None:
            price = self._histograms["quote_price_msat"].labels(model).observe
            self._price[model] = price
        latency(duration_s, self.exemplar())
        price(price_msat)

    def payment(self, outcome: str, peer_id: str, model: str, price_msat: int) -> None:
        """Count a payment by what is known of it when its call ended: ``settled``, ``unknown`` or ``not_paid``.

        It never raises, whatever the words: counting must not stand between a client and what was paid for.
        """
        peer, model = self._peers.fold(peer_id), self._models.fold(model)
        outcome = outcome if outcome in OUTCOMES else OTHER
        adders = self._payment.get((outcome, peer))
        if adders is None:
            adders = (
                self._counters["payments_total"].labels(outcome, peer).inc,
                self._counters["payment_msat_total"].labels(outcome, peer).inc,
            )
            self._payment[outcome, peer] = adders
        by_model = self._model_payment.get((outcome, model))
        if by_model is None:
            by_model = self._counters["model_payment_msat_total"].labels(outcome, model).inc
            self._model_payment[outcome, model] = by_model
        adders[0](1)
        adders[1](price_msat)
        by_model(price_msat)

    def execute(self, peer_id: str, model: str, duration_s: float) -> None:  # noqa: ARG002 - peers x models would be too many histograms; the caller need not know
        """Count a paid call that ended, well or not: how long it took."""
        peer = self._peers.fold(peer_id)
        latency = self._execute.get(peer)
        if latency is None:
            latency = self._histograms["execute_duration_seconds"].labels(peer).observe
            self._execute[peer] = latency
        latency(duration_s, self.exemplar())

    def first_byte(self, endpoint: str, model: str, duration_s: float) -> None:
        """Count the first byte of an answer, timed from the request's head."""
        key = (self._fold_endpoint(endpoint), self._fold_asked(model))
        latency = self._first_byte.get(key)
        if latency is None:
            latency = self._histograms["first_byte_duration_seconds"].labels(*key).observe
            self._first_byte[key] = latency
        latency(duration_s, self.exemplar())

    def streamed(self, byte_count: int) -> None:
        """Count bytes of a result that were written to a client."""
        self._streamed(byte_count)

    def undelivered(self, peer_id: str, price_msat: int) -> None:
        """Count a purchase that was paid and brought no whole and right result, for which its provider answers."""
        peer = self._peers.fold(peer_id)
        self._counters["undelivered_total"].labels(peer).inc()
        self._counters["undelivered_msat_total"].labels(peer).inc(price_msat)

    def client_disconnect(self, phase: str) -> None:
        """Count a client that went away during ``quote``, ``execute`` or ``stream``."""
        label = phase if phase in PHASES else OTHER
        self._counters["client_disconnects_total"].labels(label).inc()

    def grpc_error(self, method: str, code: str) -> None:
        """Count a failed call to the daemon; both words as gRPC spells them (``RequestQuote``, ``UNAVAILABLE``)."""
        self._counters["grpc_errors_total"].labels(
            method if method in GRPC_METHODS else OTHER, code if code in GRPC_CODES else OTHER
        ).inc()

    def request(
        self, endpoint: str, model: str, status: int, verdict: str, stream: bool, duration_s: float
    ) -> None:
        """Count an answered request.

        ``endpoint`` is the template of its route, ``verdict`` what the answer says of the money.
        """
        key = (self._fold_endpoint(endpoint), self._fold_asked(model), status, verdict, stream)
        pair = self._request.get(key)
        if pair is None:
            pair = self._request_children(*key)
        pair[0](1)
        pair[1](duration_s, self.exemplar())

    def _request_children(
        self, endpoint: str, model: str, status: int, verdict: str, stream: bool
    ) -> tuple[_Add, _Observe]:
        is_status = 100 <= status <= 599  # noqa: PLR2004 - the range of HTTP status codes
        is_verdict = verdict in VERDICTS
        streamed = "true" if stream else "false"
        pair = (
            self._counters["requests_total"]
            .labels(
                endpoint,
                model,
                str(status) if is_status else OTHER,
                verdict if is_verdict else OTHER,
                streamed,
            )
            .inc,
            self._histograms["request_duration_seconds"].labels(endpoint, streamed).observe,
        )
        if is_status and is_verdict:
            self._request[endpoint, model, status, verdict, stream] = pair
        return pair

    def _fold_asked(self, model: str) -> str:
        # ``auto:fast`` and all its sisters are one: a client makes up what comes after the colon.
        return AUTO if model.startswith(_AUTO_START) else self._models.fold(model)

    def _fold_endpoint(self, endpoint: str) -> str:
        if endpoint in self._endpoints:
            return endpoint
        if len(self._endpoints) >= _MAX_ENDPOINTS:
            return OTHER
        self._endpoints.add(endpoint)
        return endpoint

    # -- the state of the gateway ---------------------------------------------------------------

    def snapshot(self, peers: int, models: int) -> None:
        """Note a fresh snapshot of the catalog; its age is counted from now."""
        self._snapshot_at = self._clock()
        self._gauges["peers"].set(peers)
        self._gauges["models"].set(models)
        self._counters["snapshots_total"].inc()

    def daemon_up(self, up: bool) -> None:
        """Note whether the daemon answered its last call."""
        self._gauges["daemon_up"].set(1 if up else 0)

    def concurrency_limit(self, limit: int) -> None:
        """Note how many jobs are let in at once; 0 for no limit."""
        self._gauges["jobs_limit"].set(limit)

    def build_info(self, version: str, protocol: str) -> None:
        """Note what is running; a later call replaces an earlier one, as when the daemon tells its protocol."""
        gauge = self._gauges["build_info"]
        gauge.clear()
        gauge.labels(version, platform.python_version(), protocol).set(1)

    def lcpd_transport(self, name: str) -> None:
        """Tell how calls reach the daemon."""
        self._gauges["lcpd_transport"].labels(name).set(1)

    def task_restarted(self, task: str) -> None:
        """Count a background task that ended and is started again."""
        label = task if task in TASKS else OTHER
        self._counters["task_restarts_total"].labels(label).inc()

    def log_lines_lost(self, in_all: int) -> None:
        """Count the log lines that were lost since the start, of which some may have been counted before."""
        self._counters["log_lines_lost_total"].inc(in_all - self._log_lines_lost)
        self._log_lines_lost = in_all

    def loop_lag(self, lag_s: float) -> None:
        """Count how much later than asked the event loop ran a timer."""
        self._lag(lag_s)

    # -- exposition -----------------------------------------------------------------------------

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """Give the body of ``/metrics`` and its content type: OpenMetrics when ``Accept`` asks for it, else text 0.0.4."""
        encode, content_type = choose_encoder(accept)
        return encode(Exposed(self.registry)), content_type

    async def expose(self, accept: str = "") -> tuple[bytes, str]:
        """Do what ``render`` does, in a thread: with hundreds of peers and models it takes long enough to hold up streams."""
        return await asyncio.to_thread(self.render, accept)
