"""L402: whoever has no key pays at the door, and comes back with the proof."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from lcp_gateway.accounts.caller import Caller, KeyRules
from lcp_gateway.accounts.l402 import Issuer, L402Error, challenge_header, parse_authorization
from lcp_gateway.accounts.ports import InvoicesAway, TopupBook
from lcp_gateway.accounts.records import AccountError, Purpose, TopupState
from lcp_gateway.accounts.wallet import NoTill, Wallet
from lcp_gateway.http.errors import ApiError
from lcp_gateway.http.refusals import of_refusal
from lcp_gateway.purchase.errors import Refused

if TYPE_CHECKING:
    from lcp_gateway.accounts.rate_limits import RateLimits

# Whoever has no key can have invoices made: no more than the node and the database bear.
_MOST_OPEN = 1_000
_RETRY_AFTER_S = 60


def _utc_now() -> datetime:
    return datetime.now(UTC)


class L402Routes:
    """Asks for a payment, and lets in who has paid. What is paid becomes the balance of an account of its own."""

    def __init__(
        self,
        wallet: Wallet,
        topups: TopupBook,
        issuer: Issuer,
        *,
        amount_msat: int,
        lasts: timedelta,
        rates: "RateLimits | None" = None,
        now: Callable[[], datetime] = _utc_now,
    ) -> None:
        self._wallet = wallet
        self._topups = topups
        self._issuer = issuer
        self._amount_msat = amount_msat
        self._lasts = lasts
        self._rates = rates
        self._now = now

    async def challenge(self) -> ApiError:
        """Give the answer that asks to be paid: 402 with an invoice, and the macaroon that it will make good."""
        if self._rates is not None:
            # Strangers count in the whole gateway's rates, before anything is made for them.
            try:
                await self._rates.check(None, 1)
            except Refused as refusal:
                return of_refusal(refusal)
        open_now = await self._topups.open_count(self._now(), purpose=Purpose.L402)
        if open_now >= _MOST_OPEN:
            return ApiError(
                429,
                "too many invoices of others are unpaid; try again later",
                code="too_many_open_topups",
                retry=True,
                retry_after_s=_RETRY_AFTER_S,
            )
        try:
            topup = await self._wallet.top_up(
                None, self._amount_msat, "access", purpose=Purpose.L402
            )
        except (NoTill, InvoicesAway, AccountError):
            return ApiError(
                503, "no invoice can be made right now", code="topups_unavailable", retry=True
            )
        macaroon = self._issuer.issue(
            topup.payment_hash, topup.account_id, self._now() + self._lasts
        )
        return ApiError(
            402,
            f"pay the invoice and come again with its preimage: Authorization: L402 <macaroon>:<preimage>; it buys "
            f"{topup.amount_msat} msat of use",
            code="payment_required",
            reason="auth",
            headers={
                "WWW-Authenticate": challenge_header(macaroon, topup.payment_request),
                "Cache-Control": "no-store",
            },
        )

    async def admit(self, authorization: str) -> Caller | None:
        """Tell whose token it is, or None where it proves nothing: replayed for another, changed, expired, or unpaid."""
        try:
            credentials = parse_authorization(authorization)
            if credentials is None:
                return None
            token = self._issuer.verify(credentials.macaroon, credentials.preimage, self._now())
        except L402Error:
            return None
        topup = await self._topups.by_payment_hash(token.payment_hash)
        if topup is None or topup.account_id != token.account_id:
            return None
        if topup.state is not TopupState.SETTLED:
            # Paid a moment ago: the preimage says so, the node only has to be asked.
            try:
                topup = await self._wallet.look_up(topup)
            except (InvoicesAway, NoTill):
                return None
            if topup.state is not TopupState.SETTLED:
                return None
        return Caller(f"l402_{token.payment_hash.hex()[:16]}", token.account_id, KeyRules())
