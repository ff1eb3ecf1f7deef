"""How the gateway starts and ends, and its answers while it ends."""

import json
import os
import signal
import socket

import psutil

from tests.support.daemon import daemon
from tests.support.gated_node import gated_node
from tests.support.gateway import gateway, run_command
from tests.support.journaled import on_node
from tests.support.node_thread import eventually
from tests.support.ports import free_address
from tests.support.wire import CHAT, RESPONSES, document, get, post, request_bytes, wire


def serving(grace_s, **more):
    settings = {
        "LCP_GATEWAY_NODE_FAULTS": "true",
        "LCP_GATEWAY_SHUTDOWN_GRACE_S": str(grace_s),
        "LCP_GATEWAY_NODE_TOKENS_PER_SECOND": "20",
        **more,
    }
    return gateway(env=settings)


def start_job(connection, served, path=CHAT, **fields):
    """Send a request, and wait until it is being worked on."""
    accepted = len(served.events("accept"))
    body = json.dumps(document(path, **fields)).encode()
    connection.send(request_bytes("POST", path, body))
    eventually(lambda: len(served.events("accept")) > accepted)


def is_draining(port):
    answer = get(port, "/readyz")
    return answer.status == 503 and "shutting down" in json.dumps(answer.json["reasons"])


def test_a_stream_that_runs_may_end_after_sigterm_and_nothing_new_may_begin(tmp_path):
    with (
        gated_node(tmp_path) as (node, gate),
        gateway(embedded=False, env=on_node(node, shutdown_grace_s=60)) as served,
        wire(served.port) as connection,
    ):
        assert get(served.port, "/readyz").status == 200
        body = json.dumps(document(stream=True, text="one two three")).encode()
        connection.send(request_bytes("POST", CHAT, body))
        connection.read_until(b"\n\n")
        served.process.send_signal(signal.SIGTERM)
        eventually(lambda: is_draining(served.port))
        quoted = len(node.events("quote"))
        for path in (CHAT, RESPONSES):
            refused = post(served.port, path, document(path))
            assert refused.status == 503
            assert refused.error["code"] == "shutting_down"
            assert refused.error["type"] == "server_error"
            assert refused.verdict == "none"
            assert refused.headers["x-should-retry"] == "true" and refused.headers["retry-after"]
        assert len(node.events("quote")) == quoted
        assert get(served.port, "/healthz").status == 200
        gate.touch()
        rest = connection.read_until(b"data: [DONE]\n\n")
        assert b'"error"' not in rest
        connection.read_until(b"0\r\n\r\n")
        assert served.process.wait(60) == 0


def test_past_the_grace_time_jobs_are_ended_with_an_error():
    with (
        serving(0.5) as served,
        wire(served.port) as chat,
        wire(served.port) as responses,
        wire(served.port) as unary,
        wire(served.port) as unbegun,
        wire(served.port) as unquoted,
    ):
        start_job(chat, served, stream=True, model="fault/stream-stalls")
        start_job(responses, served, RESPONSES, stream=True, model="fault/stream-stalls")
        start_job(unary, served, model="fault/execute-hangs")
        start_job(unbegun, served, model="fault/execute-hangs", stream=True)
        body = json.dumps(document(model="fault/quote-slow")).encode()
        unquoted.send(request_bytes("POST", CHAT, body))
        # No event tells that its quote was asked for; in flight it is from its admission.
        eventually(lambda: get(served.port, "/readyz").json["jobs_in_flight"] == 5)
        for connection in (chat, responses):
            connection.await_bytes(b"data: ")
        # A job is paid for a moment after it was accepted.
        eventually(lambda: len(served.events("paid")) == 4)
        served.process.send_signal(signal.SIGTERM)
        for connection, name in ((chat, ""), (responses, "error")):
            answer = connection.answer()
            assert answer.status == 200 and not answer.whole
            assert "[DONE]" not in answer.body.decode()
            event, data = answer.blocks[-1]
            assert event == name
            error = json.loads(data)["error"]
            assert error["code"] == "shutting_down" and error["lcp"]["payment"] == "settled"
        for connection in (unary, unbegun):
            answer = connection.answer()
            assert answer.status == 503
            assert answer.error["code"] == "shutting_down"
            assert answer.verdict == answer.error["lcp"]["payment"] == "unknown"
            assert answer.headers["x-should-retry"] == "false"
        answer = unquoted.answer()
        assert answer.status == 503 and answer.error["code"] == "shutting_down"
        assert answer.verdict == "none" and answer.headers["x-should-retry"] == "true"
        assert served.process.wait(60) == 0
        assert len(served.events("cancel")) == 4
        assert len(served.events("accept")) == len(served.events("paid")) == 4


def test_a_second_signal_ends_the_gateway_at_once():
    with serving(60) as served, wire(served.port) as connection:
        start_job(connection, served, stream=True, model="fault/stream-stalls")
        connection.await_bytes(b"data: ")
        served.process.send_signal(signal.SIGINT)
        eventually(lambda: is_draining(served.port))
        served.process.send_signal(signal.SIGTERM)
        answer = connection.answer()
        assert not answer.whole and "shutting_down" in answer.body.decode()
        assert served.process.wait(60) == 0


def test_without_jobs_it_ends_at_once_even_with_idle_connections():
    with serving(60) as served, wire(served.port) as connection:
        connection.send(request_bytes("GET", "/healthz"))
        assert connection.answer().status == 200
        node_pids = served.node_pids()
        assert node_pids
        # Less than the time of grace.
        assert served.stop(timeout_s=50) == 0
        assert connection.ended()
        eventually(lambda: not any(psutil.pid_exists(pid) for pid in node_pids))


def test_the_embedded_node_does_not_outlive_a_gateway_that_is_killed():
    with serving(1) as served:
        node_pids = served.node_pids()
        assert len(node_pids) == 1
        served.process.kill()
        eventually(lambda: not psutil.pid_exists(node_pids[0]))


def test_an_embedded_node_that_is_killed_is_started_again():
    with serving(1, LCP_GATEWAY_PEERS_REFRESH_S="0.2") as served:
        (node_pid,) = served.node_pids()
        os.kill(node_pid, signal.SIGKILL)
        # It restarts so soon that the gateway may not notice: only the new process can be observed.
        eventually(lambda: served.node_pids() not in ([], [node_pid]))
        served.wait_for_log("it starts again in")
        eventually(lambda: post(served.port, CHAT, document()).status == 200)
        assert post(served.port, CHAT, document()).status == 200
        assert served.node_pids() not in ([], [node_pid])


def run(*flags, **environment):
    """Run `serve` until it gives up; return its exit code and its error text."""
    # A daemon that runs may still answer late.
    done = run_command("serve", *flags, env={"LCP_GATEWAY_PREFLIGHT_TIMEOUT_S": "60", **environment})
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


def test_without_a_daemon_it_says_so_within_seconds_and_gives_up():
    absent = free_address()
    flags = ("--http-addr", "127.0.0.1:0", "--lcpd-grpc-addr", absent)
    code, said = run(*flags, "--preflight-timeout-s", "0.5")
    assert code == 1
    assert absent in said and "did not answer within 0.5 s" in said and "--no-preflight" in said


def test_without_preflight_it_serves_as_soon_as_there_is_a_daemon():
    address = free_address()
    with gateway(
        embedded=False,
        args=["--no-preflight"],
        env={"LCP_GATEWAY_LCPD_GRPC_ADDR": address, "LCP_GATEWAY_PEERS_REFRESH_S": "0.2"},
    ) as served:
        report = get(served.port, "/readyz")
        assert report.status == 503
        assert report.json["reasons"] and report.json["daemon"]["reachable"] is False
        answer = post(served.port, CHAT, document())
        assert answer.status in {502, 503} and answer.error["type"] == "server_error"
        assert answer.headers["x-should-retry"] == "true" and answer.verdict == "none"
        with daemon(address=address):
            eventually(lambda: get(served.port, "/readyz").status == 200)
            assert post(served.port, CHAT, document()).status == 200


def test_a_port_that_is_taken_is_a_clear_error():
    with daemon() as node, socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        code, said = run("--http-addr", address, "--lcpd-grpc-addr", node.address)
        assert code == 1 and f"cannot listen on {address}" in said
        flags = ("--http-addr", "127.0.0.1:0", "--metrics-addr", address)
        code, said = run(*flags, "--lcpd-grpc-addr", node.address)
        assert code == 1 and f"cannot listen on {address}" in said


def test_an_unknown_protocol_version_is_a_clear_error():
    with daemon("--protocol-version", "9") as node:
        code, said = run("--http-addr", "127.0.0.1:0", "--lcpd-grpc-addr", node.address)
    assert code == 1
    assert "version 9" in said and "2 and 3" in said
