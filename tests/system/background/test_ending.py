"""However a gateway in the background ends, the machine is clean afterwards."""

import json
import signal
import time

import psutil
import pytest

from tests.support.background import ended, kill, wait_for_answer
from tests.support.gated_node import gated_node
from tests.support.node_thread import eventually
from tests.support.wire import CHAT, document, request_bytes, wire

pytestmark = pytest.mark.slow


def test_two_stops_at_once_ask_the_gateway_once(machine, port, tmp_path_factory):
    with gated_node(tmp_path_factory.mktemp("node")) as (node, gate):
        address = ("--http-addr", f"127.0.0.1:{port}")
        assert machine.run("start", "--lcpd-grpc-addr", node.daemon.address, *address).code == 0
        with wire(port) as client:
            client.send(request_bytes("POST", CHAT, json.dumps(document(stream=True)).encode()))
            client.await_bytes(b"data: ")
            # A second SIGTERM would make the gateway cut running jobs, which are paid for.
            stops = [machine.launch("stop") for _ in range(2)]
            eventually(lambda: "shutting down" in machine.log_file(port).read_text())
            # Time for the other to ask as well, if it did not wait for the first.
            time.sleep(1)
            gate.touch()
            answer = client.answer()
        outcomes = [ended(one) for one in stops]
    assert [one.code for one in outcomes] == [0, 0], outcomes
    assert answer.whole and b"[DONE]" in answer.body
    assert machine.files() == set()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_start_that_is_interrupted_leaves_nothing_behind(machine, port, number):
    waiting = machine.launch(
        "start", "--no-preflight", "--lcpd-grpc-addr", "127.0.0.1:9",
        "--http-addr", f"127.0.0.1:{port}",
    )  # fmt: skip
    wait_for_answer(port)
    waiting.send_signal(number)
    assert ended(waiting).code != 0
    assert machine.wait_empty() == []
    assert machine.files() == set()


def test_a_killed_gateway_is_reported_as_dead_also_by_the_next_start(machine, port):
    assert machine.start(port).code == 0
    pid = machine.pid(port)
    kill(pid)
    # Its node leaves by itself.
    assert machine.wait_empty() == []
    code, reported = machine.status(port)
    assert (code, reported["state"], reported["pid"]) == (1, "dead", None)
    assert str(pid) in reported["problem"]
    refused = machine.run("reload")
    assert refused.code == 1
    assert "stale" in refused.err
    again = machine.start(port)
    assert again.code == 0
    assert "removed a stale PID file" in again.err
    assert machine.pid(port) != pid
    machine.run("stop")


def test_one_that_hangs_is_killed_with_its_node(machine, port):
    assert machine.start(port).code == 0
    gateway = psutil.Process(machine.pid(port))
    stuck = [gateway, *gateway.children()]
    assert len(stuck) == 2
    for process in reversed(stuck):
        process.suspend()
    stopped = machine.run("stop", "--stop-timeout-s", "1.5")
    assert stopped.code == 0
    assert "was killed" in stopped.err
    assert machine.wait_empty() == []
    assert machine.files() == set()
