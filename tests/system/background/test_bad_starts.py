"""A gateway that cannot start: the reason is shown, and nothing is left behind."""

import json
import os
import signal
import socket
import subprocess
import time

import pytest

from tests.support.background import answers
from tests.support.forked import REAL_START

pytestmark = pytest.mark.slow


def test_a_port_in_use_is_reported_with_the_log_and_the_remedy(machine, port):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        # It asks first whether a gateway answers there: a forked one would wait for a minute.
        refused = machine.start(port, **REAL_START)
    assert refused.code == 1
    assert f"cannot listen on 127.0.0.1:{port}" in refused.err
    assert "choose another --http-addr" in refused.err
    assert str(machine.log_file(port)) in refused.err
    assert machine.files() == set()


def test_a_configuration_that_cannot_be_used_starts_nothing(machine, port):
    machine.config_file.parent.mkdir(parents=True)
    machine.config_file.write_text("max_concurrent_requests = 'many'\nhttp_adr = ':1'\n")
    refused = machine.start(port)
    assert refused.code == 2
    assert refused.err.count("lcp-gateway: ") == 2
    assert not machine.run_folder.exists()


@pytest.mark.parametrize("address", ["127.0.0.1:0", ":0"])
def test_a_port_that_the_system_chooses_is_refused(machine, address):
    refused = machine.run("start", "--embedded", "--http-addr", address, "--allow-open")
    assert refused.code == 2
    assert "needs a port of its own" in refused.err


def test_an_unreachable_daemon_ends_the_start_with_the_gateways_own_error(machine, port):
    refused = machine.run(
        "start", "--http-addr", f"127.0.0.1:{port}", "--lcpd-grpc-addr", "127.0.0.1:9",
        "--preflight-timeout-s", "0.5",
    )  # fmt: skip
    assert refused.code == 1
    assert "the daemon at 127.0.0.1:9 did not answer" in refused.err
    assert "ended with code 1 before it was ready" in refused.err
    assert machine.files() == set()


def test_one_that_does_not_get_ready_is_ended_with_the_reasons(machine, port):
    # Three seconds are enough for it to listen and say why it is not ready, unless the machine is busy.
    for patience_s in (3, 15, 60):
        refused = machine.run(
            "start", "--http-addr", f"127.0.0.1:{port}", "--lcpd-grpc-addr", "127.0.0.1:9",
            "--no-preflight", "--start-timeout-s", str(patience_s),
        )  # fmt: skip
        assert refused.code == 1
        within = f"was not ready within {patience_s} s (start_timeout_s) and was ended: "
        assert within in refused.err
        if f"{within}the daemon cannot" in refused.err:
            break
    assert f"{within}the daemon cannot" in refused.err
    assert not answers(port)
    assert machine.files() == set()


def test_a_folder_that_cannot_be_made_is_named(machine, port):
    (machine.folder / "state").write_text("a file")
    refused = machine.start(port)
    assert refused.code == 1
    assert "cannot be written" in refused.err
    assert "Traceback" not in refused.err


@pytest.mark.parametrize("left", [b"", b"1234\n", b"\xff\x00garbage", b'{"process": {"pid": 1}}'])
def test_a_file_that_is_no_record_of_a_gateway_is_replaced(machine, port, left):
    machine.run_folder.mkdir(parents=True)
    machine.pid_file(port).write_bytes(left)
    assert machine.status(port)[0] == 1
    started = machine.start(port)
    assert started.code == 0
    assert "removed a stale PID file" in started.err
    assert json.loads(machine.pid_file(port).read_text())["process"]["pid"] == machine.pid(port)
    machine.run("stop")


def test_a_pid_that_another_process_has_by_now_is_never_signalled(machine, port):
    assert machine.start(port).code == 0
    record = json.loads(machine.pid_file(port).read_text())
    machine.run("stop")
    stranger = subprocess.Popen(["sleep", "60"])
    try:
        for pid, started in (
            (stranger.pid, record["process"]["started"]),
            # Our own number, of another boot.
            (os.getpid(), f"another-boot {record['process']['started'].split()[-1]}"),
        ):
            record["process"] = {"pid": pid, "started": started}
            machine.pid_file(port).write_text(json.dumps(record))
            code, reported = machine.status(port)
            assert (code, reported["state"]) == (1, "dead")
            assert machine.run("reload").code == 1
            stopped = machine.run("stop")
            assert stopped.code == 0
            assert "is another one" in stopped.err
            assert machine.files() == set()
        time.sleep(0.1)
        assert stranger.poll() is None
    finally:
        stranger.send_signal(signal.SIGKILL)
        stranger.wait()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change a file's owner")
def test_another_users_file_is_not_trusted(machine, port):
    assert machine.start(port).code == 0
    os.chown(machine.pid_file(port), 65_534, -1)
    assert machine.status(port)[0] == 4
    for command in ("stop", "restart", "reload"):
        refused = machine.run(command)
        assert refused.code == 1
        assert "not yours" in refused.err
    # And not while a gateway answers at that address.
    refused = machine.start(port)
    assert refused.code == 1
    assert answers(port)
    os.chown(machine.pid_file(port), os.geteuid(), -1)
    assert machine.run("stop").code == 0


def test_a_file_that_pid_file_names_by_mistake_is_left_alone(machine, port):
    notes = machine.folder / "notes.txt"
    notes.write_text("my notes")
    for command in (("start", "--embedded"), ("stop",)):
        refused = machine.run(*command, "--http-addr", f"127.0.0.1:{port}", "--pid-file", "notes.txt")
        assert refused.code == 1
        assert "is not a PID file of lcp-gateway" in refused.err
    assert notes.read_text() == "my notes"
