"""The invoices of a node at an lnd: those of its sales, and hold invoices, whose payment is settled or returned later.

The macaroon needs the calls that ``lightning.lnd.permissions.NODE_SELLING`` lists, and for hold invoices
``NODE_HOLDING``.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from hashlib import sha256
from types import MappingProxyType
from typing import Any, Final

import grpc.aio

from lcp_gateway.lightning.lnd.channel import LndAddress, lnd_errors
from lcp_gateway.lightning.lnd.invoices import LndInvoices
from lcp_gateway.lightning.lnd.records import LndError, WrongInvoice
from lcp_gateway.node.lnd.transport import KEEPALIVE_S, away, ended, stop_all
from lcp_gateway.node.ports import InvoicePaid, InvoiceState, LightningAway, MadeInvoice

_MAX_WAITING: Final = 256

# Numbers of lnrpc.Invoice.InvoiceState.
_OPEN: Final = 0
_SETTLED: Final = 1
_CANCELED: Final = 2
_ACCEPTED: Final = 3
_STATES: Final = MappingProxyType(
    {_SETTLED: InvoiceState.SETTLED, _CANCELED: InvoiceState.CANCELLED, _ACCEPTED: InvoiceState.ACCEPTED}
)


class LndJobInvoices(LndInvoices):
    """The ``Invoices`` of a node over lnd. Made and used in one event loop; one ``paid`` at a time.

    ``route_hints`` puts lnd's private channels into invoices, without which no payer finds a node that has no others;
    ``poll_s`` is the pause between looks for lnd's very first settlement.

    Raises:
        LndNotInstalled: the extra is missing.
        OSError: the certificate or the macaroon cannot be read.
    """

    def __init__(
        self,
        address: LndAddress,
        *,
        route_hints: bool = False,
        timeout_s: float = 10.0,
        poll_s: float = 1.0,
        keepalive_s: float = KEEPALIVE_S,
    ) -> None:
        super().__init__(address, route_hints=route_hints, timeout_s=timeout_s, poll_s=poll_s, keepalive_s=keepalive_s)
        self._holds = self._stubs.invoices_grpc.InvoicesStub(self._channel)
        # Hold invoices that are not settled or cancelled; they are watched while ``paid`` is iterated.
        self._held: set[bytes] = set()
        self._inbox: asyncio.Queue[Any] | None = None
        self._watches: dict[bytes, asyncio.Task[None]] = {}

    async def make(
        self, *, description_hash: bytes, amount_msat: int, expiry_s: int, hold_preimage: bytes | None = None
    ) -> MadeInvoice:
        """Make an invoice, and check it as a payer would before a peer sees it."""
        if amount_msat <= 0:
            raise LightningAway("an invoice over nothing lets the payer choose the amount: none is made")
        terms = {
            "value_msat": amount_msat,
            "description_hash": description_hash,
            "expiry": expiry_s,
            "private": self._route_hints,
        }
        with away():
            if self._identity is None:
                await self.identity()
            if hold_preimage is None:
                answer = await self._ask(self._lightning.AddInvoice, self._messages.Invoice(**terms))
                payment_hash = answer.r_hash
            else:
                payment_hash = sha256(hold_preimage).digest()
                request = self._stubs.invoices.AddHoldInvoiceRequest(hash=payment_hash, **terms)
                answer = await self._ask(self._holds.AddHoldInvoice, request)
            try:
                await self._check(
                    answer.payment_request,
                    payment_hash,
                    amount_msat=amount_msat,
                    description=description_hash,
                    expiry_s=expiry_s,
                )
            except WrongInvoice as wrong:
                raise LightningAway(str(wrong)) from wrong
        if hold_preimage is not None:
            self._hold(payment_hash)
        return MadeInvoice(answer.payment_request, payment_hash)

    async def state(self, payment_hash: bytes) -> InvoiceState:
        """Return an invoice's state. A hold invoice that can still be paid is watched from then on, as one made here."""
        with away():
            invoice = await self._find(payment_hash)
        if invoice is None:
            return InvoiceState.CANCELLED
        state = _STATES.get(invoice.state, InvoiceState.OPEN)
        # lnd knows the preimage of every other invoice.
        if state in {InvoiceState.OPEN, InvoiceState.ACCEPTED} and not any(invoice.r_preimage):
            self._hold(payment_hash)
        return state

    async def settle(self, preimage: bytes) -> None:
        """Take the payment of an accepted hold invoice."""
        request = self._stubs.invoices.SettleInvoiceMsg(preimage=preimage)
        await self._decide(self._holds.SettleInvoice, request, sha256(preimage).digest(), InvoiceState.SETTLED)

    async def cancel(self, payment_hash: bytes) -> None:
        """Make an invoice unpayable; a settled one stays settled."""
        request = self._stubs.invoices.CancelInvoiceMsg(payment_hash=payment_hash)
        over = (InvoiceState.CANCELLED, InvoiceState.SETTLED)
        await self._decide(self._holds.CancelInvoice, request, payment_hash, *over)

    async def paid(self, settle_index: int) -> AsyncGenerator[InvoicePaid, None]:
        """Return invoices as they are settled after that index, and hold invoices as they are accepted.

        An acceptance may be returned again by the next iterator.
        """
        inbox: asyncio.Queue[Any] = asyncio.Queue(_MAX_WAITING)
        self._inbox = inbox
        following = asyncio.create_task(self._follow(settle_index, inbox))
        try:
            for payment_hash in self._held:
                self._hold(payment_hash)
            while True:
                item = await inbox.get()
                if isinstance(item, LndError):
                    raise LightningAway(str(item)) from item
                yield item
        finally:
            self._inbox = None
            await stop_all([following, *self._watches.values()])

    async def _decide(self, method: Any, request: Any, payment_hash: bytes, *wanted: InvoiceState) -> None:
        """Settle or cancel. An earlier lnd refuses it for an invoice that is settled or cancelled already: the state decides."""
        try:
            await self._ask(method, request)
        except LndError as error:
            if not error.status.is_unanswered and await self.state(payment_hash) in wanted:
                return
            raise LightningAway(str(error)) from error

    def _hold(self, payment_hash: bytes) -> None:
        self._held.add(payment_hash)
        if self._inbox is not None and payment_hash not in self._watches:
            self._watches[payment_hash] = asyncio.create_task(self._watch(payment_hash, self._inbox))

    async def _follow(self, settle_index: int, inbox: "asyncio.Queue[Any]") -> None:
        try:
            async with contextlib.aclosing(self.follow(settle_index)) as settled:
                async for paid in settled:
                    await inbox.put(InvoicePaid(paid.payment_hash, InvoiceState.SETTLED, paid.settle_index))
        except LndError as error:
            await inbox.put(error)

    async def _watch(self, payment_hash: bytes, inbox: "asyncio.Queue[Any]") -> None:
        """Wait until a hold invoice is accepted, and then until it is settled or cancelled, which lnd does at its expiry."""
        request = self._stubs.invoices.SubscribeSingleInvoiceRequest(r_hash=payment_hash)
        stream = self._holds.SubscribeSingleInvoice(request, metadata=self._metadata)
        try:
            # lnd may remove invoices that have ended, and waits silently for one that it does not have.
            if await self._find(payment_hash) is None:
                self._held.discard(payment_hash)
                return
            async with lnd_errors():
                while (update := await stream.read()) is not grpc.aio.EOF:
                    if update.state == _ACCEPTED:
                        await inbox.put(InvoicePaid(payment_hash, InvoiceState.ACCEPTED))
                    elif update.state != _OPEN:
                        self._held.discard(payment_hash)
                        return
            await inbox.put(ended())
        except LndError as error:
            await inbox.put(error)
        finally:
            stream.cancel()
            self._watches.pop(payment_hash, None)
