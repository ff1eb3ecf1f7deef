"""Restarting and reloading a gateway in the background."""

import json
import re
import shutil
import signal

import pytest

from tests.support.background import TIMEOUT_S, ended
from tests.support.node_thread import eventually
from tests.support.ports import free_port

pytestmark = pytest.mark.slow

KEYS = {"LCP_GATEWAY_API_KEYS": "sk-first"}


def flags_of(machine, port):
    return json.loads(machine.pid_file(port).read_text())["flags"]


def test_a_restart_keeps_the_flags_and_takes_new_ones_over_them(machine, port):
    assert machine.start(port, "--journal-url", "books.db").code == 0
    before = machine.pid(port)
    flags = flags_of(machine, port)
    again = machine.run("restart")
    assert again.code == 0, again.said
    assert f"(PID {before})" in again.out
    assert machine.pid(port) != before
    assert flags_of(machine, port) == flags
    assert flags["journal_url"] == str(machine.folder / "books.db")
    other = machine.run("restart", "--log-level", "debug", "--no-preflight")
    assert other.code == 0, other.said
    assert flags_of(machine, port) == {**flags, "log_level": "debug", "preflight": False}
    # The lines are written a moment after what they are about.
    eventually(lambda: '"level":"debug"' in machine.run("logs").out)
    machine.run("stop")


def test_a_restart_of_a_stopped_one_starts_it(machine, port):
    started = machine.run("restart", "--embedded", "--http-addr", f"127.0.0.1:{port}")
    assert started.code == 0, started.said
    assert "it was not running" in started.err
    assert machine.status(port)[0] == 0
    machine.run("stop")


def test_a_restart_after_a_stop_starts_it_as_it_was_started(machine, port):
    """Once ``--embedded`` was lost, and a gateway for real money was started."""
    assert machine.start(port, "--log-level", "debug").code == 0
    flags = flags_of(machine, port)
    assert machine.run("stop").code == 0
    assert machine.run("status").code == 3
    again = machine.run("restart")
    assert again.code == 0, again.said
    assert "it was not running: it is started as on" in again.err and "--embedded" in again.err
    assert flags_of(machine, port) == flags
    assert machine.run("stop").code == 0
    # Several were started, and the command names none.
    second = free_port()
    assert machine.start(second).code == 0
    assert machine.run("stop").code == 0
    refused = machine.run("restart")
    assert refused.code == 1 and refused.err.count("last started") == 2
    assert machine.run("restart", "--http-addr", f"127.0.0.1:{second}").code == 0
    assert machine.run("stop").code == 0


def test_a_restart_into_a_configuration_that_cannot_be_used_changes_nothing(machine, port):
    assert machine.start(port).code == 0
    pid = machine.pid(port)
    refused = machine.run("restart", "--timeout-quote-s", "soon")
    assert refused.code == 2
    assert machine.pid(port) == pid
    assert machine.status(port)[0] == 0
    machine.run("stop")


def test_a_restart_without_the_variables_of_the_start_is_refused(machine, port):
    assert machine.start(port, **KEYS).code == 0
    pid = machine.pid(port)
    refused = machine.run("restart")
    assert refused.code == 1
    assert "started with LCP_GATEWAY_API_KEYS in the environment" in refused.err
    assert machine.pid(port) == pid
    assert machine.run("restart", **KEYS).code == 0
    machine.run("stop")


def test_a_reload_prints_its_result(machine, port):
    machine.config_file.parent.mkdir(parents=True)
    machine.config_file.write_text("heartbeat_s = 1\n")
    assert machine.start(port).code == 0
    same = machine.run("reload")
    assert (same.code, same.err) == (0, "")
    assert "changed: nothing" in same.out
    machine.config_file.write_text("heartbeat_s = 2\nlog_keep = 7\n")
    changed = machine.run("reload")
    assert changed.code == 0
    assert "changed: heartbeat_s" in changed.out
    assert re.search("restart only: .*log_keep", changed.err)
    machine.config_file.write_text("heartbeat_s = 'soon'\n")
    refused = machine.run("reload")
    assert refused.code == 1
    assert "heartbeat_s: must be a duration" in refused.err
    assert "the old settings stay in force" in refused.err
    # A file that cannot be used does not keep the operator from looking and stopping.
    machine.config_file.write_text("heartbeat_s = \n")
    assert "not valid TOML" in machine.run("reload").err
    looked = machine.run("status")
    assert (looked.code, "not valid TOML" in looked.err) == (0, True)
    stopped = machine.run("stop")
    assert (stopped.code, "not valid TOML" in stopped.err) == (0, True)
    assert machine.run("stop").code == 2
    assert machine.run("status").code == 4


def test_one_with_keys_is_found_from_a_shell_that_does_not_have_them(machine, port):
    address = f"0.0.0.0:{port}"
    assert machine.run("start", "--embedded", "--http-addr", address, **KEYS).code == 0
    looked = machine.run("status", "--http-addr", address)
    assert looked.code == 0
    assert "0.000 sat in 0 purchases" in looked.out
    assert machine.run("stop", "--http-addr", address).code == 0


def test_a_text_log_has_the_result_too(machine, port):
    assert machine.start(port, "--log-format", "console").code == 0
    reported = machine.run("reload")
    assert reported.code == 0
    assert "configuration reloaded" in reported.out
    machine.run("stop")


def test_a_reload_without_a_gateway_is_reported(machine):
    refused = machine.run("reload", "--http-addr", f"127.0.0.1:{free_port()}")
    assert refused.code == 1
    assert "no gateway runs in the background" in refused.err


def test_the_folder_of_the_start_may_be_gone(machine, port):
    elsewhere = machine.folder / "elsewhere"
    elsewhere.mkdir()
    folder, machine.folder = machine.folder, elsewhere
    starting = machine.launch(
        "start", "--embedded", "--http-addr", f"127.0.0.1:{port}",
        XDG_STATE_HOME=str(folder / "state"), XDG_CONFIG_HOME=str(folder / "config"),
    )  # fmt: skip
    assert ended(starting).code == 0
    machine.folder = folder
    shutil.rmtree(elsewhere)
    refused = machine.run("restart")
    assert refused.code == 1
    assert "is gone" in refused.err
    assert "not known" in machine.run("status").out
    assert machine.run("stop").code == 0


def test_following_a_log_ends_without_an_error(machine, port):
    assert machine.start(port).code == 0
    following = machine.launch("logs", "-f", "-n", "1")
    assert "web console: " in following.stdout.readline()
    machine.run("reload")
    assert "configuration reloaded" in following.stdout.readline()
    following.send_signal(signal.SIGINT)
    assert ended(following).err == ""
    assert following.returncode == 0
    # And at once where its reader closes, although nothing more is written.
    following = machine.launch("logs", "-f")
    assert following.stdout.readline()
    following.stdout.close()
    assert following.wait(TIMEOUT_S) == 0
    assert following.stderr.read() == ""
    following.stderr.close()
    machine.run("stop")
