"""The database and the invoice service as accounts and HTTP see them, which may import neither SQL nor gRPC.

``store/accounts/`` implements the repositories and documents their methods; all of them raise ``DatabaseUnavailable`` where
the database cannot be reached. ``lightning/lnd/`` implements ``InvoiceService``.
"""

# ruff: noqa: D102 - methods are documented where they are implemented

from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from datetime import datetime
from typing import Protocol

from lcp_gateway.accounts.callers import Caller, KeyRules
from lcp_gateway.accounts.invites import Invite, NewInvite
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
from lcp_gateway.accounts.sessions import Session
from lcp_gateway.purchase.money import Msat, Refund


class AccountRepository(Protocol):
    """The customers."""

    async def create(self, name: str, *, actor: str, at: datetime) -> Account: ...

    async def get(self, account_id: str) -> Account | None: ...

    async def page(
        self, *, limit: int = ..., after: str | None = ..., with_deleted: bool = ...
    ) -> Listing[Account]: ...

    async def rename(self, account_id: str, name: str, *, actor: str, at: datetime) -> None: ...

    async def delete(self, account_id: str, *, actor: str, at: datetime, forfeit_msat: Msat | None = ...) -> None: ...


class KeyRepository(Protocol):
    """The keys of accounts."""

    async def create(
        self, account_id: str, *, name: str, actor: str, at: datetime, rules: KeyRules = ..., kind: KeyKind = ...
    ) -> NewKey: ...

    async def revoke(self, key_id: str, *, actor: str, at: datetime) -> KeyRecord | None: ...

    async def change(
        self, key_id: str, *, actor: str, at: datetime, name: str, rules: KeyRules
    ) -> KeyRecord | None: ...

    async def names(self, key_ids: Collection[str]) -> Mapping[str, str]: ...

    async def get(self, key_id: str) -> KeyRecord | None: ...

    async def page(
        self, account_id: str | None = ..., *, limit: int = ..., after: str | None = ...
    ) -> Listing[KeyRecord]: ...

    async def load_all(self) -> KeyChanges: ...

    async def changed_since(self, number: int) -> KeyChanges: ...


class SessionRepository(Protocol):
    """The sessions of the console."""

    async def create(self, session: Session, *, most: int) -> None: ...

    async def find(self, token_hash: bytes, now: datetime) -> tuple[Session, Caller | None] | None: ...

    async def extend(self, token_hash: bytes, *, seen_at: datetime, idle_ends_at: datetime) -> None: ...

    async def end(self, token_hash: bytes) -> bool: ...

    async def end_all(self, *, account_id: str | None, key_id: str | None = ...) -> int: ...

    async def forget_ended(self, now: datetime) -> int: ...


class RegistrationRepository(Protocol):
    """The accounts that persons open by themselves, and the invites to do so."""

    async def register(
        self, name: str, *, actor: str, at: datetime, rules: KeyRules, invite: str | None = ...
    ) -> tuple[Account, NewKey]: ...

    async def forget_unfunded(self, before: datetime, at: datetime) -> int: ...

    async def create_invite(self, *, note: str, expires_at: datetime, actor: str, at: datetime) -> NewInvite: ...

    async def get_invite(self, invite_id: str) -> Invite | None: ...

    async def invites(self, *, limit: int = ..., after: str | None = ...) -> Listing[Invite]: ...

    async def revoke_invite(self, invite_id: str, *, actor: str, at: datetime) -> Invite | None: ...


class LedgerRepository(Protocol):
    """The customers' balances and the entries behind them."""

    async def balance(self, account_id: str) -> Balance | None: ...

    async def statement(self, account_id: str, *, limit: int = ..., after: int | None = ...) -> Statement: ...

    async def adjust(
        self,
        account_id: str,
        amount_msat: Msat,
        *,
        reason: str,
        actor: str,
        at: datetime,
        adjustment_id: str | None = ...,
    ) -> Balance: ...

    async def audit(self) -> Audit: ...

    async def totals(self) -> Totals: ...


class RefundRepository(Protocol):
    """The charges of undelivered purchases, and the operator's decisions on those that are withheld."""

    async def page(
        self, *, account_id: str | None = ..., refund: Refund | None = ..., limit: int = ..., after: str | None = ...
    ) -> Listing[RefundRecord]: ...

    async def get(self, job_id: bytes) -> RefundRecord | None: ...

    async def decide(
        self, job_id: bytes, *, grant: bool, reason: str, actor: str, at: datetime
    ) -> tuple[RefundRecord, bool]: ...


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
    ) -> Topup: ...

    async def get(self, topup_id: str) -> Topup | None: ...

    async def by_payment_hash(self, payment_hash: bytes) -> Topup | None: ...

    async def of_living_account(self, payment_hash: bytes) -> Topup | None: ...

    async def make_room(self, at: datetime, *, purpose: TopupPurpose, most_open: int) -> int: ...

    async def page(self, account_id: str, *, limit: int = ..., after: str | None = ...) -> Listing[Topup]: ...

    async def open_ones(self, *, limit: int = ...) -> Sequence[Topup]: ...

    async def open_count(
        self, at: datetime, *, account_id: str | None = ..., purpose: TopupPurpose | None = ...
    ) -> int: ...

    async def settle(
        self, payment_hash: bytes, received_msat: Msat, *, settle_index: int, at: datetime, node_id: str | None = ...
    ) -> Credit | None: ...

    async def followed(self, node_id: str) -> int: ...

    async def cancel(self, topup_id: str) -> bool: ...

    async def expire(self, before: datetime) -> int: ...

    async def forget_unpaid(self, before: datetime) -> int: ...


class AdminLogRepository(Protocol):
    """The log of the administrators' actions."""

    async def page(self, *, limit: int = ..., after: str | None = ...) -> Listing[AdminAction]: ...


class InvoiceServiceUnavailable(Exception):
    """Invoices can be neither made nor looked up now. The message is fit for a client."""


class NewInvoice(Protocol):
    """An invoice for a customer to pay: BOLT11, its hash of 32 bytes, and its end in aware UTC."""

    @property
    def payment_request(self) -> str: ...

    @property
    def payment_hash(self) -> bytes: ...

    @property
    def expires_at(self) -> datetime: ...


class PaidInvoice(Protocol):
    """An invoice of the node that was paid, made by the gateway or not; ``settle_index`` numbers the node's settlements."""

    @property
    def payment_hash(self) -> bytes: ...

    @property
    def amount_paid_msat(self) -> int: ...

    @property
    def settle_index(self) -> int: ...

    @property
    def settled_at(self) -> datetime: ...


class InvoiceService(Protocol):
    """Makes invoices and reports their payment; every error is ``InvoiceServiceUnavailable``."""

    async def create(self, amount_msat: int, memo: str, expiry_s: int) -> NewInvoice: ...

    async def paid(self, payment_hash: bytes) -> PaidInvoice | None:
        """Return the invoice if it was paid."""
        ...

    async def node_id(self) -> str:
        """Return the id of the node whose invoices these are."""
        ...

    def follow(self, settle_index: int) -> AsyncGenerator[PaidInvoice, None]:
        """Yield every invoice that is settled after that index; ends with an error only."""
        ...
