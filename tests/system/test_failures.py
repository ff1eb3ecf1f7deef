"""Every fault of the node: the client's error, the payment, and secrets that no error may hold."""

import json
from contextlib import contextmanager

import pytest

from lcp_gateway.node.faults import FAULTS
from tests.support.gateway import gateway
from tests.support.wire import CHAT, RESPONSES, document, post

BOTH = pytest.mark.parametrize("path", [CHAT, RESPONSES])
STREAMED_OR_NOT = pytest.mark.parametrize("stream", [False, True])

PROMPT = "zanzibar-quokka-prompt"
OUTPUT = "This is the echo"
CAP_MSAT = 10_000_000

QUOTE_FAILURES = {
    "quote-refused": (429, True),
    "quote-slow": (504, True),
    "expensive": (402, False),
    "expired": (410, True),
    "short-job-id": (500, False),
    "quote-code-cancelled": (408, True),
    "quote-code-unknown": (500, True),
    "quote-code-invalid_argument": (400, False),
    "quote-code-deadline_exceeded": (504, True),
    "quote-code-not_found": (400, False),
    "quote-code-already_exists": (409, False),
    "quote-code-permission_denied": (403, False),
    "quote-code-resource_exhausted": (429, True),
    "quote-code-failed_precondition": (400, False),
    "quote-code-aborted": (409, True),
    "quote-code-out_of_range": (400, False),
    "quote-code-unimplemented": (501, False),
    "quote-code-internal": (500, True),
    "quote-code-unavailable": (502, True),
    "quote-code-data_loss": (500, True),
    "quote-code-unauthenticated": (401, False),
}
WITH_A_QUOTE = {"expensive", "expired"}

# Before the first byte, so that an error can be sent as an answer of its own, streamed or not.
EXECUTE_FAILURES = {
    "no-route": (400, "none"),
    "already-paid": (502, "settled"),
    "fail-after-payment": (429, "settled"),
    "execute-hangs": (504, "unknown"),
    "execute-code-cancelled": (408, "unknown"),
    "execute-code-unknown": (500, "unknown"),
    "execute-code-invalid_argument": (400, "unknown"),
    "execute-code-deadline_exceeded": (504, "unknown"),
    "execute-code-not_found": (400, "unknown"),
    "execute-code-already_exists": (409, "unknown"),
    "execute-code-permission_denied": (403, "unknown"),
    "execute-code-resource_exhausted": (429, "unknown"),
    "execute-code-failed_precondition": (400, "unknown"),
    "execute-code-aborted": (409, "unknown"),
    "execute-code-out_of_range": (400, "unknown"),
    "execute-code-unimplemented": (501, "unknown"),
    "execute-code-internal": (500, "unknown"),
    "execute-code-unavailable": (502, "unknown"),
    "execute-code-data_loss": (500, "unknown"),
    "execute-code-unauthenticated": (401, "unknown"),
}
WHOLE_RESULT_FAILURES = {
    "wrong-hash": (502, "settled"),
    "wrong-length": (502, "settled"),
    "result-failed": (502, "settled"),
    "result-cancelled": (502, "settled"),
    "no-result": (502, "settled"),
    "stream-cut": (502, "unknown"),
    "stream-cut-silently": (502, "settled"),
    "stream-stalls": (504, "unknown"),
}
FAILURES_IN_MID_STREAM = [
    "wrong-hash",
    "wrong-length",
    "result-failed",
    "result-cancelled",
    "stream-cut",
    "stream-cut-silently",
    "stream-stalls",
]

# These deliver, and tests/system/test_bytes.py compares their results.
RIGHT_BUT_ODD = {
    "manifest-not-exchanged",
    "stream-slow",
    "stream-split-utf8",
    "stream-binary",
    "stream-floods",
    "big-result",
    "empty-chunks",
    "odd-content-type",
    "gzip-encoding",
}
# The daemon refuses to pay these itself.
INVOICE_FAILURES = {
    "wrong-price",
    "wrong-payee",
    "wrong-description-hash",
    "wrong-terms-hash",
    "wrong-network",
    "wrong-invoice-expiry",
    "expired-invoice",
    "bad-signature",
    "garbage-invoice",
}


# The gateways of the faults that end with a timeout; the others must not end with one.
WITH_A_TIMEOUT = {"quote-slow": "short_quotes", "execute-hangs": "short_jobs", "stream-stalls": "short_jobs"}
ATTEMPTS = 3


@contextmanager
def serving(**timeouts):
    settings = {"LCP_GATEWAY_NODE_FAULTS": "true", "LCP_GATEWAY_MAX_PRICE_MSAT": str(CAP_MSAT), **timeouts}
    with gateway(env=settings) as running:
        yield running


@pytest.fixture(scope="module")
def patient():
    with serving() as running:
        yield running


@pytest.fixture(scope="module")
def short_quotes():
    with serving(LCP_GATEWAY_TIMEOUT_QUOTE_S="1") as running:
        yield running


@pytest.fixture(scope="module")
def short_jobs():
    with serving(LCP_GATEWAY_TIMEOUT_EXECUTE_S="2") as running:
        yield running


@pytest.fixture
def ask(request):
    """Request a faulty model; return the answer and the node's events, by kind."""

    def ask(name, path=CHAT, **more):
        limited_by = WITH_A_TIMEOUT.get(name, "patient")
        served = request.getfixturevalue(limited_by)
        body = document(path, f"fault/{name}", PROMPT, **more)
        for _ in range(ATTEMPTS):
            before = len(served.events())
            answer = post(served.port, path, body)
            kinds = [event["kind"] for event in served.events()[before:]]
            if limited_by != "short_jobs" or had_begun(name, answer, kinds, **more):
                break
        return answer, kinds

    return ask


def had_begun(name, answer, kinds, *, stream=False):
    """Return whether a job that ends with a timeout had begun by then: on a busy machine its time may be over before."""
    if name == "stream-stalls" and stream:
        return OUTPUT.split(maxsplit=1)[0] in answer.body.decode()
    return "paid" in kinds


def says_what_was_paid(answer, verdict, kinds):
    """Check that header, body and the node's events have the expected payment state."""
    assert answer.verdict == verdict
    assert answer.headers["x-should-retry"] == ("true" if verdict == "none" else "false")
    lcp = answer.error["lcp"]
    assert lcp["payment"] == verdict
    assert lcp["job_id"] == answer.headers["x-lcp-job-id"]
    assert str(lcp["price_msat"]) == answer.headers["x-lcp-price-msat"]
    assert lcp["peer_id"] == answer.headers["x-lcp-peer-id"]
    assert kinds.count("accept") == 1
    if verdict == "none":
        assert "paid" not in kinds
    if verdict == "settled":
        assert kinds.count("paid") == 1


def is_a_plain_error(answer, status):
    assert answer.status == status and answer.whole
    assert answer.headers["content-type"].startswith("application/json")
    assert answer.error["type"].endswith(("_error", "_quota"))
    assert PROMPT not in answer.body.decode()


@BOTH
@STREAMED_OR_NOT
@pytest.mark.parametrize("name", QUOTE_FAILURES)
def test_a_failed_quote_costs_nothing_and_says_whether_to_try_again(ask, name, path, stream):
    status, retry = QUOTE_FAILURES[name]
    answer, kinds = ask(name, path, stream=stream)
    is_a_plain_error(answer, status)
    assert answer.verdict == "none"
    assert answer.headers["x-should-retry"] == ("true" if retry else "false")
    assert ("retry-after" in answer.headers) is retry
    assert ("lcp" in answer.error) is (name in WITH_A_QUOTE)
    assert not {"accept", "paid"} & set(kinds)


@BOTH
@STREAMED_OR_NOT
@pytest.mark.parametrize("name", EXECUTE_FAILURES)
def test_a_failed_execution_says_what_was_paid(ask, name, path, stream):
    status, verdict = EXECUTE_FAILURES[name]
    answer, kinds = ask(name, path, stream=stream)
    is_a_plain_error(answer, status)
    says_what_was_paid(answer, verdict, kinds)


@BOTH
@pytest.mark.parametrize("name", WHOLE_RESULT_FAILURES)
def test_a_result_that_is_not_whole_and_right_is_an_error(ask, name, path):
    status, verdict = WHOLE_RESULT_FAILURES[name]
    answer, kinds = ask(name, path)
    is_a_plain_error(answer, status)
    says_what_was_paid(answer, verdict, kinds)
    assert OUTPUT not in answer.body.decode()


@BOTH
def test_a_stream_that_ends_before_it_begins_is_an_error(ask, path):
    answer, kinds = ask("no-result", path, stream=True)
    is_a_plain_error(answer, 500)
    says_what_was_paid(answer, "unknown", kinds)


@BOTH
@pytest.mark.parametrize("name", FAILURES_IN_MID_STREAM)
def test_a_stream_that_fails_never_ends_cleanly(ask, name, path):
    answer, kinds = ask(name, path, stream=True)
    assert answer.status == 200
    assert answer.verdict == "settled" and kinds.count("paid") == 1 and kinds.count("accept") == 1
    assert not answer.whole, "the chunked encoding has to be broken off"
    assert OUTPUT.split(maxsplit=1)[0] in answer.body.decode(), "what had come was passed on"
    assert "[DONE]" not in answer.body.decode()
    event, data = answer.blocks[-1]
    reported = json.loads(data)
    if path == RESPONSES:
        assert event == "error"
        assert reported["type"] == "error" and {"code", "message", "param"} <= set(reported)
    else:
        assert event == ""
    error = reported["error"]
    assert {"message", "type", "param", "code"} <= set(error)
    assert error["type"] == "server_error" and error["code"] == "undelivered"
    assert error["lcp"] == {
        "payment": "settled",
        "job_id": answer.headers["x-lcp-job-id"],
        "price_msat": int(answer.headers["x-lcp-price-msat"]),
        "peer_id": answer.headers["x-lcp-peer-id"],
    }


def test_every_fault_of_the_node_is_tested():
    here = {*QUOTE_FAILURES, *EXECUTE_FAILURES, *WHOLE_RESULT_FAILURES, *FAILURES_IN_MID_STREAM}
    assert here | RIGHT_BUT_ODD | INVOICE_FAILURES == set(FAULTS)


@BOTH
@STREAMED_OR_NOT
@pytest.mark.parametrize("name", sorted(INVOICE_FAILURES))
def test_a_quote_that_does_not_fit_its_invoice_is_never_said_to_be_unpaid_when_it_was_paid(ask, name, path, stream):
    answer, kinds = ask(name, path, stream=stream)
    assert kinds.count("accept") <= 1
    if answer.verdict == "none":
        assert "paid" not in kinds
    else:
        assert answer.headers.get("x-should-retry", "false") == "false"


def test_a_peer_that_is_not_ready_yet_is_asked_again_by_the_gateway(ask):
    answer, kinds = ask("manifest-not-exchanged")
    assert answer.status == 200 and answer.verdict == "settled"
    assert kinds.count("accept") == kinds.count("paid") == 1
