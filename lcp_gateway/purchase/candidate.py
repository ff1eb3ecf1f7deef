"""A candidate: a provider that may do a task, and the task as that provider gets it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from lcp_gateway.purchase.money import Msat
from lcp_gateway.purchase.task import Task


def as_it_is(task: Task) -> Task:
    """Leave a task alone: what is done with every task whose client named a model of a provider."""
    return task


class Comparison(Protocol):
    """Compares the candidates of one order by what they ask. They go by their places."""

    def next(
        self, asked: Mapping[int, Msat], left: Sequence[int], *, peers_too: bool
    ) -> int | None:
        """Return which of ``left`` is to be asked as well before one is paid; None where none is."""
        ...

    def best(self, asked: Mapping[int, Msat]) -> int:
        """Return the place of the one to pay."""
        ...

    def taken(self, place: int, asked: Mapping[int, Msat]) -> Mapping[str, object] | None:
        """Hear which one is paid; return what the client is told of the choice, None where it is told nothing."""
        ...


@dataclass(frozen=True, slots=True)
class Candidate:
    """One provider that routing found.

    ``adapt`` makes the task that the provider gets of the one that was asked for; it is pure, so that it can be applied
    again when a quote is taken later. ``adapter`` names what also has to be done with the result, and is empty where its
    bytes go out as they come. ``routing`` is what the client is told of the choice, or None where it made its own.
    ``comparison`` weighs its quote against those of other candidates, where the gateway made the choice; ``place`` is its
    place there.
    """

    provider_id: str
    adapt: Callable[[Task], Task] = as_it_is
    adapter: str = ""
    routing: Mapping[str, object] | None = field(default=None)
    comparison: Comparison | None = field(default=None, compare=False, repr=False)
    place: int = 0
