"""First a quote, then the purchase at that quote."""

import time

import pytest

from tests.support.gateway import gateway
from tests.support.money import accepts, ask, quoted
from tests.support.wire import CHAT, RESPONSES

ALICE = {"Authorization": "Bearer alice-key"}
BOB = {"Authorization": "Bearer bob-key"}


@pytest.fixture(scope="module")
def served():
    settings = {"LCP_GATEWAY_NODE_FAULTS": "true", "LCP_GATEWAY_API_KEYS": "alice-key,bob-key"}
    with gateway(env=settings) as running:
        yield running


def take(served, text, quote_id, *, headers=ALICE, **more):
    return ask(served, text, headers={**headers, "X-Lcp-Quote-Id": quote_id}, **more)


@pytest.mark.parametrize("path", [CHAT, RESPONSES])
@pytest.mark.parametrize("stream", [False, True])
def test_a_quote_says_what_it_would_cost_and_costs_nothing(served, path, stream):
    before = len(accepts(served))
    quote = quoted(served, "how much?", path=path, stream=stream, headers=ALICE)
    assert quote["object"] == "lcp.quote" and quote["model"] == "echo-1"
    assert quote["id"].startswith("quote_")
    seen = served.events("quote")[-1]
    assert quote["price_msat"] == seen["price_msat"] and quote["peer_id"] == seen["peer_id"]
    assert quote["job_id"] == seen["job_id"]
    assert quote["max_fee_msat"] == 1_000 + -(-quote["price_msat"] // 100)
    assert quote["expires_at"] > 1_700_000_000 and len(bytes.fromhex(quote["terms_hash"])) == 32
    assert len(accepts(served)) == before


def test_the_answer_to_a_quote_says_that_nothing_was_paid(served):
    answer = ask(served, "q", headers={**ALICE, "X-Lcp-Quote-Only": "true"})
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("application/json")
    assert answer.verdict == "none"


@pytest.mark.parametrize("path", [CHAT, RESPONSES])
@pytest.mark.parametrize("stream", [False, True])
def test_a_quote_is_taken_at_its_price_without_a_new_one(served, path, stream):
    quote = quoted(served, "take me", path=path, stream=stream, headers=ALICE)
    quotes = len(served.events("quote"))
    answer = take(served, "take me", quote["id"], path=path, stream=stream)
    assert answer.status == 200 and answer.whole and answer.verdict == "settled"
    assert answer.headers["x-lcp-job-id"] == quote["job_id"]
    assert int(answer.headers["x-lcp-price-msat"]) == quote["price_msat"]
    assert len(served.events("quote")) == quotes
    assert accepts(served, quote["job_id"]) == [quote["job_id"]]


def test_a_quote_is_taken_once(served):
    quote = quoted(served, "once", headers=ALICE)
    assert take(served, "once", quote["id"]).status == 200
    again = take(served, "once", quote["id"])
    # The journal has the outcome.
    assert again.status == 409 and again.error["code"] == "answer_gone"
    assert again.verdict in {"settled", "unknown"}
    assert again.headers["x-should-retry"] == "false"
    assert accepts(served, quote["job_id"]) == [quote["job_id"]]


def test_a_retry_of_taking_it_gets_the_same_answer(served):
    quote = quoted(served, "taken and retried", headers=ALICE)
    first = take(served, "taken and retried", quote["id"])
    retry = {**ALICE, "x-stainless-retry-count": "1"}
    again = take(served, "taken and retried", quote["id"], headers=retry)
    assert again.status == 200 and again.body == first.body
    assert accepts(served, quote["job_id"]) == [quote["job_id"]]


def test_a_quote_is_for_the_body_that_was_quoted(served):
    quote = quoted(served, "this one", headers=ALICE)
    answer = take(served, "another one", quote["id"])
    assert answer.status == 409 and answer.error["code"] == "quote_for_another_request"
    assert answer.verdict == "none" and accepts(served, quote["job_id"]) == []
    assert take(served, "this one", quote["id"]).status == 200, "it can still be taken"


def test_a_quote_belongs_to_its_credential(served):
    quote = quoted(served, "mine", headers=ALICE)
    answer = take(served, "mine", quote["id"], headers=BOB)
    assert answer.status == 404 and answer.error["code"] == "quote_not_found"
    assert take(served, "mine", quote["id"]).status == 200


@pytest.mark.parametrize("name", ["quote_" + "00" * 32, "nonsense", ""])
def test_a_quote_that_is_not_held_cannot_be_taken(served, name):
    before = len(accepts(served))
    answer = take(served, "x", name)
    assert answer.status in {400, 404} and answer.verdict == "none"
    assert len(accepts(served)) == before


def test_a_quote_that_has_expired_cannot_be_taken(served):
    """The node's quote has already expired when it is received."""
    before = len(accepts(served))
    answer = ask(served, "x", model="fault/expired", headers={**ALICE, "X-Lcp-Quote-Only": "true"})
    if answer.status == 200:
        answer = take(served, "x", answer.json["id"], model="fault/expired")
    assert answer.status in {410, 502} and answer.verdict == "none"
    assert len(accepts(served)) == before


def test_a_quote_runs_out(tmp_path):
    file = tmp_path / "node.toml"
    # Whole seconds: the invoice of a quote for one second may have expired before the quote has come.
    file.write_text("quote_ttl_s = 5\n")
    with gateway(env={"LCP_GATEWAY_NODE_PEERS_FILE": str(file)}) as served:
        quote = quoted(served, "soon over")
        time.sleep(max(0.0, quote["expires_at"] - time.time()) + 0.05)
        answer = take(served, "soon over", quote["id"], headers={})
        assert answer.status == 410 and answer.error["code"] == "quote_expired"
        assert answer.verdict == "none"
        assert answer.headers["x-should-retry"] == "false", "the same quote will be no fresher"
        assert accepts(served) == []


@pytest.mark.parametrize("value", ["yes", "1", "", "TRUE!"])
def test_an_invalid_quote_only_header_buys_nothing(served, value):
    before = len(accepts(served))
    answer = ask(served, "x", headers={**ALICE, "X-Lcp-Quote-Only": value})
    assert answer.status == 400 and answer.error["param"] == "X-Lcp-Quote-Only"
    assert len(accepts(served)) == before


def test_over_its_own_limit_a_client_gets_a_quote_that_it_can_take_without_it(served):
    answer = ask(served, "dear", headers={**ALICE, "X-Lcp-Max-Price-Msat": "1000"})
    assert answer.status == 402 and answer.error["code"] == "price_limit_exceeded"
    details = answer.error["lcp"]
    assert details["payment"] == "none" and details["limit_msat"] == 1_000
    assert details["price_msat"] > 1_000
    still = take(served, "dear", details["quote_id"], headers={**ALICE, "X-Lcp-Max-Price-Msat": "1000"})
    assert still.status == 402 and still.error["lcp"]["quote_id"] == details["quote_id"]
    taken = take(served, "dear", details["quote_id"])
    assert taken.status == 200 and taken.headers["x-lcp-job-id"] == details["job_id"]
    assert accepts(served, details["job_id"]) == [details["job_id"]]


def test_a_quote_over_the_client_s_limit_is_not_shown_as_one_to_take(served):
    """A client that sends a limit and asks for a quote gets an error with the lowest price above it."""
    headers = {**ALICE, "X-Lcp-Quote-Only": "true", "X-Lcp-Max-Price-Msat": "1000"}
    answer = ask(served, "dear quote", headers=headers)
    assert answer.status == 402 and answer.verdict == "none"
    name = answer.error["lcp"]["quote_id"]
    assert take(served, "dear quote", name).status == 200
