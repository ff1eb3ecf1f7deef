"""What may keep a quote from being paid: each guard looks at a quote and lets it pass or refuses it."""

from collections.abc import Callable
from datetime import datetime

from lcp_gateway.purchase.errors import PriceLimitExceeded, QuoteExpired
from lcp_gateway.purchase.quote import Quote
from lcp_gateway.purchase.task import Task

Guard = Callable[[Task, Quote, datetime], None]
"""Called with the task, its quote and the time (aware UTC). Raises ``Refused`` to keep the quote from being paid."""


def price_limit(limit_msat: int) -> Guard:
    """Refuse a quote above ``limit_msat``; 0 means no limit."""

    def check(_task: Task, quote: Quote, _now: datetime) -> None:
        if limit_msat and quote.price_msat > limit_msat:
            raise PriceLimitExceeded(quote, limit_msat)

    return check


def not_expired(_task: Task, quote: Quote, now: datetime) -> None:
    """Refuse a quote that has run out: its job is gone, and a payment would be lost."""
    if now >= quote.expires_at:
        raise QuoteExpired("the quote expired before it was taken; nothing was paid", quote=quote)
