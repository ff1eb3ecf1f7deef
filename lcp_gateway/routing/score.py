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


def speed_feature(expected_s: float | None, best_s: float | None) -> float:
    """Compare a time with the shortest one; who was never measured, nor anybody like it, passes for the best."""
    if expected_s is None or best_s is None:
        return 1.0
    return best_s / expected_s


def price_feature(price_msat: float | None, best_msat: float | None) -> float:
    """Compare a price with the lowest one; an unknown price passes for the lowest."""
    if price_msat is None or best_msat is None:
        return 1.0
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


def pick(scores: Sequence[float], temperature: float, draw: float) -> int:
    """Choose an index: the best most of the time, another the more often the nearer its score is.

    The share of each is its softmax, ``exp((score - best) / temperature)`` over the sum of all. ``draw`` is uniform in
    [0, 1); the same draw gives the same choice. Raises ValueError for no scores.
    """
    best = max(scores)
    shares = [math.exp((score - best) / temperature) for score in scores]
    left = draw * sum(shares)
    for index, share in enumerate(shares):
        left -= share
        if left < 0.0:
            return index
    # What rounding left over belongs to the best.
    return scores.index(best)
