"""A node that pays withdrawals, without lnd: each payment goes as the test says, and survives the gateway's end."""

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from lcp_gateway.accounts.withdrawals import (
    FailedBecause,
    InvalidInvoice,
    PayableInvoice,
    PayingNode,
    Payout,
    PayoutState,
    PayoutsUnavailable,
)
from lcp_gateway.purchase.money import Msat

OWN, ELSEWHERE = "03" + "cd" * 32, "02" + "ab" * 32
ABSENT, IN_FLIGHT = Payout(PayoutState.ABSENT), Payout(PayoutState.IN_FLIGHT)
UNCLEAR, REFUSED = Payout(PayoutState.UNCLEAR), Payout(PayoutState.REFUSED)
NO_ROUTE = Payout(PayoutState.FAILED, reason=FailedBecause.NO_ROUTE)


def settled(fee_msat: int = 7) -> Payout:
    return Payout(PayoutState.SETTLED, fee_msat, b"\x09" * 32)


def later() -> datetime:
    return datetime.now(UTC) + timedelta(hours=1)


@dataclass
class PayingNodeStandIn:
    """``go`` returns, for a payment hash, what the call ends with and what the node then shows of the payment.

    ``paid`` counts the calls by hash, ``payments`` is what the node shows. A test that sets ``is_away`` gets errors.
    """

    go: Callable[[bytes], tuple[Payout, Payout]] = lambda _hash: (settled(), settled())
    funds_msat: int = 10**12
    invoices: dict[str, PayableInvoice] = field(default_factory=dict)
    payments: dict[bytes, Payout] = field(default_factory=dict)
    calls: list[tuple[bytes, int | None, int]] = field(default_factory=list)
    is_away: bool = False
    node_id: str = OWN
    gate: asyncio.Event | None = None

    def invoice(self, name: object, amount_msat: int | None = 1_000, **changes) -> str:
        """Add an invoice of another node; return its text."""
        text = f"lnbcrt1invoice{name}"
        fields = {
            "network": "bcrt",
            "payee": ELSEWHERE,
            "payment_hash": hashlib.sha256(text.encode()).digest(),
            "expires_at": later(),
            **changes,
        }
        self.invoices[text] = PayableInvoice(amount_msat=amount_msat, **fields)
        return text

    def hash_of(self, text: str) -> bytes:
        return self.invoices[text].payment_hash

    @property
    def paid(self) -> list[bytes]:
        return [payment_hash for payment_hash, _, _ in self.calls]

    def read(self, payment_request: str) -> PayableInvoice:
        if payment_request not in self.invoices:
            raise InvalidInvoice("this is no invoice that can be paid")
        return self.invoices[payment_request]

    async def node(self) -> PayingNode:
        self._check()
        return PayingNode(self.node_id, "bcrt")

    async def spendable_msat(self) -> Msat:
        self._check()
        return Msat(self.funds_msat)

    async def pay(
        self, payment_request: str, *, amount_msat: int | None, fee_limit_msat: int, timeout_s: int
    ) -> Payout:
        assert timeout_s > 0
        if self.is_away:
            return UNCLEAR
        payment_hash = self.hash_of(payment_request)
        assert payment_hash not in self.paid, "a payment went out twice"
        self.calls.append((payment_hash, amount_msat, fee_limit_msat))
        told, shown = self.go(payment_hash)
        if shown is not ABSENT:
            self.payments[payment_hash] = shown
        if self.gate is not None:
            await self.gate.wait()
        return told

    async def track(self, payment_hash: bytes) -> Payout:
        self._check()
        return self.payments.get(payment_hash, ABSENT)

    def _check(self) -> None:
        if self.is_away:
            raise PayoutsUnavailable("the node that pays cannot be asked right now: UNAVAILABLE")
