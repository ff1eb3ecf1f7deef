"""Prices by the size of a request: what is expected of a provider before it has quoted, from what it quoted before."""

import math
from dataclasses import dataclass
from typing import NamedTuple

from lcp_gateway.purchase.task import Task
from lcp_gateway.routing.averages import Faded

_LEAST_MSAT = 1.0
# A token of input costs about a quarter of a token of output, and has about four bytes.
_INPUT_BYTES_PER_UNIT = 16.0
# What providers reckon with where a request sets no limit to its output.
_UNLIMITED_OUTPUT = 4_096.0
# Sizes are told apart by factors of four: within one, a price by the token is a good guess.
_BITS_PER_CLASS = 2
_MAX_CLASSES = 16


class Size(NamedTuple):
    """How large a request is: the bytes of its body, and the output tokens that it allows (0 where it sets no limit)."""

    input_bytes: int
    output_tokens: int = 0

    @property
    def units(self) -> float:
        """The size as one number, in tokens of output; at least one."""
        output = self.output_tokens or _UNLIMITED_OUTPUT
        return max(1.0, output + self.input_bytes / _INPUT_BYTES_PER_UNIT)


def size_of(task: Task) -> Size:
    """Return the size of a task."""
    return Size(len(task.body), task.output_tokens)


ORDINARY = Size(2_000, 500)
"""The size by which prices are shown and compared where there is no request."""


class Price(NamedTuple):
    """What a request is expected to cost. ``is_known`` tells a quote or a price list from a guess; None is no idea at all.

    ``asked`` is the logarithm of what was lately asked, for requests of whatever size.
    """

    msat: float | None = None
    is_known: bool = False
    asked: float | None = None

    @property
    def asked_msat(self) -> float | None:
        """What was lately asked; None where nothing was."""
        return None if self.asked is None else math.exp(self.asked)


UNKNOWN = Price()


@dataclass(slots=True)
class Rates:
    """Averages of prices per unit of size that fade, one for each class of sizes."""

    half_life_s: float
    by_class: dict[int, Faded]

    @classmethod
    def empty(cls, half_life_s: float) -> "Rates":
        """Return averages of nothing."""
        return cls(half_life_s, {})

    def __bool__(self) -> bool:
        return bool(self.by_class)

    def add(self, sized: "Sized", price_msat: int, now: float) -> None:
        """Take in a quote; nothing counts as a thousandth of a satoshi."""
        faded = self.by_class.get(sized.size_class)
        if faded is None:
            faded = self.by_class[sized.size_class] = Faded(self.half_life_s)
        faded.add(max(float(price_msat), _LEAST_MSAT) / sized.units, now)

    def expected(self, sized: "Sized") -> float | None:
        """Return the price by what was asked for the nearest size; None where nothing was asked.

        It does not fade: what was asked holds until something else is asked, and a quote tells before it is paid.
        """
        by_class = self.by_class
        if not by_class:
            return None
        faded = by_class.get(sized.size_class)
        if faded is None:
            faded = by_class[min(by_class, key=lambda one: abs(one - sized.size_class))]
        return math.exp(faded.total / faded.weight) * sized.units


class Sized(NamedTuple):
    """A size as it is looked up, worked out once for all candidates of a request."""

    size_class: int
    units: float

    @classmethod
    def of(cls, size: Size) -> "Sized":
        """Return it for a size."""
        units = size.units
        return cls(min(int(units).bit_length() // _BITS_PER_CLASS, _MAX_CLASSES), units)
