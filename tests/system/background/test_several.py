"""Several gateways on one machine, and several commands at one time."""

import json

import psutil
import pytest

from tests.support.background import answers, ended, wait_for_answer
from tests.support.node_thread import eventually
from tests.support.ports import free_port

pytestmark = pytest.mark.slow


def test_of_two_starts_at_once_one_wins_and_the_other_says_so(machine, port):
    arguments = ("start", "--embedded", "--http-addr", f"127.0.0.1:{port}")
    outcomes = [ended(one) for one in [machine.launch(*arguments) for _ in range(2)]]
    assert [one.code for one in outcomes] == [0, 0], outcomes
    said = sorted(one.out for one in outcomes)
    assert sum("Started" in text for text in said) == 1
    assert sum("runs already" in text for text in said) == 1
    gateway = psutil.Process(machine.pid(port))
    eventually(
        # The commands' spare processes end a moment after them.
        lambda: {one.pid for one in machine.processes()} == {gateway.pid, *(node.pid for node in gateway.children())}
    )
    machine.run("stop")


def test_several_are_distinguished_and_never_guessed(machine, port):
    second = free_port()
    assert machine.start(port).code == 0
    assert machine.start(second).code == 0
    for command in ("stop", "restart", "reload", "logs"):
        refused = machine.run(command)
        assert refused.code == 1
        assert "there are several gateways" in refused.err
        assert f":{port} (PID {machine.pid(port)}" in refused.err
        assert f":{second} (PID {machine.pid(second)}" in refused.err
    for arguments in (("--all",), ()):
        listed = machine.run("status", "--json", *arguments)
        assert listed.code == 0
        assert {one["pid"] for one in json.loads(listed.out)} == {machine.pid(port), machine.pid(second)}
    elsewhere = machine.run("stop", "--http-addr", f"127.0.0.1:{free_port()}")
    assert elsewhere.code == 0
    assert elsewhere.err.count("running: ") == 2
    assert machine.run("stop", "--http-addr", f"127.0.0.1:{second}").code == 0
    # The only one is used although the command names none.
    assert f":{port}" in machine.run("stop").out


def test_one_in_the_foreground_is_seen_and_left_alone(machine, port):
    address = f"127.0.0.1:{port}"
    foreground = machine.launch("--embedded", "--http-addr", address)
    wait_for_answer(port)
    code, reported = machine.status(port)
    assert (code, reported["state"], reported["ready"]) == (0, "running in the foreground", True)
    for command in (("start", "--embedded"), ("stop",)):
        refused = machine.run(*command, "--http-addr", address)
        assert refused.code == 1
        assert f"http://{address}" in refused.err
    assert answers(port)
    foreground.terminate()
    assert ended(foreground).code == 0


def test_one_is_found_by_its_port_under_every_name_of_this_machine(machine, port):
    """Once a gateway found by another name was reported as in the foreground, or not started by ``start``."""
    assert machine.start(port).code == 0
    for address in (f"localhost:{port}", f":{port}", f"127.0.0.1:{port}", f"[::1]:{port}"):
        found = machine.run("status", "--json", "--http-addr", address)
        assert (found.code, json.loads(found.out)["state"]) == (0, "running"), address
    assert json.loads(machine.run("status", "--json", "--port", str(port)).out)["state"] == "running"
    assert machine.run("logs", "--http-addr", f"localhost:{port}").code == 0
    assert machine.run("reload", "--http-addr", f":{port}").code == 0
    other = machine.run("status", "--json", "--http-addr", f"192.0.2.1:{port}")
    assert json.loads(other.out)["state"] == "stopped"
    before = machine.pid(port)
    again = machine.run("restart", LCP_GATEWAY_HTTP_ADDR=f"localhost:{port}")
    assert again.code == 0, again.said
    assert machine.pid(port) != before
    stopped = machine.run("stop", "--http-addr", f"localhost:{port}")
    assert f"Stopped lcp-gateway at http://127.0.0.1:{port}" in stopped.out
