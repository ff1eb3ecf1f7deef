import pytest

from lcp_gateway.routing.records import Mode, Records

A, B, M = "a", "b", "m"


class Kept:
    def __init__(self, half_life_s=100.0) -> None:
        self.now = 0.0
        self.records = Records(half_life_s=half_life_s, clock=lambda: self.now)

    def delivered(self, provider=A, model=M, rate=100.0, first_byte_s=None, mode=Mode.WHOLE):
        self.records.delivered(provider, model, mode, first_byte_s=first_byte_s, tokens_per_s=rate)

    def rate(self, provider=A, model=M, mode=Mode.WHOLE):
        return self.records.view(provider, model, mode).tokens_per_s


def test_nothing_is_believed_of_who_was_never_measured():
    view = Kept().records.view(A, M, Mode.STREAM)
    assert (view.expected_s, view.first_byte_s, view.tokens_per_s) == (None, None, None)
    assert view.delivery == 1 and view.price_msat is None


def test_the_same_measured_again_and_again_is_believed():
    kept = Kept()
    for _ in range(10):
        kept.delivered(rate=50)
    assert kept.rate() == pytest.approx(50)


def test_who_was_not_measured_gets_the_benefit_of_the_doubt():
    kept = Kept()
    kept.delivered(A, rate=80, first_byte_s=0.5)
    unknown = kept.records.view(B, M, Mode.WHOLE)
    assert unknown.tokens_per_s == pytest.approx(160)
    assert unknown.first_byte_s == pytest.approx(0.25)


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


def test_what_is_known_fades_to_what_is_known_of_all():
    kept = Kept(half_life_s=10)
    for _ in range(4):
        kept.delivered(A, rate=1)
        kept.delivered(B, rate=100)
    slow, everybody = kept.rate(A), kept.rate("nobody")
    kept.now += 100
    assert kept.rate(A) > slow * 3
    assert kept.rate(A) == pytest.approx(kept.rate("nobody"), rel=0.2) or everybody


def test_streams_and_whole_answers_are_measured_apart():
    kept = Kept()
    kept.delivered(mode=Mode.STREAM, first_byte_s=0.5, rate=20)
    stream = kept.records.view(A, M, Mode.STREAM)
    assert stream.first_byte_s == pytest.approx(0.5)
    assert stream.expected_s == pytest.approx(0.5 + 256 / 20)
    assert kept.rate(mode=Mode.WHOLE) is None


def test_an_embedding_is_timed_by_its_whole_answer():
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


def test_prices_are_averaged_and_the_lowest_is_told():
    kept = Kept()
    kept.records.quoted(A, M, 1_000)
    kept.records.quoted(B, M, 4_000)
    assert kept.records.last_price_msat(M, (A, B)) == 1_000
    assert kept.records.last_price_msat(M, ()) is None
    assert kept.records.last_price_msat("other", (A, B)) is None
    assert 1_000 < kept.records.view("c", M, Mode.WHOLE).price_msat < 4_000


def test_work_in_flight_never_goes_below_nothing():
    kept = Kept()
    kept.records.started(A)
    kept.records.started(A)
    kept.records.finished(A)
    assert kept.records.in_flight(A) == 1
    kept.records.finished(A)
    kept.records.finished(A)
    assert kept.records.in_flight(A) == kept.records.in_flight("nobody") == 0


def test_the_number_of_pairs_is_bounded():
    kept = Kept()
    for number in range(10_050):
        kept.records.quoted(A, f"m{number}", 1)
    assert kept.records.last_price_msat("m0", (A,)) is None
    assert kept.records.last_price_msat("m10049", (A,)) == 1
