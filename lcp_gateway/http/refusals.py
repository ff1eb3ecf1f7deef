"""Refusals as answers: something said no before anything was paid."""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from lcp_gateway.accounts.jobs_per_key import TooManyJobs
from lcp_gateway.accounts.rates import RateLimited
from lcp_gateway.accounts.replicas import LimitsAway
from lcp_gateway.http.errors import ApiError
from lcp_gateway.purchase.book import quote_id
from lcp_gateway.purchase.brake import LoopDetected
from lcp_gateway.purchase.errors import (
    ChargeLimitExceeded,
    PeerNotTrusted,
    PriceLimitExceeded,
    QuoteExpired,
    Refused,
)
from lcp_gateway.purchase.journal import (
    BudgetExceeded,
    InsufficientBalance,
    JournalUnavailable,
    KeyRevoked,
)

_Answer = tuple[int, str, bool, dict[str, object]]
"""Status, reason for the metric, whether another try may help, and details."""


def of_refusal(error: Refused) -> ApiError:
    """Give the answer for a refusal; one that may pass later names the quote that can still be taken."""
    status, reason, retry, details = _find(error)
    if error.may_pass_later and error.quote is not None:
        details["quote_id"] = quote_id(error.quote)
    answer = ApiError(
        status,
        error.message,
        error.code,
        retry=retry,
        verdict=error.verdict,
        quote=error.quote,
        details=details,
        reason=reason,
    )
    if isinstance(error, RateLimited):
        answer.headers = error.headers
        if error.retry_after_s is not None:
            answer.retry_after_s = math.ceil(error.retry_after_s)
    elif isinstance(error, KeyRevoked):
        answer.headers = {"WWW-Authenticate": "Bearer"}
    elif isinstance(error, LimitsAway):
        answer.retry_after_s = max(1, math.ceil(error.retry_after_s))
    elif isinstance(error, LoopDetected):
        answer.retry_after_s = math.ceil(error.wait_s)
    return answer


def _find(error: Refused) -> _Answer:
    for kind in type(error).__mro__:
        if found := _ANSWERS.get(kind):
            return found(error)
    # A quote that is not what it says it is. Another try may find an honest peer, or the same one.
    return 502, "quote_mismatch", False, {}


def _charge(error: ChargeLimitExceeded) -> _Answer:
    details: dict[str, object] = {
        "limit_msat": error.limit_msat,
        "charge_msat": error.price_msat,
    }
    return 402, "price_limit", False, details


def _balance(error: InsufficientBalance) -> _Answer:
    details: dict[str, object] = {
        "required_msat": error.required_msat,
        "balance_msat": error.available_msat,
    }
    return 402, "balance", False, details


def _budget(error: BudgetExceeded) -> _Answer:
    details: dict[str, object] = {
        "limit_msat": error.budget.limit_msat,
        "spent_msat": error.spent_msat,
    }
    return 402, "budget", False, details


_ANSWERS: Mapping[type, Callable[[Any], _Answer]] = MappingProxyType(
    {
        QuoteExpired: lambda error: (410, "quote_expired", not error.was_named, {}),
        PriceLimitExceeded: lambda error: (
            402,
            "price_limit",
            False,
            {"limit_msat": error.limit_msat},
        ),
        ChargeLimitExceeded: _charge,
        InsufficientBalance: _balance,
        BudgetExceeded: _budget,
        KeyRevoked: lambda _error: (401, "auth", False, {}),
        RateLimited: lambda error: (429, "rate_limit", error.may_pass_later, {}),
        TooManyJobs: lambda _error: (429, "concurrency", True, {}),
        LimitsAway: lambda _error: (503, "rate_limit", True, {}),
        JournalUnavailable: lambda _error: (503, "journal", True, {}),
        LoopDetected: lambda _error: (429, "loop", True, {}),
        PeerNotTrusted: lambda _error: (503, "peer_not_trusted", True, {}),
    }
)
