"""A journal that is off: chosen explicitly, by somebody who does without knowing after a crash what was paid."""

from collections.abc import Callable, Sequence
from datetime import datetime

from lcp_gateway.purchase.journal import Budget, EarlierPurchase, Intent, Learnt
from lcp_gateway.purchase.refunds import Refund
from lcp_gateway.purchase.states import State
from lcp_gateway.store.entries import NOTHING_NEW


class JournalOff:
    """A ``PurchaseJournal`` that writes nothing and keeps no budget: budgets need a journal that is on."""

    async def intend(self, intent: Intent, budgets: Sequence[Budget] = ()) -> None:
        """Let it be paid."""

    async def find(self, job_id: bytes) -> EarlierPurchase | None:  # noqa: ARG002 - the protocol's signature
        """Return None: nothing is known."""
        return None

    def note(
        self,
        job_id: bytes,
        state: State,
        at: datetime,
        learnt: Learnt = NOTHING_NEW,
        on_refund: Callable[[Refund], None] | None = None,
    ) -> None:
        """Forget it."""
