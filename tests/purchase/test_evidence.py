import pytest

from lcp_gateway.purchase.evidence import verdict_of_failure
from lcp_gateway.purchase.states import Verdict

GRPC_CODES = [
    "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE",
    "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
]  # fmt: skip


@pytest.mark.parametrize(
    ("status", "message", "verdict"),
    [
        ("FAILED_PRECONDITION", "payment failed: FAILURE_REASON_NO_ROUTE", Verdict.NONE),
        ("FAILED_PRECONDITION", "quote expired", Verdict.NONE),
        ("FAILED_PRECONDITION", "invoice description_hash mismatch", Verdict.NONE),
        ("NOT_FOUND", "job not found", Verdict.NONE),
        ("RESOURCE_EXHAUSTED", "lcp_error code=7: backend unavailable: x", Verdict.SETTLED),
        ("FAILED_PRECONDITION", "lcp_error code=3: quote expired", Verdict.SETTLED),
        ("UNAVAILABLE", "pay invoice: invoice is already paid", Verdict.SETTLED),
        ("FAILED_PRECONDITION", "invoice amount does not match price", Verdict.NONE),
        ("FAILED_PRECONDITION", "pay invoice: payment is in flight", Verdict.UNKNOWN),
        ("FAILED_PRECONDITION", "pay invoice: invoice expired", Verdict.UNKNOWN),
        ("FAILED_PRECONDITION", "invoice in transition", Verdict.UNKNOWN),
        ("DEADLINE_EXCEEDED", "context deadline exceeded", Verdict.UNKNOWN),
        ("FAILED_PRECONDITION", "payment failed: FAILURE_REASON_TIMEOUT", Verdict.UNKNOWN),
    ],
)
def test_what_was_seen_on_a_real_network_is_believed(status, message, verdict):
    assert verdict_of_failure(status, message) is verdict


@pytest.mark.parametrize("status", GRPC_CODES)
@pytest.mark.parametrize("message", ["", "connection reset", "something new"])
def test_whatever_was_never_seen_is_unknown(status, message):
    assert verdict_of_failure(status, message) is Verdict.UNKNOWN


@pytest.mark.parametrize("status", GRPC_CODES)
def test_a_peer_that_speaks_has_been_paid_whatever_the_status(status):
    assert verdict_of_failure(status, "lcp_error code=12: checksum mismatch") is Verdict.SETTLED
