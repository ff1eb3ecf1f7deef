"""The state of one worker is that of all: stored objects, background jobs, quotes, the loop brake."""

import json
from collections import Counter

import psutil
import pytest

from tests.support.gated_node import gated_node
from tests.support.gateway import gateway
from tests.support.journaled import on_node, query
from tests.support.reloading import reloadable
from tests.support.wire import CHAT, RESPONSES, document, get, post, request_bytes, send_raw, wire
from tests.support.workers import at_once, metric, until, worker_of

pytestmark = pytest.mark.slow

WORKERS = 4
TRIES = 12
"""Requests on connections of their own, enough to come to every worker."""
WORDS = "one two three four five six seven eight nine ten"


@pytest.fixture(scope="module")
def journal(tmp_path_factory):
    return tmp_path_factory.mktemp("journal") / "journal.db"


@pytest.fixture(scope="module")
def one(tmp_path_factory, journal):
    env = {"LCP_GATEWAY_JOURNAL_URL": str(journal)}
    with reloadable(tmp_path_factory.mktemp("workers"), args=["--workers", str(WORKERS)], env=env) as it:
        yield it


@pytest.fixture
def four(one):
    return one.running


def ask(port, number=0, headers=None, path=CHAT, **fields):
    return post(port, path, document(path, **{"metadata": {"number": str(number)}, **fields}), headers)


def delete(port, path):
    return send_raw(port, request_bytes("DELETE", path))


def by_all(four, path):
    return at_once(TRIES, lambda _: get(four.port, path))


def test_a_stored_response_is_found_chained_and_deleted_at_every_worker(four):
    first = ask(four.port, 1, path=RESPONSES, input="remember the number 7").json
    found = by_all(four, f"{RESPONSES}/{first['id']}")
    assert {answer.status for answer in found} == {200}
    assert len({answer.body for answer in found}) == 1
    assert {answer.json["id"] for answer in found} == {first["id"]}
    chained = at_once(
        TRIES, lambda number: ask(four.port, number, path=RESPONSES, input="and?", previous_response_id=first["id"])
    )
    assert {answer.status for answer in chained} == {200}
    inputs = by_all(four, f"{RESPONSES}/{chained[0].json['id']}/input_items")
    assert {json.dumps(answer.json["data"]) for answer in inputs} == {json.dumps(inputs[0].json["data"])}
    assert len(inputs[0].json["data"]) == 3
    assert delete(four.port, f"{RESPONSES}/{first['id']}").status == 200
    assert {answer.status for answer in by_all(four, f"{RESPONSES}/{first['id']}")} == {404}
    # The turns of a conversation outlive the response that they came with.
    assert ask(four.port, 99, path=RESPONSES, input="x", previous_response_id=chained[0].json["id"]).status == 200


def test_a_streamed_response_is_found_as_soon_as_its_stream_has_ended(four):
    for number in range(TRIES):
        answer = ask(four.port, 200 + number, path=RESPONSES, input=f"hello {number}", stream=True)
        assert answer.whole
        response_id = json.loads(answer.blocks[-1][1])["response"]["id"]
        assert get(four.port, f"{RESPONSES}/{response_id}").status == 200


def test_chats_are_listed_changed_and_deleted_at_every_worker(four):
    made = at_once(6, lambda number: ask(four.port, 300 + number, store=True, metadata={"set": "x", "n": str(number)}))
    ids = {answer.json["id"] for answer in made}
    lists = by_all(four, f"{CHAT}?metadata%5Bset%5D=x")
    assert [{item["id"] for item in answer.json["data"]} for answer in lists] == [ids] * TRIES
    one_id = made[0].json["id"]
    assert post(four.port, f"{CHAT}/{one_id}", {"metadata": {"set": "y"}}).status == 200
    assert {answer.json["metadata"]["set"] for answer in by_all(four, f"{CHAT}/{one_id}")} == {"y"}
    assert delete(four.port, f"{CHAT}/{one_id}").status == 200
    assert {answer.status for answer in by_all(four, f"{CHAT}/{one_id}/messages")} == {404}
    assert metric(four, "lcpgateway_stored_items") > 0


def background(port, number, words=WORDS, headers=None, **fields):
    return ask(
        port,
        number,
        headers=headers,
        path=RESPONSES,
        model="echo-slow",
        input=f"{words} {number}",
        background=True,
        **fields,
    )


def test_a_background_job_is_one_job_at_every_worker(four):
    begun = at_once(8, lambda _: background(four.port, 400, headers={"Idempotency-Key": "a job"}))
    assert {answer.status for answer in begun} == {200}, [answer.body for answer in begun]
    (job_id,) = {answer.json["id"] for answer in begun}
    path = f"{RESPONSES}/{job_id}"
    running = by_all(four, path)
    assert {answer.status for answer in running} == {200}
    assert {answer.json["status"] for answer in running} <= {"queued", "in_progress", "completed"}
    streams = at_once(4, lambda _: get(four.port, f"{path}?stream=true"))
    assert all(answer.whole for answer in streams)
    assert {json.loads(answer.blocks[-1][1])["type"] for answer in streams} == {"response.completed"}
    ended = by_all(four, path)
    assert {answer.json["status"] for answer in ended} == {"completed"}
    assert len({answer.body for answer in ended}) == 1
    assert len(by_all(four, f"{path}/input_items")[0].json["data"]) == 1


def test_a_background_job_is_cancelled_and_deleted_from_any_worker(four):
    jobs = [background(four.port, 500 + number, WORDS * 300).json["id"] for number in range(6)]
    for job_id in jobs[:4]:
        cancelled = post(four.port, f"{RESPONSES}/{job_id}/cancel", {})
        assert (cancelled.status, cancelled.json["status"]) == (200, "cancelled")
        assert {answer.json["status"] for answer in by_all(four, f"{RESPONSES}/{job_id}")} == {"cancelled"}
    for job_id in jobs[4:]:
        assert delete(four.port, f"{RESPONSES}/{job_id}").status == 200
        assert {answer.status for answer in by_all(four, f"{RESPONSES}/{job_id}")} == {404}
    until(lambda: metric(four, "lcpgateway_background_jobs_running") == 0, "a job still runs")


def out_with(four, model):
    """Return what is out with the peer of a model, as each worker says."""
    answers = by_all(four, "/api/providers")
    return {found["exposure_msat"] for answer in answers for found in answer.json["data"] if model in found["models"]}


def test_a_peer_is_trusted_with_its_limit_by_all_workers_together(one, four, journal):
    price_msat = int(ask(four.port, 900, model="echo-slow").headers["x-lcp-price-msat"])
    # What was delivered so far counts for nothing; what cancelled jobs left unknown stays out.
    until(lambda: len(out_with(four, "echo-slow")) == 1, "some worker has not heard of the delivery")
    (out_msat,) = out_with(four, "echo-slow")
    one.take(f"exposure_share_ppm = 0\nexposure_base_msat = {out_msat + price_msat * 4}")
    words = [{"role": "user", "content": WORDS * 4}]
    before = len(four.events("accept"))
    try:
        answers = at_once(16, lambda number: ask(four.port, 901 + number, model="echo-slow", messages=words))
    finally:
        one.take("")
    paid = len(four.events("accept")) - before
    counted = Counter((answer.status, (answer.json.get("error") or {}).get("code")) for answer in answers)
    assert 0 < paid == counted[200, None] <= 4, counted
    # A worker that knows already how much is out finds no provider, instead of being refused right before it pays.
    assert counted[503, "peer_not_trusted"] + counted[503, "no_provider"] == 16 - paid, counted


def begun_at(four, number):
    """Begin a background job; return its id, and the process of the worker that has it."""
    body = document(RESPONSES, "echo-slow", f"{WORDS} {number}", background=True)
    with wire(four.port) as connection:
        connection.send(request_bytes("POST", RESPONSES, json.dumps(body).encode()))
        return connection.answer().json["id"], worker_of(four, connection).pid


@pytest.fixture
def held(tmp_path):
    """A gateway on a node whose answers wait; return both, and the file that releases them."""
    with (
        gated_node(tmp_path) as (node, gate),
        gateway(embedded=False, args=["--workers", str(WORKERS)], env=on_node(node)) as four,
    ):
        yield four, node, gate


def test_the_jobs_of_a_killed_worker_are_told_as_failed(held):
    four, node, gate = held
    jobs = {}
    # Which worker gets a connection is left to the system.
    while len(jobs) < 4 or len(set(jobs.values())) < 2:
        assert len(jobs) < 50, jobs
        job_id, worker = begun_at(four, len(jobs))
        jobs[job_id] = worker
    until(lambda: len(node.events("accept")) == len(jobs), "not all jobs were paid")
    victim = next(iter(jobs.values()))
    lost = {job_id for job_id, worker in jobs.items() if worker == victim}
    psutil.Process(victim).kill()
    four.wait_for_log("a worker ended and is started again")

    def told(job_id):
        answer = get(four.port, f"{RESPONSES}/{job_id}")
        return answer.json["status"], answer.verdict

    # It was being paid when its worker died, and there is no lnd to ask.
    until(lambda: {told(job_id) for job_id in lost} == {("failed", "unknown")}, "a job was not told as failed")
    for answer in by_all(four, f"{RESPONSES}/{min(lost)}"):
        assert (answer.json["status"], answer.json["error"]["code"]) == ("failed", "server_error")
    gate.touch()
    until(lambda: {told(job_id)[0] for job_id in jobs.keys() - lost} == {"completed"}, "a job did not end")
    four.wait_for_log("a worker serves again")


def test_a_quote_is_taken_once_at_whichever_worker(four, journal):
    for number in range(6):
        fields = {"model": "echo-1", "metadata": {"number": f"quote {number}"}}
        quoted = post(four.port, CHAT, document(CHAT, **fields), {"X-Lcp-Quote-Only": "true"})
        name = quoted.json["id"]
        taken = at_once(
            3, lambda _, n=name, f=fields: post(four.port, CHAT, document(CHAT, **f), {"X-Lcp-Quote-Id": n})
        )
        assert {answer.status for answer in taken} <= {200, 404, 409}, [answer.body for answer in taken]
        assert 200 in {answer.status for answer in taken}
        job = query(journal, "SELECT count(*) FROM purchases WHERE lower(hex(job_id)) = ?", (name.partition("_")[2],))
        assert job == [(1,)]
        other = post(four.port, CHAT, document(CHAT, model="echo-1", n=1), {"X-Lcp-Quote-Id": name})
        assert other.status in {404, 409, 422}


def test_the_loop_brake_counts_for_all_workers_together(one, four):
    one.take("loop_brake_per_minute = 10")
    answers = at_once(30, lambda _: ask(four.port, 700))
    assert Counter(answer.status for answer in answers) == {200: 10, 429: 20}
    assert {answer.error["code"] for answer in answers if answer.status == 429} == {"loop_detected"}
    one.take("")


def test_requests_at_one_time_are_limited_over_all_workers(one, four):
    one.take("max_concurrent_requests = 5")
    words = [{"role": "user", "content": WORDS * 4}]
    answers = at_once(16, lambda number: ask(four.port, 800 + number, model="echo-slow", messages=words))
    counted = Counter(answer.status for answer in answers)
    assert counted[200] + counted[429] == 16
    assert counted[200] < 16
    one.take("")


def test_a_peer_that_fails_at_some_workers_is_paused_at_all():
    env = {
        "LCP_GATEWAY_BREAKER_FAILURES": "3",
        "LCP_GATEWAY_BREAKER_PAUSE_S": "600",
        "LCP_GATEWAY_EXPOSURE_BASE_MSAT": "0",
        "LCP_GATEWAY_NODE_FAULTS": "1",
    }
    with gateway(args=["--workers", "3"], env=env) as it:
        model = "fault/wrong-hash"
        failed = [ask(it.port, number, model=model) for number in range(3)]
        assert {answer.verdict for answer in failed} == {"settled"}

        def breakers():
            """Return what the workers say; of so many answers some come from each."""
            listed = at_once(40, lambda _: get(it.port, "/api/providers"))
            return {found["breaker"] for answer in listed for found in answer.json["data"] if model in found["models"]}

        # Three at each worker would be nine.
        until(lambda: breakers() == {"open"}, "the peer is not paused at every worker")
        refused = [ask(it.port, 3 + number, model=model) for number in range(12)]
        assert {answer.error["code"] for answer in refused} == {"no_provider"}
