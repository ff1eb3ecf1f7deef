import pytest

from lcp_gateway.node.lcp.pricing import PriceTooHigh, Surge, TokenPrice, price_msat
from tests.support.cases import each_case

RECORDED = TokenPrice(1_000_000, 2_000_000)
"""The price of model-a in the dialogues, whose limit of output is 200 tokens."""

SURGE = Surge(threshold=1, per_job_bps=500)


@each_case(
    "request_bytes, output_tokens, inflight, price",
    [
        (69, 200, 0, 418),
        (69, 200, 1, 418),
        (41, 200, 0, 411),
        (76, 200, 1, 419),
        (77, 200, 1, 420),
        (69, 200, 2, 439),
        (69, 200, 3, 460),
        (116, 20, 5, 83),
        (69, 200, 6, 523),
        (69, 200, 7, 544),
        (69, 200, 8, 565),
        (69, 200, 9, 586),
        (89, 200, 6, 529),
        (75, 200, 10, 608),
        (69, 200, 10, 607),
    ],
)
def test_the_price_is_that_of_the_recorded_provider(request_bytes, output_tokens, inflight, price):
    assert price == price_msat(
        RECORDED, request_bytes=request_bytes, output_tokens=output_tokens, inflight=inflight, surge=SURGE
    )


def test_tokens_are_rounded_up_before_the_surcharge_is():
    assert price_msat(TokenPrice(1, 1), request_bytes=1, output_tokens=0) == 1
    assert price_msat(TokenPrice(0, 0), request_bytes=400, output_tokens=9) == 0
    assert price_msat(TokenPrice(1, 1), request_bytes=1, output_tokens=0, inflight=1, surge=Surge(0, 1)) == 2


@pytest.mark.parametrize(
    ("surge", "inflight", "bps"),
    [
        (Surge(), 1_000, 10_000),
        (Surge(threshold=3, per_job_bps=100), 3, 10_000),
        (Surge(threshold=3, per_job_bps=100), 4, 10_100),
        (Surge(per_job_bps=1_000), 1_000, 30_000),
        (Surge(per_job_bps=1_000, max_multiplier_bps=12_000), 5, 12_000),
        (Surge(per_job_bps=1_000, max_multiplier_bps=10_000), 5, 10_000),
    ],
)
def test_the_surcharge_grows_by_job_above_the_threshold_to_its_bound(surge, inflight, bps):
    assert surge.multiplier_bps(inflight) == bps


@pytest.mark.parametrize(
    "wrong", [{"threshold": -1}, {"per_job_bps": -1}, {"per_job_bps": 1, "max_multiplier_bps": 9_999}]
)
def test_a_surcharge_that_cannot_be_meant_is_refused(wrong):
    with pytest.raises(ValueError, match="surge: "):
        Surge(**wrong)


def test_a_price_that_does_not_fit_its_field_is_refused():
    with pytest.raises(PriceTooHigh):
        price_msat(TokenPrice(2**63, 2**63), request_bytes=4_000_000, output_tokens=1_000_000)
