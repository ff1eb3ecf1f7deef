"""Purchases as the settings say: limits, tariff, the inspection of quotes, quoting and execution."""

from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from lcp_gateway.app.wiring.journal import JournalParts
from lcp_gateway.clock import utc_now
from lcp_gateway.config import Settings, markups, model_limits
from lcp_gateway.lightning.checks import QuoteMismatch, check_quote
from lcp_gateway.purchase.execution import PurchaseExecutor
from lcp_gateway.purchase.inspection import CheckInvoice, QuoteInspector
from lcp_gateway.purchase.limits import FeeEstimate, SpendingLimits
from lcp_gateway.purchase.money import PPM_PER_PERCENT, Markup, Msat, Period, Tariff
from lcp_gateway.purchase.order import Order
from lcp_gateway.purchase.ports import Upstream
from lcp_gateway.purchase.quote import Quote
from lcp_gateway.purchase.quoting import PaidJobs, QuoteRequester, QuotingRules
from lcp_gateway.purchase.result_buffer import BufferLimits
from lcp_gateway.purchase.service import Timeouts
from lcp_gateway.purchase.shared_purchases import SharedPurchases
from lcp_gateway.purchase.tracing import Tracing
from lcp_gateway.routing.peer_trust import PeerTrust
from lcp_gateway.telemetry.metrics import Metrics
from lcp_gateway.telemetry.observers import PurchaseObserver
from lcp_gateway.upstreams.result_judges import judge_result


def tariff(settings: Settings) -> Tariff:
    """Return the mark-ups of all models."""
    by_model = {
        name: Markup(round(percent * PPM_PER_PERCENT), Msat(fixed_msat))
        for name, (percent, fixed_msat) in markups(settings).items()
    }
    return Tariff(by_model.pop(""), by_model)


@dataclass(frozen=True, slots=True)
class PurchaseParts:
    """The parts that one configuration buys with."""

    limits: SpendingLimits
    quoting: QuoteRequester
    executor: PurchaseExecutor
    buffer_limits: BufferLimits
    timeouts: Timeouts
    shared: SharedPurchases | None


def spending_limits(settings: Settings) -> SpendingLimits:
    """Return the limits of spending."""
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


def _invoice_check(metrics: Metrics, network: Callable[[], str | None]) -> CheckInvoice:
    """Return the check of a peer's quote against its invoice; ``network`` is an invoice's prefix, None for any."""

    def check_invoice(order: Order, quote: Quote) -> bytes:
        try:
            return check_quote(order.task, quote, utc_now(), network=network()).payment_hash
        except QuoteMismatch as mismatch:
            metrics.mismatch(quote.peer_id, mismatch.reason.value)
            raise

    return check_invoice


def purchase_parts(
    settings: Settings,
    *,
    upstream: Upstream,
    journal: JournalParts,
    trust: PeerTrust,
    observer: PurchaseObserver,
    background: Callable[[Coroutine[Any, Any, None]], None],
    paid_jobs: PaidJobs,
    shared: SharedPurchases | None,
    reserve: Callable[[Quote], Awaitable[None]] | None,
    metrics: Metrics,
    tracing: Tracing,
) -> PurchaseParts:
    """Wire quoting and execution."""
    limits = spending_limits(settings)
    inspector = QuoteInspector(
        limits=limits,
        exposure=trust,
        check_invoice=_invoice_check(metrics, lambda: settings.network or journal.network),
    )
    return PurchaseParts(
        limits=limits,
        quoting=QuoteRequester(
            upstream,
            QuotingRules(
                at_once=settings.quote_fanout, at_most=settings.quote_attempts, timeout_s=settings.timeout_quote_s
            ),
            inspector=inspector,
            background=background,
            cancel_timeout_s=settings.cancel_timeout_s,
            on_quote=observer.quote_received,
            on_failure=observer.quote_failed,
            tracing=tracing,
            paid_jobs=paid_jobs,
        ),
        executor=PurchaseExecutor(
            upstream,
            journal=journal.purchases,
            inspector=inspector,
            limits=limits,
            exposure=trust,
            execute_timeout_s=settings.timeout_execute_s,
            judges=judge_result,
            tracing=tracing,
            paid_jobs=paid_jobs,
            reserve=reserve,
        ),
        buffer_limits=BufferLimits(window_bytes=settings.stream_buffer_bytes),
        timeouts=Timeouts(
            settings.join_grace_s,
            settings.cancel_timeout_s,
            settings.timeout_s,
            settings.timeout_quote_s + settings.timeout_execute_s,
        ),
        shared=shared,
    )
