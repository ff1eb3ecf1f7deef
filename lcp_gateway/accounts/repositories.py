"""What accounts need of the outside, as protocols: the store's repositories, and who makes invoices.

Where nothing else is said, methods raise what their implementation says of a database that is away.
"""

from collections.abc import AsyncGenerator, Sequence
from datetime import datetime
from typing import Protocol

from lcp_gateway.accounts.callers import KeyRules
from lcp_gateway.accounts.models import (
    Account,
    AdminAction,
    Audit,
    Balance,
    Credit,
    KeyChanges,
    KeyKind,
    KeyRecord,
    Listing,
    NewKey,
    RefundRecord,
    Statement,
    Topup,
    TopupPurpose,
    Totals,
)
from lcp_gateway.purchase.money import Msat, Refund


class AccountRepository(Protocol):
    """The customers."""

    async def create(self, name: str, *, actor: str, at: datetime) -> Account:
        """Make an account."""
        ...

    async def get(self, account_id: str) -> Account | None:
        """Give one, deleted or not."""
        ...

    async def page(
        self, *, limit: int = ..., after: str | None = ..., with_deleted: bool = ...
    ) -> Listing[Account]:
        """Give some, the newest first."""
        ...

    async def rename(self, account_id: str, name: str, *, actor: str, at: datetime) -> None:
        """Give one another name."""
        ...

    async def delete(self, account_id: str, *, actor: str, at: datetime) -> None:
        """Forget whose it was."""
        ...


class KeyRepository(Protocol):
    """The keys of accounts."""

    async def create(
        self,
        account_id: str,
        *,
        name: str,
        actor: str,
        at: datetime,
        rules: KeyRules = ...,
        kind: KeyKind = ...,
    ) -> NewKey:
        """Make one."""
        ...

    async def revoke(self, key_id: str, *, actor: str, at: datetime) -> KeyRecord | None:
        """Let one in no more."""
        ...

    async def get(self, key_id: str) -> KeyRecord | None:
        """Give one."""
        ...

    async def page(
        self, account_id: str | None = ..., *, limit: int = ..., after: str | None = ...
    ) -> Listing[KeyRecord]:
        """Give some, the newest first."""
        ...

    async def load_all(self) -> KeyChanges:
        """Give all that let somebody in."""
        ...

    async def changed_since(self, number: int) -> KeyChanges:
        """Give those that changed."""
        ...


class LedgerRepository(Protocol):
    """What customers have, and why."""

    async def balance(self, account_id: str) -> Balance | None:
        """Give what an account has."""
        ...

    async def statement(
        self, account_id: str, *, limit: int = ..., after: int | None = ...
    ) -> Statement:
        """Give what moved a balance."""
        ...

    async def adjust(
        self,
        account_id: str,
        amount_msat: Msat,
        *,
        reason: str,
        actor: str,
        at: datetime,
        adjustment_id: str | None = ...,
    ) -> Balance:
        """Give or take an amount by hand."""
        ...

    async def audit(self) -> Audit:
        """Look through all the books."""
        ...

    async def totals(self) -> Totals:
        """Give what all customers have together."""
        ...


class RefundRepository(Protocol):
    """The charges of undelivered purchases, and the operator's decisions on those that are withheld."""

    async def page(
        self,
        *,
        account_id: str | None = ...,
        refund: Refund | None = ...,
        limit: int = ...,
        after: str | None = ...,
    ) -> Listing[RefundRecord]:
        """Return refunds, the newest purchase first; of one account or of all."""
        ...

    async def get(self, job_id: bytes) -> RefundRecord | None:
        """Return the refund of one purchase, or None."""
        ...

    async def decide(
        self, job_id: bytes, *, grant: bool, reason: str, actor: str, at: datetime
    ) -> tuple[RefundRecord, bool]:
        """Give a withheld charge back, or keep it for good; return it, and whether this changed anything.

        Raises:
            NoSuchPurchase: the journal has no such purchase.
            NotWithheld: its charge waits for no decision, or the other one was made.
            BadText: the reason cannot be one.
        """
        ...


class TopupRepository(Protocol):
    """The invoices that fill balances."""

    async def create(
        self,
        account_id: str | None,
        *,
        payment_hash: bytes,
        amount_msat: Msat,
        payment_request: str,
        expires_at: datetime,
        at: datetime,
        memo: str = ...,
        purpose: TopupPurpose = ...,
        most_open: int = ...,
    ) -> Topup:
        """Write one down."""
        ...

    async def get(self, topup_id: str) -> Topup | None:
        """Give one."""
        ...

    async def by_payment_hash(self, payment_hash: bytes) -> Topup | None:
        """Give the one that this payment pays."""
        ...

    async def of_living_account(self, payment_hash: bytes) -> Topup | None:
        """Give the one that this payment pays, unless its account was deleted."""
        ...

    async def make_room(self, at: datetime, *, purpose: TopupPurpose, most_open: int) -> int:
        """Give up the oldest unpaid ones of a purpose, so that one more fits under the bound."""
        ...

    async def page(
        self, account_id: str, *, limit: int = ..., after: str | None = ...
    ) -> Listing[Topup]:
        """Give some, the newest first."""
        ...

    async def open_ones(self, *, limit: int = ...) -> Sequence[Topup]:
        """Give those that are not paid."""
        ...

    async def open_count(
        self, at: datetime, *, account_id: str | None = ..., purpose: TopupPurpose | None = ...
    ) -> int:
        """Count what can still be paid."""
        ...

    async def settle(
        self,
        payment_hash: bytes,
        received_msat: Msat,
        *,
        settle_index: int,
        at: datetime,
        node_id: str | None = ...,
    ) -> Credit | None:
        """Credit what was paid, once."""
        ...

    async def followed(self, node_id: str) -> int:
        """Give how far a node's settlements were followed."""
        ...

    async def cancel(self, topup_id: str) -> bool:
        """Give an unpaid one up."""
        ...

    async def expire(self, before: datetime) -> int:
        """Mark what ran out."""
        ...

    async def forget_unpaid(self, before: datetime) -> int:
        """Forget what was never paid."""
        ...


class AdminLogRepository(Protocol):
    """The log of what administrators did."""

    async def page(self, *, limit: int = ..., after: str | None = ...) -> Listing[AdminAction]:
        """Give some, the newest first."""
        ...


class InvoiceServiceUnavailable(Exception):
    """Nobody can make or look up invoices now. The message is fit for a client."""


class NewInvoice(Protocol):
    """An invoice to be shown to whoever shall pay it."""

    @property
    def payment_request(self) -> str:
        """BOLT11."""
        ...

    @property
    def payment_hash(self) -> bytes:
        """32 bytes."""
        ...

    @property
    def expires_at(self) -> datetime:
        """Aware UTC."""
        ...


class PaidInvoice(Protocol):
    """An invoice that was paid, ours or another's."""

    @property
    def payment_hash(self) -> bytes:
        """32 bytes."""
        ...

    @property
    def amount_paid_msat(self) -> int:
        """What came."""
        ...

    @property
    def settle_index(self) -> int:
        """Its number among the settlements of the node."""
        ...

    @property
    def settled_at(self) -> datetime:
        """Aware UTC."""
        ...


class InvoiceService(Protocol):
    """Who makes invoices and hears of their payment; every error is ``InvoiceServiceUnavailable``."""

    async def create(self, amount_msat: int, memo: str, expiry_s: int) -> NewInvoice:
        """Have an invoice made."""
        ...

    async def paid(self, payment_hash: bytes) -> PaidInvoice | None:
        """Ask whether an invoice was paid."""
        ...

    async def node_id(self) -> str:
        """Say whose invoices these are."""
        ...

    def follow(self, settle_index: int) -> AsyncGenerator[PaidInvoice, None]:
        """Give every invoice that is paid after that index; ends with an error only."""
        ...
