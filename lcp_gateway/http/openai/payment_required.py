"""402 for a customer whose balance is too low: the error, with an invoice for the missing amount."""

from structlog.typing import FilteringBoundLogger

from lcp_gateway.accounts.models import AccountError
from lcp_gateway.accounts.repositories import InvoiceServiceUnavailable
from lcp_gateway.accounts.wallet import TopupsDisabled, Wallet
from lcp_gateway.http.context import RequestContext
from lcp_gateway.http.error_mapping import map_purchase_error
from lcp_gateway.http.errors import ApiError
from lcp_gateway.http.gateway.api_limits import ApiLimits, account_caller
from lcp_gateway.purchase.journal import InsufficientBalance


class PaymentRequired:
    """Makes the 402; without accounts, or where no invoice can be made, it has none."""

    def __init__(self, wallet: Wallet | None, log: FilteringBoundLogger, api_limits: ApiLimits | None = None) -> None:
        """``api_limits`` bounds how many invoices are made at one time; by default it is one."""
        self._wallet = wallet
        self._log = log
        self._api_limits = api_limits or ApiLimits(1, 1)

    async def error_for(self, context: RequestContext, error: InsufficientBalance) -> ApiError:
        """Return the error for a balance that is too low, with an invoice for the missing amount."""
        refusal = map_purchase_error(error)
        account_id = context.caller.account_id
        if self._wallet is None or account_id is None:
            return refusal
        missing_msat = error.required_msat - error.available_msat
        try:
            async with self._api_limits.place(account_caller(account_id)):
                topup = await self._wallet.fill_for(account_id, missing_msat)
        except (ApiError, TopupsDisabled, InvoiceServiceUnavailable, AccountError):
            return refusal
        except Exception as problem:  # noqa: BLE001 - the refusal is returned even without an invoice
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
