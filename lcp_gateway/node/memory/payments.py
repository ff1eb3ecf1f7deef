"""Payments of a simulated node: each invoice is paid at most once, and a payment that was begun ends without its caller."""

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from lcp_gateway.lightning import bolt11
from lcp_gateway.node.ports import (
    LightningAway,
    PaymentEnd,
    PaymentLost,
    PaymentRefused,
    PaymentSucceeded,
    PaymentUnderWay,
)

if TYPE_CHECKING:
    from lcp_gateway.node.memory.network import Network

MAX_PAYMENTS: Final = 10_000
"""How many payments are remembered; the oldest that have ended are forgotten first."""

NO_ROUTE: Final = "FAILURE_REASON_NO_ROUTE"


@dataclass(slots=True, eq=False)
class _Payment:
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    end: PaymentEnd | None = None


class MemoryPayments:
    """The payments port of one node. ``begun`` counts the payments that left it."""

    def __init__(self, network: "Network", node_id: str) -> None:
        self.is_away = False
        self.begun = 0
        self._network = network
        self._node_id = node_id
        self._payments: dict[bytes, _Payment] = {}
        self._under_way: set[asyncio.Task[None]] = set()

    async def pay(
        self, payment_request: str, payment_hash: bytes, *, amount_msat: int, fee_limit_msat: int, timeout_s: float
    ) -> PaymentEnd:
        """Pay an invoice and return the end of the payment; see ``ports.Payments``."""
        if self.is_away:
            raise PaymentRefused("the Lightning node is away")
        try:
            invoice = bolt11.decode(payment_request)
        except bolt11.InvoiceError as error:
            raise PaymentRefused(str(error)) from None
        earlier = self._payments.get(invoice.payment_hash)
        if earlier is not None and not isinstance(earlier.end, PaymentLost):
            raise PaymentRefused(
                "invoice is already paid" if earlier.end else "payment is in transition", already_paid=True
            )
        if invoice.amount_msat not in {None, amount_msat} or self._network.clock() > invoice.expires_at:
            raise PaymentRefused("invoice expired or of another amount")
        payment = self._payments[invoice.payment_hash] = _Payment()
        self._forget_oldest()
        self.begun += 1
        task = asyncio.create_task(self._run(payment, invoice, amount_msat, fee_limit_msat))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return await self.track(invoice.payment_hash)

    async def track(self, payment_hash: bytes) -> PaymentEnd:
        """Return the end of a payment."""
        payment = self._payments.get(payment_hash)
        if payment is None:
            return PaymentLost("the Lightning node knows no such payment")
        await payment.ended.wait()
        return payment.end or PaymentLost(NO_ROUTE)

    async def find(self, payment_hash: bytes) -> PaymentEnd | PaymentUnderWay | None:
        """Return the present state of a payment; see ``ports.Payments``."""
        if self.is_away:
            raise LightningAway("the Lightning node is away")
        payment = self._payments.get(payment_hash)
        return None if payment is None else payment.end or PaymentUnderWay()

    async def _run(self, payment: _Payment, invoice: bolt11.Invoice, amount_msat: int, fee_limit_msat: int) -> None:
        hooks = self._network.hooks
        end = await self._settle(invoice, amount_msat, fee_limit_msat)
        if isinstance(end, PaymentSucceeded):
            await hooks.after_payment(self._node_id, invoice)
        else:
            hooks.payment_failed(self._node_id, invoice, end.reason)
        payment.end = end
        payment.ended.set()

    async def _settle(self, invoice: bolt11.Invoice, amount_msat: int, fee_limit_msat: int) -> PaymentEnd:
        hooks = self._network.hooks
        payee, fee_msat = self._network.nodes.get(invoice.payee), hooks.fee_msat(self._node_id, invoice)
        if payee is None or fee_msat > fee_limit_msat:
            return PaymentLost(NO_ROUTE)
        if reason := await hooks.before_payment(self._node_id, invoice):
            return PaymentLost(reason)
        preimage = await payee.invoices.take(invoice.payment_hash, amount_msat)
        if preimage is None:
            return PaymentLost("FAILURE_REASON_INCORRECT_PAYMENT_DETAILS")
        return PaymentSucceeded(preimage, fee_msat)

    async def close(self) -> None:
        """Cancel payments that are under way."""
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)

    def _forget_oldest(self) -> None:
        if len(self._payments) > MAX_PAYMENTS:
            ended = next((key for key, one in self._payments.items() if one.end is not None), None)
            if ended is not None:
                del self._payments[ended]
