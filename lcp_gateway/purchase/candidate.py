"""A candidate: a provider that may do a task, and the task as that provider gets it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from lcp_gateway.purchase.task import Task


def as_it_is(task: Task) -> Task:
    """Leave a task alone: what is done with every task whose client named a model of a provider."""
    return task


@dataclass(frozen=True, slots=True)
class Candidate:
    """One provider that routing found.

    ``adapt`` makes the task that the provider gets of the one that was asked for; it is pure, so that it can be applied
    again when a quote is taken later. ``adapter`` names what also has to be done with the result, and is empty where its
    bytes go out as they come. ``routing`` is what the client is told of the choice, or None where it made its own.
    """

    provider_id: str
    adapt: Callable[[Task], Task] = as_it_is
    adapter: str = ""
    routing: Mapping[str, object] | None = field(default=None)
