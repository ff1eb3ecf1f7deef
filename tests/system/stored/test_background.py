"""Background responses as their clients see them, and their payments."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.gated_node import gated_node
from tests.support.gateway import RunningGateway, gateway
from tests.support.journaled import on_node
from tests.support.money import accepts, metric, paid
from tests.support.node_thread import eventually
from tests.support.stored import (
    begun,
    cancel,
    delete,
    ended,
    input_items,
    last_response,
    numbers,
    respond,
    retrieve,
    slow_peers,
    wait_for,
)
from tests.support.wire import RESPONSES, document, get, post, request_bytes, wire

pytestmark = pytest.mark.slow

ECHO = "This is the echo node. You said: "
# A minute of the slow peer: no test waits for its end.
LONG = "word " * 600
GATED = "gated"


@contextmanager
def serving(folder, *, quote_latency_s: float = 10.0, **settings: object) -> Iterator[RunningGateway]:
    """Run a gateway on a node whose answers to prompts with ``GATED`` wait for the file of ``gate_of``.

    A slow quote takes so long that its job is still queued when a test looks, also where the machine stood still.
    """
    with (
        gated_node(folder, toml=slow_peers(quote_latency_s), faults=True, word=GATED) as (node, _),
        gateway(embedded=False, env=on_node(node, **settings) | {"XDG_STATE_HOME": str(folder)}) as running,
    ):
        running.events_file = node.events_file
        yield running


def gate_of(running: RunningGateway) -> Path:
    return running.events_file.with_name("gate")


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("node"), timeout_execute_s=60) as running:
        yield running


@pytest.fixture(scope="module")
def hasty(tmp_path_factory):
    """A gateway that waits four seconds for an answer, and a minute for a slow quote."""
    with serving(tmp_path_factory.mktemp("hasty"), quote_latency_s=60, timeout_execute_s=4) as running:
        yield running


@pytest.fixture
def port(served):
    return served.port


@pytest.fixture
def bought(served):
    """The node's payments during a test."""
    before = len(accepts(served)), sum(paid(served).values())
    return lambda: (len(accepts(served)) - before[0], sum(paid(served).values()) - before[1])


def is_idle(running) -> bool:
    return get(running.port, "/readyz").json["jobs_in_flight"] == 0


def test_the_stages_of_a_job(port, bought):
    made = respond(port, "hello", model="slow-quote", background=True, metadata={"a": "b"})
    assert (made.status, made.verdict, made.json["status"]) == (200, "none", "queued")
    assert made.json["metadata"] == {"a": "b"} and made.json["error"] is None
    response_id = made.json["id"]
    found = retrieve(port, response_id)
    assert (found.verdict, found.json["status"]) == ("none", "queued")
    assert bought() == (0, 0)
    done = ended(port, response_id)
    assert (done.verdict, done.json["status"]) == ("settled", "completed")
    assert done.json["output"][0]["content"][0]["text"] == ECHO + "hello"
    assert int(done.headers["x-lcp-price-msat"]) > 0
    assert bought() == (1, 1)


def test_a_running_job_is_in_progress_with_the_headers_of_its_purchase(port, bought):
    response_id = begun(port, LONG, model="echo-slow")
    found = wait_for(port, response_id, lambda it: it["status"] == "in_progress")
    assert found.headers["x-lcp-job-id"] and found.headers["x-lcp-peer-id"]
    assert found.json["output"] == []
    assert input_items(port, response_id)[0]["content"][0]["text"] == LONG
    eventually(lambda: bought() == (1, 1))
    done = cancel(port, response_id)
    assert (done.status, done.json["status"]) == (200, "cancelled")
    assert done.verdict == done.json["lcp"]["payment"] in {"settled", "unknown"}
    assert retrieve(port, response_id).body == done.body
    assert input_items(port, response_id)[0]["content"][0]["text"] == LONG


def test_a_cancelled_paid_stream_is_settled_and_cancelled_at_the_provider(served, port, bought):
    with wire(port) as connection:
        connection.send(stream_of(LONG))
        connection.read_until(b"response.in_progress")
        response_id = id_of(port, connection)
        done = cancel(port, response_id)
    assert done.json["status"] == "cancelled"
    assert done.verdict == done.json["lcp"]["payment"] == "settled"
    assert bought() == (1, 1)
    job_id = done.headers["x-lcp-job-id"]
    assert done.json["lcp"]["job_id"] == job_id
    eventually(lambda: job_id in [event["job_id"] for event in served.events("cancel")])


def stream_of(text: str, model: str = "echo-slow", **more) -> bytes:
    body = document(RESPONSES, model, text, background=True, stream=True, **more)
    return request_bytes("POST", RESPONSES, json.dumps(body).encode())


def id_of(port: int, connection) -> str:
    """The id in a stream's next event."""
    return "resp_bg_" + connection.read_until(b'"object"').decode().split("resp_bg_")[1].split('"')[0]


def test_a_job_that_is_cancelled_while_it_waits_for_a_quote_costs_nothing(hasty):
    bought = len(accepts(hasty))
    response_id = begun(hasty.port, model="slow-quote")
    done = cancel(hasty.port, response_id)
    assert (done.json["status"], done.verdict) == ("cancelled", "none")
    assert done.json["lcp"] == {"payment": "none"}
    assert done.json["error"] is None and done.json["output"] == []
    eventually(lambda: is_idle(hasty))
    assert len(accepts(hasty)) == bought


def test_deleting_a_job_that_runs_ends_it(served, port, bought):
    response_id = begun(port, LONG, model="echo-slow")
    wait_for(port, response_id, lambda it: it["status"] == "in_progress")
    # In progress it is before the node has the call that pays.
    eventually(lambda: bought()[0])
    gone = delete(port, f"{RESPONSES}/{response_id}")
    assert gone.json == {"id": response_id, "object": "response", "deleted": True}
    for query in ("", "?stream=true"):
        assert retrieve(port, response_id, query).status == 404
    assert cancel(port, response_id).status == 404
    assert delete(port, f"{RESPONSES}/{response_id}").status == 404
    eventually(lambda: is_idle(served))
    assert bought()[0] == 1


def test_a_client_that_leaves_a_background_stream_can_come_back(served, port, bought):
    with wire(port) as connection:
        connection.send(stream_of(f"a b {GATED} d"))
        connection.read_until(b"response.in_progress")
        response_id = id_of(port, connection)
    # Longer than a client that left would be waited for.
    time.sleep(0.4)
    assert retrieve(port, response_id).json["status"] == "in_progress"
    gate_of(served).touch()
    whole = retrieve(port, response_id, "?stream=true")
    assert whole.whole and numbers(whole) == list(range(len(whole.blocks)))
    assert last_response(whole)["id"] == response_id
    assert last_response(whole)["status"] == "completed"
    done = ended(port, response_id)
    assert done.json == last_response(whole)
    assert bought() == (1, 1)
    assert retrieve(port, response_id, "?stream=true").body == whole.body
    eventually(lambda: is_idle(served))


def test_a_job_without_a_follower_goes_on_and_completes(port, bought):
    with wire(port) as connection:
        connection.send(stream_of("a b c"))
        connection.read_until(b"response.in_progress")
        response_id = id_of(port, connection)
    done = ended(port, response_id)
    assert done.json["status"] == "completed"
    assert done.json["output"][0]["content"][0]["text"] == ECHO + "a b c"
    assert bought() == (1, 1)


def test_several_clients_follow_one_job_from_different_events(port, bought):
    response_id = begun(port, "a b c d", model="echo-slow", stream=False)

    def follow(after):
        query = "?stream=true" + (f"&starting_after={after}" if after >= 0 else "")
        return retrieve(port, response_id, query)

    with ThreadPoolExecutor(4) as pool:
        followed = list(pool.map(follow, [-1, 0, 3, 99]))
    assert [last_response(one)["status"] for one in followed[:3]] == ["completed"] * 3
    every = numbers(followed[0])
    assert every == list(range(len(every)))
    assert [numbers(one) for one in followed[1:]] == [every[1:], every[4:], []]
    assert bought() == (1, 1)


def test_a_job_that_was_not_streamed_is_replayed_as_equivalent_events(port):
    response_id = begun(port, "hello")
    ended(port, response_id)
    replayed = retrieve(port, response_id, "?stream=true")
    kinds = [name for name, _ in replayed.blocks]
    assert kinds[0] == "response.created" and kinds[-1] == "response.completed"
    assert "response.output_text.delta" in kinds
    assert replayed.verdict == "settled"


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    ("fault", "payment"),
    [
        ("no-route", "none"),
        ("fail-after-payment", "settled"),
        ("wrong-hash", "settled"),
        ("expensive", "none"),
        ("quote-refused", "none"),
    ],
)
def test_a_failed_job_has_its_payment(port, bought, fault, payment, stream):
    before = bought()
    if stream:
        # A follower sees an error before the stream begins, or in it; the id is in neither where it did not begin.
        answer = respond(port, model=f"fault/{fault}", background=True, stream=True)
        assert answer.status >= 400 or answer.blocks[-1][0] in {"error", "response.failed"}
        return
    response_id = begun(port, model=f"fault/{fault}")
    done = ended(port, response_id)
    assert done.json["status"] == "failed"
    assert set(done.json["error"]) >= {"code", "message"}
    reported = done.json["lcp"]["payment"]
    assert reported == done.verdict
    assert reported == payment or (payment == "settled" and reported == "unknown")
    assert bought()[0] - before[0] <= 1
    replayed = retrieve(port, response_id, "?stream=true")
    assert replayed.blocks[-1][0] == "response.failed"
    assert last_response(replayed)["lcp"] == done.json["lcp"]


def test_following_a_job_that_fails_ends_with_the_failure(hasty):
    """A client that follows it live gets the same events as one that connects later."""
    response_id = begun(hasty.port, model="fault/execute-hangs")
    followed = retrieve(hasty.port, response_id, "?stream=true")
    assert followed.status == 200
    assert followed.blocks[-1][0] == "response.failed"
    done = ended(hasty.port, response_id)
    assert last_response(followed)["lcp"] == done.json["lcp"]


def test_one_model_after_a_failure_does_not_stop_the_next(port):
    assert ended(port, begun(port, model="fault/no-route")).json["status"] == "failed"
    assert ended(port, begun(port)).json["status"] == "completed"


def test_an_unknown_model_fails_in_the_background(port, bought):
    done = ended(port, begun(port, model="no-such-model"))
    assert done.json["error"]["code"].startswith("model_not_")
    assert done.json["lcp"]["payment"] == "none"
    assert bought() == (0, 0)


# The same request twice.


def test_an_idempotency_key_returns_the_same_job_at_every_stage(port, bought):
    headers = {"Idempotency-Key": f"key-{time.time_ns()}"}
    body = document(RESPONSES, "slow-quote", background=True)
    made = [post(port, RESPONSES, body, headers) for _ in range(3)]
    [response_id] = {one.json["id"] for one in made}
    assert {one.json["status"] for one in made} == {"queued"}
    done = ended(port, response_id)
    again = post(port, RESPONSES, body, headers)
    assert again.json == done.json and again.verdict == "settled"
    assert bought() == (1, 1)
    other = post(port, RESPONSES, {**body, "input": "something else"}, headers)
    assert other.status in {409, 422} and other.verdict == "none"


def test_the_same_key_many_times_at_once_is_one_job(port, bought):
    headers = {"Idempotency-Key": f"key-{time.time_ns()}"}
    body = document(RESPONSES, background=True)
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: post(port, RESPONSES, body, headers), range(16)))
    assert {one.status for one in made} == {200}
    [response_id] = {one.json["id"] for one in made}
    assert ended(port, response_id).json["status"] == "completed"
    assert bought() == (1, 1)


def test_a_repeated_stream_is_the_same_stream(port, bought):
    headers = {"Idempotency-Key": f"key-{time.time_ns()}"}
    body = document(RESPONSES, background=True, stream=True)
    first, second = (post(port, RESPONSES, body, headers) for _ in range(2))
    assert first.body == second.body
    assert last_response(first)["id"].startswith("resp_bg_")
    assert bought() == (1, 1)


def test_a_repeat_of_what_its_client_has_deleted_is_not_bought_again(port, bought):
    headers = {"Idempotency-Key": f"key-{time.time_ns()}"}
    body = document(RESPONSES, background=True)
    response_id = post(port, RESPONSES, body, headers).json["id"]
    ended(port, response_id)
    assert delete(port, f"{RESPONSES}/{response_id}").status == 200
    again = post(port, RESPONSES, body, headers)
    assert again.status >= 400 and again.headers["x-should-retry"] == "false"
    assert bought() == (1, 1)


def test_a_retry_of_a_failed_job_that_cost_nothing_is_a_new_job(port):
    headers = {"Idempotency-Key": f"key-{time.time_ns()}"}
    body = document(RESPONSES, "no-such-model", background=True)
    first = post(port, RESPONSES, body, headers).json["id"]
    ended(port, first)
    second = post(port, RESPONSES, body, headers).json["id"]
    assert second != first
    assert ended(port, first).json["status"] == ended(port, second).json["status"] == "failed"


def test_a_retried_chain_whose_beginning_is_gone_joins_what_was_paid(port, bought):
    """The SDK retries after a broken connection; the first try was bought, and its parent response is deleted."""
    parent = respond(port, "parent").json["id"]
    body = document(RESPONSES, text="child", previous_response_id=parent)
    child = post(port, RESPONSES, body)
    assert delete(port, f"{RESPONSES}/{parent}").status == 200
    again = post(port, RESPONSES, body, {"x-stainless-retry-count": "1"})
    assert again.status == 200 and again.body == child.body
    assert bought() == (2, 2)
    assert post(port, RESPONSES, body).status == 404


def test_a_retried_background_request_is_the_same_job(port, bought):
    body = document(RESPONSES, "echo-slow", f"retried {time.time_ns()}", background=True)
    first = post(port, RESPONSES, body).json["id"]
    again = post(port, RESPONSES, body, {"x-stainless-retry-count": "1"})
    assert again.json["id"] == first
    ended(port, first)
    late = post(port, RESPONSES, body, {"x-stainless-retry-count": "2"})
    assert late.json["id"] == first and late.json["status"] == "completed"
    assert late.json["output"]
    assert bought() == (1, 1)


# How many at once.


def test_jobs_count_as_requests_until_they_end(tmp_path):
    with serving(tmp_path, max_concurrent_requests=2) as running:
        port = running.port
        jobs = [begun(port, LONG, model="echo-slow"), begun(port, LONG, model="echo-slow")]
        refused = respond(port)
        assert (refused.status, refused.error["code"]) == (429, "rate_limit_exceeded")
        assert respond(port, background=True).status == 429
        # A client that only polls is not counted.
        assert retrieve(port, jobs[0]).status == 200
        cancel(port, jobs[0])
        eventually(lambda: respond(port).status == 200)
        cancel(port, jobs[1])
        eventually(lambda: is_idle(running))
        assert [respond(port).status for _ in range(3)] == [200] * 3
        assert metric(running, "background_jobs") == 0


def test_a_repeat_does_not_count_as_a_job(tmp_path):
    with serving(tmp_path, max_concurrent_requests=2) as running:
        headers = {"Idempotency-Key": "again and again"}
        body = document(RESPONSES, "echo-slow", LONG, background=True)
        with ThreadPoolExecutor(2) as pool:
            made = list(pool.map(lambda _: post(running.port, RESPONSES, body, headers), range(6)))
        [response_id] = {one.json["id"] for one in made if one.status == 200}
        assert get(running.port, "/readyz").json["jobs_in_flight"] == 1
        assert respond(running.port).status == 200
        cancel(running.port, response_id)
        eventually(lambda: is_idle(running))


def test_a_followed_job_is_released_once(tmp_path):
    with serving(tmp_path, max_concurrent_requests=2) as running:
        with wire(running.port) as connection:
            connection.send(stream_of(f"a {GATED} c"))
            connection.read_until(b"response.in_progress")
            assert get(running.port, "/readyz").json["jobs_in_flight"] == 1
        assert get(running.port, "/readyz").json["jobs_in_flight"] == 1
        gate_of(running).touch()
        eventually(lambda: is_idle(running))
        assert [respond(running.port).status for _ in range(3)] == [200] * 3


# Memory.


def test_ended_jobs_are_evicted_with_the_stored_responses(tmp_path):
    """Two hundred jobs with long prompts, of which three may be kept."""
    with serving(tmp_path, max_stored_items=3, answers_max_bytes=1_000_000) as running:
        text = "x" * 30_000

        def run(count):
            for number in range(count):
                ended(running.port, begun(running.port, f"{number} {text}", max_output_tokens=4))
            return running.rss_bytes()

        warm = run(60)
        grown = run(200) - warm
        assert grown < 5_000_000, f"{grown / 200:.0f} bytes a job"


# Failures in the middle of a stream.


def told_of(port: int, response_id: str, after: int) -> tuple[list[int], dict]:
    """Return the events of a client that reconnects for the rest of a stream."""
    rest = retrieve(port, response_id, f"?stream=true&starting_after={after}")
    assert rest.status == 200 and rest.whole
    return numbers(rest), last_response(rest)


def test_a_client_that_reconnects_to_a_broken_stream_gets_its_end(port, bought):
    """At any position: otherwise clients would wait for an end that is never sent."""
    answer = respond(port, LONG, model="fault/stream-cut", background=True, stream=True)
    assert answer.blocks[-1][0] == "response.failed"
    events = [json.loads(data) for _, data in answer.blocks[:-1]]
    response_id = events[0]["response"]["id"]
    done = ended(port, response_id)
    assert done.json["status"] == "failed" and done.verdict == "settled"
    for after in (0, events[-1]["sequence_number"], 1_000):
        heard, last = told_of(port, response_id, after)
        assert heard[0] > after and last == done.json
    assert bought() == (1, 1)


def test_following_a_stream_that_breaks_off_ends_with_the_failure(hasty):
    port = hasty.port
    with wire(port) as connection:
        connection.send(stream_of(LONG, "fault/stream-stalls"))
        connection.read_until(b"response.in_progress")
        response_id = id_of(port, connection)
    followed = retrieve(port, response_id, "?stream=true")
    assert followed.whole and followed.blocks[-1][0] == "response.failed"
    assert numbers(followed) == list(range(len(followed.blocks)))
    assert last_response(followed) == ended(port, response_id).json
    heard, last = told_of(port, response_id, len(followed.blocks) - 2)
    assert heard == [len(followed.blocks) - 1] and last["status"] == "failed"


def test_following_a_job_that_is_cancelled_ends_with_that(port):
    with wire(port) as connection:
        connection.send(stream_of(LONG))
        connection.read_until(b"response.in_progress")
        response_id = id_of(port, connection)
        with ThreadPoolExecutor(1) as pool:
            following = pool.submit(retrieve, port, response_id, "?stream=true")
            time.sleep(0.3)
            done = cancel(port, response_id)
            followed = following.result(60)
        connection.read_until(b"event: response.failed")
    assert followed.blocks[-1][0] == "response.failed"
    assert last_response(followed) == done.json and done.json["status"] == "cancelled"


def test_many_cancel_and_delete_at_once(served, port):
    response_id = begun(port, LONG, model="echo-slow")
    wait_for(port, response_id, lambda it: it["status"] == "in_progress")
    with ThreadPoolExecutor(8) as pool:
        cancelled = [pool.submit(cancel, port, response_id) for _ in range(4)]
        answers = [one.result(60) for one in cancelled]
    assert {one.status for one in answers} == {200} and len({one.body for one in answers}) == 1
    with ThreadPoolExecutor(8) as pool:
        deleted = [pool.submit(delete, port, f"{RESPONSES}/{response_id}") for _ in range(4)]
        statuses = sorted(one.result(60).status for one in deleted)
    assert statuses[0] == 200 and set(statuses) <= {200, 404}
    assert retrieve(port, response_id).status == 404
    eventually(lambda: is_idle(served))


def test_a_queued_job_that_is_followed_is_kept_alive_with_comments(tmp_path):
    with serving(tmp_path, heartbeat_s=0.2) as running:
        response_id = begun(running.port, model="slow-quote")
        followed = retrieve(running.port, response_id, "?stream=true")
        assert followed.body.count(b": heartbeat") >= 3
        assert last_response(followed)["status"] == "completed"


def test_a_quote_can_be_taken_for_a_chain_and_in_the_background(port, bought):
    parent = respond(port, "parent").json["id"]
    body = document(RESPONSES, text="child", previous_response_id=parent)
    for more in ({}, {"background": True}):
        asked = {**body, **more}
        quote = post(port, RESPONSES, asked, {"X-Lcp-Quote-Only": "true"})
        assert quote.status == 200, quote.body
        taken = post(port, RESPONSES, asked, {"X-Lcp-Quote-Id": quote.json["id"]})
        assert taken.status == 200, taken.body
        done = ended(port, taken.json["id"]) if more else taken
        assert done.headers["x-lcp-job-id"] == quote.json["job_id"]
    assert bought() == (3, 3)


def test_a_clients_price_limit_holds_in_the_background(port, bought):
    made = respond(port, background=True, headers={"X-Lcp-Max-Price-Msat": "1"})
    done = ended(port, made.json["id"])
    assert done.json["status"] == "failed" and done.json["lcp"]["payment"] == "none"
    assert bought() == (0, 0)
