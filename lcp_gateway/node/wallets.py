"""The two simulated wallets: the node's, which pays for jobs, and its customer's, which pays the node's invoices."""

import asyncio
import time
from datetime import UTC, datetime

from lcp_gateway.constants import PPM
from lcp_gateway.lightning import bolt11
from lcp_gateway.node.config import WalletConfig
from lcp_gateway.node.events import EventKind, EventLog
from lcp_gateway.node.invoices import Invoice, InvoiceBook, lnd_refusal, read_invoice
from lcp_gateway.node.jobs import Job
from lcp_gateway.node.memory.payments import NO_ROUTE


class Wallet:
    """What the node has, and has spent on jobs."""

    def __init__(self, config: WalletConfig, events: EventLog) -> None:
        self._config = config
        self._events = events
        self.balance_msat = config.balance_msat
        self.spent_msat = 0
        self.fees_msat = 0
        self.payments = 0
        self.received_msat = 0

    def receive(self, amount_msat: int) -> None:
        """Add a payment of one of the node's invoices to the balance."""
        self.balance_msat += amount_msat
        self.received_msat += amount_msat

    def begin(self, job: Job) -> str | None:
        """Let the price and the fee of a job leave the wallet; returns lnd's name of the reason where they cannot."""
        fee = self.fee_msat(job.price_msat)
        if job.price_msat < self._config.min_htlc_msat:
            return NO_ROUTE
        if job.price_msat + fee > self.balance_msat:
            return "FAILURE_REASON_INSUFFICIENT_BALANCE"
        self.balance_msat -= job.price_msat + fee
        job.fee_msat, job.left = fee, True
        self._events.record_job(EventKind.PAID, job)
        return None

    def settle(self, job: Job) -> None:
        """Record that a job's payment has arrived."""
        self.spent_msat += job.price_msat
        self.fees_msat += job.fee_msat
        self.payments += 1
        self._events.record_job(EventKind.SETTLED, job)

    def fail(self, job: Job, reason: str) -> None:
        """Record that a job's payment has failed; what had left the wallet is back."""
        if job.left:
            self.balance_msat += job.price_msat + job.fee_msat
            job.left, job.fee_msat = False, 0
        self._events.record_job(EventKind.UNPAID, job, reason)

    def fee_msat(self, amount_msat: int) -> int:
        """Return the routing fee of an amount."""
        return self._config.fee_base_msat + amount_msat * self._config.fee_ppm // PPM


class CustomerPaymentFailed(Exception):
    """A payment was tried and failed; the text is lnd's reason."""


class CustomerWallet:
    """Pays invoices of the node out of a balance of its own, each at most once. As a direct peer of the node it pays no fees.

    ``invoices`` are its own, which the node can pay.
    """

    def __init__(
        self, config: WalletConfig, network: str, *, book: InvoiceBook, wallet: Wallet, invoices: InvoiceBook
    ) -> None:
        """``wallet`` is the node's, which gets the money."""
        self.invoices = invoices
        self._config = config
        self._network = network
        self._book = book
        self._wallet = wallet
        self._under_way: set[asyncio.Task[None]] = set()
        self.balance_msat = config.customer_balance_msat

    async def pay(self, payment_request: str, amount_msat: int = 0) -> Invoice:
        """Pay an invoice and return it settled. The payment goes on when the caller does not wait.

        ``amount_msat`` is for an invoice that names none.

        Raises:
            CallError: UNKNOWN with the reason: the payment cannot even be tried.
            CustomerPaymentFailed: it was tried and failed, or it has been paid before.
        """
        asked = self._read(payment_request)
        if asked.amount_msat is None and amount_msat <= 0:
            raise lnd_refusal("amount must be specified when paying a zero amount invoice")
        if asked.amount_msat is not None and amount_msat:
            raise lnd_refusal("amount must not be specified when paying a non-zero amount invoice")
        amount_msat = asked.amount_msat or amount_msat
        invoice = self._book.find(asked.payment_hash)
        if asked.payee != self._book.node_id or amount_msat < self._config.min_htlc_msat:
            raise CustomerPaymentFailed("no_route")
        if invoice is None or invoice.payment_secret != asked.payment_secret:
            raise CustomerPaymentFailed("incorrect_payment_details")
        if invoice.settled:
            raise CustomerPaymentFailed("invoice is already paid")
        if invoice.in_flight:
            raise CustomerPaymentFailed("payment is in transition")
        if amount_msat > self.balance_msat:
            raise CustomerPaymentFailed("insufficient_balance")
        self.balance_msat -= amount_msat
        invoice.in_flight = True
        if self._config.payment_latency_s > 0:
            task = asyncio.create_task(self._settle_later(invoice, amount_msat))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)
            await asyncio.shield(task)
        else:
            self._settle(invoice, amount_msat)
        return invoice

    async def close(self) -> None:
        """Cancel payments in flight."""
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)

    def _read(self, payment_request: str) -> bolt11.Invoice:
        asked = read_invoice(payment_request, self._network)
        if time.time() >= asked.expires_at:
            until = datetime.fromtimestamp(asked.expires_at, UTC)
            raise lnd_refusal(f"invoice expired. Valid until {until:%Y-%m-%d %H:%M:%S %z %Z}")
        return asked

    async def _settle_later(self, invoice: Invoice, amount_msat: int) -> None:
        await asyncio.sleep(self._config.payment_latency_s)
        self._settle(invoice, amount_msat)

    def _settle(self, invoice: Invoice, amount_msat: int) -> None:
        self._wallet.receive(amount_msat)
        self._book.settle(invoice, amount_msat)
