"""Accounts, keys, top-ups and the ledger as the store keeps them, and the errors of changes to them."""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Generic, TypeVar

from lcp_gateway.accounts.callers import Caller, KeyRules
from lcp_gateway.purchase.money import Msat, Refund
from lcp_gateway.purchase.outcome import EndedBy, Received
from lcp_gateway.purchase.states import State

T = TypeVar("T")

MAX_TEXT_CHARS = 128
"""Characters of the name of an account or a key, of a memo and of a reason."""


class AccountError(Exception):
    """A change that is refused; nothing was changed. The message is fit for a client; ``usual`` where none is given."""

    usual = ""

    def __init__(self, message: str = "") -> None:
        super().__init__(message or self.usual)


class AccountNotFound(AccountError):
    """No account has this id, or it was deleted."""

    usual = "there is no such account"


class PurchaseNotFound(AccountError):
    """The journal has no purchase of this job id."""

    usual = "there is no such purchase"


class RefundNotWithheld(AccountError):
    """The refund of a purchase is not withheld, so there is nothing to decide."""

    def __init__(self, state: State, refund: Refund | None) -> None:
        reason = f"its charge was {refund}" if refund else f"the purchase is {state}"
        super().__init__(f"no refund of this purchase is withheld: {reason}")


class KeyIsRevoked(AccountError):
    """A revoked key cannot be changed."""

    usual = "this key is revoked, for good"


class InvalidText(AccountError):
    """A name, a memo or a reason is empty, too long, or not printable."""


class InvalidAmount(AccountError):
    """An amount, a limit or a number of models that cannot be stored."""

    usual = "the amount is out of range"


class AdjustmentExceedsBalance(AccountError):
    """An adjustment would take more than is available."""

    def __init__(self, available_msat: Msat) -> None:
        super().__init__(f"only {available_msat} msat of the balance are available")
        self.available_msat = available_msat


class BalanceLeft(AccountError):
    """The account holds money that its holder would lose."""

    def __init__(self, balance_msat: Msat, held_msat: Msat) -> None:
        held = f", of which {held_msat} msat are held by purchases under way" if held_msat else ""
        super().__init__(
            f"the account holds {balance_msat} msat{held}: spend them, or name the exact sum that may be lost (forfeit_msat)"
        )


class AdjustmentIdReused(AccountError):
    """The id was used for another adjustment before."""

    usual = "the id was used for another adjustment before"


class TooManyOpenTopups(AccountError):
    """The account has as many unpaid top-ups as it may."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"{limit} top-ups are unpaid; pay one, or wait until they expire")


@dataclass(frozen=True, slots=True)
class Listing(Generic[T]):
    """A page, the newest first; ``after`` asks for the next one, and is None at the end."""

    items: Sequence[T]
    after: str | None


@dataclass(frozen=True, slots=True)
class Balance:
    """A customer's money: ``held_msat`` of ``balance_msat`` are held for purchases that have not ended."""

    balance_msat: Msat
    held_msat: Msat

    @property
    def available_msat(self) -> Msat:
        """The money that can be spent."""
        return Msat(self.balance_msat - self.held_msat)


EMPTY_BALANCE = Balance(Msat(0), Msat(0))


@dataclass(frozen=True, slots=True)
class Account:
    """A customer. ``name`` is empty once it is deleted."""

    id: str
    name: str
    created_at: datetime
    deleted_at: datetime | None = None
    balance: Balance = EMPTY_BALANCE
    withdrawals_frozen: bool = False
    """Whether the operator keeps it from withdrawing."""


class KeyKind(enum.StrEnum):
    """How a key is sent."""

    API = "api"
    """In a header."""
    AGENT = "agent"
    """In the URL, for tools that can be configured with a URL only."""


def check_text(text: str, noun: str, *, may_be_empty: bool = False) -> str:
    """Return a name, a memo or a reason (``noun`` says which) without the blanks around it.

    Raises:
        InvalidText: it is empty, too long, or not printable.
    """
    text = text.strip()
    if not text and not may_be_empty:
        raise InvalidText(f"a {noun} must not be empty")
    if len(text) > MAX_TEXT_CHARS or not text.isprintable():
        raise InvalidText(f"a {noun} is at most {MAX_TEXT_CHARS} printable characters")
    return text


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """A key as it is stored, without its text.

    ``key_hash`` is the SHA-256 of the whole key, ``prefix`` its first ten characters, for display. ``change`` grows with
    every change of any key.
    """

    id: str
    account_id: str
    key_hash: bytes = field(repr=False)
    prefix: str
    name: str
    kind: KeyKind
    rules: KeyRules
    created_at: datetime
    revoked_at: datetime | None
    change: int

    @property
    def caller(self) -> Caller:
        """The caller that the key authenticates."""
        return Caller(self.id, self.account_id, self.rules)


@dataclass(frozen=True, slots=True)
class KeyChanges:
    """Keys that changed, or all; the next changes are those since ``upto``."""

    records: Sequence[KeyRecord]
    upto: int


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key that was just made, with its text, which is shown once and stored nowhere."""

    record: KeyRecord
    text: str = field(repr=False)


class TopupState(enum.StrEnum):
    """The state of a top-up."""

    OPEN = "open"
    SETTLED = "settled"
    EXPIRED = "expired"
    CANCELED = "canceled"


class TopupPurpose(enum.StrEnum):
    """The use of an invoice."""

    TOPUP = "topup"
    """It fills an account."""
    L402 = "l402"
    """It makes an account when it is paid."""


@dataclass(frozen=True, slots=True)
class Topup:
    """An invoice that fills a balance. ``received_msat`` may be more than ``amount_msat``."""

    id: str
    account_id: str
    payment_hash: bytes
    amount_msat: Msat
    payment_request: str
    memo: str
    state: TopupState
    purpose: TopupPurpose
    created_at: datetime
    expires_at: datetime
    settled_at: datetime | None = None
    settle_index: int | None = None
    received_msat: Msat | None = None


@dataclass(frozen=True, slots=True)
class Credit:
    """A settled top-up; ``is_new`` says that this call credited it."""

    topup: Topup
    is_new: bool


class Cause(enum.StrEnum):
    """Why money moved in the ledger."""

    TOPUP = "topup"
    PURCHASE = "purchase"
    REFUND = "refund"
    ADJUSTMENT = "adjustment"
    WITHDRAWAL = "withdrawal"
    """A payment to an invoice and its routing fee."""
    TRANSFER = "transfer"
    """A withdrawal to the top-up of another account, inside the ledger."""
    EARNING = "earning"
    """The owner's part of the price of an answer that the owner's node delivered."""


@dataclass(frozen=True, slots=True)
class StatementLine:
    """One movement of a customer's balance, and the balance after it.

    ``cause_id`` is the id of the top-up, of the adjustment or of the withdrawal, or the purchase's job id in hexadecimal
    digits.
    """

    id: int
    at: datetime
    amount_msat: Msat
    balance_msat: Msat
    cause: Cause
    cause_id: str


@dataclass(frozen=True, slots=True)
class Statement:
    """A page of lines, the newest first; ``after`` asks for the next one, and is None at the end."""

    lines: Sequence[StatementLine]
    after: int | None


@dataclass(frozen=True, slots=True)
class Totals:
    """The sums over all customers."""

    accounts: int
    balance_msat: Msat
    held_msat: Msat


@dataclass(frozen=True, slots=True)
class Audit:
    """The result of an audit: ``problems`` in words, none where the books agree.

    ``books`` are the sums of the ledger's books: customers, Lightning (negative), revenue and adjustments.
    """

    problems: Sequence[str]
    totals: Totals
    books: Mapping[str, Msat]
    entries: int
    purchases: int

    @property
    def ok(self) -> bool:
        """Whether the books agree."""
        return not self.problems


@dataclass(frozen=True, slots=True)
class RefundRecord:
    """A charge that was to be refunded, and the decision on it. Times are aware UTC; None means not known."""

    job_id: bytes
    account_id: str
    amount_msat: Msat
    refund: Refund
    model: str
    peer_id: str
    ended_by: EndedBy | None
    received: Received | None
    paying_at: datetime
    ended_at: datetime | None


@dataclass(frozen=True, slots=True)
class AdminAction:
    """An action of an administrator. ``detail`` holds no secret and no name."""

    id: int
    at: datetime
    actor: str
    action: str
    target: str
    detail: Mapping[str, object]
