"""L402: a client without a key pays an invoice, and authenticates with the proof of payment."""

import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from datetime import datetime, timedelta

from aiohttp import web

from lcp_gateway.accounts.callers import L402_KEY_PREFIX, Caller, KeyRules
from lcp_gateway.accounts.l402 import Issuer, L402Error, challenge_header, parse_authorization
from lcp_gateway.accounts.limits.addresses import AddressLimits
from lcp_gateway.accounts.models import AccountError, TopupPurpose, TopupState
from lcp_gateway.accounts.repositories import InvoiceServiceUnavailable, TopupRepository
from lcp_gateway.accounts.wallet import TopupsDisabled, Wallet
from lcp_gateway.clock import utc_now
from lcp_gateway.http.browser_guard import BrowserGuard
from lcp_gateway.http.errors import ApiError
from lcp_gateway.http.gateway.api_limits import ApiLimits, account_caller, anonymous_caller

# Unpaid invoices of L402 that are watched. Above it the oldest is no longer watched: it can still be paid, and is credited.
_MOST_OPEN = 1_000
# A client pays at once or asks again; a shorter life than that of a customer's top-up keeps lnd's list short.
_INVOICE_EXPIRY_S = 900
# The rate that lnd and the database can bear from clients of many networks together.
_MOST_A_MINUTE_IN_ALL = 1_200
_IN_ALL = "all"


@dataclass(slots=True, eq=False)
class L402Routes:
    """Requests a payment, and admits the client that paid; the amount becomes the balance of a new account.

    ``per_minute`` bounds the invoices that ``limits`` lets the clients of one address have.

    ``api_limits`` bounds how many invoices are made, and how many tokens looked up, at one time.
    """

    wallet: Wallet
    topups: TopupRepository
    issuer: Issuer
    _: KW_ONLY
    amount_msat: int
    lasts: timedelta
    guard: BrowserGuard
    limits: AddressLimits
    api_limits: ApiLimits
    per_minute: int
    now: Callable[[], datetime] = utc_now

    async def challenge(self, request: web.BaseRequest) -> ApiError:
        """Return the 402 with an invoice, and with the macaroon that its payment makes valid.

        A flood counts against the client's address only.

        Raises:
            ApiError: 403 for a web page of another origin, which could send the request from its visitors' browsers.
        """
        self.guard.check_origin(request)
        wait_s = self.limits.take(request.remote, self.per_minute)
        if not wait_s:
            wait_s = self.limits.take(_IN_ALL, _MOST_A_MINUTE_IN_ALL)
        if wait_s:
            return _too_many(self.per_minute, wait_s)
        try:
            async with self.api_limits.place(anonymous_caller(request.remote)):
                await self.topups.make_room(self.now(), purpose=TopupPurpose.L402, most_open=_MOST_OPEN)
                topup = await self.wallet.top_up(
                    None, self.amount_msat, "access", purpose=TopupPurpose.L402, expiry_s=_INVOICE_EXPIRY_S
                )
        except (TopupsDisabled, InvoiceServiceUnavailable, AccountError):
            return ApiError(503, "no invoice can be made right now", code="topups_unavailable", retry=True)
        macaroon = self.issuer.issue(topup.payment_hash, topup.account_id, self.now() + self.lasts)
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
        """Return the caller of a token; None for one that is changed, expired, unpaid, or another payment's."""
        try:
            credentials = parse_authorization(authorization)
            if credentials is None:
                return None
            token = self.issuer.verify(credentials.macaroon, credentials.preimage, self.now())
        except L402Error:
            return None
        # Only a token of this gateway with the proof of its payment gets here.
        async with self.api_limits.place(account_caller(token.account_id)):
            # Read each time, so that a token ends with its account, on all gateways.
            topup = await self.topups.of_living_account(token.payment_hash)
            if topup is None or topup.account_id != token.account_id:
                return None
            if topup.state is not TopupState.SETTLED:
                # Paid a moment ago: the preimage proves it, and lnd is asked for the settlement.
                try:
                    topup = await self.wallet.look_up(topup)
                except (InvoiceServiceUnavailable, TopupsDisabled):
                    return None
        if topup.state is not TopupState.SETTLED:
            return None
        key_id = f"{L402_KEY_PREFIX}{token.payment_hash.hex()[:16]}"
        return Caller(key_id, token.account_id, KeyRules())


def _too_many(per_minute: int, wait_s: float) -> ApiError:
    return ApiError(
        429,
        f"too many L402 invoices were asked for from this address, which may have {per_minute} a minute "
        "(l402_invoices_per_minute): pay one that you have, or try again later",
        code="rate_limit_exceeded",
        retry=True,
        retry_after_s=max(1, math.ceil(wait_s)),
        reason="rate_limit",
    )
