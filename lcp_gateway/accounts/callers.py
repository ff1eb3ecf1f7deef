"""Who sent a request, as a key tells it, and what that key may do."""

import enum
from dataclasses import dataclass
from datetime import datetime

from lcp_gateway.purchase.money import Msat

L402_KEY_PREFIX = "l402_"
"""What the key ids of L402 tokens begin with: no row stands for such a token, and its account is all that can end it."""

_NO_LIMIT = Msat(0)


class Scope(enum.StrEnum):
    """What a key may be used for."""

    INFERENCE = "inference"
    """Buying answers, and everything that OpenAI's interface has."""
    WALLET = "wallet"
    """Seeing the account's balance and statement, and topping it up."""
    ADMIN = "admin"
    """Administering every account."""


@dataclass(frozen=True, slots=True)
class KeyRules:
    """What a key may do. 0 and an empty set of models mean no limit, None never; without a scope it may do nothing.

    ``max_price_msat`` bounds what one purchase costs; budgets are counted by calendar period in UTC.
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

    ``key_id`` names the key without being one. ``account_id`` is whose balance is charged; None for the operator's own
    keys, which are not charged.
    """

    key_id: str
    account_id: str | None
    rules: KeyRules
