"""What a customer is told of its money: the charge, the balance, and the invoice that would let it go on."""

import asyncio

from structlog.typing import FilteringBoundLogger

from lcp_gateway.accounts.ports import InvoicesAway
from lcp_gateway.accounts.records import AccountError
from lcp_gateway.accounts.wallet import NoTill, Wallet
from lcp_gateway.http.api_limits import ApiLimits, account
from lcp_gateway.http.errors import ApiError
from lcp_gateway.http.exchange import Exchange
from lcp_gateway.http.failures import of_purchase
from lcp_gateway.purchase.journal import EarlierPurchase, InsufficientBalance
from lcp_gateway.purchase.purchase import Purchase
from lcp_gateway.purchase.refunds import WORDS, Refund

CHARGED_HEADER = "X-Lcp-Charged-Msat"
BALANCE_HEADER = "X-Lcp-Balance-Msat"
REFUND_HEADER = "X-Lcp-Refund"
# A paid answer does not wait longer for a figure that goes with it.
_BALANCE_S = 1.0
# Nor does an error wait longer for a decision that the journal makes with its next commit.
_REFUND_S = 1.0
_PENDING = "pending"


def refund_word(purchase: Purchase | EarlierPurchase) -> str | None:
    """Return what became of a charge that is to be given back; None where there is none."""
    if purchase.refund is not None:
        return purchase.refund.value
    return _PENDING if _awaits_refund(purchase) else None


def _awaits_refund(purchase: Purchase | EarlierPurchase) -> bool:
    # The journal decides in the transaction that writes the end.
    return isinstance(purchase, Purchase) and purchase.awaits_refund


class Charging:
    """Tells customers. Where there are no accounts it has nothing to tell."""

    def __init__(
        self,
        wallet: Wallet | None,
        log: FilteringBoundLogger,
        api_limits: ApiLimits | None = None,
    ) -> None:
        """``api_limits`` bounds how many invoices are made at one time, and by default none is made without a bound."""
        self._wallet = wallet
        self._log = log
        self._api_limits = api_limits or ApiLimits(1, 1)

    async def tell(self, exchange: Exchange) -> None:
        """Put the charge and what is left into the headers of an answer that is about to go out."""
        account_id, purchase = exchange.caller.account_id, exchange.earlier or exchange.purchase
        if self._wallet is None or account_id is None:
            return
        if purchase is not None and purchase.customer_msat is not None:
            exchange.headers[CHARGED_HEADER] = str(purchase.customer_msat)
            if (refund := refund_word(purchase)) is not None:
                exchange.headers[REFUND_HEADER] = refund
            if _awaits_refund(purchase):
                # What is given back is on its way: a balance without it would only mislead.
                return
        try:
            async with asyncio.timeout(_BALANCE_S):
                balance = await self._wallet.balance(account_id)
        except Exception as error:  # noqa: BLE001 - an answer that is paid must not fail for want of a figure
            self._log.warning("a balance cannot be read", error=type(error).__name__)
            return
        exchange.headers[BALANCE_HEADER] = str(balance.available_msat)

    @staticmethod
    async def say(exchange: Exchange, failure: ApiError) -> None:
        """Say in an error what the customer is charged all the same, and what became of a charge to be given back."""
        purchase = exchange.earlier or exchange.purchase
        if purchase is None or purchase.customer_msat is None:
            return
        if isinstance(purchase, Purchase):
            await purchase.refund_decided(_REFUND_S)
        failure.details = {**failure.details, "charged_msat": purchase.customer_msat}
        if (refund := refund_word(purchase)) is not None:
            failure.details = {**failure.details, "refund": refund}
        if purchase.refund is Refund.WITHHELD:
            failure.message = f"{failure.message}; {WORDS[Refund.WITHHELD]}"

    async def refuse(self, exchange: Exchange, error: InsufficientBalance) -> ApiError:
        """Give the answer for a balance that is too low, with an invoice for what is missing."""
        refusal = of_purchase(error)
        account_id = exchange.caller.account_id
        if self._wallet is None or account_id is None:
            return refusal
        missing_msat = error.required_msat - error.available_msat
        try:
            async with self._api_limits.place(account(account_id)):
                topup = await self._wallet.fill_for(account_id, missing_msat)
        except (ApiError, NoTill, InvoicesAway, AccountError):
            return refusal
        except Exception as problem:  # noqa: BLE001 - the refusal stands whatever became of the invoice
            self._log.warning("a top-up cannot be made", error=type(problem).__name__)
            return refusal
        refusal.details = {
            **refusal.details,
            "topup": {
                "id": topup.id,
                "amount_msat": topup.amount_msat,
                "payment_request": topup.payment_request,
                "expires_at": int(topup.expires_at.timestamp()),
            },
        }
        return refusal
