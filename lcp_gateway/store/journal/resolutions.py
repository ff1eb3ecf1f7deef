"""Unknown purchases that an operator resolves: the outcome and the reason are written in one transaction."""

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from datetime import datetime

from sqlalchemy import Connection

from lcp_gateway.purchase.money import RefundDecision, RefundLimits
from lcp_gateway.purchase.records import PurchaseRecord
from lcp_gateway.purchase.states import State
from lcp_gateway.store.accounts.admin_log import write_admin_action
from lcp_gateway.store.database.engines import Database
from lcp_gateway.store.journal.queries import Books
from lcp_gateway.store.journal.recovery import resolve


@dataclass(frozen=True, slots=True)
class ManualResolutions:
    """Records an operator's decisions in the journal and in the admin log; errors are ``DatabaseUnavailable``.

    ``on_resolved`` gets the purchase as it was, and its new state.
    """

    database: Database
    books: Books
    _: KW_ONLY
    refund_limits: Callable[[], RefundLimits]
    on_refund: Callable[[RefundDecision], None]
    on_resolved: Callable[[PurchaseRecord, State], None]

    async def resolve(self, job_id: bytes, state: State, *, reason: str, actor: str, at: datetime) -> None:
        """Record the outcome of an unknown purchase, as ``recovery.resolve``.

        Raises:
            NotUnknown: it is not unknown, or there is none; nothing was changed.
        """
        record = await self.books.purchase(job_id)

        def log(connection: Connection) -> None:
            write_admin_action(
                connection, at, actor, "purchase.resolve", job_id.hex(), state=state.value, reason=reason
            )

        resolved = await resolve(self.database, job_id, state, at, refunds=self.refund_limits(), also=log)
        if record is not None:
            self.on_resolved(record, resolved.state)
        for decision in resolved.refunds:
            self.on_refund(decision)
