import pytest

from lcp_gateway.purchase.money import Msat, format_sat


@pytest.mark.parametrize(
    ("msat", "text"),
    [(0, "0.000 sat"), (57_372, "57.372 sat"), (1, "0.001 sat"), (-1_500, "-1.500 sat"),
     (21_000_000_000_000, "21,000,000,000.000 sat")],
)  # fmt: skip
def test_amounts_are_shown_exactly(msat, text):
    assert format_sat(Msat(msat)) == text
