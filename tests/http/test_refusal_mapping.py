"""Refusals as answers: each with its status, and nothing that was paid."""

import pytest

from lcp_gateway.accounts.limits.concurrency import TooManyConcurrentJobs
from lcp_gateway.accounts.limits.rates import LimitedBy, RateKind, RateLimited
from lcp_gateway.accounts.shared.outage import LimitsUnavailable
from lcp_gateway.http.error_mapping import map_refusal
from lcp_gateway.purchase.errors import ChargeLimitExceeded, PriceLimitExceeded
from lcp_gateway.purchase.held_quotes import quote_id
from lcp_gateway.purchase.journal import (
    BudgetExceeded,
    InsufficientBalance,
    JournalUnavailable,
    KeyRevoked,
)
from lcp_gateway.purchase.money import Budget, Msat, Period
from lcp_gateway.purchase.states import Verdict
from tests.support.purchases import quote

AT = quote(5_000)


def rate_limited(retry_after_s=12.2, kind=RateKind.REQUESTS) -> RateLimited:
    return RateLimited(
        kind, LimitedBy.KEY, 60, retry_after_s=retry_after_s, headers={"x-ratelimit-limit-x": "60"}
    )


@pytest.mark.parametrize(
    ("refusal", "status", "code", "retries"),
    [
        (InsufficientBalance(AT, Msat(9), Msat(1)), 402, "insufficient_balance", False),
        (
            BudgetExceeded(AT, Budget(Period.DAY, Msat(9), "key_1"), Msat(8)),
            402,
            "budget_exceeded",
            False,
        ),
        (ChargeLimitExceeded(AT, Msat(9), Msat(8)), 402, "price_limit_exceeded", False),
        (PriceLimitExceeded(AT, 4_000), 402, "price_limit_exceeded", False),
        (rate_limited(), 429, "rate_limit_exceeded", True),
        (rate_limited(None), 429, "rate_limit_exceeded", False),
        (TooManyConcurrentJobs(2), 429, "rate_limit_exceeded", True),
        (LimitsUnavailable(4.5), 503, "limits_unavailable", True),
        (JournalUnavailable("full", quote=AT), 503, "journal_unavailable", True),
        (KeyRevoked("revoked", quote=AT), 401, "invalid_api_key", False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_a_refusal_has_its_status_and_says_whether_another_try_may_help(
    refusal, status, code, retries
):
    answer = map_refusal(refusal)
    assert (answer.status, answer.code, answer.retry) == (status, code, retries)
    assert answer.verdict is Verdict.NONE
    response = answer.response()
    assert response.headers["X-Lcp-Payment"] == "none"
    assert ("retry-after" in response.headers) is retries
    assert response.headers["x-should-retry"] == str(retries).lower()


def test_a_balance_that_is_too_low_says_how_much_and_which_quote_can_still_be_taken():
    said = map_refusal(InsufficientBalance(AT, Msat(9), Msat(1))).as_object()["lcp"]
    assert (said["required_msat"], said["balance_msat"]) == (9, 1)
    assert said["quote_id"] == quote_id(AT)


def test_a_charge_above_the_clients_limit_says_both():
    said = map_refusal(ChargeLimitExceeded(AT, Msat(9), Msat(8))).as_object()["lcp"]
    assert (said["charge_msat"], said["limit_msat"]) == (9, 8)


def test_a_rate_says_when_to_come_again_and_carries_openais_headers():
    response = map_refusal(rate_limited()).response()
    assert response.headers["retry-after"] == "13", "not a moment too early"
    assert response.headers["x-ratelimit-limit-x"] == "60"


def test_a_request_that_never_fits_is_not_sent_again():
    response = map_refusal(rate_limited(None, RateKind.TOKENS)).response()
    assert response.headers["x-should-retry"] == "false"
    assert response.headers["x-ratelimit-limit-x"] == "60"


@pytest.mark.parametrize(("away_s", "header"), [(4.5, "5"), (0.01, "1"), (0.0, "1")])
def test_while_limits_cannot_be_looked_at_it_says_when_to_come_again(away_s, header):
    assert map_refusal(LimitsUnavailable(away_s)).response().headers["retry-after"] == header


def test_a_key_that_was_revoked_meanwhile_is_told_as_any_key_that_is_none():
    response = map_refusal(KeyRevoked("revoked", quote=AT)).response()
    assert response.headers["WWW-Authenticate"] == "Bearer"
    assert map_refusal(KeyRevoked("revoked", quote=AT)).type == "authentication_error"
