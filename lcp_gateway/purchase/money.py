"""Amounts of money: whole millisatoshi, never floats."""

from typing import NewType

Msat = NewType("Msat", int)
"""An amount in millisatoshi (1 sat = 1,000 msat)."""

MSAT_PER_SAT = 1_000

LARGEST_MSAT = Msat(2**50)
"""11,000 bitcoin: nothing that is real costs so much, and no sum of what is below overflows 64 bits."""


def format_sat(amount: Msat) -> str:
    """Give the amount in sat with three decimals, exactly: 57372 -> ``57.372 sat``."""
    sign = "-" if amount < 0 else ""
    whole, rest = divmod(abs(amount), MSAT_PER_SAT)
    return f"{sign}{whole:,}.{rest:03d} sat"
