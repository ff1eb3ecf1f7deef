"""The weighing of models at providers against each other: features and scores of all, and the words for them. Pure."""

from collections.abc import Sequence
from typing import NamedTuple

from lcp_gateway.routing.offers import Entry
from lcp_gateway.routing.policy import Weights
from lcp_gateway.routing.prices import Price
from lcp_gateway.routing.records import View
from lcp_gateway.routing.score import Features, price_feature, speed_feature, trial_time

# As many as the log line shows of a feature, so that the choice can be made again from it.
DIGITS = 6
"""To so many digits features are rounded."""
_ANY_S = 1.0
_AS_GOOD_AS_ALWAYS = 0.95


class Row(NamedTuple):
    """What is known of an entry: its provider's room (0 to 1), how well its size fits, its measurements and its price."""

    entry: Entry
    room: float
    fit: float
    view: View
    price: Price


class Scored(NamedTuple):
    """An entry with its score, what it is made of, and what that says in words."""

    entry: Entry
    score: float
    features: Features
    view: View
    price: Price
    is_fastest: bool = False
    is_cheapest: bool = False

    @property
    def merits(self) -> tuple[str, ...]:
        """What is known to speak for it, in words; a candidate without measurements says so."""
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


def weigh(rows: Sequence[Row], weights: Weights) -> list[Scored]:
    """Score entries against each other, in their order."""
    known = [row.price.msat for row in rows if row.price.is_known and row.price.msat is not None]
    lowest = min(known, default=None)
    guesses = [row.price.msat for row in rows if row.price.msat is not None]
    best_msat = lowest if lowest is not None else min(guesses, default=None)
    times = [_expected_s(row, best_msat) for row in rows]
    best_s = min([time for time in times if time is not None], default=None)
    measured = [row.view.expected_s for row in rows if row.view.was_measured]
    shortest = min([time for time in measured if time is not None], default=None)
    return [
        _scored(row, time, weights, best_s, best_msat, shortest, lowest)
        for row, time in zip(rows, times, strict=True)
    ]


def _scored(
    row: Row,
    expected_s: float | None,
    weights: Weights,
    best_s: float | None,
    best_msat: float | None,
    shortest: float | None,
    lowest: float | None,
) -> Scored:
    entry, room, fit, view, price = row
    features = Features(
        room,
        round(speed_feature(expected_s, best_s), DIGITS),
        round(view.delivery, DIGITS),
        round(min(1.0, price_feature(price.msat, best_msat)), DIGITS),
        fit,
    )
    return Scored(
        entry,
        features.score(weights),
        features,
        view,
        price,
        view.was_measured and view.expected_s is not None and view.expected_s == shortest,
        price.is_known and price.msat == lowest,
    )


def _expected_s(row: Row, best_msat: float | None) -> float | None:
    expected_s = row.view.expected_s
    if not row.view.is_untried:
        return expected_s
    # Where nothing was measured yet all are equally fast, and a trial is still worth the less the more it costs.
    return trial_time(_ANY_S if expected_s is None else expected_s, row.price.msat, best_msat)
