"""Observers of purchases, quotes, peers and lnd: they count, log and measure, and decide nothing.

The one module of this package that imports purchases and routing; the rest of telemetry is a leaf.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from structlog.typing import FilteringBoundLogger

from lcp_gateway.constants import BYTES_PER_TOKEN
from lcp_gateway.lightning.checks import QuoteMismatch
from lcp_gateway.lightning.lnd.payment_details import ReadSummary
from lcp_gateway.lightning.lnd.watcher import LndState
from lcp_gateway.lightning.reconcile import PaymentResolution, ReconcilerSummary
from lcp_gateway.purchase.errors import PaymentFailed, PurchaseError, QuoteExpired, Refused, UpstreamError
from lcp_gateway.purchase.money import Refund, RefundDecision
from lcp_gateway.purchase.order import Order
from lcp_gateway.purchase.outcome import EndedBy
from lcp_gateway.purchase.purchase import Purchase
from lcp_gateway.purchase.quote import ProviderSource, Quote
from lcp_gateway.purchase.result_buffer import ResultBuffer
from lcp_gateway.purchase.service import Observer
from lcp_gateway.purchase.states import State, Verdict
from lcp_gateway.routing.averages import request_size
from lcp_gateway.routing.catalog import Catalog, Provider
from lcp_gateway.routing.measurements import Measurements, Mode, View, answer_mode
from lcp_gateway.routing.peer_trust import PeerTrust
from lcp_gateway.telemetry.metrics import Metrics
from lcp_gateway.upstream_status import UpstreamStatus

# An event of a stream carries about one token in so many bytes of JSON.
_STREAM_BYTES_PER_TOKEN: Final = 150.0
_LEAST_S: Final = 0.001
_UNPAID = frozenset({State.QUOTED, State.REFUSED, State.EXPIRED})
_FAILED = frozenset({State.UNDELIVERED, State.UNKNOWN, State.NOT_PAID})
_OUTCOMES = {State.NOT_PAID: "not_paid", State.UNKNOWN: "unknown", State.PAYING: "unknown"}


class PurchaseObserver(Observer):
    """Counts purchases and their quotes, and measures the providers: work under way, speed, delivery.

    ``on_settled`` gets each purchase that was paid over Lightning, ``on_delivered`` each whose result was delivered,
    ``on_node_end`` each that is paid on delivery and has ended.
    """

    def __init__(
        self, metrics: Metrics, measurements: Measurements, trust: PeerTrust, log: FilteringBoundLogger
    ) -> None:
        self._metrics = metrics
        self._measurements = measurements
        self._trust = trust
        self._log = log
        self._shown: View | None = None
        self.on_settled: Callable[[Purchase], None] = lambda _purchase: None
        self.on_delivered: Callable[[Purchase], None] = lambda _purchase: None
        self.on_node_end: Callable[[Purchase], None] = lambda _purchase: None

    def quote_received(self, order: Order, quote: Quote, duration_s: float) -> None:
        """Record the price of a quote, taken or not."""
        model = order.task.model
        self._measurements.quoted(quote.peer_id, model, quote.price_msat, request_size(order.task))
        self._metrics.quote(quote.peer_id, model, duration_s, quote.price_msat)

    def quote_failed(self, peer_id: str, error: PurchaseError) -> None:
        """Record that a provider gave no quote that can be bought."""
        source = ProviderSource.of(peer_id)
        self._metrics.failover("refused" if isinstance(error, Refused) else "failed", source.value)
        # UNAVAILABLE means that the daemon is unreachable rather than a peer's fault, and most other statuses blame the
        # request.
        hung = isinstance(error, UpstreamError) and error.status is UpstreamStatus.DEADLINE_EXCEEDED
        if hung or isinstance(error, QuoteMismatch | QuoteExpired):
            self._trust.failed_to_quote(peer_id)
            self._measurements.failed(peer_id)

    def quote_taken(self, answer: ResultBuffer) -> None:
        """Record that a quote was taken: its provider has work, and the next best one cost more."""
        purchase = answer.purchase
        if purchase is None:
            return
        self._measurements.started(purchase.quote.peer_id)
        if purchase.runner_up_msat is not None:
            self._metrics.runner_up_saving(purchase.runner_up_msat - purchase.quote.price_msat)

    def quote_released(self, purchase: Purchase) -> None:
        """Record that a provider has no work after all."""
        self._measurements.finished(purchase.quote.peer_id)

    def node_failed(self, purchase: Purchase, error: PaymentFailed, *, fails_over: bool) -> None:
        """Record that a node failed unpaid."""
        provider_id = purchase.quote.peer_id
        if fails_over:
            self._measurements.finished(provider_id)
            self._metrics.failover("failed", purchase.quote.source.value)
        if error.status.is_upstreams_fault:
            self._trust.failed_to_quote(provider_id)
            if fails_over:
                self._measurements.failed(provider_id)

    def ended(self, answer: ResultBuffer) -> None:
        """Record the end of a purchase."""
        purchase = answer.purchase
        if purchase is None:
            return
        self._measure_end(answer, purchase)
        if purchase.quote.on_delivery:
            self.on_node_end(purchase)
        if purchase.state not in _UNPAID:
            self._count_end(answer, purchase)

    def _measure_end(self, answer: ResultBuffer, purchase: Purchase) -> None:
        quote, task = purchase.quote, purchase.order.task
        self._measurements.finished(quote.peer_id)
        if purchase.state is State.DELIVERED:
            self.on_delivered(purchase)
            mode = answer_mode(task)
            first_byte_s, tokens_per_s, tokens = _speed(answer, mode)
            self._measurements.delivered(
                quote.peer_id, task.model, mode, first_byte_s=first_byte_s, tokens_per_s=tokens_per_s, tokens=tokens
            )
            view = self._measurements.view(quote.peer_id, task.model, mode)
            # The same object for a second: most deliveries change no gauge.
            if view is not self._shown:
                self._shown = view
                self._metrics.provider_speed(quote.peer_id, quote.source.value, view.first_byte_s, view.tokens_per_s)
        elif purchase.state in _FAILED and purchase.blames_provider and not _is_requests_fault(answer, purchase):
            self._measurements.failed(quote.peer_id)
            if quote.on_delivery and purchase.interrupted_by is EndedBy.PROVIDER and purchase.state is State.NOT_PAID:
                # Nothing had come of it when its time was over. As it is unpaid, only this counts against the node.
                self._trust.failed_to_quote(quote.peer_id)

    def _count_end(self, answer: ResultBuffer, purchase: Purchase) -> None:
        quote = purchase.quote
        model = purchase.order.task.model
        if answer.execute_s is not None:
            self._metrics.execute(quote.peer_id, model, answer.execute_s)
        outcome = _OUTCOMES.get(purchase.state, "settled")
        if purchase.customer_msat and purchase.verdict is Verdict.SETTLED:
            self._metrics.charged(purchase.customer_msat)
        if quote.is_free:
            return
        self._metrics.payment(outcome, quote.peer_id, model, purchase.cost_msat)
        if outcome == "settled" and quote.source is ProviderSource.LCP:
            self.on_settled(purchase)
        if purchase.state is State.UNDELIVERED and purchase.blames_provider:
            self._metrics.undelivered(quote.peer_id, purchase.cost_msat)
        if answer.outlives_requests:
            ended_by, received = purchase.ending or (None, None)
            self._log.info(
                "a purchase ended after its request",
                request_id=answer.order.request_id,
                ended_by=ended_by,
                received=received,
                state=purchase.state.value,
                job_id=quote.job_id.hex(),
                peer_id=quote.peer_id,
                price_msat=quote.price_msat,
            )


class PeersObserver:
    """Counts the peers and models of each refresh, and logs whether the daemon can be used.

    ``nodes`` returns the virtual nodes that are up, the same object while they are the same.
    """

    def __init__(self, metrics: Metrics, log: FilteringBoundLogger, nodes: Callable[[], Sequence[Provider]]) -> None:
        self._metrics = metrics
        self._log = log
        self._nodes = nodes
        self._was_up: bool | None = None
        self._counted: tuple[object, object, int] = (None, None, 0)

    def __call__(self, catalog: Catalog | None) -> None:
        """Record a refresh; without a catalog the daemon could not be asked."""
        up = catalog is not None
        self._metrics.daemon_up(up)
        if catalog is not None:
            self._count(catalog)
        if up is not self._was_up and (self._was_up is not None or not up):
            if up:
                self._log.info("the daemon is back")
            else:
                self._log.warning("the daemon cannot be used")
        self._was_up = up

    def _count(self, catalog: Catalog) -> None:
        """Count the models if they have changed: there may be thousands."""
        peers, nodes = catalog.providers, self._nodes()
        if self._counted[0] is not peers or self._counted[1] is not nodes:
            models = catalog.models()
            of_nodes: Mapping[str, object] = Catalog(tuple(nodes), 0.0).models()
            self._metrics.set_known({*models, *of_nodes}, [provider.peer_id for provider in peers])
            self._counted = (peers, nodes, len(models))
        self._metrics.snapshot(len(peers), self._counted[2])


def record_resolution(
    metrics: Metrics,
    trust: PeerTrust,
    log: FilteringBoundLogger,
    *,
    job_id: bytes,
    state: State,
    evidence: str,
    bought: tuple[str, int] | None,
) -> None:
    """Record the end of an unknown payment; ``bought`` is the provider and the price, None where the journal is away."""
    if bought is not None:
        peer_id, price_msat = bought
        trust.resolved(peer_id, job_id, price_msat, state)
        if state is State.UNDELIVERED:
            metrics.undelivered(peer_id, price_msat)
    log.info("an unknown payment was resolved", job_id=job_id.hex(), state=state.value, evidence=evidence)


class LndObserver:
    """Counts and logs lnd's state, the fees of purchases and the outcome of unknown payments."""

    def __init__(self, metrics: Metrics, trust: PeerTrust, log: FilteringBoundLogger) -> None:
        self._metrics = metrics
        self._trust = trust
        self._log = log
        self._reading_fails = False

    def state(self, state: LndState) -> None:
        """Record the state of lnd."""
        self._metrics.lnd(
            state.reachable,
            state.synced_to_chain and state.synced_to_graph,
            state.local_msat,
            state.channels_active,
            state.channels_inactive,
        )

    def details_read(self, summary: ReadSummary) -> None:
        """Record a pass that read fees and preimages."""
        self._reading_fails = False
        if summary.recorded:
            self._log.debug("fees were recorded", purchases=summary.recorded, looked_up=summary.looked_up)

    def details_failed(self, error: Exception) -> None:
        """Log that fees cannot be read, once until they can be again."""
        if not self._reading_fails:
            self._log.warning("fees and preimages cannot be read from lnd; it is asked again", problem=str(error))
        self._reading_fails = True

    def reconciled(self, summary: ReconcilerSummary) -> None:
        """Count the payments of one pass by their outcome."""
        for _ in range(summary.settled):
            self._metrics.reconciled(State.SETTLED.value)
        for _ in range(summary.not_paid):
            self._metrics.reconciled(State.NOT_PAID.value)
        for _ in range(summary.still_open):
            self._metrics.reconciled("still_unknown")

    def reconcile_failed(self, error: Exception) -> None:
        """Count and log a pass that the journal ended."""
        self._metrics.reconciled("error")
        self._log.warning("unknown payments cannot be looked up; they are again", exc_info=error)

    def resolved(
        self, job_id: bytes, state: State, resolution: PaymentResolution, bought: tuple[str, int] | None
    ) -> None:
        """Record a resolved payment; ``bought`` is the provider and the price, None where the journal is away."""
        record_resolution(
            self._metrics,
            self._trust,
            self._log,
            job_id=job_id,
            state=state,
            evidence=resolution.evidence.value,
            bought=bought,
        )


def _speed(answer: ResultBuffer, mode: Mode) -> tuple[float | None, float | None, float | None]:
    """Return the time of the first byte, the pace of the rest in tokens a second, and the tokens."""
    took_s = max((answer.execute_s or 0.0) - answer.waited_s, _LEAST_S)
    match mode:
        case Mode.EMBEDDING:
            return took_s, None, None
        case Mode.WHOLE:
            tokens = answer.size / BYTES_PER_TOKEN
            return None, tokens / took_s, tokens
        case Mode.STREAM:
            tokens = answer.size / _STREAM_BYTES_PER_TOKEN
            rest_s = max(took_s - (answer.first_byte_s or 0.0), _LEAST_S)
            return answer.first_byte_s, tokens / rest_s, tokens


def _is_requests_fault(answer: ResultBuffer, purchase: Purchase) -> bool:
    error = answer.error
    return (
        purchase.quote.source is ProviderSource.NODE
        and isinstance(error, PaymentFailed)
        and not error.status.is_upstreams_fault
    )


class RefundObserver:
    """Counts decisions about refunds, and logs those that are withheld."""

    def __init__(self, metrics: Metrics, log: FilteringBoundLogger) -> None:
        self._metrics = metrics
        self._log = log

    def __call__(self, decision: RefundDecision) -> None:
        """Record a decision."""
        self._metrics.refund(decision.refund.value, decision.amount_msat)
        if decision.refund is Refund.DENIED:
            # The charge was not counted while its refund was pending.
            self._metrics.charged(decision.amount_msat)
        if decision.refund is Refund.WITHHELD:
            self._log.warning(
                "a refund is withheld: a limit is reached",
                job_id=decision.job_id.hex(),
                account_id=decision.account_id,
                amount_msat=decision.amount_msat,
            )
