"""A gateway in the background from start to stop, by the commands of an operator."""

import json
import os
import stat
from pathlib import Path

import psutil
import pytest

from lcp_gateway.__about__ import __version__
from tests.support.background import PATIENCE, answers, post_chat
from tests.support.forked import REAL_START
from tests.support.node_thread import eventually

pytestmark = pytest.mark.slow


def test_start_status_and_stop(machine, port):
    started = machine.start(port)
    assert started.code == 0, started.said
    assert f"Started lcp-gateway at http://127.0.0.1:{port} (3 peers)" in started.out
    assert str(machine.pid_file(port)) in started.out
    assert str(machine.log_file(port)) in started.out
    assert "No real money moves" in started.out
    assert answers(port)

    code, reported = machine.status(port)
    assert (code, reported["state"], reported["ready"], reported["reasons"]) == (0, "running", True, [])
    assert reported["pid"] == machine.pid(port)
    assert reported["address"] == f"http://127.0.0.1:{port}"
    assert reported["version"] == __version__
    assert reported["uptime_s"] >= 0
    assert (reported["peers"], reported["jobs_in_flight"]) == (3, 0)
    assert reported["spent_today"] == {"purchases": 0, "settled_msat": 0, "unknown_msat": 0}

    for path in (machine.pid_file(port), machine.log_file(port)):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(machine.run_folder.stat().st_mode) == 0o700

    waiting = f"lcp-gateway: waiting for running jobs of PID {machine.pid(port)}, up to 45 s\n"
    stopped = machine.run("stop")
    assert stopped.code == 0
    # On a busy machine its end takes longer than a second.
    assert stopped.err in {"", waiting}
    assert f"Stopped lcp-gateway at http://127.0.0.1:{port}" in stopped.out
    assert machine.files() == set()
    assert machine.status(port)[0] == 3
    assert "listening on" in machine.run("logs").out


def test_it_is_detached_from_the_terminal_that_started_it(machine, port):
    assert machine.start(port, **REAL_START).code == 0
    gateway = psutil.Process(machine.pid(port))
    assert os.getsid(gateway.pid) == gateway.pid
    log = machine.log_file(port)
    streams = [Path(f"/proc/{gateway.pid}/fd/{number}").readlink() for number in range(3)]
    assert streams == [Path(os.devnull), log, log]
    assert gateway.cwd() == str(machine.folder)
    # The variable that marks a background gateway is not passed to the node.
    assert all("_LCP_GATEWAY_BACKGROUND" not in node.environ() for node in gateway.children())
    machine.run("stop")


def test_no_secret_reaches_its_command_line_or_its_files(machine, port):
    secret = "sk-very-secret-indeed"
    assert machine.start(port, "--verbose", LCP_GATEWAY_API_KEYS=secret, **REAL_START).code == 0
    gateway = psutil.Process(machine.pid(port))
    for process in (gateway, *gateway.children(recursive=True)):
        assert secret not in " ".join(process.cmdline())
    for path in machine.run_folder.iterdir():
        assert secret not in path.read_text()
    variables = json.loads(machine.pid_file(port).read_text())["variables"]
    assert variables == sorted({"LCP_GATEWAY_API_KEYS", *PATIENCE})
    # And the settings were logged.
    assert '"name":"api_keys","value":"\\"(redacted)\\""' in machine.log_file(port).read_text()
    machine.run("stop")


def test_what_was_spent_today_is_shown(machine, port):
    assert machine.start(port).code == 0
    post_chat(port, "hello")
    # That it was delivered is written a moment after its answer.
    eventually(lambda: machine.status(port)[1]["spent_today"]["settled_msat"] > 0)
    _, reported = machine.status(port)
    assert reported["spent_today"]["purchases"] == 1
    assert reported["spent_today"]["settled_msat"] > 0
    assert "in 1 purchases" in machine.run("status").out
    machine.run("stop")


def test_starting_a_running_one_and_stopping_a_stopped_one_is_success(machine, port):
    assert machine.start(port).code == 0
    pid = machine.pid(port)
    again = machine.start(port)
    assert (again.code, again.err) == (0, "")
    assert f"runs already at http://127.0.0.1:{port} (PID {pid})" in again.out
    other = machine.start(port, "--log-level", "debug")
    assert other.code == 0
    assert "other flags" in other.err
    assert machine.run("stop").code == 0
    once_more = machine.run("stop", "--http-addr", f"127.0.0.1:{port}")
    assert (once_more.code, once_more.out) == (0, "lcp-gateway is not running\n")
