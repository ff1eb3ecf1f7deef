"""What a node sold, added up: the jobs that were paid, how they ended, and their prices."""

import enum
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from typing import Final

from lcp_gateway.node.runtime.observer import JobEnd
from lcp_gateway.node.storage.history import HistoryTotal

SALE: Final = "sale"
"""The word of the store for a job that was sold."""


class GroupBy(enum.StrEnum):
    """The ways to add earnings up."""

    DAY = "day"
    MODEL = "model"
    PEER = "peer"


@dataclass(slots=True)
class Earnings:
    """Paid jobs under one heading. ``undelivered`` are those whose buyer got no whole result."""

    jobs: int = 0
    delivered: int = 0
    undelivered: int = 0
    earned_msat: int = 0
    undelivered_msat: int = 0

    def add(self, total: HistoryTotal) -> None:
        """Add one sum of the store, of jobs that were paid."""
        self.jobs += total.jobs
        self.earned_msat += total.price_msat
        if total.outcome == JobEnd.DELIVERED:
            self.delivered += total.jobs
        else:
            self.undelivered += total.jobs
            self.undelivered_msat += total.price_msat

    @property
    def cells(self) -> tuple[str, ...]:
        """The numbers as cells of a table."""
        return tuple(map(str, astuple(self)))


def add_up(totals: Iterable[HistoryTotal], ways: Sequence[GroupBy]) -> dict[tuple[str, ...], Earnings]:
    """Add up what was paid by heading, in the order of ``ways``; sorted by heading."""
    sums: dict[tuple[str, ...], Earnings] = {}
    for total in _paid(totals):
        heading = tuple(_of(total, way) for way in ways)
        sums.setdefault(heading, Earnings()).add(total)
    return dict(sorted(sums.items()))


def outcomes(totals: Iterable[HistoryTotal]) -> dict[str, int]:
    """Return how many jobs ended in which way, paid or not."""
    counted: dict[str, int] = {}
    for total in totals:
        if total.kind == SALE:
            counted[total.outcome] = counted.get(total.outcome, 0) + total.jobs
    return dict(sorted(counted.items()))


def whole(totals: Iterable[HistoryTotal]) -> Earnings:
    """Add up all that was paid."""
    all_of_it = Earnings()
    for total in _paid(totals):
        all_of_it.add(total)
    return all_of_it


def _paid(totals: Iterable[HistoryTotal]) -> Iterable[HistoryTotal]:
    return (total for total in totals if total.kind == SALE and total.paid)


def _of(total: HistoryTotal, way: GroupBy) -> str:
    match way:
        case GroupBy.DAY:
            return total.day
        case GroupBy.MODEL:
            return total.model
        case GroupBy.PEER:
            return total.peer_id
