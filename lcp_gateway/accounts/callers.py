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
