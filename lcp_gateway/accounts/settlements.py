"""Follows what is paid in, so that nobody has to poll: every settlement is credited once, after a crash too."""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import aclosing, suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from lcp_gateway.accounts.models import Credit, Topup
from lcp_gateway.accounts.repositories import (
    InvoiceService,
    InvoiceServiceUnavailable,
    TopupRepository,
)
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

    What was paid while no gateway listened comes first, by its index; what the node forgot to tell is looked up invoice
    by invoice, at the start and from time to time. Three tasks do it, ``lead``, ``follow`` and ``look_up``: an error in
    one of them ends none of the others.
    """

    def __init__(
        self,
        till: InvoiceService,
        topups: TopupRepository,
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
        self._away: tuple[type[Exception], ...] = (InvoiceServiceUnavailable, *away)
        self._leading, self._lost = asyncio.Event(), asyncio.Event()
        self._lost.set()

    async def lead(self) -> None:
        """Take the lead when no other gateway has it, and notice when it is lost, until cancelled."""
        pause_s = _RETRY_S
        try:
            while True:
                try:
                    self._note_lead(leads=await self._leadership.try_lead())
                    pause_s = _RETRY_S
                    await asyncio.sleep(_FOLLOWER_S)
                except self._away as error:
                    # A gateway that cannot tell whether it leads does not.
                    self._note_lead(leads=False)
                    self._on_trouble(str(error))
                    await asyncio.sleep(pause_s)
                    pause_s = min(pause_s * 2, _MOST_RETRY_S)
        finally:
            # Nor does one that no longer looks.
            self._note_lead(leads=False)

    async def follow(self) -> None:
        """Credit what the node says was paid, while this gateway leads, until cancelled."""
        await self._while_leading(self._follow, _FOLLOWER_S)

    async def look_up(self) -> None:
        """Look open top-ups up at the start and from time to time, while this gateway leads, until cancelled."""
        await self._while_leading(self.catch_up, _LOOK_UP_S)

    async def catch_up(self) -> None:
        """Look every open top-up up; what was paid is credited."""
        failed: Exception | None = None
        for topup in await self._topups.open_ones():
            try:
                await self._look_up(topup)
            except self._away:
                raise
            except Exception as error:  # noqa: BLE001 - raised below, after the others had their turn
                failed = failed or error
        now = datetime.now(UTC)
        await self._topups.expire(now - _EXPIRED_FOR)
        await self._topups.forget_unpaid(now - _FORGOTTEN_AFTER)
        if failed is not None:
            raise failed

    async def _look_up(self, topup: Topup) -> None:
        paid = await self._till.paid(topup.payment_hash)
        if paid is None:
            return
        credit = await self._topups.settle(
            paid.payment_hash,
            Msat(paid.amount_paid_msat),
            settle_index=paid.settle_index,
            at=paid.settled_at,
        )
        self._tell(credit)

    def _note_lead(self, *, leads: bool) -> None:
        if leads is not self._leading.is_set():
            begun, ended = (self._leading, self._lost) if leads else (self._lost, self._leading)
            ended.clear()
            begun.set()
            self._on_lead(leads)

    async def _while_leading(
        self, work: Callable[[], Coroutine[Any, Any, None]], every_s: float
    ) -> None:
        """Do a work while this gateway leads, and again after ``every_s``; after an absence in growing intervals."""
        pause_s = _RETRY_S
        while True:
            await self._leading.wait()
            try:
                await self._unless_lost(work)
                wait_s, pause_s = every_s, _RETRY_S
            except self._away as error:
                self._on_trouble(str(error))
                wait_s, pause_s = pause_s, min(pause_s * 2, _MOST_RETRY_S)
            # A lead that is lost and taken again begins with the work.
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._lost.wait()

    async def _unless_lost(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Do a work, and cancel it as soon as the lead is lost."""
        working = asyncio.create_task(work())
        lost = asyncio.create_task(self._lost.wait())
        try:
            await asyncio.wait({working, lost}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                working.result()
        finally:
            for task in (working, lost):
                task.cancel()
            await asyncio.wait({working, lost})

    async def _follow(self) -> None:
        node_id = await self._till.node_id()
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
