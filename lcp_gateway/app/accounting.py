"""What is counted and logged of purchases, which may outlive the requests that asked for them."""

from collections.abc import Callable

from structlog.typing import FilteringBoundLogger

from lcp_gateway.lightning.checks import QuoteMismatch
from lcp_gateway.purchase.errors import PurchaseError, Refused, UpstreamError
from lcp_gateway.purchase.order import Order
from lcp_gateway.purchase.purchase import Purchase
from lcp_gateway.purchase.quote import ProviderSource, Quote
from lcp_gateway.purchase.result_buffer import ResultBuffer
from lcp_gateway.purchase.service import Observer
from lcp_gateway.purchase.states import State, Verdict
from lcp_gateway.routing.measurements import Measurements, request_size
from lcp_gateway.routing.peer_trust import PeerTrust
from lcp_gateway.telemetry.metrics import Metrics
from lcp_gateway.upstream_status import UpstreamStatus

_UNPAID = frozenset({State.QUOTED, State.REFUSED, State.EXPIRED})
_OUTCOMES = {State.NOT_PAID: "not_paid", State.UNKNOWN: "unknown", State.PAYING: "unknown"}


class Accounting(Observer):
    """Counts purchases; logs those whose request has gone. ``on_settled`` hears of each that was paid."""

    def __init__(self, metrics: Metrics, log: FilteringBoundLogger) -> None:
        self._metrics = metrics
        self._log = log
        self.on_settled: Callable[[Purchase], None] | None = None

    def quote_taken(self, answer: ResultBuffer) -> None:
        """Count what was saved by asking around."""
        purchase = answer.purchase
        if purchase is not None and purchase.runner_up_msat is not None:
            self._metrics.runner_up_saving(purchase.runner_up_msat - purchase.quote.price_msat)

    def ended(self, answer: ResultBuffer) -> None:
        """Count how a purchase ended."""
        purchase = answer.purchase
        if purchase is None or purchase.state in _UNPAID:
            return
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
        if (
            outcome == "settled"
            and quote.source is ProviderSource.LCP
            and self.on_settled is not None
        ):
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


class QuoteNotes:
    """Notes every quote."""

    def __init__(self, metrics: Metrics, records: Measurements) -> None:
        self._metrics = metrics
        self._records = records

    def __call__(self, order: Order, quote: Quote, duration_s: float) -> None:
        """Note who asked what for a model, and how long that took."""
        model = order.task.model
        self._records.quoted(quote.peer_id, model, quote.price_msat, request_size(order.task))
        self._metrics.quote(quote.peer_id, model, duration_s, quote.price_msat)


class QuoteFailures:
    """Counts providers that fell out before payment, and has them stand accordingly."""

    def __init__(self, metrics: Metrics, standings: PeerTrust, records: Measurements) -> None:
        self._metrics = metrics
        self._standings = standings
        self._records = records

    def __call__(self, peer_id: str, error: PurchaseError) -> None:
        """Note that a peer gave no quote that can be bought."""
        source = ProviderSource.of(peer_id)
        self._metrics.failover("refused" if isinstance(error, Refused) else "failed", source.value)
        # UNAVAILABLE is the daemon's absence rather than a peer's fault, and most other words blame the request.
        hung = isinstance(error, UpstreamError) and error.status == UpstreamStatus.DEADLINE_EXCEEDED
        if hung or isinstance(error, QuoteMismatch):
            self._standings.failed_to_quote(peer_id)
            self._records.failed(peer_id)
