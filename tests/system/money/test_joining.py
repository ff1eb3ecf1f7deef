"""An answer is bought once: a repeat of its request gets the same bytes."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.gateway import gateway
from tests.support.money import accepts, ask, lcp, metric, paid
from tests.support.node_thread import eventually
from tests.support.wire import CHAT, RESPONSES, document, get, post, request_bytes, wire

ALICE = {"Authorization": "Bearer alice-key"}
BOB = {"Authorization": "Bearer bob-key"}
# A client that left has to come back within it, also on a machine that stands still for some seconds.
GRACE_S = 60.0
# Of the gateway that no client comes back to.
SHORT_GRACE_S = 2.0


@pytest.fixture(scope="module")
def served():
    settings = {
        "LCP_GATEWAY_NODE_FAULTS": "true",
        "LCP_GATEWAY_API_KEYS": "alice-key,bob-key",
        "LCP_GATEWAY_JOIN_GRACE_S": str(GRACE_S),
    }
    with gateway(env=settings) as running:
        yield running
        assert max(paid(running).values()) == 1
        assert len(accepts(running)) == len(set(accepts(running)))


def bought_meanwhile(served, before):
    return len(accepts(served)) - before


def leave_after(served, body, headers, mark=b"\n\n"):
    """Send a request, wait for ``mark`` in its answer, and disconnect."""
    raw = request_bytes("POST", CHAT, json.dumps(body).encode(), headers)
    with wire(served.port) as connection:
        connection.send(raw)
        connection.read_until(mark)


@pytest.mark.parametrize("path", [CHAT, RESPONSES])
@pytest.mark.parametrize("stream", [False, True])
def test_twenty_clients_at_once_with_one_key_share_one_payment(served, path, stream):
    before = len(accepts(served))
    headers = {**ALICE, "Idempotency-Key": f"twenty {path} {stream}"}
    body = document(path, "echo-slow", "one two three four", stream=stream)
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: post(served.port, path, body, headers), range(20)))
    assert {answer.status for answer in answers} == {200} and all(a.whole for a in answers)
    assert len({answer.body for answer in answers}) == 1
    assert all(lcp(answer) == lcp(answers[0]) for answer in answers)
    assert len({answer.headers["content-type"] for answer in answers}) == 1
    assert len({answer.headers["x-request-id"] for answer in answers}) == 20
    assert answers[0].verdict == "settled"
    assert bought_meanwhile(served, before) == 1
    again = post(served.port, path, body, headers)
    assert again.body == answers[0].body and lcp(again) == lcp(answers[0])
    assert bought_meanwhile(served, before) == 1


def test_the_same_key_with_another_body_is_refused(served):
    headers = {**ALICE, "Idempotency-Key": "for one body"}
    first = ask(served, "this", headers=headers)
    assert first.status == 200
    before = len(accepts(served))
    answer = ask(served, "that", headers=headers)
    assert answer.status == 422
    assert answer.error["code"] == "idempotency_key_reused"
    assert answer.verdict == "none" and answer.headers["x-should-retry"] == "false"
    assert bought_meanwhile(served, before) == 0


def test_the_same_key_on_the_other_route_is_refused(served):
    headers = {**ALICE, "Idempotency-Key": "for one route"}
    body = {"model": "echo-1", "messages": [{"role": "user", "content": "x"}], "input": "x"}
    assert post(served.port, CHAT, body, headers).status == 200
    assert post(served.port, RESPONSES, body, headers).status == 422


def test_the_key_of_another_credential_is_another_key(served):
    before = len(accepts(served))
    key = {"Idempotency-Key": "shared by chance"}
    one = ask(served, "ours", headers={**ALICE, **key})
    other = ask(served, "ours", headers={**BOB, **key})
    assert one.status == other.status == 200
    assert one.headers["x-lcp-job-id"] != other.headers["x-lcp-job-id"]
    assert bought_meanwhile(served, before) == 2


@pytest.mark.parametrize("stream", [False, True])
def test_a_retry_of_the_sdk_joins_and_its_first_try_does_not(served, stream):
    before = len(accepts(served))
    text = f"retried {stream}"

    def tried(count, headers=ALICE):
        return ask(served, text, stream=stream, headers={**headers, "x-stainless-retry-count": count})

    first, retry = tried("0"), tried("1")
    assert retry.body == first.body and lcp(retry) == lcp(first)
    assert bought_meanwhile(served, before) == 1
    assert tried("2", BOB).headers["x-lcp-job-id"] != first.headers["x-lcp-job-id"]
    assert tried("0").headers["x-lcp-job-id"] != first.headers["x-lcp-job-id"]
    assert bought_meanwhile(served, before) == 3


def test_a_retry_joins_what_is_still_being_bought(served):
    before = len(accepts(served))
    joined = metric(served, "joined_total", headers=ALICE)
    body = document(CHAT, "echo-slow", "while it is running", stream=True)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(post, served.port, CHAT, body, ALICE)
        eventually(lambda: bought_meanwhile(served, before) == 1)
        marked = {**ALICE, "x-stainless-retry-count": "1"}
        retry = pool.submit(post, served.port, CHAT, body, marked)
        assert retry.result().body == first.result().body
    assert bought_meanwhile(served, before) == 1
    assert metric(served, "joined_total", headers=ALICE) == joined + 1


def test_the_request_id_of_a_client_joins_the_same_bytes_and_no_others(served):
    before = len(accepts(served))
    headers = {**ALICE, "x-client-request-id": "019a-session"}
    one, again = (ask(served, "codex", RESPONSES, stream=True, headers=headers) for _ in range(2))
    assert one.body == again.body and lcp(one) == lcp(again)
    other = ask(served, "the next turn", RESPONSES, stream=True, headers=headers)
    assert other.headers["x-lcp-job-id"] != one.headers["x-lcp-job-id"]
    assert bought_meanwhile(served, before) == 2


def test_a_repeat_of_an_unpaid_request_is_bought(served):
    before = len(accepts(served))
    headers = {**ALICE, "Idempotency-Key": "no route"}
    answers = [ask(served, "x", model="fault/no-route", headers=headers) for _ in range(2)]
    assert [answer.verdict for answer in answers] == ["none", "none"]
    assert answers[0].headers["x-lcp-job-id"] != answers[1].headers["x-lcp-job-id"]
    assert bought_meanwhile(served, before) == 2


@pytest.mark.parametrize(
    ("model", "verdict"), [("fault/wrong-hash", "settled"), ("fault/execute-code-unavailable", "unknown")]
)
@pytest.mark.parametrize("marked", ["key", "retry"])
def test_a_repeat_of_a_failed_paid_request_fails_with_the_same_error(served, model, verdict, marked):
    before = len(accepts(served))
    text = f"fails {model} {marked}"
    again = {"Idempotency-Key": text} if marked == "key" else {"x-stainless-retry-count": "1"}
    first = ask(served, text, model=model, headers={**ALICE, **(again if marked == "key" else {})})
    second = ask(served, text, model=model, headers={**ALICE, **again})
    assert first.verdict == second.verdict == verdict
    assert (first.status, first.body) == (second.status, second.body)
    assert second.headers["x-should-retry"] == "false"
    assert bought_meanwhile(served, before) == 1


def test_a_repeat_of_a_cut_stream_is_cut_at_the_same_byte(served):
    before = len(accepts(served))
    headers = {**ALICE, "Idempotency-Key": "cut"}
    first, again = (ask(served, "cut", model="fault/stream-cut", stream=True, headers=headers) for _ in range(2))
    assert not first.whole and not again.whole
    assert first.body == again.body and first.verdict == again.verdict == "settled"
    assert bought_meanwhile(served, before) == 1


def test_when_the_client_goes_away_a_retry_gets_the_whole_answer(served):
    before = len(accepts(served))
    body = document(CHAT, "echo-slow", "a b c d e f g h i j", stream=True)
    headers = {**ALICE, "Idempotency-Key": "comes back"}
    leave_after(served, body, headers)
    again = post(served.port, CHAT, body, headers)
    assert again.whole and again.body.rstrip().endswith(b"data: [DONE]")
    assert bought_meanwhile(served, before) == 1
    # Jobs of the tests before may be cancelled only now.
    job_id = again.headers["x-lcp-job-id"]
    assert job_id not in {event["job_id"] for event in served.events("cancel")}
    fresh = post(served.port, CHAT, body, ALICE)
    assert text_of(fresh) == text_of(again) != ""


def test_what_ends_within_the_grace_waits_for_a_retry(served):
    before = len(accepts(served))
    body = document(CHAT, "echo-slow", "ends soon", stream=True)
    leave_after(served, body, ALICE)
    eventually(lambda: get(served.port, "/readyz", ALICE).json["jobs_in_flight"] == 0)
    time.sleep(0.3)
    again = post(served.port, CHAT, body, {**ALICE, "x-stainless-retry-count": "1"})
    assert again.whole and again.body.rstrip().endswith(b"data: [DONE]")
    assert bought_meanwhile(served, before) == 1


def test_when_no_client_comes_back_within_the_grace_the_job_is_cancelled():
    body = document(CHAT, "fault/stream-stalls", "never comes back", stream=True)
    headers = {"Idempotency-Key": "never comes back"}
    settings = {"LCP_GATEWAY_NODE_FAULTS": "true", "LCP_GATEWAY_JOIN_GRACE_S": str(SHORT_GRACE_S)}
    with gateway(env=settings) as served:
        left_at = time.monotonic()
        leave_after(served, body, headers)
        (job_id,) = accepts(served)
        eventually(lambda: job_id in {event["job_id"] for event in served.events("cancel")})
        assert time.monotonic() - left_at > SHORT_GRACE_S * 0.9, "it was taken in for a while"
        again = post(served.port, CHAT, body, headers)
        assert again.verdict == "settled"
        assert not again.whole or again.headers["x-should-retry"] == "false"
        assert accepts(served) == [job_id] and paid(served) == {job_id: 1}


@pytest.fixture(scope="module")
def forgetful():
    """A gateway with almost no memory for answers."""
    with gateway(env={"LCP_GATEWAY_ANSWERS_MAX_BYTES": "100"}) as running:
        yield running


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_is_no_longer_held_is_409_and_not_bought_again(forgetful, stream):
    before = len(accepts(forgetful))
    headers = {"Idempotency-Key": f"gone {stream}"}
    first = ask(forgetful, "x", stream=stream, headers=headers)
    assert first.status == 200 and first.whole, "the client that pays gets it, memory or not"
    for _ in range(2):
        again = ask(forgetful, "x", stream=stream, headers=headers)
        assert again.status == 409 and again.error["code"] == "answer_gone"
        assert again.verdict == "settled" and again.headers["x-should-retry"] == "false"
        assert again.error["lcp"]["job_id"] == first.headers["x-lcp-job-id"]
    assert bought_meanwhile(forgetful, before) == 1


def text_of(answer) -> str:
    found = ""
    for _, data in answer.blocks:
        if data != "[DONE]":
            for choice in json.loads(data)["choices"]:
                found += choice["delta"].get("content") or ""
    return found
