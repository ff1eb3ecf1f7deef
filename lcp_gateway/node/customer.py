"""The wallet of a customer, who is not there in a demonstration: it pays the node's invoices, and nothing else."""

import asyncio
import time
from datetime import UTC, datetime

from lcp_gateway.lightning import bolt11
from lcp_gateway.node.config import WalletConfig
from lcp_gateway.node.invoices import Invoice, InvoiceBook, refused
from lcp_gateway.node.wallet import Wallet


class PaymentFailed(Exception):
    """A payment was tried and did not come about; the text is lnd's word for why."""


class CustomerWallet:
    """Pays invoices of the node out of a balance of its own, each at most once. It is a neighbour: no fees."""

    def __init__(
        self, config: WalletConfig, network: str, *, book: InvoiceBook, wallet: Wallet
    ) -> None:
        """``wallet`` is the node's, which gets the money."""
        self._config = config
        self._network = network
        self._book = book
        self._wallet = wallet
        self._under_way: set[asyncio.Task[None]] = set()
        self.balance_msat = config.customer_balance_msat

    async def pay(self, payment_request: str, amount_msat: int = 0) -> Invoice:
        """Pay an invoice and give it settled. The payment goes on when the caller does not wait.

        ``amount_msat`` is for an invoice that names none.

        Raises:
            CallError: UNKNOWN with the reason, for what cannot even be tried.
            PaymentFailed: it was tried, in vain; or it has been paid before.
        """
        asked = self._read(payment_request)
        if asked.amount_msat is None and amount_msat <= 0:
            raise refused("amount must be specified when paying a zero amount invoice")
        if asked.amount_msat is not None and amount_msat:
            raise refused("amount must not be specified when paying a non-zero amount invoice")
        amount_msat = asked.amount_msat or amount_msat
        invoice = self._book.find(asked.payment_hash)
        if asked.payee != self._book.node_id or amount_msat < self._config.min_htlc_msat:
            raise PaymentFailed("no_route")
        if invoice is None or invoice.payment_secret != asked.payment_secret:
            raise PaymentFailed("incorrect_payment_details")
        if invoice.settled:
            raise PaymentFailed("invoice is already paid")
        if invoice.in_flight:
            raise PaymentFailed("payment is in transition")
        if amount_msat > self.balance_msat:
            raise PaymentFailed("insufficient_balance")
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
        """Abandon what is in flight."""
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)

    def _read(self, payment_request: str) -> bolt11.Invoice:
        try:
            asked = bolt11.decode(payment_request)
        except bolt11.InvoiceError as error:
            raise refused(str(error)) from None
        if asked.network != self._network:
            raise refused("invoice not for current active network")
        if time.time() >= asked.expires_at:
            until = datetime.fromtimestamp(asked.expires_at, UTC)
            raise refused(f"invoice expired. Valid until {until:%Y-%m-%d %H:%M:%S %z %Z}")
        return asked

    async def _settle_later(self, invoice: Invoice, amount_msat: int) -> None:
        await asyncio.sleep(self._config.payment_latency_s)
        self._settle(invoice, amount_msat)

    def _settle(self, invoice: Invoice, amount_msat: int) -> None:
        self._wallet.receive(amount_msat)
        self._book.settle(invoice, amount_msat)
