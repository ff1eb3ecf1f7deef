"""Makes what buys, as one configuration says it: limits, tariff, the inspection of quotes, quoting and execution."""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from lcp_gateway.app.accounting import QuoteFailures, QuoteNotes
from lcp_gateway.app.wiring.journal import Ledgers
from lcp_gateway.config import Settings, markups, model_limits
from lcp_gateway.lightning.checks import QuoteMismatch, check_quote
from lcp_gateway.purchase.execution import PurchaseExecutor, utc_now
from lcp_gateway.purchase.limits import FeeEstimate, SpendingLimits
from lcp_gateway.purchase.money import PPM_PER_PERCENT, Markup, Msat, Period, Tariff
from lcp_gateway.purchase.order import Order
from lcp_gateway.purchase.ports import Upstream
from lcp_gateway.purchase.quote import ProviderSource, Quote
from lcp_gateway.purchase.quoting import PaidJobs, QuoteRequester, QuotingRules
from lcp_gateway.purchase.result_buffer import BufferLimits
from lcp_gateway.purchase.service import Timeouts
from lcp_gateway.purchase.shared_purchases import SharedPurchases
from lcp_gateway.purchase.tracing import Tracing
from lcp_gateway.routing.measurements import Measurements
from lcp_gateway.routing.peer_trust import PeerTrust
from lcp_gateway.telemetry.metrics import Metrics
from lcp_gateway.upstreams.result_judges import judge_result


def tariff(settings: Settings) -> Tariff:
    """Return the mark-ups of all models."""
    by_model = {
        name: Markup(round(percent * PPM_PER_PERCENT), Msat(fixed_msat))
        for name, (percent, fixed_msat) in markups(settings).items()
    }
    return Tariff(by_model.pop(""), by_model)


@dataclass(frozen=True, slots=True)
class BuyingParts:
    """How a configuration buys."""

    limits: SpendingLimits
    market: QuoteRequester
    buyer: PurchaseExecutor
    bounds: BufferLimits
    patience: Timeouts
    shared: SharedPurchases | None


def spending_limits(settings: Settings) -> SpendingLimits:
    """What the settings say may be spent."""
    model_max_price_msat, model_max_total_msat = model_limits(settings)
    return SpendingLimits(
        max_price_msat=settings.max_price_msat,
        max_total_msat=settings.max_total_msat,
        model_max_total_msat=model_max_total_msat,
        model_max_price_msat=model_max_price_msat,
        budgets={
            Period.HOUR: settings.budget_hour_msat,
            Period.DAY: settings.budget_day_msat,
            Period.MONTH: settings.budget_month_msat,
        },
        key_budgets={
            Period.HOUR: settings.key_budget_hour_msat,
            Period.DAY: settings.key_budget_day_msat,
            Period.MONTH: settings.key_budget_month_msat,
        },
        fee=FeeEstimate(settings.fee_ppm, settings.fee_base_msat),
        tariff=tariff(settings),
        refund_undelivered=settings.refund_undelivered,
    )


class Inspector:
    """Looks at a quote before it may be bought: is it what it says, within the limits, and its peer trusted with it?"""

    def __init__(
        self,
        *,
        limits: SpendingLimits,
        standings: PeerTrust,
        network: Callable[[], str | None],
        metrics: Metrics,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._limits = limits
        self._standings = standings
        self._network = network
        self._metrics = metrics
        self._now = now

    def __call__(self, order: Order, quote: Quote) -> bytes | None:
        """Give the payment hash of the quote's invoice; a node's quote has none.

        Raises:
            Refused: it may not be bought.
        """
        if quote.source is ProviderSource.NODE:
            # The gateway itself reckoned the price, from what the operator set.
            self._limits.check_price(order, quote)
            self._standings.weigh(quote)
            return None
        try:
            invoice = check_quote(order.task, quote, self._now(), network=self._network())
        except QuoteMismatch as mismatch:
            self._metrics.mismatch(quote.peer_id, mismatch.reason.value)
            raise
        self._standings.quoted(quote.peer_id)
        self._limits.check_price(order, quote)
        # Weighed, not held: most quotes are asked for and not taken. The flow holds it before it pays.
        self._standings.weigh(quote)
        return invoice.payment_hash


def buying_parts(
    settings: Settings,
    *,
    upstream: Upstream,
    ledgers: Ledgers,
    trust: PeerTrust,
    measurements: Measurements,
    background: Callable[[Coroutine[Any, Any, None]], None],
    paid_jobs: PaidJobs,
    shared: SharedPurchases | None,
    metrics: Metrics,
    tracing: Tracing,
) -> BuyingParts:
    """Wire what buys."""
    limits = spending_limits(settings)
    inspector = Inspector(
        limits=limits,
        standings=trust,
        network=lambda: settings.network or ledgers.network,
        metrics=metrics,
    )
    return BuyingParts(
        limits=limits,
        market=QuoteRequester(
            upstream,
            QuotingRules(
                at_once=settings.quote_fanout,
                at_most=settings.quote_attempts,
                timeout_s=settings.timeout_quote_s,
            ),
            inspect=inspector,
            background=background,
            cancel_timeout_s=settings.cancel_timeout_s,
            on_quote=QuoteNotes(metrics, measurements),
            on_failure=QuoteFailures(metrics, trust, measurements),
            tracing=tracing,
            paid_jobs=paid_jobs,
        ),
        buyer=PurchaseExecutor(
            upstream,
            journal=ledgers.journal,
            inspect=inspector,
            limits=limits,
            exposure=trust,
            execute_timeout_s=settings.timeout_execute_s,
            judgement=judge_result,
            tracing=tracing,
            paid_jobs=paid_jobs,
        ),
        bounds=BufferLimits(window_bytes=settings.stream_buffer_bytes),
        patience=Timeouts(
            settings.join_grace_s,
            settings.cancel_timeout_s,
            settings.timeout_s,
            settings.timeout_quote_s + settings.timeout_execute_s,
        ),
        shared=shared,
    )
