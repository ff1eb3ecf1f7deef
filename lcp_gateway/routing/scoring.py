"""Scores of models at providers: their features, the draw among them, and the second look once quotes are there. Pure."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from lcp_gateway.purchase.quote import ProviderSource
from lcp_gateway.routing.averages import Price
from lcp_gateway.routing.measurements import View
from lcp_gateway.routing.offers import Entry
from lcp_gateway.routing.preferences import Weights

# One satoshi on top of every price: where the cheapest is free, the others still differ.
_PRICE_FLOOR_MSAT = 1_000.0
_BALANCED_PARAMS_B = 14.0
_BALANCED_SPREAD = 1.2
_SMALL_PARAMS_B = 4.0
_LARGE_PARAMS_B = 40.0
_UNKNOWN_FIT = 0.5
_UNKNOWN_PRICE = 0.5
# A candidate that costs more than twice the best, or anything beside a free one, is drawn as if its score were so much
# lower: not at all, unless the temperature is far above the usual.
_MOST_TIMES_THE_PRICE = 2.0
_TOO_DEAR_TO_TRY = 1.0


class Features(NamedTuple):
    """The properties that count in favour of a candidate, each from 0 to 1."""

    availability: float
    speed: float
    delivery: float
    price: float
    fit: float

    def score(self, weights: Weights) -> float:
        """Return the weighted sum; ``weights`` are normalised."""
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

    One that is as cheap as any counts as twice as fast, so that it is soon tried. The more it costs, the less: a trial
    then costs money, and a priced one beside a free one counts as twice as slow.
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
    """Return how much room a provider has; without a limit of its own it loses half at sixteen jobs."""
    if most:
        return max(0.0, 1.0 - in_flight / most)
    return 1.0 / (1.0 + in_flight / 16.0)


def fit_feature(params_b: float | None, size: str) -> float:
    """Return how well a model's size (billions of parameters) suits the size that is preferred."""
    if not params_b:
        return _UNKNOWN_FIT
    if size == "small":
        return 1.0 / (1.0 + params_b / _SMALL_PARAMS_B)
    if size == "large":
        return params_b / (params_b + _LARGE_PARAMS_B)
    distance = math.log(params_b / _BALANCED_PARAMS_B) / _BALANCED_SPREAD
    return math.exp(-distance * distance / 2.0)


def affordable(prices: Sequence[float | None], best: int) -> list[bool]:
    """Return for each candidate whether it may be tried instead of the best; an unknown price is seen before it is paid."""
    limit = prices[best]
    if limit is None:
        return [True] * len(prices)
    return [price is None or price <= limit * _MOST_TIMES_THE_PRICE or at == best for at, price in enumerate(prices)]


def pick(scores: Sequence[float], temperature: float, draw: float, prices: Sequence[float | None] | None = None) -> int:
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
    # The remainder of rounding goes to the best.
    return first


# As many as the log line shows of a feature, so that the choice can be made again from it.
FEATURE_DIGITS = 6
"""To so many digits features are rounded."""
_ANY_S = 1.0
_AS_GOOD_AS_ALWAYS = 0.95


class ScoringRow(NamedTuple):
    """The inputs of an entry's score: its provider's room (0 to 1), the fit of its size, its measurements and its price."""

    entry: Entry
    room: float
    fit: float
    view: View
    price: Price


class Scored(NamedTuple):
    """An entry with its score, the features behind it, and those in words."""

    entry: Entry
    score: float
    features: Features
    view: View
    price: Price
    is_fastest: bool = False
    is_cheapest: bool = False

    @property
    def merits(self) -> tuple[str, ...]:
        """Its merits in words; a candidate without measurements says so."""
        view = self.view
        said = (
            ("fastest", self.is_fastest),
            ("cheapest", self.is_cheapest),
            ("delivers", view.has_delivered and view.delivery > _AS_GOOD_AS_ALWAYS),
            ("not yet measured", not view.was_measured),
        )
        return tuple(word for word, holds in said if holds)

    @property
    def known_msat(self) -> float | None:
        """The price, where it is known."""
        return self.price.msat if self.price.is_known else None


def score_all(rows: Sequence[ScoringRow], weights: Weights) -> list[Scored]:
    """Score entries against each other, in their order."""
    known = [row.price.msat for row in rows if row.price.is_known and row.price.msat is not None]
    lowest = min(known, default=None)
    guesses = [row.price.msat for row in rows if row.price.msat is not None]
    best_msat = lowest if lowest is not None else min(guesses, default=None)
    times = [_expected_s(row, best_msat) for row in rows]
    best_s = min([time for time in times if time is not None], default=None)
    measured = [row.view.expected_s for row in rows if row.view.was_measured]
    shortest = min([time for time in measured if time is not None], default=None)
    scored = []
    for row, expected_s in zip(rows, times, strict=True):
        entry, room, fit, view, price = row
        features = Features(
            room,
            round(speed_feature(expected_s, best_s), FEATURE_DIGITS),
            round(view.delivery, FEATURE_DIGITS),
            round(min(1.0, price_feature(price.msat, best_msat)), FEATURE_DIGITS),
            fit,
        )
        is_fastest = view.was_measured and view.expected_s is not None and view.expected_s == shortest
        is_cheapest = price.is_known and price.msat == lowest
        scored.append(Scored(entry, features.score(weights), features, view, price, is_fastest, is_cheapest))
    return scored


def _expected_s(row: ScoringRow, best_msat: float | None) -> float | None:
    expected_s = row.view.expected_s
    if not row.view.is_untried:
        return expected_s
    # Where nothing was measured yet all are equally fast, and a trial is still worth the less the more it costs.
    return trial_time(_ANY_S if expected_s is None else expected_s, row.price.msat, best_msat)


# A quote within ten per cent of the expected price changes nothing, or each request would cost several quotes.
_AS_EXPECTED = 1.1
_MSAT = 1.0


class QuoteComparison:
    """Compares the candidates of one decision by their quotes. They are named by their places in the decision's list."""

    def __init__(self, considered: Sequence[Scored], weights: Weights) -> None:
        self._considered = considered
        self._weights = weights

    def next(self, asked: Mapping[int, int], left: Sequence[int], *, peers_too: bool) -> int | None:
        """Return the place of the candidate to be asked as well before one of those that quoted is paid.

        ``asked`` holds the quotes, ``left`` the places of the others in their order; ``peers_too`` allows another call to
        a peer, where a node's price takes none. None where the best of those that quoted can be taken.
        """
        if self.is_as_expected(asked):
            return None
        if not peers_too:
            left = [at for at in left if self._considered[at].entry.provider.source is ProviderSource.NODE]
        known = [place for place in left if self._considered[place].price.is_known]
        scores = [one.score for one in self.weighed(asked)]
        if known:
            best = max(known, key=lambda place: scores[place])
            return best if scores[best] > max(scores[place] for place in asked) else None
        if len(asked) > 1:
            return None
        # The only price that is known is no measure of itself: a second one is asked for.
        providers = {self._provider(place) for place in asked}
        others = (place for place in left if self._provider(place) not in providers)
        return next(others, None)

    def is_as_expected(self, asked: Mapping[int, int]) -> bool:
        """Return whether the quotes are no surprise to the choice."""
        return not any(self._is_surprising(place, msat) for place, msat in asked.items())

    def best(self, asked: Mapping[int, int]) -> int:
        """Return the place of the best of those that quoted; the first of equals."""
        if len(asked) == 1:
            return next(iter(asked))
        scores = [one.score for one in self.weighed(asked)]
        return max(asked, key=lambda place: scores[place])

    def taken(self, place: int, asked: Mapping[int, int]) -> Mapping[str, object] | None:  # noqa: ARG002 - nothing is told
        """Return None: a client that named the model gets no explanation."""
        return None

    def weighed(self, asked: Mapping[int, int]) -> Sequence[Scored]:
        """Return all candidates at their places as they compare now that some have quoted."""
        rows = [
            ScoringRow(
                one.entry,
                one.features.availability,
                one.features.fit,
                one.view,
                Price(float(asked[place]), is_known=True) if place in asked else one.price,
            )
            for place, one in enumerate(self._considered)
        ]
        return score_all(rows, self._weights)

    def _is_surprising(self, place: int, msat: int) -> bool:
        price = self._considered[place].price
        if not price.is_known or price.msat is None:
            return True
        return msat > price.msat * _AS_EXPECTED + _MSAT

    def _provider(self, place: int) -> str:
        return self._considered[place].entry.provider.peer_id
