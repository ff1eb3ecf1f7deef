import json
from dataclasses import replace

import pytest

from lcp_gateway.accounts.limits.concurrency import TooManyConcurrentJobs
from lcp_gateway.accounts.limits.rates import LimitedBy, RateKind, RateLimited
from lcp_gateway.accounts.shared.outage import LimitsUnavailable
from lcp_gateway.adapters.completions import NotAdaptable
from lcp_gateway.http.error_mapping import STATUS_OF_GRPC, map_error, map_purchase_error, map_refusal
from lcp_gateway.http.errors import ApiError
from lcp_gateway.purchase.errors import (
    ChargeLimitExceeded,
    PaymentFailed,
    PriceLimitExceeded,
    QuoteExpired,
    Undelivered,
    UpstreamError,
)
from lcp_gateway.purchase.held_quotes import quote_id
from lcp_gateway.purchase.journal import BudgetExceeded, InsufficientBalance, JournalUnavailable, KeyRevoked
from lcp_gateway.purchase.money import Budget, Msat, Period
from lcp_gateway.purchase.payment_evidence import PaymentReport, verdict_of_failure
from lcp_gateway.purchase.purchase import Interrupted, InterruptReason, Purchase
from lcp_gateway.purchase.quote import ProviderSource
from lcp_gateway.purchase.result_buffer import ResultGone
from lcp_gateway.purchase.states import PurchaseEvent, Verdict
from lcp_gateway.routing.explicit import ModelNotFound, NoProvider
from lcp_gateway.upstream_status import UpstreamStatus
from tests.support.purchases import order, quote


def answered(error: ApiError):
    response = error.response()
    return response, json.loads(response.body)["error"]


def headers_of(response) -> tuple[str, str, bool]:
    """Return the payment header, whether a retry is advised, and whether it has a Retry-After."""
    headers = response.headers
    return headers["X-Lcp-Payment"], headers["x-should-retry"], "retry-after" in headers


def test_a_failed_quote_keeps_the_status_that_clients_know():
    wrong = []
    for grpc_status, status in STATUS_OF_GRPC.items():
        for retryable in (True, False):
            error = UpstreamError(grpc_status, "words", retryable=retryable)
            response, body = answered(map_purchase_error(error))
            found = (response.status, set(body), headers_of(response))
            expected = ("none", "true" if retryable else "false", retryable)
            if found != (status, {"message", "type", "param", "code"}, expected):
                wrong.append((grpc_status, retryable, found))
    assert wrong == []


def test_after_accept_only_an_unpaid_request_may_be_retried():
    wrong = []
    for grpc_status, status in STATUS_OF_GRPC.items():
        for verdict in Verdict:
            cause = UpstreamError(grpc_status, "words", retryable=True)
            error = PaymentFailed(cause, verdict, quote=quote())
            response, body = answered(map_purchase_error(error))
            found = (response.status, body["lcp"], headers_of(response)[:2])
            lcp = {
                "payment": verdict.value,
                "job_id": quote().job_id.hex(),
                "price_msat": 5_000,
                "peer_id": quote().peer_id,
            }
            retry = "true" if verdict is Verdict.NONE else "false"
            if found != (status, lcp, (verdict.value, retry)):
                wrong.append((grpc_status, verdict, found))
    assert wrong == []


NO_ROUTE = "payment failed: FAILURE_REASON_NO_ROUTE"
LND_STOPPED = (
    "DecodePayReq: rpc error: code = Unavailable desc = connection error: desc = "
    '"transport: Error while dialing: dial tcp 127.0.0.1:10009: connect: connection refused"'
)


def of_daemon(status, text, *, price_msat=5_000):
    """Return the response to a pay call that ended with this error."""
    cause, at = UpstreamError(status, text), replace(quote(), price_msat=price_msat)
    return answered(map_purchase_error(PaymentFailed(cause, verdict_of_failure(status, text), quote=at)))


@pytest.mark.parametrize(
    ("status", "text", "says", "retry"),
    [
        ("FAILED_PRECONDITION", NO_ROUTE, "no route to the peer (5000 msat)", "true"),
        (
            "FAILED_PRECONDITION",
            "payment failed: FAILURE_REASON_INSUFFICIENT_BALANCE",
            "hold too little for this price (5000 msat)",
            "false",
        ),
        ("FAILED_PRECONDITION", "payment failed: FAILURE_REASON_TIMEOUT", "in time", "true"),
        ("FAILED_PRECONDITION", "payment failed: FAILURE_REASON_ERROR", "gave the", "true"),
        ("UNAVAILABLE", LND_STOPPED, "no answer from its lnd", "true"),
        ("NOT_FOUND", "job not found", "does not know this job", "true"),
        ("FAILED_PRECONDITION", "invoice amount does not match price_msat", "invoice", "false"),
    ],
)
def test_the_message_of_an_unpaid_request_is_without_the_daemons_own_text(status, text, says, retry):
    """Regression: both were "unknown", and the client got gRPC's text with lnd's address."""
    response, body = of_daemon(status, text)
    assert response.headers["X-Lcp-Payment"] == body["lcp"]["payment"] == "none"
    assert response.headers["x-should-retry"] == retry
    assert body["code"] == "payment_failed"
    assert says in body["message"] and body["message"].endswith("nothing was paid")
    assert text not in body["message"] and "127.0.0.1" not in body["message"]


@pytest.mark.parametrize(("price_msat", "retry"), [(1, "false"), (999, "false"), (1_000, "true"), (5_000, "true")])
def test_a_price_that_channels_do_not_carry_is_not_retried_and_the_error_says_why(price_msat, retry):
    """Regression: below 1,000 msat the SDK retried four times in vain."""
    response, body = of_daemon("FAILED_PRECONDITION", NO_ROUTE, price_msat=price_msat)
    assert response.headers["X-Lcp-Payment"] == "none"
    assert response.headers["x-should-retry"] == retry
    assert body["lcp"]["payment_failure"] == "no_route"
    assert ("max_tokens" in body["message"]) is (retry == "false")
    assert f"{price_msat} msat" in body["message"]


def test_an_unknown_payment_is_reported_without_the_daemons_own_text():
    response, body = of_daemon("UNAVAILABLE", "ipv4:127.0.0.1:50051: connection reset by peer")
    assert (body["code"], body["lcp"]["payment"]) == ("payment_unknown", "unknown")
    assert response.headers["x-should-retry"] == "false"
    assert "127.0.0.1" not in body["message"] and "UNAVAILABLE" in body["message"]


def test_the_error_text_of_a_paid_peer_is_passed_on():
    response, body = of_daemon("RESOURCE_EXHAUSTED", "lcp_error code=7: backend unavailable")
    assert response.headers["X-Lcp-Payment"] == "settled"
    assert response.headers["x-should-retry"] == "false"
    assert body["message"] == ("the peer was paid and answered with an error: lcp_error code=7: backend unavailable")


@pytest.mark.parametrize(
    ("verdict", "code", "retry"), [(Verdict.NONE, "payment_failed", True), (Verdict.SETTLED, "undelivered", False)]
)
def test_a_payment_that_the_paying_node_reported_is_not_told_by_the_text(verdict, code, retry):
    """The error of a peer that spoke before it was paid does not say that it was, and the other way round."""
    text = "lcp_error code=7: busy" if verdict is Verdict.NONE else "payment failed: FAILURE_REASON_NO_ROUTE"
    cause = UpstreamError(UpstreamStatus.RESOURCE_EXHAUSTED, text, payment=PaymentReport(verdict=verdict))
    found = map_purchase_error(PaymentFailed(cause, verdict, quote=quote()))
    assert (found.code, found.retry, found.verdict) == (code, retry, verdict)
    assert found.message == text


def test_paid_and_undelivered_is_a_bad_gateway_that_is_not_retried():
    response, body = answered(map_purchase_error(Undelivered("cut", quote=quote())))
    assert response.status == 502
    assert response.headers["X-Lcp-Payment"] == "settled"
    assert response.headers["x-should-retry"] == "false"
    assert response.headers["X-Lcp-Job-Id"] == quote().job_id.hex()
    assert (body["type"], body["code"]) == ("server_error", "undelivered")


def test_a_price_over_the_limit_is_402_which_no_client_retries():
    response, body = answered(map_purchase_error(PriceLimitExceeded(quote(), 10)))
    assert response.status == 402
    assert (body["type"], body["code"]) == ("insufficient_quota", "price_limit_exceeded")
    assert response.headers["x-should-retry"] == "false"


def test_an_expired_quote_may_be_asked_for_again():
    response, body = answered(map_purchase_error(QuoteExpired("late", quote=quote())))
    assert (response.status, body["code"]) == (410, "quote_expired")
    assert response.headers["x-should-retry"] == "true"


def test_a_message_is_bounded():
    assert len(answered(ApiError(400, "x" * 5_000))[1]["message"]) == 1_000


# -- nodes ----------------------------------------------------------------------------------------


CURABLE = {"UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "DATA_LOSS"}


def of_node(status, verdict=Verdict.NONE, *, code=None):
    at = replace(quote(), peer_id="node:n", source=ProviderSource.NODE, payment_request="")
    cause = UpstreamError(status, "the node said no: invoice", code=code)
    return answered(map_purchase_error(PaymentFailed(cause, verdict, quote=at)))


def test_a_node_that_did_nothing_may_be_asked_again_where_that_may_help():
    wrong = []
    for grpc_status, status in STATUS_OF_GRPC.items():
        response, body = of_node(grpc_status)
        may_help = grpc_status in CURABLE
        found = (response.status, response.headers["X-Lcp-Peer-Id"], headers_of(response))
        expected = ("none", "true" if may_help else "false", may_help)
        if found != (status, "node:n", expected) or body["lcp"]["payment"] != "none":
            wrong.append((grpc_status, found))
    assert wrong == []


def test_a_node_that_was_paid_is_never_asked_again():
    for grpc_status in STATUS_OF_GRPC:
        response, body = of_node(grpc_status, Verdict.SETTLED)
        assert (body["lcp"]["payment"], *headers_of(response)[:2]) == ("settled", "settled", "false")


@pytest.mark.parametrize(
    ("status", "said", "code"),
    [
        ("INVALID_ARGUMENT", "bad_field", "bad_field"),
        ("INVALID_ARGUMENT", None, "node_failed"),
        ("RESOURCE_EXHAUSTED", None, "rate_limit_exceeded"),
        ("DEADLINE_EXCEEDED", None, "upstream_timeout"),
        ("UNAVAILABLE", None, "upstream_unavailable"),
        ("UNAVAILABLE", "model_loading", "model_loading"),
    ],
)
def test_a_nodes_own_word_for_its_error_is_kept(status, said, code):
    assert of_node(status, code=said)[1]["code"] == code


def test_a_quote_that_failed_keeps_its_providers_word_as_well():
    error = UpstreamError("NOT_FOUND", "words", code="model_not_found")
    assert answered(map_purchase_error(error))[1]["code"] == "model_not_found"
    assert answered(map_purchase_error(UpstreamError("NOT_FOUND", "words")))[1]["code"] == "quote_failed"


def test_nothing_was_paid_to_a_free_node_that_broke_off():
    at = replace(quote(0), peer_id="node:n", source=ProviderSource.NODE, payment_request="")
    response, body = answered(map_purchase_error(Undelivered("cut", quote=at, verdict=Verdict.NONE)))
    assert (response.status, body["code"]) == (502, "undelivered")
    assert response.headers["X-Lcp-Payment"] == "none"


# -- routing --------------------------------------------------------------------------------------


def test_a_missing_model_is_404_with_the_original_code():
    response, body = answered(map_error(ModelNotFound("only other models: m")))
    assert response.status == 404
    assert body == {
        "message": "only other models: m",
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_available",
    }
    assert response.headers["x-should-retry"] == "false"


def test_no_provider_is_503_and_may_be_tried_again():
    response, body = answered(map_error(NoProvider("no peers are connected")))
    assert (response.status, body["code"], body["type"]) == (503, "no_provider", "server_error")
    assert response.headers["x-should-retry"] == "true"


def test_a_request_that_cannot_be_adapted_names_its_parameter():
    error = NotAdaptable("chat has no suffix", "suffix", "unsupported_parameter")
    response, body = answered(map_error(error))
    assert response.status == 400
    assert (body["param"], body["code"]) == ("suffix", "unsupported_parameter")
    assert response.headers["X-Lcp-Payment"] == "none"


def test_a_lost_result_was_paid():
    response, body = answered(map_error(ResultGone()))
    assert (response.status, body["code"]) == (409, "answer_gone")
    assert response.headers["X-Lcp-Payment"] == "settled"


def test_an_unexpected_error_is_not_mapped():
    assert map_error(ValueError("a bug")) is None


@pytest.mark.parametrize(
    ("reason", "status", "retry"),
    [
        (InterruptReason.TIMED_OUT, 504, True),
        (InterruptReason.SHUTTING_DOWN, 503, True),
        (InterruptReason.TAKEN_OVER, 503, True),
        # The client does not want a cancelled request any more: an automatic retry would buy it nevertheless.
        (InterruptReason.CANCELLED, 503, False),
    ],
)
def test_a_request_that_the_gateway_ended_may_be_tried_again_only_unpaid_and_not_cancelled(reason, status, retry):
    found = map_error(Interrupted(reason, None))
    assert (found.status, found.code, found.retry, found.verdict) == (status, reason.value, retry, Verdict.NONE)
    purchase = Purchase(order(), quote())
    purchase.apply(PurchaseEvent.PAY)
    paying = map_error(Interrupted(reason, purchase))
    assert (paying.status, paying.retry, paying.verdict) == (status, False, Verdict.UNKNOWN)


# -- refusals -------------------------------------------------------------------------------------


AT = quote(5_000)


def rate_limited(retry_after_s=12.2, kind=RateKind.REQUESTS) -> RateLimited:
    return RateLimited(kind, LimitedBy.KEY, 60, retry_after_s=retry_after_s, headers={"x-ratelimit-limit-x": "60"})


@pytest.mark.parametrize(
    ("refusal", "status", "code", "retries"),
    [
        (InsufficientBalance(AT, Msat(9), Msat(1)), 402, "insufficient_balance", False),
        (BudgetExceeded(AT, Budget(Period.DAY, Msat(9), "key_1"), Msat(8)), 402, "budget_exceeded", False),
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
def test_a_refusal_has_its_status_and_says_whether_another_try_may_help(refusal, status, code, retries):
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


def test_a_key_that_was_revoked_meanwhile_gets_the_error_of_an_unknown_key():
    response = map_refusal(KeyRevoked("revoked", quote=AT)).response()
    assert response.headers["WWW-Authenticate"] == "Bearer"
    assert map_refusal(KeyRevoked("revoked", quote=AT)).type == "authentication_error"
