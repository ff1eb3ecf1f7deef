import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcp_gateway.routing.preferences import Weights
from lcp_gateway.routing.scoring import (
    Features,
    fit_feature,
    load_feature,
    pick,
    price_feature,
    speed_feature,
    trial_time,
)

SHARES = st.lists(st.floats(0, 1), min_size=1, max_size=20)


def test_the_score_of_perfection_is_one_and_of_nothing_is_zero():
    weights = Weights(1, 2, 3, 4, 5).normalised()
    assert Features(1, 1, 1, 1, 1).score(weights) == pytest.approx(1)
    assert Features(0, 0, 0, 0, 0).score(weights) == 0


@given(SHARES, st.floats(0, 1, exclude_max=True), st.floats(0.001, 10))
def test_every_draw_chooses_a_candidate(scores, draw, temperature):
    assert 0 <= pick(scores, temperature, draw) < len(scores)


@given(SHARES, st.floats(0, 1, exclude_max=True))
def test_a_low_temperature_takes_one_of_the_best(scores, draw):
    assert scores[pick(scores, 1e-9, draw)] >= max(scores) - 1e-6


def test_shares_follow_the_softmax():
    scores, temperature, draws = [0.9, 0.85, 0.6], 0.05, 20_000
    counts = [0, 0, 0]
    for number in range(draws):
        counts[pick(scores, temperature, number / draws)] += 1
    weights = [math.exp((score - 0.9) / temperature) for score in scores]
    for count, weight in zip(counts, weights, strict=True):
        assert count / draws == pytest.approx(weight / sum(weights), abs=0.001)


def test_equals_share_evenly():
    counts = [0, 0]
    for number in range(1_000):
        counts[pick([0.7, 0.7], 0.05, number / 1_000)] += 1
    assert counts == [500, 500]


def test_the_cheapest_counts_fully_and_free_beats_paid():
    assert price_feature(2_000, 2_000) == 1
    assert price_feature(0, 0) == 1
    assert price_feature(9_000, 0) == pytest.approx(0.1)


def test_an_unknown_price_is_not_cheap():
    assert price_feature(0, 0) > price_feature(None, 0) > price_feature(50_000, 0)


def test_a_trial_is_worth_the_less_the_more_it_costs():
    """Beside a free provider, an untried one that charges is assumed to be slow, not fast."""
    assert trial_time(1, None, None) == trial_time(1, 900, 900) == trial_time(1, 0, 0) == 0.5
    assert trial_time(1, 2_000, 1_000) == 1
    assert trial_time(1, 5, 0) == 2


def test_a_draw_spends_at_most_twice_what_the_best_candidate_costs():
    scores = [0.9, 0.9, 0.9, 0.9]
    for prices, drawn in (
        ([0, 0, 1, None], {0, 1, 3}),
        ([1_000, 2_000, 2_001, None], {0, 1, 3}),
        ([None, 1, 10**9, None], {0, 1, 2, 3}),
    ):
        assert {pick(scores, 0.05, number / 100, prices) for number in range(100)} == drawn


def test_ten_times_slower_counts_a_tenth():
    assert speed_feature(10.0, 1.0) == pytest.approx(0.1)
    assert speed_feature(None, 1.0) == 1


def test_a_full_provider_has_no_room_and_one_without_a_limit_always_has_some():
    assert load_feature(4, 4) == load_feature(9, 4) == 0
    assert load_feature(0, 4) == load_feature(0, 0) == 1
    assert 0 < load_feature(1_000, 0) < 0.1


@pytest.mark.parametrize(
    ("size", "order"), [("small", [1, 14, 120]), ("large", [120, 14, 1]), ("balanced", [14, 120, 1])]
)
def test_sizes_are_preferred_as_asked(size, order):
    fits = [fit_feature(params, size) for params in order]
    assert fits[0] == max(fits)
    assert all(0 < fit <= 1 for fit in fits)
    assert fit_feature(None, size) == 0.5
