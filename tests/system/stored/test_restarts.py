"""A gateway that ends while background jobs run: the next one's answers about the jobs and their payments."""

import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.gated_node import gated_node
from tests.support.gateway import RunningGateway, gateway
from tests.support.journaled import TestedNode, money_node, on_node, query, states
from tests.support.node_thread import eventually
from tests.support.stored import (
    begun,
    cancel,
    delete,
    ended,
    input_items,
    last_response,
    respond,
    retrieve,
    slow_peers,
    wait_for,
)
from tests.support.wire import RESPONSES, document, get, request_bytes, wire

pytestmark = pytest.mark.slow

LONG = "word " * 200
GATED = "gated"


def node_of(payment_latency_s: float) -> str:
    return f"[wallet]\npayment_latency_s = {payment_latency_s}\n{slow_peers(20.0)}"


KEYS = ("sk-mine-of-the-test", "sk-theirs-of-the-test")
MINE, THEIRS = ({"Authorization": f"Bearer {key}"} for key in KEYS)


@pytest.fixture(scope="module")
def slow_paying(tmp_path_factory):
    with money_node(tmp_path_factory.mktemp("slow"), toml=node_of(60.0)) as node:
        yield node


@pytest.fixture(scope="module")
def gated(tmp_path_factory):
    with gated_node(tmp_path_factory.mktemp("quick"), toml=node_of(0.0), word=GATED) as running:
        yield running


@pytest.fixture
def quick_paying(gated):
    return gated[0]


@pytest.fixture
def gate(gated):
    """The file without which answers to prompts with ``GATED`` wait."""
    gated[1].unlink(missing_ok=True)
    return gated[1]


@contextmanager
def serving(node: TestedNode, folder, **settings: object) -> Iterator[RunningGateway]:
    """Run a gateway whose journal stays in the folder."""
    settings = {"api_keys": ",".join(KEYS), "shutdown_grace_s": 0.3, **settings}
    env = on_node(node, **settings) | {"XDG_STATE_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    with gateway(embedded=False, env=env) as running:
        yield running


def kept(folder) -> list[tuple]:
    """Return the rows of the jobs that a restart would find."""
    return query(journal_of(folder), "SELECT id FROM background_jobs")


def journal_of(folder) -> Path:
    return folder / "lcp-gateway" / "journal.db"


def killed(running: RunningGateway) -> None:
    running.process.kill()
    running.process.wait(60)


def terminated(running: RunningGateway) -> None:
    assert running.stop(signal.SIGTERM) == 0


ENDINGS = pytest.mark.parametrize("end", [killed, terminated])


def is_lost(port: int, response_id: str, payment: str) -> dict:
    """Check all answers about a job that was cut; return the document."""
    found = retrieve(port, response_id, headers=MINE)
    assert found.status == 200, found.body
    reported = found.json
    assert (reported["id"], reported["object"], reported["status"]) == (response_id, "response", "failed")
    assert reported["background"] is True and reported["output"] == []
    assert reported["error"]["code"] and reported["error"]["message"]
    assert reported["lcp"]["payment"] == found.verdict == payment
    streamed = retrieve(port, response_id, "?stream=true", headers=MINE)
    assert streamed.blocks[-1][0] == "response.failed"
    assert last_response(streamed) == reported
    later = retrieve(port, response_id, "?stream=true&starting_after=40", headers=MINE)
    assert last_response(later) == reported
    assert cancel(port, response_id, headers=MINE).json == reported
    # For another key it does not exist.
    assert retrieve(port, response_id, headers=THEIRS).status == 404
    assert cancel(port, response_id, headers=THEIRS).status == 404
    assert delete(port, f"{RESPONSES}/{response_id}", headers=THEIRS).status == 404
    assert retrieve(port, response_id, headers=MINE).status == 200
    return reported


def is_deleted(port: int, response_id: str) -> None:
    assert delete(port, f"{RESPONSES}/{response_id}", headers=MINE).status == 200
    assert retrieve(port, response_id, headers=MINE).status == 404
    assert delete(port, f"{RESPONSES}/{response_id}", headers=MINE).status == 404


@ENDINGS
def test_while_it_waits_for_a_quote(quick_paying, tmp_path, end):
    seen = quick_paying.mark()
    with serving(quick_paying, tmp_path) as running:
        response_id = begun(running.port, model="slow-quote", headers=MINE)
        # No event tells that its quote was asked for; one that was not asked for ends in the same way.
        time.sleep(0.2)
        end(running)
    with serving(quick_paying, tmp_path) as running:
        reported = is_lost(running.port, response_id, "none")
        assert reported["lcp"] == {"payment": "none"}
        is_deleted(running.port, response_id)
    assert seen.count("accept") == seen.count("paid") == 0


@ENDINGS
def test_while_it_pays(slow_paying, tmp_path, end):
    seen = slow_paying.mark()
    with serving(slow_paying, tmp_path, shutdown_grace_s=0.1) as running:
        response_id = begun(running.port, headers=MINE)
        eventually(lambda: seen.count("accept") == 1)
        assert retrieve(running.port, response_id, headers=MINE).json["status"] == "in_progress"
        end(running)
    with serving(slow_paying, tmp_path) as running:
        reported = is_lost(running.port, response_id, "unknown")
        assert reported["lcp"]["job_id"] == seen.jobs("accept")[0]
        assert reported["lcp"]["price_msat"] > 0
        is_deleted(running.port, response_id)
    assert seen.count("accept") == 1


@ENDINGS
def test_while_it_streams(quick_paying, tmp_path, end):
    """The journal knows that a stream that has begun is paid."""
    seen = quick_paying.mark()
    with serving(quick_paying, tmp_path) as running:
        response_id = streaming(running, LONG)
        # Recorded while the stream goes on.
        eventually(lambda: set(states(journal_of(tmp_path)).values()) == {"settled"})
        end(running)
    with serving(quick_paying, tmp_path) as running:
        reported = is_lost(running.port, response_id, "settled")
        assert reported["lcp"]["job_id"] == seen.jobs("paid")[0]
        assert reported["lcp"]["state"] in {"settled", "undelivered"}
        is_deleted(running.port, response_id)
    assert seen.count("accept") == seen.count("paid") == 1


def streaming(running: RunningGateway, text: str) -> str:
    """Begin a stream in the background, and leave it; return its id."""
    body = document(RESPONSES, "echo-slow", text, background=True, stream=True)
    with wire(running.port) as connection:
        connection.send(request_bytes("POST", RESPONSES, json.dumps(body).encode(), MINE))
        head = connection.read_until(b"output_text.delta").decode()
    return "resp_bg_" + head.split("resp_bg_")[1].split('"')[0]


@ENDINGS
def test_when_it_is_done_it_is_gone_with_the_memory(quick_paying, tmp_path, end):
    """A finished job whose result was in memory only is no failure: it was delivered, or could have been."""
    with serving(quick_paying, tmp_path) as running:
        response_id = begun(running.port, headers=MINE)
        assert ended(running.port, response_id, headers=MINE).json["status"] == "completed"
        # The row goes when the job has ended, a moment later.
        eventually(lambda: kept(tmp_path) == [])
        end(running)
    with serving(quick_paying, tmp_path) as running:
        found = retrieve(running.port, response_id, headers=MINE)
        assert (found.status, found.error["code"]) == (404, "response_not_found")


def test_a_job_cancelled_before_the_restart_is_not_shown_as_failed(quick_paying, tmp_path):
    with serving(quick_paying, tmp_path) as running:
        response_id = begun(running.port, model="slow-quote", headers=MINE)
        assert cancel(running.port, response_id, headers=MINE).json["status"] == "cancelled"
        eventually(lambda: kept(tmp_path) == [])
        killed(running)
    with serving(quick_paying, tmp_path) as running:
        assert retrieve(running.port, response_id, headers=MINE).status == 404


def test_a_gateway_that_ends_waits_for_its_jobs(quick_paying, gate, tmp_path):
    """SIGTERM: within the grace time a job goes on and can be polled. Its result goes with the gateway's memory."""
    seen = quick_paying.mark()
    with serving(quick_paying, tmp_path, shutdown_grace_s=60) as running:
        response_id = begun(running.port, GATED, model="echo-slow", headers=MINE)
        wait_for(running.port, response_id, lambda it: it["status"] == "in_progress", headers=MINE)
        running.process.send_signal(signal.SIGTERM)
        eventually(lambda: get(running.port, "/readyz").status == 503)
        refused = respond(running.port, background=True, headers=MINE)
        assert (refused.status, refused.error["code"]) == (503, "shutting_down")
        found = retrieve(running.port, response_id, headers=MINE)
        assert found.json["status"] == "in_progress"
        gate.touch()
        assert running.process.wait(60) == 0
        running.wait_for_log("background job ended")
        [end] = [line for line in running.json_logs() if line["event"] == "background job ended"]
        assert (end["status"], end["payment"]) == ("completed", "settled")
    assert seen.count("accept") == seen.count("paid") == 1
    with serving(quick_paying, tmp_path) as running:
        assert is_lost(running.port, response_id, "settled")["lcp"]["state"] == "delivered"


def test_past_the_grace_time_a_job_is_ended(quick_paying, tmp_path):
    with serving(quick_paying, tmp_path, shutdown_grace_s=0.3) as running:
        begun(running.port, LONG, model="echo-slow", headers=MINE)
        job = begun(running.port, model="slow-quote", headers=MINE)
        assert running.stop(signal.SIGTERM) == 0
        ends = [line for line in running.json_logs() if line["event"] == "background job ended"]
        assert {end["status"] for end in ends} == {"failed"} and len(ends) == 2
        assert {end["payment"] for end in ends if end["response_id"] == job} == {"none"}


def test_a_gateway_that_ends_finishes_a_stream_that_is_followed(quick_paying, gate, tmp_path):
    with serving(quick_paying, tmp_path, shutdown_grace_s=60) as running, wire(running.port) as follower:
        response_id = streaming(running, GATED)
        running.process.send_signal(signal.SIGTERM)
        follower.send(request_bytes("GET", f"{RESPONSES}/{response_id}?stream=true", headers=MINE))
        follower.await_bytes(b"output_text.delta")
        gate.touch()
        followed = follower.answer()
        assert followed.whole
        assert last_response(followed)["status"] == "completed"
        assert running.process.wait(60) == 0


def test_without_a_journal_nothing_is_known_after_a_restart(quick_paying, tmp_path):
    with serving(quick_paying, tmp_path, journal_url="off") as running:
        response_id = begun(running.port, model="slow-quote", headers=MINE)
        assert retrieve(running.port, response_id, headers=MINE).json["status"] == "queued"
        killed(running)
    with serving(quick_paying, tmp_path, journal_url="off") as running:
        assert retrieve(running.port, response_id, headers=MINE).status == 404


def test_each_of_many_jobs_is_shown_as_failed(slow_paying, tmp_path):
    seen = slow_paying.mark()
    with serving(slow_paying, tmp_path) as running:
        jobs = [begun(running.port, f"n{n}", headers=MINE) for n in range(20)]
        # Some are being paid, some may not be yet.
        eventually(lambda: seen.count("accept") >= len(jobs) // 2)
        killed(running)
    with serving(slow_paying, tmp_path) as running:
        reported = [retrieve(running.port, job, headers=MINE).json for job in jobs]
    assert {one.get("status") for one in reported} == {"failed"}, reported
    accepted = set(seen.jobs("accept"))
    assert len(accepted) == seen.count("accept")
    for one in reported:
        payment = one["lcp"]["payment"]
        assert payment in {"none", "unknown"}
        # No client gets `none` for a job whose payment the node was asked for.
        if payment == "none":
            assert "job_id" not in one["lcp"]
    unknown = {one["lcp"]["job_id"] for one in reported if one["lcp"]["payment"] == "unknown"}
    assert accepted <= unknown


def test_prompts_and_outputs_are_not_in_the_state_folder(quick_paying, tmp_path):
    marker = "zanzibar-quokka"
    with serving(quick_paying, tmp_path) as running:
        begun(running.port, marker, model="slow-quote", headers=MINE, metadata={"m": marker})
        ended(running.port, begun(running.port, marker, headers=MINE), headers=MINE)
        items = begun(running.port, f"{marker} {LONG}", model="echo-slow", headers=MINE)
        assert input_items(running.port, items, headers=MINE)
        killed(running)
        assert marker not in running.logs
    for file in tmp_path.rglob("*"):
        if file.is_file():
            assert marker.encode() not in file.read_bytes(), file


def test_a_reload_keeps_what_is_stored_and_what_runs(quick_paying, gate, tmp_path):
    with serving(quick_paying, tmp_path) as running:
        port = running.port
        stored = respond(port, headers=MINE).json["id"]
        job = begun(port, GATED, model="echo-slow", headers=MINE)
        followed = streaming(running, GATED)
        wait_for(port, job, lambda it: it["status"] == "in_progress", headers=MINE)
        running.process.send_signal(signal.SIGHUP)
        running.wait_for_log("configuration reloaded")
        assert retrieve(port, stored, headers=MINE).status == 200
        chained = respond(port, "more", previous_response_id=stored, headers=MINE)
        assert chained.status == 200
        assert retrieve(port, job, headers=MINE).json["status"] == "in_progress"
        gate.touch()
        for one in (job, followed):
            assert ended(port, one, headers=MINE).json["status"] == "completed"
        eventually(lambda: get(port, "/readyz").json["jobs_in_flight"] == 0)
        assert cancel(port, begun(port, model="slow-quote", headers=MINE), headers=MINE).status == 200
