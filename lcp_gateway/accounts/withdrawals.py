"""Withdrawals: what one is, which ones are allowed, and what its repository and the node that pays have to offer."""

# ruff: noqa: D102 - methods of the protocols are documented where they are implemented

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Protocol

from lcp_gateway.accounts.models import AccountError, InvalidAmount, Listing
from lcp_gateway.accounts.repositories import InvoiceServiceUnavailable
from lcp_gateway.accounts.withdrawal_states import OPEN_STATES, WithdrawalEvent, WithdrawalState
from lcp_gateway.constants import PPM
from lcp_gateway.purchase.money import Msat


class FailedBecause(enum.StrEnum):
    """Why a withdrawal failed or was ended. The value is stored and shown to the customer."""

    NO_ROUTE = "no_route"
    """No route within the fee limit was found."""
    TIMEOUT = "timeout"
    INCORRECT_PAYMENT_DETAILS = "incorrect_payment_details"
    """The payee refused the payment: the invoice is unknown there, was paid or cancelled."""
    INSUFFICIENT_LIQUIDITY = "insufficient_liquidity"
    """The node's channels hold too little."""
    CANCELLED = "cancelled"
    """The payment was cancelled at the node."""
    NODE_ERROR = "node_error"
    REFUSED = "refused"
    """The node refused the call, and has no payment of this hash."""
    NEVER_SENT = "never_sent"
    """The gateway ended before the call reached the node."""
    EXPIRED = "expired"
    """The invoice expired before it was paid."""
    OPERATOR = "operator"
    """The operator decided."""
    CUSTOMER = "customer"
    """The customer took it back."""


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """A payment out of a customer's balance to a BOLT11 invoice. Hashes are 32 bytes, times aware UTC.

    ``amount_msat`` and ``fee_limit_msat`` are held while it is open. ``fee_msat`` is known once it settled; ``topup_id``
    is that of the top-up whose invoice it is, where it is one of this gateway. ``node_id`` is the node that pays, and
    ``owner`` the process that sent the payment.
    """

    id: str
    account_id: str
    key_id: str
    payment_hash: bytes
    payment_request: str
    amount_msat: Msat
    fee_limit_msat: Msat
    names_amount: bool
    state: WithdrawalState
    created_at: datetime
    expires_at: datetime
    topup_id: str | None = None
    node_id: str | None = None
    owner: str | None = None
    paying_at: datetime | None = None
    absent_at: datetime | None = None
    ended_at: datetime | None = None
    fee_msat: Msat | None = None
    preimage: bytes | None = field(default=None, repr=False)
    reason: FailedBecause | None = None

    @property
    def held_msat(self) -> Msat:
        """The amount that is held of the balance."""
        return Msat(self.amount_msat + self.fee_limit_msat) if self.state in OPEN_STATES else Msat(0)


@dataclass(frozen=True, slots=True)
class WithdrawalRules:
    """The operator's rules; an amount of 0 sets no limit, apart from ``min_msat``.

    ``approval_msat`` is the largest amount that needs no approval. ``frozen_for`` is the time after a key that may
    withdraw was made in which its account cannot. ``reserve_msat`` of the node's balance is never paid out.
    """

    enabled: bool = False
    min_msat: int = 1_000
    max_msat: int = 0
    account_day_msat: int = 0
    day_msat: int = 0
    approval_msat: int = 0
    fee_ppm: int = 5_000
    fee_base_msat: int = 10_000
    frozen_for: timedelta = timedelta(0)
    reserve_msat: int = 0
    most_open: int = 20
    timeout_s: int = 60

    def fee_limit_msat(self, amount_msat: int) -> Msat:
        """Return the most that the route may cost, rounded up."""
        return Msat(self.fee_base_msat - (-amount_msat * self.fee_ppm // PPM))


@dataclass(frozen=True, slots=True)
class Liquidity:
    """What the node could pay out at a moment: the sum of its active channels, without their reserves."""

    spendable_msat: Msat
    read_at: datetime


@dataclass(frozen=True, slots=True)
class OpenWithdrawals:
    """The number and the held amounts of open withdrawals by state, and the time of the oldest unknown one."""

    counts: Mapping[WithdrawalState, tuple[int, int]]
    oldest_unknown_at: datetime | None


class WithdrawalsDisabled(AccountError):
    """The operator's switch is off, or nothing can pay."""


class InvalidInvoice(AccountError):
    """A payment request that cannot be paid: malformed, of another network, expired, or of this node and no top-up."""


class InvoiceUsed(AccountError):
    """The invoice was withdrawn to before by another account or with another amount, or the node has paid it."""

    usual = "this invoice was used before: each invoice is paid once"


class AmountRefused(InvalidAmount):
    """An amount that is missing, contradicts the invoice, or is out of the bounds of one withdrawal."""


class DayLimitReached(AccountError):
    """The limit of a day, of the account or of all accounts, is reached."""


class WithdrawalsFrozen(AccountError):
    """The account cannot withdraw now: the operator froze it, or a key was made a short time ago."""


class KeyMayNotWithdraw(AccountError):
    """The key was revoked, or lost its scope, after its request was let in."""

    usual = "this key may not withdraw any more; nothing was paid"


class InsufficientFunds(AccountError):
    """The available balance does not cover the amount and the fee limit."""

    def __init__(self, needed_msat: int, available_msat: int) -> None:
        super().__init__(
            f"the amount and the fee limit come to {needed_msat} msat, of the balance {available_msat} msat are available"
        )
        self.needed_msat = needed_msat
        self.available_msat = available_msat


class TooManyOpenWithdrawals(AccountError):
    """The account has as many open withdrawals as it may."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"{limit} withdrawals are open; wait until one has ended")


class NodeCannotCover(AccountError):
    """The node holds less than all customers together are owed: a withdrawal would be paid with others' money."""

    usual = "the node cannot pay out right now; try again later, nothing was paid"


class WithdrawalNotFound(AccountError):
    """No withdrawal has this id."""

    usual = "there is no such withdrawal"


class WrongWithdrawalState(AccountError):
    """The withdrawal cannot be approved, denied, taken back or resolved in its state."""

    def __init__(self, state: WithdrawalState) -> None:
        super().__init__(f"this withdrawal is {state}")


@dataclass(frozen=True, slots=True)
class NewWithdrawal:
    """A withdrawal that was checked as far as no other data is needed."""

    account_id: str
    key_id: str
    payment_hash: bytes
    payment_request: str
    amount_msat: Msat
    fee_limit_msat: Msat
    names_amount: bool
    expires_at: datetime
    node_id: str
    is_internal: bool = False


class WithdrawalRepository(Protocol):
    """The withdrawals, each in one row beside the balances. ``owner`` is this process in its rows."""

    @property
    def owner(self) -> str: ...

    async def create(
        self, new: NewWithdrawal, rules: WithdrawalRules, liquidity: Liquidity | None, at: datetime
    ) -> tuple[Withdrawal, bool]: ...

    async def begin(
        self, withdrawal_id: str, rules: WithdrawalRules, liquidity: Liquidity | None, at: datetime
    ) -> Withdrawal | None: ...

    async def record(
        self,
        withdrawal_id: str,
        event: WithdrawalEvent,
        at: datetime,
        *,
        fee_msat: int = ...,
        preimage: bytes | None = ...,
        reason: FailedBecause | None = ...,
    ) -> Withdrawal | None: ...

    async def cancel(self, account_id: str, withdrawal_id: str, at: datetime) -> Withdrawal: ...

    async def decide(
        self, withdrawal_id: str, *, approve: bool, reason: str, actor: str, at: datetime
    ) -> tuple[Withdrawal, bool]: ...

    async def resolve(
        self, withdrawal_id: str, *, settled: bool, fee_msat: int, reason: str, actor: str, at: datetime
    ) -> tuple[Withdrawal, bool]: ...

    async def take_over(self, running: Sequence[str], at: datetime) -> Sequence[Withdrawal]: ...

    async def mark_absent(self, withdrawal_id: str, at: datetime | None) -> None: ...

    async def get(self, withdrawal_id: str) -> Withdrawal | None: ...

    async def by_payment_hash(self, payment_hash: bytes) -> Withdrawal | None: ...

    async def open_ones(self, *, after: Withdrawal | None = ..., limit: int = ...) -> Sequence[Withdrawal]: ...

    async def page(
        self,
        *,
        account_id: str | None = ...,
        state: WithdrawalState | None = ...,
        limit: int = ...,
        after: str | None = ...,
    ) -> Listing[Withdrawal]: ...

    async def outstanding(self) -> OpenWithdrawals: ...

    async def freeze(self, account_id: str, *, frozen: bool, reason: str, actor: str, at: datetime) -> bool: ...


@dataclass(frozen=True, slots=True)
class PayableInvoice:
    """A BOLT11 invoice as far as a payer needs it; ``network`` is its prefix, ``amount_msat`` None where it names none."""

    network: str
    payee: str
    payment_hash: bytes
    amount_msat: int | None
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class PayingNode:
    """The node that pays: its id (66 hex digits), and the prefix of its network's invoices, if known."""

    node_id: str
    network: str | None


class PayoutState(enum.StrEnum):
    """What the node says of a payment."""

    SETTLED = "settled"
    FAILED = "failed"
    IN_FLIGHT = "in_flight"
    ABSENT = "absent"
    """The node answered that it has no payment of this hash."""
    REFUSED = "refused"
    """The node answered the call itself with an error. It may have begun to pay all the same."""
    UNCLEAR = "unclear"
    """There was no answer."""


@dataclass(frozen=True, slots=True)
class Payout:
    """The state of a payment; fee and preimage of a settled one, and the reason of a failed one."""

    state: PayoutState
    fee_msat: int = 0
    preimage: bytes | None = field(default=None, repr=False)
    reason: FailedBecause | None = None


class PayoutsUnavailable(InvoiceServiceUnavailable):
    """The node that pays cannot be asked now."""


class PayoutService(Protocol):
    """Pays invoices. ``read`` raises ``InvalidInvoice``; all other errors are ``PayoutsUnavailable``."""

    def read(self, payment_request: str) -> PayableInvoice: ...

    async def node(self) -> PayingNode: ...

    async def spendable_msat(self) -> Msat: ...

    async def pay(
        self, payment_request: str, *, amount_msat: int | None, fee_limit_msat: int, timeout_s: int
    ) -> Payout:
        """Make the one call that pays, and wait for its end; never raises."""
        ...

    async def track(self, payment_hash: bytes) -> Payout: ...


REASON_MESSAGES: Mapping[FailedBecause, str] = MappingProxyType(
    {
        FailedBecause.NO_ROUTE: "no route within the fee limit was found",
        FailedBecause.TIMEOUT: "the payment did not reach the payee in time",
        FailedBecause.INCORRECT_PAYMENT_DETAILS: "the payee refused the payment",
        FailedBecause.INSUFFICIENT_LIQUIDITY: "the node's channels hold too little",
        FailedBecause.CANCELLED: "the payment was cancelled at the node",
        FailedBecause.NODE_ERROR: "the node failed the payment",
        FailedBecause.REFUSED: "the node refused to pay this invoice",
        FailedBecause.NEVER_SENT: "the payment was never sent",
        FailedBecause.EXPIRED: "the invoice expired before it was paid",
        FailedBecause.OPERATOR: "the operator ended it",
        FailedBecause.CUSTOMER: "it was taken back",
    }
)
"""The reasons in words for the customer."""
