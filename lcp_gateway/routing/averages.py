"""An average of measurements that fades."""

import math
from dataclasses import dataclass

# An average listens to about the last two or three measurements: a provider that becomes slow is soon known for it.
_MOST_WEIGHT = 1.5
# What is not measured counts as half a measurement that came out like everybody's.
_PRIOR_WEIGHT = 0.5


@dataclass(slots=True)
class Faded:
    """An average of logarithms: times and prices differ by factors. Its weight halves every ``half_life_s``."""

    half_life_s: float
    total: float = 0.0
    weight: float = 0.0
    at: float = 0.0

    def add(self, value: float, now: float) -> None:
        """Take in a measurement, which must be positive."""
        weight = self.weight
        if weight:
            kept = weight * math.exp2(-max(0.0, now - self.at) / self.half_life_s)
            kept = min(kept, _MOST_WEIGHT)
            self.total = self.total / weight * kept + math.log(value)
            self.weight = kept + 1.0
        else:
            self.total, self.weight = math.log(value), 1.0
        self.at = now

    def weight_at(self, now: float) -> float:
        """Give how much it still counts."""
        if not self.weight:
            return 0.0
        return self.weight * math.exp2(-max(0.0, now - self.at) / self.half_life_s)

    def blend(self, prior: float | None, now: float) -> float | None:
        """Give the mean logarithm, drawn towards ``prior`` as it fades; None where nothing is known at all."""
        if not self.weight:
            return prior
        mean = self.total / self.weight
        if prior is None:
            return mean
        weight = self.weight_at(now)
        return (mean * weight + prior * _PRIOR_WEIGHT) / (weight + _PRIOR_WEIGHT)
