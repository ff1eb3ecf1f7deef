import json

import pytest

from lcp_gateway.http.errors import STATUS_OF_GRPC, ApiError, of_purchase
from lcp_gateway.purchase.errors import (
    PaymentFailed,
    PriceLimitExceeded,
    QuoteExpired,
    Undelivered,
    UpstreamError,
)
from lcp_gateway.purchase.states import Verdict
from tests.support.purchases import quote


def answered(error: ApiError):
    response = error.response()
    return response, json.loads(response.body)["error"]


@pytest.mark.parametrize(("grpc_status", "status"), STATUS_OF_GRPC.items())
@pytest.mark.parametrize("retryable", [True, False])
def test_a_failed_quote_keeps_the_status_that_clients_know(grpc_status, status, retryable):
    error = of_purchase(UpstreamError(grpc_status, "words", retryable=retryable))
    response, body = answered(error)
    assert response.status == status
    assert set(body) == {"message", "type", "param", "code"}
    assert response.headers["X-Lcp-Payment"] == "none"
    assert response.headers["x-should-retry"] == ("true" if retryable else "false")
    assert ("retry-after" in response.headers) is retryable


@pytest.mark.parametrize("verdict", list(Verdict))
@pytest.mark.parametrize("grpc_status", STATUS_OF_GRPC)
def test_after_accept_only_what_was_not_paid_may_be_retried(grpc_status, verdict):
    cause = UpstreamError(grpc_status, "words", retryable=True)
    response, body = answered(of_purchase(PaymentFailed(cause, verdict, quote=quote())))
    assert response.status == STATUS_OF_GRPC[grpc_status]
    assert response.headers["X-Lcp-Payment"] == verdict.value
    assert response.headers["x-should-retry"] == ("true" if verdict is Verdict.NONE else "false")
    assert body["lcp"] == {
        "payment": verdict.value,
        "job_id": quote().job_id.hex(),
        "price_msat": 5_000,
        "peer_id": quote().peer_id,
    }


def test_paid_and_undelivered_is_a_bad_gateway_that_is_not_retried():
    response, body = answered(of_purchase(Undelivered("cut", quote=quote())))
    assert response.status == 502
    assert response.headers["X-Lcp-Payment"] == "settled"
    assert response.headers["x-should-retry"] == "false"
    assert response.headers["X-Lcp-Job-Id"] == quote().job_id.hex()
    assert (body["type"], body["code"]) == ("server_error", "undelivered")


def test_a_price_over_the_limit_is_402_which_no_client_retries():
    response, body = answered(of_purchase(PriceLimitExceeded(quote(), 10)))
    assert response.status == 402
    assert (body["type"], body["code"]) == ("insufficient_quota", "price_limit_exceeded")
    assert response.headers["x-should-retry"] == "false"


def test_an_expired_quote_may_be_asked_for_again():
    response, body = answered(of_purchase(QuoteExpired("late", quote=quote())))
    assert (response.status, body["code"]) == (410, "quote_expired")
    assert response.headers["x-should-retry"] == "true"


def test_a_message_is_bounded():
    assert len(answered(ApiError(400, "x" * 5_000))[1]["message"]) == 1_000
