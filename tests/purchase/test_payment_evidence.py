from lcp_gateway.purchase.payment_evidence import EVIDENCE, evidence_of_failure, verdict_of_failure
from lcp_gateway.purchase.states import Verdict
from tests.support.cases import each_case

GRPC_CODES = [
    "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE",
    "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
]  # fmt: skip

FINAL = {"FAILED_PRECONDITION"}
REFUSED = {"FAILED_PRECONDITION", "NOT_FOUND"}
LND_STOPPED = (
    "DecodePayReq: rpc error: code = Unavailable desc = connection error: desc = "
    '"transport: Error while dialing: dial tcp 127.0.0.1:10009: connect: connection refused"'
)

# Every error text that is evidence about the payment, the statuses it counts with, and the verdict.
TEXTS = [
    ("payment failed: FAILURE_REASON_NO_ROUTE", FINAL, Verdict.NONE, "no_route"),
    ("payment failed: FAILURE_REASON_NO_ROUTE: no route", FINAL, Verdict.NONE, "no_route"),
    ("payment failed: FAILURE_REASON_INSUFFICIENT_BALANCE", FINAL, Verdict.NONE, "insufficient_balance"),
    ("payment failed: FAILURE_REASON_TIMEOUT", FINAL, Verdict.NONE, "timeout"),
    ("payment failed: FAILURE_REASON_ERROR", FINAL, Verdict.NONE, "error"),
    ("payment failed: FAILURE_REASON_INCORRECT_PAYMENT_DETAILS", FINAL, Verdict.NONE, "incorrect_payment_details"),
    (LND_STOPPED, {"UNAVAILABLE"}, Verdict.NONE, "lnd_away"),
    (
        "DecodePayReq: rpc error: code = Unknown desc = wallet locked, unlock it to enable full RPC access",
        {"UNAVAILABLE"},
        Verdict.NONE,
        "lnd_away",
    ),
    (
        "DecodePayReq: rpc error: code = Unknown desc = the RPC server is in the process of starting up",
        {"UNAVAILABLE"},
        Verdict.NONE,
        "lnd_away",
    ),
    ("quote expired", REFUSED, Verdict.NONE, "quote_expired"),
    ("job not found", REFUSED, Verdict.NONE, "unknown_job"),
    ("unknown job", REFUSED, Verdict.NONE, "unknown_job"),
    ("invoice description_hash does not match terms_hash", REFUSED, Verdict.NONE, "invoice_refused"),
    ("invoice description_hash mismatch", REFUSED, Verdict.NONE, "invoice_refused"),
    ("invoice amount does not match price_msat", REFUSED, Verdict.NONE, "invoice_refused"),
    ("invoice expiry exceeds quote_expiry", REFUSED, Verdict.NONE, "invoice_refused"),
    ("invoice expiry overflows", REFUSED, Verdict.NONE, "invoice_refused"),
    ("decode invoice: bad checksum", REFUSED, Verdict.NONE, "invoice_refused"),
    ("lcp_error code=7: backend unavailable: x", set(GRPC_CODES), Verdict.SETTLED, "peer_error"),
    ("lcp_error code=3: quote expired", set(GRPC_CODES), Verdict.SETTLED, "peer_error"),
    ("lcp_error code=12: checksum mismatch", set(GRPC_CODES), Verdict.SETTLED, "peer_error"),
    # A peer that copies lnd's error text was paid nevertheless.
    ("lcp_error code=7: payment failed: FAILURE_REASON_NO_ROUTE", set(GRPC_CODES), Verdict.SETTLED, "peer_error"),
    (
        "SendPaymentV2 recv: rpc error: code = AlreadyExists desc = invoice is already paid",
        set(GRPC_CODES),
        Verdict.SETTLED,
        "paid_before",
    ),
]


@each_case("status", GRPC_CODES)
@each_case("message, statuses, verdict, name", TEXTS)
def test_a_text_is_evidence_with_the_statuses_that_it_was_seen_with_and_with_no_other(
    status, message, statuses, verdict, name
):
    """A text counts as evidence only together with a status that the daemon or lnd sends it with."""
    row = evidence_of_failure(status, message)
    if status in statuses:
        assert row is not None and (row.name, row.verdict) == (name, verdict)
        assert verdict_of_failure(status, message) is verdict
    else:
        assert row is None
        assert verdict_of_failure(status, message) is Verdict.UNKNOWN


@each_case("status", GRPC_CODES)
@each_case(
    "message",
    [
        "",
        "connection reset",
        "something new",
        "context deadline exceeded",
        # The daemon sends this when lnd's stream of payment updates ended early; lnd may still be paying.
        "payment failed: no final payment status",
        "payment failed: FAILURE_REASON_NONE",
        "payment failed: FAILURE_REASON_CANCELED",
        "payment failed: FAILURE_REASON_ERROR_OF_A_LATER_LND",
        "payment failed",
        "FAILURE_REASON_NO_ROUTE",
        "the peer says: payment failed: FAILURE_REASON_NO_ROUTE",
        "SendPaymentV2: rpc error: code = Unavailable desc = connection refused",
        "SendPaymentV2 recv: rpc error: code = Unavailable desc = error reading from server: EOF",
        "SendPaymentV2 recv: rpc error: DecodePayReq: connection refused",
        # After the payment: lnd returned an invalid preimage.
        "invalid request: payment_preimage is empty",
        "pay invoice: payment is in flight",
        "pay invoice: invoice expired",
        "payment of an invoice that does not match",
        "invoice in transition",
    ],
)
def test_an_unlisted_error_text_is_unknown(status, message):
    assert verdict_of_failure(status, message) is Verdict.UNKNOWN


def test_every_row_says_how_it_is_known_and_has_a_name_of_its_own():
    assert all(row.source.startswith(("observed", "by the daemon's code")) and row.says for row in EVIDENCE)
    assert len({row.name for row in EVIDENCE}) == len(EVIDENCE)


def test_a_paid_request_never_advises_a_retry():
    assert not any(row.worth_a_retry for row in EVIDENCE if row.verdict is Verdict.SETTLED)
