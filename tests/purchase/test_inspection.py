"""What is checked of a quote when it comes, and in which order."""

from datetime import timedelta

import pytest

from lcp_gateway.lightning.checks import Mismatch, QuoteMismatch
from lcp_gateway.purchase.errors import QuoteExpired
from lcp_gateway.purchase.inspection import QuoteInspector
from lcp_gateway.purchase.limits import SpendingLimits
from tests.support.purchases import HASH, NOW, Trusting, order, quote


def inspector(check_invoice, now=NOW) -> QuoteInspector:
    return QuoteInspector(limits=SpendingLimits(), exposure=Trusting(), check_invoice=check_invoice, now=lambda: now)


def refuse_invoice(_order, refused):
    raise QuoteMismatch(Mismatch.EXPIRED, quote=refused)


def test_a_quote_that_is_good_names_its_payment():
    assert inspector(lambda _order, _quote: HASH).at_quote(order(), quote()) == HASH


def test_a_quote_that_came_too_late_has_expired_and_does_not_lie():
    """Regression: its invoice expires with it, so the client was told of a false invoice and not to try again."""
    late = quote(expires_in_s=10)
    with pytest.raises(QuoteExpired) as expired:
        inspector(refuse_invoice, NOW + timedelta(seconds=10)).at_quote(order(), late)
    assert expired.value.quote is late and not expired.value.was_named


def test_an_invoice_that_expires_before_its_quote_does_not_fit_it():
    with pytest.raises(QuoteMismatch):
        inspector(refuse_invoice, NOW + timedelta(seconds=9)).at_quote(order(), quote(expires_in_s=10))
