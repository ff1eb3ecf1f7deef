"""Averages that fade, and by them the prices of requests by their size."""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

from lcp_gateway.purchase.order import Task
from lcp_gateway.values import value

# An average follows about the last two or three measurements, so that a provider that becomes slow is soon rated so.
_MOST_WEIGHT = 1.5
# The prior (the average of all providers) counts as half a measurement.
_PRIOR_WEIGHT = 0.5


@dataclass(slots=True)
class FadingAverage:
    """An average of logarithms: times and prices differ by factors. Its weight halves every ``half_life_s``."""

    half_life_s: float
    total: float = 0.0
    weight: float = 0.0
    at: float = 0.0

    def add(self, value: float, now: float) -> None:
        """Add a measurement, which must be positive."""
        weight = self.weight
        if weight:
            age_s = now - self.at
            kept = weight * math.exp2(-age_s / self.half_life_s) if age_s > 0 else weight
            kept = min(kept, _MOST_WEIGHT)
            self.total = self.total / weight * kept + math.log(value)
            self.weight = kept + 1.0
        else:
            self.total, self.weight = math.log(value), 1.0
        self.at = now

    def blend(self, prior: float | None, now: float) -> float | None:
        """Return the mean logarithm, drawn towards ``prior`` as it fades; None without any measurement."""
        if not self.weight:
            return prior
        mean = self.total / self.weight
        if prior is None:
            return mean
        weight = self.weight * math.exp2(-max(0.0, now - self.at) / self.half_life_s)
        return (mean * weight + prior * _PRIOR_WEIGHT) / (weight + _PRIOR_WEIGHT)


_LEAST_MSAT = 1.0
# A token of input costs about a quarter of a token of output, and has about four bytes.
_INPUT_BYTES_PER_UNIT = 16.0
# The output that providers assume where a request sets no limit.
_UNLIMITED_OUTPUT = 4_096.0
# Sizes are distinguished by factors of four: within one, a price by the token is a good guess.
_BITS_PER_CLASS = 2
_MAX_CLASSES = 16


class RequestSize(NamedTuple):
    """How large a request is: the bytes of its body, and the output tokens that it allows (0 where it sets no limit)."""

    input_bytes: int
    output_tokens: int = 0

    @property
    def units(self) -> float:
        """The size as one number, in tokens of output; at least one."""
        output = self.output_tokens or _UNLIMITED_OUTPUT
        return max(1.0, output + self.input_bytes / _INPUT_BYTES_PER_UNIT)


def request_size(task: Task) -> RequestSize:
    """Return the size of a task."""
    return RequestSize(len(task.body), task.output_tokens)


ORDINARY_SIZE = RequestSize(2_000, 500)
"""The size by which prices are shown and compared where there is no request."""


class Price(NamedTuple):
    """The expected price of a request. ``is_known``: from a quote or a price list, not a guess; None is unknown.

    ``asked`` is the logarithm of the price lately asked, for requests of any size.
    """

    msat: float | None = None
    is_known: bool = False
    asked: float | None = None

    @property
    def asked_msat(self) -> float | None:
        """The price lately asked; None without a quote."""
        return None if self.asked is None else math.exp(self.asked)


UNKNOWN_PRICE = Price()


@dataclass(slots=True)
class PriceRates:
    """Averages of prices per unit of size that fade, one for each class of sizes."""

    half_life_s: float
    by_class: dict[int, FadingAverage] = field(default_factory=dict)

    def add(self, sized: "SizeClass", price_msat: int, now: float) -> None:
        """Add a quote; a price of nothing counts as a thousandth of a satoshi."""
        faded = self.by_class.get(sized.size_class)
        if faded is None:
            faded = self.by_class[sized.size_class] = FadingAverage(self.half_life_s)
        faded.add(max(float(price_msat), _LEAST_MSAT) / sized.units, now)

    def expected(self, sized: "SizeClass") -> float | None:
        """Return the price by the quotes for the nearest size; None without any.

        It does not fade: a price holds until another is asked, and the quote shows it before anything is paid.
        """
        by_class = self.by_class
        if not by_class:
            return None
        faded = by_class.get(sized.size_class)
        if faded is None:
            faded = by_class[min(by_class, key=lambda one: abs(one - sized.size_class))]
        return math.exp(faded.total / faded.weight) * sized.units


@value
class SizeClass:
    """A size as it is looked up, worked out once for all candidates of a request."""

    size_class: int
    units: float

    @classmethod
    def of(cls, size: RequestSize) -> "SizeClass":
        """Return it for a size."""
        units = size.units
        return cls(min(int(units).bit_length() // _BITS_PER_CLASS, _MAX_CLASSES), units)
