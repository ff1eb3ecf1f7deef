"""Follows the node's settlements, so that no client has to poll; each is credited once, also after a crash."""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import aclosing, suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from lcp_gateway.accounts.models import Credit
from lcp_gateway.accounts.repositories import InvoiceService, InvoiceServiceUnavailable, PaidInvoice, TopupRepository
from lcp_gateway.purchase.money import Msat

_RETRY_S = 1.0
_MAX_RETRY_S = 15.0
_FOLLOWER_S = 1.0
_LOOK_UP_S = 30.0
# An invoice may have been paid right before it expired, by a payment that is still under way.
_EXPIRED_FOR = timedelta(minutes=10)
_FORGOTTEN_AFTER = timedelta(days=1)


class Leadership(Protocol):
    """Elects the one of several gateways that follows."""

    async def try_lead(self) -> bool:
        """Take the lead if it is free; true while this process has it."""
        ...


class Settlements:
    """Follows a node's settlements from the last index, while this gateway leads.

    Invoices that were paid while no gateway listened come first, by their index; those that the node did not report are
    looked up one by one, at the start and from time to time. Three tasks do it, ``lead``, ``follow`` and ``look_up``: an
    error in one of them ends none of the others.
    """

    def __init__(
        self,
        invoices: InvoiceService,
        topups: TopupRepository,
        leadership: Leadership,
        *,
        on_credit: Callable[[Credit], None] = lambda _credit: None,
        on_trouble: Callable[[str], None] = lambda _problem: None,
        on_lead: Callable[[bool], None] = lambda _leads: None,
        unavailable: tuple[type[Exception], ...] = (),
    ) -> None:
        """``unavailable`` are the errors of a database that cannot be reached; ``on_trouble`` gets those and the node's."""
        self._invoices = invoices
        self._topups = topups
        self._leadership = leadership
        self._on_credit = on_credit
        self._on_trouble = on_trouble
        self._on_lead = on_lead
        self._unavailable: tuple[type[Exception], ...] = (InvoiceServiceUnavailable, *unavailable)
        self._leading, self._lost = asyncio.Event(), asyncio.Event()
        self._lost.set()

    async def lead(self) -> None:
        """Take the lead when no other gateway has it, and see when it is lost, until cancelled."""
        pause_s = _RETRY_S
        try:
            while True:
                try:
                    self._set_lead(leads=await self._leadership.try_lead())
                    pause_s = _RETRY_S
                    await asyncio.sleep(_FOLLOWER_S)
                except self._unavailable as error:
                    # A gateway that does not know whether it leads does not lead.
                    self._set_lead(leads=False)
                    self._on_trouble(str(error))
                    await asyncio.sleep(pause_s)
                    pause_s = min(pause_s * 2, _MAX_RETRY_S)
        finally:
            # Nor does one that no longer checks.
            self._set_lead(leads=False)

    async def follow(self) -> None:
        """Credit the settlements that the node reports, while this gateway leads, until cancelled."""
        await self.while_leading(self._follow, _FOLLOWER_S)

    async def look_up(self) -> None:
        """Look up open top-ups at the start and from time to time, while this gateway leads, until cancelled."""
        await self.while_leading(self.catch_up, _LOOK_UP_S)

    async def catch_up(self) -> None:
        """Look up every open top-up, and credit those that were paid."""
        failed: Exception | None = None
        for topup in await self._topups.open_ones():
            try:
                paid = await self._invoices.paid(topup.payment_hash)
                if paid is not None:
                    await self._credit(paid)
            except self._unavailable:
                raise
            except Exception as error:  # noqa: BLE001 - raised below, after the others
                failed = failed or error
        now = datetime.now(UTC)
        await self._topups.expire(now - _EXPIRED_FOR)
        await self._topups.forget_unpaid(now - _FORGOTTEN_AFTER)
        if failed is not None:
            raise failed

    def _set_lead(self, *, leads: bool) -> None:
        if leads is not self._leading.is_set():
            begun, ended = (self._leading, self._lost) if leads else (self._lost, self._leading)
            ended.clear()
            begun.set()
            self._on_lead(leads)

    async def while_leading(self, work: Callable[[], Coroutine[Any, Any, None]], every_s: float) -> None:
        """Run some work while this gateway leads, and again after ``every_s``; after an outage with growing pauses."""
        pause_s = _RETRY_S
        while True:
            await self._leading.wait()
            try:
                await self._unless_lost(work)
                wait_s, pause_s = every_s, _RETRY_S
            except self._unavailable as error:
                self._on_trouble(str(error))
                wait_s, pause_s = pause_s, min(pause_s * 2, _MAX_RETRY_S)
            # A lead that is lost and taken again begins with the work at once.
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._lost.wait()

    async def _unless_lost(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run some work, and cancel it as soon as the lead is lost."""
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
        node_id = await self._invoices.node_id()
        start = await self._topups.followed(node_id)
        async with aclosing(self._invoices.follow(start)) as settlements:
            async for paid in settlements:
                await self._credit(paid, node_id)

    async def _credit(self, paid: PaidInvoice, node_id: str | None = None) -> None:
        """Credit a settlement; with ``node_id`` it also moves the index from which that node is followed."""
        credit = await self._topups.settle(
            paid.payment_hash,
            Msat(paid.amount_paid_msat),
            settle_index=paid.settle_index,
            at=paid.settled_at,
            node_id=node_id,
        )
        if credit is not None and credit.is_new:
            self._on_credit(credit)
