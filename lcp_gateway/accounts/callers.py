"""The sender of a request, as its key identifies it, and the rules of that key."""

import enum
from dataclasses import dataclass
from datetime import datetime

from lcp_gateway.purchase.money import Msat

L402_KEY_PREFIX = "l402_"
"""Begins the key ids of L402 tokens: they have no row in the database; only deleting their account ends them."""

_NO_LIMIT = Msat(0)


class Scope(enum.StrEnum):
    """A permission of a key."""

    INFERENCE = "inference"
    """The routes of OpenAI's API."""
    WALLET = "wallet"
    """Reading the account's balance and statement, and topping it up."""
    ACCOUNT = "account"
    """Managing the account: its name, its keys and its wallet. It buys nothing."""
    WITHDRAW = "withdraw"
    """Paying out of the account's balance; no key has it unless it was asked for."""
    NODE = "node"
    """Connecting a node whose earnings are the account's."""
    ADMIN = "admin"
    """Administering every account."""


@dataclass(frozen=True, slots=True)
class KeyRules:
    """The limits of a key. 0 and an empty set of models mean no limit, None no end; a key without a scope is refused everywhere.

    ``max_price_msat`` bounds one purchase; budgets are counted by calendar period in UTC.
    """

    scopes: frozenset[Scope] = frozenset({Scope.INFERENCE, Scope.WALLET})
    models: frozenset[str] = frozenset()
    max_price_msat: Msat = _NO_LIMIT
    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    budget_hour_msat: Msat = _NO_LIMIT
    budget_day_msat: Msat = _NO_LIMIT
    budget_month_msat: Msat = _NO_LIMIT
    concurrent_jobs: int = 0
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Caller:
    """The sender of a request.

    ``key_id`` names the key without revealing it. ``account_id`` is the account that is charged; None for the operator's own
    keys, which are not charged.
    """

    key_id: str
    account_id: str | None
    rules: KeyRules


@dataclass(frozen=True, slots=True)
class View:
    """The purchases that a caller may see: those of an account, those of a key, or with both None all of the gateway's.

    ``sees_cost`` is false for customers: they see their charges, and neither the operator's price, fee nor provider.
    """

    account_id: str | None
    key_id: str | None
    sees_cost: bool

    @property
    def is_whole(self) -> bool:
        """Whether it shows the purchases of the whole gateway."""
        return self.account_id is None and self.key_id is None


WHOLE_VIEW = View(None, None, sees_cost=True)
_WHOLE_ACCOUNT = frozenset({Scope.WALLET, Scope.ACCOUNT})


def view_of(caller: Caller) -> View:
    """Return the purchases that a caller may see.

    An administrator sees all. A customer's key sees those of its account, or only its own where it may neither read the
    wallet nor manage the account. An operator's key beside customers sees its own.
    """
    scopes = caller.rules.scopes
    if Scope.ADMIN in scopes:
        return WHOLE_VIEW
    if caller.account_id is None:
        return View(None, caller.key_id, sees_cost=True)
    sees_account = not scopes.isdisjoint(_WHOLE_ACCOUNT)
    return View(caller.account_id, None if sees_account else caller.key_id, sees_cost=False)
