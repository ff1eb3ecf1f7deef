"""The score of a model at a provider, and the choice among scores. Pure: numbers in, numbers out."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from lcp_gateway.routing.policy import Weights

# One satoshi on top of every price: where the cheapest is free, the others still differ.
_PRICE_FLOOR_MSAT = 1_000.0
_BALANCED_PARAMS_B = 14.0
_BALANCED_SPREAD = 1.2
_SMALL_PARAMS_B = 4.0
_LARGE_PARAMS_B = 40.0
_UNKNOWN_FIT = 0.5
_UNKNOWN_PRICE = 0.5
# What costs more than twice the best candidate, or anything beside a free one, is drawn as if its score were so much
# lower: not at all, unless the temperature is far above the usual.
_MOST_TIMES_THE_PRICE = 2.0
_TOO_DEAR_TO_TRY = 1.0


class Features(NamedTuple):
    """What speaks for a candidate, each from 0 to 1."""

    availability: float
    speed: float
    delivery: float
    price: float
    fit: float

    def score(self, weights: Weights) -> float:
        """Give the weighted sum; ``weights`` are normalised."""
        availability, speed, delivery, price, fit = self
        return (
            weights.availability * availability
            + weights.speed * speed
            + weights.delivery * delivery
            + weights.price * price
            + weights.fit * fit
        )


def trial_time(expected_s: float, price_msat: float | None, best_msat: float | None) -> float:
    """Return the time that a provider which was never measured is taken to need, given what all others need.

    One that is as cheap as any passes for twice as fast, so that it is soon tried. The dearer it is, the less: a trial
    costs money then, and what costs something beside what is free passes for twice as slow.
    """
    share = 1.0
    if price_msat is not None and best_msat is not None and price_msat > best_msat:
        share = best_msat / price_msat
    return expected_s * math.exp2(1.0 - 2.0 * share)


def speed_feature(expected_s: float | None, best_s: float | None) -> float:
    """Compare a time with the shortest one; where nothing like it was ever measured, all are equally fast."""
    if expected_s is None or best_s is None:
        return 1.0
    return best_s / expected_s


def price_feature(price_msat: float | None, best_msat: float | None) -> float:
    """Compare a price with the lowest one; an unknown price is neither low nor high."""
    if price_msat is None or best_msat is None:
        return _UNKNOWN_PRICE
    return (best_msat + _PRICE_FLOOR_MSAT) / (price_msat + _PRICE_FLOOR_MSAT)


def load_feature(in_flight: int, most: int) -> float:
    """Give how much room a provider has; without a limit of its own it loses half at sixteen jobs."""
    if most:
        return max(0.0, 1.0 - in_flight / most)
    return 1.0 / (1.0 + in_flight / 16.0)


def fit_feature(params_b: float | None, size: str) -> float:
    """Tell how well a model's size (billions of parameters) suits the size that is preferred."""
    if not params_b:
        return _UNKNOWN_FIT
    if size == "small":
        return 1.0 / (1.0 + params_b / _SMALL_PARAMS_B)
    if size == "large":
        return params_b / (params_b + _LARGE_PARAMS_B)
    distance = math.log(params_b / _BALANCED_PARAMS_B) / _BALANCED_SPREAD
    return math.exp(-distance * distance / 2.0)


def affordable(prices: Sequence[float | None], best: int) -> list[bool]:
    """Tell of each candidate whether it may be tried instead of the best; an unknown price is seen before it is paid."""
    limit = prices[best]
    if limit is None:
        return [True] * len(prices)
    return [
        price is None or price <= limit * _MOST_TIMES_THE_PRICE or at == best
        for at, price in enumerate(prices)
    ]


def pick(
    scores: Sequence[float],
    temperature: float,
    draw: float,
    prices: Sequence[float | None] | None = None,
) -> int:
    """Choose an index: the best most of the time, another the more often the nearer its score is.

    The share of each is its softmax, ``exp((score - best) / temperature)`` over the sum of all; where ``prices`` say that
    one costs more than twice what the best costs, its score counts for one less. ``draw`` is uniform in [0, 1); the same
    draw gives the same choice. Raises ValueError for no scores.
    """
    best = max(scores)
    first = scores.index(best)
    may = [True] * len(scores) if prices is None else affordable(prices, first)
    shares = [
        math.exp((score - best - (0.0 if allowed else _TOO_DEAR_TO_TRY)) / temperature)
        for score, allowed in zip(scores, may, strict=True)
    ]
    left = draw * sum(shares)
    for index, share in enumerate(shares):
        left -= share
        if left < 0.0:
            return index
    # What rounding left over belongs to the best.
    return first
