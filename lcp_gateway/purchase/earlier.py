"""An order whose request was bought before, by another process or before a restart, as the journal tells."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

from lcp_gateway.purchase.errors import PurchaseError
from lcp_gateway.purchase.journal import EarlierPurchase, JournalUnavailable
from lcp_gateway.purchase.memory import KeyReused
from lcp_gateway.purchase.repeat_identity import RepeatIdentity
from lcp_gateway.purchase.shared import LostElsewhere
from lcp_gateway.purchase.states import VERDICTS, State, Verdict

_FIRST_PAUSE_S: Final = 0.02
_MOST_PAUSE_S: Final = 0.5

Find = Callable[[bytes], Awaitable[EarlierPurchase | None]]
"""Finds the purchase of a job in the journal; raises ``JournalUnavailable``."""


class BoughtBefore(LostElsewhere):
    """The journal has a purchase of the same request, and its answer cannot be had here."""

    def __init__(self, earlier: EarlierPurchase) -> None:
        verdict = VERDICTS[earlier.state]
        super().__init__(_message(earlier.state, verdict), verdict=verdict, quote=earlier.quote)
        self.request_id = earlier.request_id
        self.earlier = earlier


def _message(state: State, verdict: Verdict) -> str:
    if state is State.PAYING:
        return "this is still being bought by another gateway; asking again would not pay again"
    if verdict is Verdict.UNKNOWN:
        return (
            "this was asked for before and it is not known yet whether it was paid; asking again pays only "
            "if it turns out that it was not"
        )
    if state is State.UNDELIVERED:
        return "this was bought before, and its answer did not come; it is not paid for again"
    return "this was bought before and its answer is no longer held; it is not paid for again"


def refusal_of(earlier: EarlierPurchase, identity: RepeatIdentity | None) -> PurchaseError:
    """Return the error for a request that repeats an earlier purchase, or another request under the same key."""
    if identity is not None and earlier.repeat_body != identity.body:
        return KeyReused("the idempotency key was used with another request before")
    return BoughtBefore(earlier)


async def wait_until_unpaid(
    earlier: EarlierPurchase, identity: RepeatIdentity | None, find: Find, wait_s: float
) -> None:
    """Return once an earlier purchase is known not to be paid, so that the order may be bought after all.

    While another process is paying it, this waits for the outcome, ``wait_s`` at most.

    Raises:
        KeyReused: the Idempotency-Key was used for another request.
        BoughtBefore: it was paid, or it is not known to be unpaid.
    """
    refusal = refusal_of(earlier, identity)
    if isinstance(refusal, KeyReused):
        raise refusal
    give_up_at = time.monotonic() + wait_s
    pause_s = _FIRST_PAUSE_S
    while earlier.state is State.PAYING and time.monotonic() < give_up_at:
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 1.5, _MOST_PAUSE_S)
        try:
            found = await find(earlier.quote.job_id)
        except JournalUnavailable:
            # Away for a moment: what is known stands.
            continue
        if found is None:
            # Only what has ended is ever removed from the journal.
            break
        earlier = found
    if earlier.state is not State.NOT_PAID:
        raise BoughtBefore(earlier)


async def what_was_bought_with(
    job_id: bytes, key_id: str, identity: RepeatIdentity, find: Find
) -> LostElsewhere | None:
    """Return what became of a quote that is not held any more; None where nothing was bought with it for this request."""
    try:
        earlier = await find(job_id)
    except JournalUnavailable:
        return LostElsewhere(
            "there is no such quote, and the journal cannot be read to tell whether it was taken",
            verdict=Verdict.UNKNOWN,
        )
    if earlier is None or earlier.key_id != key_id or earlier.repeat_body != identity.body:
        return None
    if earlier.state is State.NOT_PAID:
        return None
    return BoughtBefore(earlier)
