"""The embedded node: started, restarted, ended with its gateway, and never started unless configured."""

import contextlib
import os
import signal
import time
import urllib.request
from pathlib import Path

import psutil
import pytest

from lcp_gateway.cli.serve.child import RestartPolicy
from lcp_gateway.cli.serve.embedded import EmbeddedNode, banner_of
from lcp_gateway.cli.serve.node_process import NodeOptions
from lcp_gateway.config import Settings

WAIT_S = 120


def eventually(look):
    """Poll until there is a value, for a limited time."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(0.02)
    raise AssertionError("it did not happen in time")


def socket_of(node):
    return Path(node.address.removeprefix("unix:"))


def gone(pid):
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    return True


def test_it_listens_on_a_private_socket_and_leaves_nothing_behind():
    with EmbeddedNode(NodeOptions(listen=""), tell=print) as node:
        path = socket_of(node)
        eventually(path.exists)
        assert path.parent.stat().st_mode & 0o777 == 0o700
        pid = node.pid
    assert gone(pid)
    assert not path.parent.exists()


def test_a_node_that_dies_is_started_again_at_the_same_address():
    told = []
    with EmbeddedNode(NodeOptions(listen=""), tell=told.append) as node:
        eventually(socket_of(node).exists)
        first = node.pid
        os.kill(first, signal.SIGKILL)
        second = eventually(lambda: node.pid if node.pid != first else None)
    assert gone(second)
    assert told == ["the embedded node ended with code -9; it starts again in 0.1 s"]


def test_restarts_are_bounded():
    told = []
    dead = NodeOptions(listen="", backend="http://127.0.0.1:9/v1")
    restarts = RestartPolicy(first_pause_s=0.01, in_a_row=1, settled_s=3_600.0)
    with EmbeddedNode(dead, tell=told.append, restarts=restarts):
        eventually(lambda: any("not started again" in line for line in told))
    assert len(told) == 2
    assert "it starts again in 0.01 s" in told[0]


def test_a_mistake_in_its_configuration_is_not_tried_twice(tmp_path):
    told = []
    wrong = NodeOptions(listen="", peers_file=str(tmp_path / "none.toml"))
    with EmbeddedNode(wrong, tell=told.append):
        eventually(lambda: told)
    assert told == ["the embedded node ended with code 2 and is not started again"]


def test_ending_it_at_once_works_too():
    with EmbeddedNode(NodeOptions(listen=""), tell=print) as node:
        pid = node.pid
    assert gone(pid)


def test_the_key_of_the_backend_is_on_no_command_line():
    options = NodeOptions(listen="", backend_api_key="sk-hidden")
    assert "sk-hidden" not in options.to_json()
    assert "sk-hidden" not in repr(options)
    with EmbeddedNode(options, tell=print) as node:
        child = psutil.Process(node.pid)
        eventually(lambda: "lcp_gateway.cli.serve.node_process" in child.cmdline())
        assert "sk-hidden" not in " ".join(child.cmdline())
        assert child.environ()["LCP_GATEWAY_NODE_BACKEND_API_KEY"] == "sk-hidden"


def test_options_survive_the_way_to_the_child():
    options = NodeOptions("unix:/x", "http://h/v1", "key", "/p.toml", True, "/e", 2.5, 3)
    assert NodeOptions.from_json(options.to_json(), backend_api_key="key") == options


def test_flags_beat_the_file_of_peers(tmp_path):
    path = tmp_path / "p.toml"
    path.write_text('tokens_per_second = 1.0\nseed = "mine"\n')
    config = NodeOptions("unix:/x", peers_file=str(path), tokens_per_second=9.0).node_config()
    assert (config.listen, config.tokens_per_second, config.seed) == ("unix:/x", 9.0, "mine")
    assert NodeOptions("unix:/x", peers_file=str(path)).node_config().tokens_per_second == 1.0


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ({"embedded": False}, ()),
        ({}, ("embedded node: its Lightning is simulated and its answers are a stand-in. No real money moves.",)),
        ({"local_model": True}, ("embedded node: its Lightning is simulated. No real money moves.",)),
        ({"node_backend": "http://h/v1"}, ("embedded node: its Lightning is simulated. No real money moves.",)),
    ],
)
def test_answers_are_called_a_stand_in_only_where_they_are(changes, lines):
    assert banner_of(Settings().model_copy(update={"embedded": True, **changes})) == lines


@pytest.fixture
def serving(start, tmp_path):
    """A gateway with an embedded node, its base URL and its child processes."""
    process = start(
        "serve", "--embedded", "--http-addr", "127.0.0.1:0", TMPDIR=str(tmp_path), LCP_GATEWAY_LOG_FORMAT="json"
    )
    banner = process.stdout.readline()
    listening = process.stdout.readline()
    children = psutil.Process(process.pid).children()
    return process, banner, listening, children


def test_serve_embedded_answers_and_says_that_no_real_money_moves(serving, tmp_path):
    process, banner, listening, (child,) = serving
    assert "No real money moves" in banner
    url = next(word for word in listening.split() if word.startswith("http://"))
    with urllib.request.urlopen(f"{url}/v1/models", timeout=120) as answer:
        assert b"echo-1" in answer.read()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0
    assert "Traceback" not in err
    assert gone(child.pid)
    assert list(tmp_path.glob("lcp-gateway-*")) == []


def test_a_sigterm_during_the_start_cleans_up_too(start, tmp_path):
    process = start("serve", "--embedded", "--http-addr", "127.0.0.1:0", TMPDIR=str(tmp_path))
    (child,) = eventually(lambda: psutil.Process(process.pid).children())
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode in {0, 128 + signal.SIGTERM}
    assert "Traceback" not in err
    assert gone(child.pid)
    assert list(tmp_path.glob("lcp-gateway-*")) == []


def test_the_node_is_gone_when_the_gateway_was_killed(serving):
    process, _, _, (child,) = serving
    process.kill()
    process.wait(120)
    eventually(lambda: gone(child.pid))


def test_a_gateway_recovers_when_its_node_was_killed(serving):
    process, _, listening, (child,) = serving
    url = next(word for word in listening.split() if word.startswith("http://"))
    child.kill()

    def another():
        found = [c for c in psutil.Process(process.pid).children() if c.pid != child.pid]
        return found or None

    eventually(another)

    def ready():
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/readyz", timeout=2) as answer:
            return answer.status == 200
        return False

    eventually(ready)


def test_a_mistake_in_the_nodes_description_is_said_at_once(start, tmp_path):
    peers = tmp_path / "peers.toml"
    peers.write_text("colour = 1\n")
    process = start("serve", "--embedded", "--node-peers-file", str(peers))
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (2, "")
    (line,) = err.splitlines()
    assert str(peers) in line
    assert "colour" in line


def test_without_the_flag_no_node_is_started_and_the_daemon_is_missed(start):
    process = start(
        "serve", "--lcpd-grpc-addr", "127.0.0.1:9", "--preflight-timeout-s", "0.5", "--http-addr", "127.0.0.1:0"
    )
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert out == ""
    warning, line = err.splitlines()
    assert line.startswith("lcp-gateway: the daemon at 127.0.0.1:9 did not answer")
    # It could have paid real money.
    assert "no limit on spending is set" in warning
