from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcp_gateway.purchase.errors import ChargeLimitExceeded, PriceLimitExceeded
from lcp_gateway.purchase.limits import FeeEstimate, SpendingLimits
from lcp_gateway.purchase.money import Budget, Markup, Msat, Period, Tariff
from lcp_gateway.purchase.quote import Payee, ProviderSource, Quote
from tests.support.purchases import quote
from tests.support.scripted_peers import ordered

# The default fee estimate: 1% and 1 sat.
FEE_OF_10_000 = 1_100


def passes(limits: SpendingLimits, price_msat: int, *, asks_at_most=None) -> bool:
    return takes(limits, quote(price_msat), asks_at_most=asks_at_most)


def takes(limits: SpendingLimits, offer: Quote, *, asks_at_most=None) -> bool:
    try:
        limits.check_price(ordered(limit_msat=asks_at_most), offer)
    except PriceLimitExceeded:
        return False
    return True


def of_node(price_msat: int) -> Quote:
    return replace(quote(price_msat), peer_id="node:n", source=ProviderSource.NODE, payment_request="")


def test_the_fee_is_estimated_as_a_share_and_a_base_rounded_up():
    assert FeeEstimate().fee_msat(10_000) == FEE_OF_10_000
    assert FeeEstimate().fee_msat(1) == 1_001
    assert FeeEstimate(0, 0).fee_msat(10_000) == 0


@given(price=st.integers(0, 10**15), ppm=st.integers(0, 10**6), base=st.integers(0, 10**9))
def test_the_fee_is_never_estimated_too_low(price, ppm, base):
    fee = FeeEstimate(ppm, base).fee_msat(price)
    assert (fee - base) * 1_000_000 >= price * ppm > (fee - base - 1) * 1_000_000


def test_without_limits_everything_passes():
    assert passes(SpendingLimits(), 10**15)


@pytest.mark.parametrize("price_msat", [2**50 - 1, 2**50, 2**62])
def test_a_price_that_cannot_be_stored_is_too_high_for_every_client(price_msat):
    """Regression: it was reported as an unavailable journal, which clients retry."""
    with pytest.raises(PriceLimitExceeded):
        SpendingLimits().check_price(ordered(), quote(price_msat))
    customer = replace(ordered(), account_id="acct_1")
    with pytest.raises(ChargeLimitExceeded if price_msat >= 2**50 else PriceLimitExceeded):
        SpendingLimits().check_price(customer, quote(price_msat))


def test_the_cap_on_the_price_excludes_the_fee():
    limits = SpendingLimits(max_price_msat=10_000)
    assert passes(limits, 10_000)
    assert not passes(limits, 10_001)


@pytest.mark.parametrize(
    "limits",
    [
        SpendingLimits(max_total_msat=11_100),
        SpendingLimits(model_max_total_msat={"m": 11_100}),
        SpendingLimits(max_total_msat=11_100, model_max_total_msat={"m": 90_000}),
        SpendingLimits(max_total_msat=90_000, model_max_total_msat={"m": 11_100}),
    ],
)
def test_a_cap_on_the_total_counts_the_fee_and_the_lowest_holds(limits):
    assert passes(limits, 10_000)
    assert not passes(limits, 10_001)


def test_a_cap_of_another_model_does_not_apply():
    assert passes(SpendingLimits(model_max_total_msat={"other": 1}), 10_000)


def test_the_client_can_only_lower_the_cap():
    limits = SpendingLimits(max_total_msat=11_100)
    assert passes(limits, 10_000, asks_at_most=Msat(90_000))
    assert not passes(limits, 10_001, asks_at_most=Msat(90_000))
    assert not passes(limits, 10_000, asks_at_most=Msat(11_099))
    assert passes(limits, 10_000, asks_at_most=Msat(11_100))


def test_the_client_cannot_lift_the_cap_on_the_price_either():
    limits = SpendingLimits(max_price_msat=5_000)
    assert not passes(limits, 5_001, asks_at_most=Msat(10**9))


def test_a_client_that_pays_nothing_at_all_gets_nothing():
    assert not passes(SpendingLimits(), 1, asks_at_most=Msat(0))


def test_the_refusal_says_price_limit_and_that_nothing_was_paid():
    limits = SpendingLimits(max_total_msat=11_000)
    with pytest.raises(PriceLimitExceeded) as caught:
        limits.check_price(ordered(), quote(10_000))
    error = caught.value
    assert (error.price_msat, error.limit_msat) == (10_000, 11_000)
    assert error.may_pass_later and error.quote.price_msat == 10_000
    for word in ("10000 msat", "1100 msat of routing fees", "11000 msat", "nothing was paid"):
        assert word in error.message


def test_budgets_are_those_of_the_gateway_and_of_the_key():
    limits = SpendingLimits(budgets={Period.HOUR: 1, Period.DAY: 0, Period.MONTH: 3}, key_budgets={Period.DAY: 2})
    whole = [Budget(Period.HOUR, Msat(1)), Budget(Period.MONTH, Msat(3))]
    assert limits.budgets_for("") == whole
    assert limits.budgets_for("alice") == [*whole, Budget(Period.DAY, Msat(2), "alice")]


@pytest.mark.parametrize(
    "limits",
    [
        SpendingLimits(model_max_price_msat={"m": 10_000}),
        SpendingLimits(max_price_msat=10_000, model_max_price_msat={"m": 90_000}),
        SpendingLimits(max_price_msat=90_000, model_max_price_msat={"m": 10_000}),
    ],
)
def test_the_cap_on_a_models_price_excludes_the_fee_and_the_lower_holds(limits):
    assert passes(limits, 10_000)
    assert not passes(limits, 10_001)


def test_a_cap_on_the_price_of_another_model_does_not_apply():
    assert passes(SpendingLimits(model_max_price_msat={"other": 1}), 10_000)


def test_the_refusal_names_the_models_own_cap():
    limits = SpendingLimits(max_price_msat=90_000, model_max_price_msat={"m": 10_000})
    with pytest.raises(PriceLimitExceeded) as caught:
        limits.check_price(ordered(), quote(10_001))
    assert caught.value.limit_msat == 10_000 and "fee" not in caught.value.message


def test_nothing_is_routed_to_a_node_so_no_fee_is_estimated():
    assert FeeEstimate().fee_for(of_node(10_000)) == 0
    assert FeeEstimate().fee_for(quote(10_000)) == FEE_OF_10_000
    limits = SpendingLimits(max_total_msat=10_000)
    assert takes(limits, of_node(10_000))
    assert not takes(limits, of_node(10_001))
    assert takes(SpendingLimits(), of_node(10_000), asks_at_most=Msat(10_000))


def test_a_client_that_pays_nothing_gets_what_is_free():
    assert takes(SpendingLimits(), of_node(0), asks_at_most=Msat(0))
    assert not takes(SpendingLimits(), of_node(1), asks_at_most=Msat(0))


# -- customers ------------------------------------------------------------------------------------

SELLING = SpendingLimits(tariff=Tariff(Markup(100_000), {"dear": Markup(0, Msat(9_000))}), refund_undelivered=True)


def of_customer(limit_msat=None, model: str = "m"):
    placed = ordered(limit_msat=limit_msat)
    return replace(placed, account_id="acct_1", task=replace(placed.task, model=model))


def test_a_customer_is_charged_the_price_and_the_models_mark_up():
    charge = SELLING.charge_for(of_customer(), quote(10_000))
    assert (charge.account_id, charge.amount_msat, charge.refund_undelivered) == ("acct_1", 11_000, True)
    assert SELLING.charge_for(of_customer(model="dear"), quote(10_000)).amount_msat == 19_000
    assert SELLING.charge_for(of_customer(model="dear"), of_node(0)).amount_msat == 9_000


def test_only_customers_are_charged():
    assert SELLING.charge_for(ordered(), quote(10_000)) is None


def test_a_customers_limit_is_on_the_charge_and_excludes_the_fee():
    SELLING.check_price(of_customer(11_000), quote(10_000))
    with pytest.raises(ChargeLimitExceeded) as caught:
        SELLING.check_price(of_customer(10_999), quote(10_000))
    assert (caught.value.price_msat, caught.value.limit_msat) == (11_000, 10_999)
    assert caught.value.quote == quote(10_000) and "fee" not in caught.value.message


def test_the_operators_own_caps_are_on_what_the_operator_pays():
    limits = replace(SELLING, max_total_msat=11_100)
    limits.check_price(of_customer(99_000), quote(10_000))
    with pytest.raises(PriceLimitExceeded):
        limits.check_price(of_customer(99_000), quote(10_001))


@given(price=st.integers(0, 10**12), limit=st.integers(0, 10**13), ppm=st.integers(0, 10**6))
def test_whatever_passes_is_charged_within_the_customers_limit(price, limit, ppm):
    limits = SpendingLimits(tariff=Tariff(Markup(ppm, Msat(3))))
    order = of_customer(Msat(limit))
    try:
        limits.check_price(order, quote(price))
    except ChargeLimitExceeded:
        assert limits.charge_for(order, quote(price)).amount_msat > limit
    else:
        assert limits.charge_for(order, quote(price)).amount_msat <= limit


def test_a_charge_is_always_refunded_where_the_provider_is_paid_on_delivery():
    keeping = replace(SELLING, refund_undelivered=False)
    assert not keeping.charge_for(of_customer(), of_node(10_000)).refund_undelivered
    assert keeping.charge_for(of_customer(), replace(of_node(10_000), on_delivery=True)).refund_undelivered


@given(price=st.integers(0, 10**15), ppm=st.integers(0, 10**6))
def test_an_owner_and_the_operator_share_a_price_to_the_msat(price, ppm):
    earned = Payee("n", "a", ppm).earned_msat(price)
    assert 0 <= earned <= price
    assert (price - earned) * 10**6 >= price * ppm > (price - earned - 1) * 10**6
