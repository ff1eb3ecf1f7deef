"""A customer's charge is never below the price, and is rounded up, in the operator's favour."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcp_gateway.purchase.limits import FeeEstimate
from lcp_gateway.purchase.money import LossRange, Markup, Msat, Tariff, format_sat, loss_range


@pytest.mark.parametrize(
    ("msat", "text"),
    [(0, "0.000 sat"), (57_372, "57.372 sat"), (1, "0.001 sat"), (-1_500, "-1.500 sat"),
     (21_000_000_000_000, "21,000,000,000.000 sat")],
)  # fmt: skip
def test_amounts_are_shown_exactly(msat, text):
    assert format_sat(Msat(msat)) == text


@pytest.mark.parametrize(
    ("ppm", "fixed_msat", "price_msat", "charge_msat"),
    [
        (0, 0, 1_234, 1_234),
        (50_000, 0, 1_000, 1_050),
        (50_000, 0, 1_001, 1_052),
        (1, 0, 1, 2),
        (0, 7, 1_000, 1_007),
        (100_000, 7, 1_000, 1_107),
        (1_000_000, 0, 21, 42),
        (50_000, 7, 0, 7),
    ],
)
def test_a_markup_is_a_share_and_a_fixed_amount_rounded_up(ppm, fixed_msat, price_msat, charge_msat):
    assert Markup(ppm, Msat(fixed_msat)).charge_msat(price_msat) == charge_msat


@given(st.integers(0, 10**8), st.integers(0, 10**6), st.integers(0, 2**50))
def test_a_charge_is_whole_and_less_than_one_above_the_exact_one(ppm, fixed_msat, price_msat):
    charged = Markup(ppm, Msat(fixed_msat)).charge_msat(price_msat)
    exact_millionths = (price_msat + fixed_msat) * 10**6 + price_msat * ppm
    assert 0 <= charged * 10**6 - exact_millionths < 10**6


@given(st.integers(0, 10**7), st.integers(0, 10**6), st.integers(0, 2**40), st.integers(0, 2**40))
def test_a_lower_price_is_never_charged_higher(ppm, fixed_msat, one_msat, other_msat):
    markup = Markup(ppm, Msat(fixed_msat))
    low, high = sorted((one_msat, other_msat))
    assert markup.charge_msat(low) <= markup.charge_msat(high)


def test_a_markup_is_not_negative():
    for bad in ((-1, 0), (0, -1)):
        with pytest.raises(ValueError, match="not negative"):
            Markup(*bad)


def test_a_model_can_have_a_markup_of_its_own():
    tariff = Tariff(Markup(100_000), {"dear": Markup(1_000_000)})
    assert tariff.charge_msat("dear", 1_000) == 2_000
    assert tariff.charge_msat("other", 1_000) == 1_100
    assert Tariff().charge_msat("any", 1_000) == 1_000


@pytest.mark.parametrize(
    ("ppm", "fixed_msat", "losses"),
    [
        # 10 % of 2,839 msat are 284 msat, and the route costs 1,029.
        (100_000, 0, LossRange(0, 11_112)),
        (100_000, 1_000, None),
        (10_000, 1_000, None),
        (10_000, 999, LossRange(0, None)),
        (0, 0, LossRange(0, None)),
        (0, 5_000, LossRange(400_000, None)),
        (0, 1_000, LossRange(0, None)),
    ],
)
def test_where_a_markup_does_not_cover_the_estimated_fee_is_known(ppm, fixed_msat, losses):
    assert loss_range(Markup(ppm, Msat(fixed_msat)), 10_000, 1_000) == losses


@given(
    st.integers(0, 300_000),
    st.integers(0, 5_000),
    st.integers(0, 300_000),
    st.integers(0, 5_000),
    st.integers(1, 10**9),
)
def test_outside_of_that_range_no_purchase_is_a_loss_except_for_rounding(
    ppm, fixed_msat, fee_ppm, fee_base_msat, price_msat
):
    markup = Markup(ppm, Msat(fixed_msat))
    losses = loss_range(markup, fee_ppm, fee_base_msat)
    fee_msat = FeeEstimate(fee_ppm, fee_base_msat).fee_msat(price_msat)
    gain_msat = markup.charge_msat(price_msat) - price_msat - fee_msat
    inside = losses is not None and (
        losses.from_msat <= price_msat and (losses.below_msat is None or price_msat < losses.below_msat)
    )
    assert gain_msat <= 1 if inside else gain_msat >= -1
