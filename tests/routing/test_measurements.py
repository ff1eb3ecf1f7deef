import pytest

from lcp_gateway.routing.averages import RequestSize
from lcp_gateway.routing.measurements import Measurements, Mode

A, B, M = "a", "b", "m"


class Kept:
    def __init__(self, half_life_s=100.0) -> None:
        self.now = 0.0
        self.records = Measurements(half_life_s=half_life_s, clock=lambda: self.now)

    def delivered(self, provider=A, model=M, rate=100.0, first_byte_s=None, mode=Mode.WHOLE):
        self.records.delivered(provider, model, mode, first_byte_s=first_byte_s, tokens_per_s=rate)

    def rate(self, provider=A, model=M, mode=Mode.WHOLE):
        return self.records.view(provider, model, mode).tokens_per_s


def test_nothing_is_estimated_of_a_provider_that_was_never_measured():
    view = Kept().records.view(A, M, Mode.STREAM)
    assert (view.expected_s, view.first_byte_s, view.tokens_per_s) == (None, None, None)
    assert view.delivery == 1 and view.is_untried and not view.has_delivered
    assert Kept().records.price(A, M) == (None, False, None)


def test_the_same_measured_again_and_again_is_estimated():
    kept = Kept()
    for _ in range(10):
        kept.delivered(rate=50)
    assert kept.rate() == pytest.approx(50)


def test_a_provider_that_was_not_measured_is_estimated_to_be_like_all_others_and_known_as_untried():
    kept = Kept()
    kept.delivered(A, rate=80, first_byte_s=0.5)
    unknown, known = (kept.records.view(one, M, Mode.WHOLE) for one in (B, A))
    assert unknown.tokens_per_s == pytest.approx(80) and unknown.is_untried
    assert unknown.first_byte_s == pytest.approx(0.5) and not unknown.has_delivered
    assert known.was_measured and known.has_delivered and not known.is_untried


def test_another_model_of_a_slow_provider_is_expected_to_be_slow():
    kept = Kept()
    for _ in range(4):
        kept.delivered(A, rate=1)
        kept.delivered(B, rate=100)
    assert kept.rate(A, "other") < 5 < kept.rate(B, "other")


def test_a_change_is_noticed_within_a_few_measurements():
    kept = Kept()
    for _ in range(50):
        kept.delivered(rate=100)
    for _ in range(6):
        kept.delivered(rate=10)
    assert kept.rate() < 25


def test_measurements_fade_to_the_average_of_all_providers():
    kept = Kept(half_life_s=10)
    for _ in range(4):
        kept.delivered(A, rate=1)
        kept.delivered(B, rate=100)
    slow, others = kept.rate(A), kept.rate("unknown")
    kept.now += 100
    assert kept.rate(A) > slow * 3
    assert kept.rate(A) == pytest.approx(kept.rate("unknown"), rel=0.2) or others


def test_streams_and_whole_results_are_measured_apart():
    kept = Kept()
    kept.delivered(mode=Mode.STREAM, first_byte_s=0.5, rate=20)
    stream = kept.records.view(A, M, Mode.STREAM)
    assert stream.first_byte_s == pytest.approx(0.5)
    assert stream.expected_s == pytest.approx(0.5 + 256 / 20)
    assert kept.rate(mode=Mode.WHOLE) is None


def test_an_embedding_is_timed_by_its_whole_result():
    kept = Kept()
    kept.delivered(mode=Mode.EMBEDDING, first_byte_s=0.2, rate=None)
    assert kept.records.view(A, M, Mode.EMBEDDING).expected_s == pytest.approx(0.2)


def test_failures_count_against_delivery_and_are_forgotten():
    kept = Kept(half_life_s=10)
    kept.records.failed(A)
    kept.records.failed(A)
    assert kept.records.view(A, M, Mode.WHOLE).delivery == pytest.approx(0.5)
    kept.now += 100
    assert kept.records.view(A, M, Mode.WHOLE).delivery > 0.99


def test_prices_are_averaged_and_the_lowest_is_reported():
    kept = Kept()
    kept.records.quoted(A, M, 1_000)
    kept.records.quoted(B, M, 4_000)
    assert kept.records.last_price_msat(M, (A, B)) == 1_000
    assert kept.records.last_price_msat(M, ()) is None
    assert kept.records.last_price_msat("other", (A, B)) is None
    guess = kept.records.price("c", M)
    assert 1_000 < guess.msat < 4_000 and not guess.is_known


def test_a_price_is_expected_by_the_size_of_the_request():
    """The price of a large answer must not count against a small one."""
    kept = Kept()
    kept.records.quoted(A, M, 80_000, RequestSize(100, 8_000))
    kept.records.quoted(B, M, 1_000, RequestSize(100, 50))
    small = RequestSize(100, 50)
    assert kept.records.price(A, M, small).msat < kept.records.price(B, M, small).msat
    large = RequestSize(100, 8_000)
    assert kept.records.price(A, M, large).msat < kept.records.price(B, M, large).msat


def test_a_price_that_was_asked_for_this_very_size_goes_before_one_by_the_token():
    kept = Kept()
    small, large = RequestSize(0, 50), RequestSize(0, 8_000)
    for _ in range(4):
        kept.records.quoted(A, M, 1_050, small)
        kept.records.quoted(A, M, 9_000, large)
    assert kept.records.price(A, M, small).msat == pytest.approx(1_050, rel=0.4)
    assert kept.records.price(A, M, large).msat == pytest.approx(9_000, rel=0.4)


def test_a_free_node_does_not_make_peers_look_cheap():
    """A node's price comes from its price list, and says nothing about peers' prices."""
    kept = Kept()
    kept.records.quoted("node:n", M, 0)
    assert kept.records.price(B, M).msat is None
    kept.records.quoted(A, M, 20_000)
    assert kept.records.price(B, M).msat == pytest.approx(20_000)


def test_sizes_that_are_told_apart_are_bounded():
    kept = Kept()
    for power in range(80):
        kept.records.quoted(A, M, 10**12, RequestSize(0, 2**power))
    assert len(kept.records._pairs[A, M].rates.by_class) <= 17


def test_work_in_flight_never_goes_below_nothing():
    kept = Kept()
    kept.records.started(A)
    kept.records.started(A)
    kept.records.finished(A)
    assert kept.records.in_flight(A) == 1
    kept.records.finished(A)
    kept.records.finished(A)
    assert kept.records.in_flight(A) == kept.records.in_flight("unknown") == 0


def test_the_number_of_pairs_is_bounded():
    kept = Kept()
    for number in range(10_050):
        kept.records.quoted(A, f"m{number}", 1)
    assert kept.records.last_price_msat("m0", (A,)) is None
    assert kept.records.last_price_msat("m10049", (A,)) == 1
