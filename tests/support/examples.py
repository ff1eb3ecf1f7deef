"""The number of Hypothesis examples, as a multiple of the profile's number."""

from hypothesis import settings

FEWEST = 10


def examples(factor: float) -> int:
    """Return ``factor`` times what the profile in force tries (see tests/conftest.py), and ``FEWEST`` at least."""
    return max(FEWEST, round(factor * settings.default.max_examples))
