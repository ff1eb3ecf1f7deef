"""The node's payments of invoices that it was asked to pay, simulated: each is made at most once, as lnd does."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import grpc

from lcp_gateway.lightning import bolt11
from lcp_gateway.node.config import WalletConfig
from lcp_gateway.node.invoices import CallError, Invoice, InvoiceBook, lnd_refusal, read_invoice
from lcp_gateway.node.wallets import Wallet

_MAX_PAYMENTS = 10_000

# Numbers of lnrpc.Payment.PaymentStatus and lnrpc.PaymentFailureReason.
IN_FLIGHT = 1
SUCCEEDED = 2
FAILED = 3
_NO_ROUTE = 2
_INCORRECT_PAYMENT_DETAILS = 4
_INSUFFICIENT_BALANCE = 5


@dataclass(slots=True, eq=False)
class Payment:
    """A payment by the hash of its invoice; ``preimage`` is empty unless it succeeded."""

    payment_hash: bytes
    amount_msat: int
    created_ns: int
    status: int = IN_FLIGHT
    failure_reason: int = 0
    fee_msat: int = 0
    preimage: bytes = field(default=b"", repr=False)
    ended: asyncio.Event = field(default_factory=asyncio.Event, repr=False)


class Payments:
    """Pays invoices of the demonstration's customer out of the node's wallet; no other payee has a route."""

    def __init__(self, config: WalletConfig, network: str, *, wallet: Wallet, node_id: str, payee: InvoiceBook) -> None:
        """``payee`` is the customer's book of invoices, ``node_id`` the id of the node itself."""
        self._config = config
        self._network = network
        self._wallet = wallet
        self._node_id = node_id
        self._payee = payee
        self._payments: dict[bytes, Payment] = {}
        self._under_way: set[asyncio.Task[None]] = set()

    def send(self, payment_request: str, amount_msat: int, fee_limit_msat: int) -> Payment:
        """Begin a payment, which goes on when the caller does not wait.

        Raises:
            CallError: UNKNOWN or ALREADY_EXISTS with lnd's reason: nothing was begun.
        """
        asked = self._read(payment_request, amount_msat)
        known = self._payments.get(asked.payment_hash)
        if known is not None and known.status != FAILED:
            reason = "payment is in transition" if known.status == IN_FLIGHT else "invoice is already paid"
            raise CallError(grpc.StatusCode.ALREADY_EXISTS, reason)
        payment = Payment(asked.payment_hash, asked.amount_msat or amount_msat, time.time_ns())
        if len(self._payments) >= _MAX_PAYMENTS:
            del self._payments[next(iter(self._payments))]
        self._payments[asked.payment_hash] = payment
        payment.fee_msat = self._wallet.fee_msat(payment.amount_msat)
        invoice = self._payee.find(asked.payment_hash)
        if problem := self._problem(asked, invoice, payment, fee_limit_msat):
            payment.status, payment.failure_reason, payment.fee_msat = FAILED, problem, 0
            payment.ended.set()
        elif invoice is not None:
            self._wallet.balance_msat -= payment.amount_msat + payment.fee_msat
            invoice.in_flight = True
            task = asyncio.create_task(self._settle(payment, invoice))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)
        return payment

    async def follow(self, payment: Payment, *, only_end: bool) -> AsyncIterator[Payment]:
        """Yield a payment's present state, and its end."""
        if not only_end and not payment.ended.is_set():
            yield payment
        await payment.ended.wait()
        yield payment

    def find(self, payment_hash: bytes) -> Payment:
        """Return a payment.

        Raises:
            CallError: NOT_FOUND, as lnd has it.
        """
        payment = self._payments.get(payment_hash)
        if payment is None:
            raise CallError(grpc.StatusCode.NOT_FOUND, "payment isn't initiated")
        return payment

    async def close(self) -> None:
        """Cancel payments in flight."""
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)

    def _read(self, payment_request: str, amount_msat: int) -> bolt11.Invoice:
        asked = read_invoice(payment_request, self._network)
        if asked.payee == self._node_id:
            raise lnd_refusal("self-payments not allowed")
        if time.time() >= asked.expires_at:
            raise lnd_refusal("invoice expired")
        if (asked.amount_msat is None) is (amount_msat <= 0):
            raise lnd_refusal("amount must be specified when paying a zero amount invoice, and only then")
        return asked

    def _problem(self, asked: bolt11.Invoice, invoice: Invoice | None, payment: Payment, fee_limit_msat: int) -> int:
        """Return why a payment fails, as lnd's number; 0 where it does not."""
        is_small = payment.amount_msat < self._config.min_htlc_msat
        if asked.payee != self._payee.node_id or is_small or payment.fee_msat > fee_limit_msat:
            return _NO_ROUTE
        if invoice is None or invoice.settled or invoice.payment_secret != asked.payment_secret:
            return _INCORRECT_PAYMENT_DETAILS
        if payment.amount_msat + payment.fee_msat > self._wallet.balance_msat:
            return _INSUFFICIENT_BALANCE
        return 0

    async def _settle(self, payment: Payment, invoice: Invoice) -> None:
        await asyncio.sleep(self._config.payment_latency_s)
        self._payee.settle(invoice, payment.amount_msat)
        payment.status, payment.preimage = SUCCEEDED, invoice.preimage
        payment.ended.set()
