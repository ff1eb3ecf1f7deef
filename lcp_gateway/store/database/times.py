"""Times as the store keeps them: whole microseconds since 1970 in UTC, the same on every database."""

from datetime import UTC, datetime, timedelta
from typing import NewType

from lcp_gateway.purchase.money import Period

Micros = NewType("Micros", int)
"""Microseconds since 1970-01-01T00:00:00Z."""

MICROS_PER_S = 1_000_000
MICROS_PER_HOUR = 3_600 * MICROS_PER_S
MICROS_PER_DAY = 24 * MICROS_PER_HOUR
LONGEST_PERIOD = timedelta(days=31)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def to_micros(at: datetime) -> Micros:
    """Return an aware time as microseconds.

    Raises:
        ValueError: the time has no zone.
    """
    if at.tzinfo is None:
        raise ValueError("a time without a zone")
    since = at - _EPOCH
    # By its parts: dividing two timedeltas takes several times as long, and exact it is either way.
    return Micros(since.days * MICROS_PER_DAY + since.seconds * MICROS_PER_S + since.microseconds)


def from_micros(micros: int) -> datetime:
    """Return the aware UTC time."""
    return _EPOCH + timedelta(microseconds=micros)


def from_micros_or_none(micros: int | None) -> datetime | None:
    """Return the aware UTC time of a column that may be null."""
    return None if micros is None else from_micros(micros)


def period_start(period: Period, micros: int) -> Micros:
    """Return the beginning of the calendar period, in UTC, that holds the time."""
    match period:
        case Period.HOUR:
            return Micros(micros - micros % MICROS_PER_HOUR)
        case Period.DAY:
            return Micros(micros - micros % MICROS_PER_DAY)
        case Period.MONTH:
            first = from_micros(micros).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
            return to_micros(first)


def next_period_start(period: Period, micros: int) -> Micros:
    """Return the beginning of the calendar period after the one that holds the time."""
    start = period_start(period, micros)
    match period:
        case Period.HOUR:
            return Micros(start + MICROS_PER_HOUR)
        case Period.DAY:
            return Micros(start + MICROS_PER_DAY)
        case Period.MONTH:
            past_the_end = to_micros(from_micros(start) + LONGEST_PERIOD)
            return period_start(Period.MONTH, past_the_end)
