"""A purchase: one task, its quote, and where it stands."""

from lcp_gateway.purchase.quote import Quote
from lcp_gateway.purchase.states import VERDICTS, Event, State, Verdict, step
from lcp_gateway.purchase.task import Task


class Purchase:
    """One task and its quote. Moves only as the state table allows."""

    __slots__ = ("_state", "quote", "task")

    def __init__(self, task: Task, quote: Quote) -> None:
        self.task = task
        self.quote = quote
        self._state = State.QUOTED

    @property
    def state(self) -> State:
        """Where the purchase stands."""
        return self._state

    @property
    def verdict(self) -> Verdict:
        """What can be said of the money now."""
        return VERDICTS[self._state]

    def apply(self, event: Event) -> State:
        """Move on; gives the new state.

        Raises:
            IllegalTransition: the table has no such move.
        """
        self._state = step(self._state, event)
        return self._state
