"""The charge, balance and refund of a customer, as headers and fields of answers."""

import asyncio
from collections.abc import Mapping

from structlog.typing import FilteringBoundLogger

from lcp_gateway.accounts.wallet import Wallet
from lcp_gateway.http.context import RequestContext
from lcp_gateway.http.errors import ApiError
from lcp_gateway.purchase.journal import EarlierPurchase
from lcp_gateway.purchase.money import REFUND_MESSAGES, Refund
from lcp_gateway.purchase.purchase import Purchase

CHARGED_HEADER = "X-Lcp-Charged-Msat"
BALANCE_HEADER = "X-Lcp-Balance-Msat"
REFUND_HEADER = "X-Lcp-Refund"

_PENDING = "pending"
# A paid response does not wait longer for a figure that goes with it.
_BALANCE_S = 1.0
# Nor does an error wait longer for a decision that the journal makes with its next commit.
_REFUND_S = 1.0


def charge_details(purchase: Purchase | EarlierPurchase | None) -> dict[str, int | str]:
    """Return the charge of a purchase and its refund as JSON fields; empty where no customer is charged."""
    if purchase is None or purchase.customer_msat is None:
        return {}
    details: dict[str, int | str] = {"charged_msat": purchase.customer_msat}
    if purchase.refund is not None:
        details["refund"] = purchase.refund.value
    elif _awaits_refund(purchase):
        details["refund"] = _PENDING
    return details


def charge_headers(details: Mapping[str, object]) -> dict[str, str]:
    """Return ``charge_details`` as headers."""
    names = {"charged_msat": CHARGED_HEADER, "refund": REFUND_HEADER}
    return {header: str(details[name]) for name, header in names.items() if name in details}


def _awaits_refund(purchase: Purchase | EarlierPurchase) -> bool:
    # The journal decides in the transaction that writes the end.
    return isinstance(purchase, Purchase) and purchase.awaits_refund


class ChargeReport:
    """Reports to customers their charge, balance and refund; does nothing without accounts."""

    def __init__(self, wallet: Wallet | None, log: FilteringBoundLogger) -> None:
        self._wallet = wallet
        self._log = log

    async def add_headers(self, context: RequestContext) -> None:
        """Put the charge and the balance into the headers of a response that is about to go out."""
        account_id, purchase = context.caller.account_id, context.earlier or context.purchase
        if self._wallet is None or account_id is None:
            return
        context.headers.update(charge_headers(charge_details(purchase)))
        if purchase is not None and purchase.customer_msat is not None and _awaits_refund(purchase):
            # The refund is pending: a balance without it would mislead.
            return
        try:
            async with asyncio.timeout(_BALANCE_S):
                balance = await self._wallet.balance(account_id)
        except Exception as error:  # noqa: BLE001 - a paid response must not fail for want of a figure
            self._log.warning("a balance cannot be read", error=type(error).__name__)
            return
        context.headers[BALANCE_HEADER] = str(balance.available_msat)

    @staticmethod
    async def describe(context: RequestContext, failure: ApiError) -> None:
        """Add the charge, where there is one in spite of the error, and its refund."""
        purchase = context.earlier or context.purchase
        if purchase is None or purchase.customer_msat is None:
            return
        if isinstance(purchase, Purchase):
            await purchase.wait_for_refund(_REFUND_S)
        failure.details = {**failure.details, **charge_details(purchase)}
        if purchase.refund is Refund.WITHHELD:
            failure.message = f"{failure.message}; {REFUND_MESSAGES[Refund.WITHHELD]}"
