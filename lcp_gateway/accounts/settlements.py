"""Follows what is paid in, so that nobody has to poll: every settlement is credited once, after a crash too."""

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import Protocol

from lcp_gateway.accounts.ports import InvoicesAway, Till, TopupBook
from lcp_gateway.accounts.records import Credit
from lcp_gateway.purchase.money import Msat

_RETRY_S = 1.0
_MOST_RETRY_S = 15.0
_FOLLOWER_S = 1.0
_LOOK_UP_S = 30.0
# An invoice that ran out may have been paid in its last moment, by a payment that is still under way.
_EXPIRED_FOR = timedelta(minutes=10)
_FORGOTTEN_AFTER = timedelta(days=1)


class Leadership(Protocol):
    """Tells which of several gateways follows."""

    async def try_lead(self) -> bool:
        """Take the lead if nobody has it; true while this process has it."""
        ...


class Settlements:
    """Follows a node's settlements from where it was left, while this gateway leads.

    What was paid while nobody listened comes first, by its index; what the node forgot to tell is looked up invoice by
    invoice, at the start and from time to time.
    """

    def __init__(
        self,
        till: Till,
        topups: TopupBook,
        leadership: Leadership,
        *,
        on_credit: Callable[[Credit], None] = lambda _credit: None,
        on_trouble: Callable[[str], None] = lambda _problem: None,
        on_lead: Callable[[bool], None] = lambda _leads: None,
        away: tuple[type[Exception], ...] = (),
    ) -> None:
        """``away`` are the errors of a store that cannot be reached; ``on_trouble`` hears of both sides' absence."""
        self._till = till
        self._topups = topups
        self._leadership = leadership
        self._on_credit = on_credit
        self._on_trouble = on_trouble
        self._on_lead = on_lead
        self._away: tuple[type[Exception], ...] = (InvoicesAway, *away)
        self._leads = False

    async def run(self) -> None:
        """Follow until cancelled."""
        pause_s = _RETRY_S
        while True:
            try:
                if await self._may_lead():
                    await self._lead()
                pause_s = _RETRY_S
                await asyncio.sleep(_FOLLOWER_S)
            except self._away as error:
                # Whoever cannot tell whether it leads does not.
                self._note_lead(leads=False)
                self._on_trouble(str(error))
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, _MOST_RETRY_S)

    async def catch_up(self) -> None:
        """Look every open top-up up; what was paid is credited."""
        for topup in await self._topups.open_ones():
            paid = await self._till.paid(topup.payment_hash)
            if paid is None:
                continue
            credit = await self._topups.settle(
                paid.payment_hash,
                Msat(paid.amount_paid_msat),
                settle_index=paid.settle_index,
                at=paid.settled_at,
            )
            self._tell(credit)
        now = datetime.now(UTC)
        await self._topups.expire(now - _EXPIRED_FOR)
        await self._topups.forget_unpaid(now - _FORGOTTEN_AFTER)

    async def _may_lead(self) -> bool:
        leads = await self._leadership.try_lead()
        self._note_lead(leads=leads)
        return leads

    def _note_lead(self, *, leads: bool) -> None:
        if leads is not self._leads:
            self._leads = leads
            self._on_lead(leads)

    async def _lead(self) -> None:
        """Follow while this gateway leads; ends when it no longer does."""
        node_id = await self._till.node_id()
        await self.catch_up()
        following = asyncio.create_task(self._follow(node_id))
        try:
            looked_up = asyncio.get_running_loop().time()
            while await self._may_lead():
                done, _ = await asyncio.wait({following}, timeout=_FOLLOWER_S)
                if done:
                    following.result()
                now = asyncio.get_running_loop().time()
                if now - looked_up >= _LOOK_UP_S:
                    looked_up = now
                    await self.catch_up()
        finally:
            following.cancel()
            await asyncio.wait({following})

    async def _follow(self, node_id: str) -> None:
        start = await self._topups.followed(node_id)
        async with aclosing(self._till.follow(start)) as settlements:
            async for paid in settlements:
                credit = await self._topups.settle(
                    paid.payment_hash,
                    Msat(paid.amount_paid_msat),
                    settle_index=paid.settle_index,
                    at=paid.settled_at,
                    node_id=node_id,
                )
                self._tell(credit)

    def _tell(self, credit: Credit | None) -> None:
        if credit is not None and credit.is_new:
            self._on_credit(credit)
