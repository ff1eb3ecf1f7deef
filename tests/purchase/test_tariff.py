"""What customers are charged is never below the price, and rounded to the operator's side."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcp_gateway.purchase.money import Msat
from lcp_gateway.purchase.tariff import Markup, Tariff


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
def test_a_markup_is_a_share_and_a_fixed_amount_rounded_up(
    ppm, fixed_msat, price_msat, charge_msat
):
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
