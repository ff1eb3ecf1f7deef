"""A customer's wallet: its balance, its statement, and the top-ups that fill it."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from lcp_gateway.accounts.models import (
    EMPTY_BALANCE,
    Balance,
    Credit,
    InvalidAmount,
    Listing,
    Statement,
    TooManyOpenTopups,
    Topup,
    TopupPurpose,
    TopupState,
)
from lcp_gateway.accounts.repositories import InvoiceService, LedgerRepository, TopupRepository
from lcp_gateway.clock import utc_now
from lcp_gateway.constants import MSAT_PER_SAT
from lcp_gateway.purchase.money import Msat


@dataclass(frozen=True, slots=True)
class TopupRules:
    """The bounds of one top-up, how long its invoice can be paid, and how many invoices of one account may be open."""

    min_msat: int = 1_000
    max_msat: int = 1_000_000_000
    expiry_s: int = 3_600
    most_open: int = 20


class TopupsDisabled(Exception):
    """No invoice service is configured."""

    def __init__(self) -> None:
        super().__init__("top-ups are disabled: no lnd is configured (lnd_grpc_addr)")


class InvoiceNotPaid(Exception):
    """The demo wallet did not pay an invoice; ``is_final`` says that another try cannot succeed."""

    def __init__(self, reason: str, *, is_final: bool) -> None:
        super().__init__(f"the invoice was not paid: {reason}")
        self.is_final = is_final


class AmountOutOfRange(InvalidAmount):
    """An amount below the minimum or above the maximum of one top-up."""

    def __init__(self, rules: TopupRules) -> None:
        super().__init__(f"an amount must be from {rules.min_msat} to {rules.max_msat} msat")


class Wallet:
    """Serves the wallets of all customers."""

    def __init__(
        self,
        ledger: LedgerRepository,
        topups: TopupRepository,
        invoices: InvoiceService | None,
        rules: TopupRules,
        *,
        on_credit: Callable[[Credit], None] = lambda _credit: None,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        """``on_credit`` is called for each credit that a look-up finds before the follower of settlements does."""
        self._on_credit = on_credit
        self._ledger = ledger
        self._topups = topups
        self._invoices = invoices
        self._rules = rules
        self._now = now

    async def balance(self, account_id: str) -> Balance:
        """Return an account's balance; zero where the account does not exist."""
        return await self._ledger.balance(account_id) or EMPTY_BALANCE

    async def statement(self, account_id: str, *, limit: int, after: int | None) -> Statement:
        """Return a page of an account's statement."""
        return await self._ledger.statement(account_id, limit=limit, after=after)

    async def top_up(
        self,
        account_id: str | None,
        amount_msat: int,
        memo: str = "",
        purpose: TopupPurpose = TopupPurpose.TOPUP,
        expiry_s: int | None = None,
    ) -> Topup:
        """Make an invoice that fills an account; without ``account_id``, the account is made when it is paid.

        ``expiry_s`` shortens the time in which it can be paid.

        Raises:
            TopupsDisabled, InvoiceServiceUnavailable: no invoice can be made.
            AmountOutOfRange: it is too little or too much.
            TooManyOpenTopups: the account has as many unpaid ones as it may.
            AccountError: the store refuses it.
        """
        if self._invoices is None:
            raise TopupsDisabled
        rules = self._rules
        if not rules.min_msat <= amount_msat <= rules.max_msat:
            raise AmountOutOfRange(rules)
        if account_id is not None:
            # Checked before lnd is asked; the store checks again.
            open_now = await self._topups.open_count(self._now(), account_id=account_id)
            if open_now >= rules.most_open:
                raise TooManyOpenTopups(rules.most_open)
        valid_s = rules.expiry_s if expiry_s is None else min(expiry_s, rules.expiry_s)
        invoice = await self._invoices.create(amount_msat, memo, valid_s)
        return await self._topups.create(
            account_id,
            payment_hash=invoice.payment_hash,
            amount_msat=Msat(amount_msat),
            payment_request=invoice.payment_request,
            expires_at=invoice.expires_at,
            at=self._now(),
            memo=memo,
            purpose=purpose,
            most_open=rules.most_open if account_id is not None else 0,
        )

    async def fill_for(self, account_id: str, missing_msat: int) -> Topup:
        """Make an invoice for the missing amount, in whole satoshis, or return an open one for as much.

        Where too many are open the oldest is cancelled: it can still be paid, and is credited then.

        Raises:
            The errors of ``top_up`` but ``TooManyOpenTopups``.
        """
        rules = self._rules
        amount_msat = max(math.ceil(missing_msat / MSAT_PER_SAT) * MSAT_PER_SAT, rules.min_msat)
        now = self._now()
        page = await self._topups.page(account_id, limit=rules.most_open)
        open_ones = [topup for topup in page.items if topup.state is TopupState.OPEN and topup.expires_at > now]
        for topup in open_ones:
            left_s = (topup.expires_at - now).total_seconds()
            if topup.amount_msat == amount_msat and left_s > rules.expiry_s / 2:
                # A client that tries again and again gets the same invoice, not a new one each time.
                return topup
        try:
            return await self.top_up(account_id, amount_msat)
        except TooManyOpenTopups:
            if not open_ones:
                raise
            await self._topups.cancel(open_ones[-1].id)
            return await self.top_up(account_id, amount_msat)

    async def topup(self, account_id: str, topup_id: str) -> Topup | None:
        """Return a top-up of this account; an unpaid one is looked up at the node, so that polling is quick."""
        found = await self._topups.get(topup_id)
        if found is None or found.account_id != account_id:
            return None
        return await self.look_up(found)

    async def look_up(self, topup: Topup) -> Topup:
        """Credit a top-up if it was paid.

        Raises:
            InvoiceServiceUnavailable: that is not known.
        """
        if topup.state is TopupState.SETTLED or self._invoices is None:
            return topup
        paid = await self._invoices.paid(topup.payment_hash)
        if paid is None:
            return topup
        credit = await self._topups.settle(
            topup.payment_hash, Msat(paid.amount_paid_msat), settle_index=paid.settle_index, at=paid.settled_at
        )
        if credit is None:
            return topup
        if credit.is_new:
            self._on_credit(credit)
        return credit.topup

    async def topups(self, account_id: str, *, limit: int, after: str | None) -> Listing[Topup]:
        """Return a page of an account's top-ups, the newest first."""
        return await self._topups.page(account_id, limit=limit, after=after)
