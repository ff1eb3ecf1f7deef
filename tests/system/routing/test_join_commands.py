"""``lcp-gateway join`` as its user runs it: in the background, with models of its own, and with what it refuses."""

import json
import os

import pytest

from tests.support.fake_llama_server import installed, model_file
from tests.support.gateway import run_command
from tests.support.http_node import HttpNodeThread
from tests.support.node_thread import eventually
from tests.support.wire import CHAT, document, post
from tests.system.routing.providers import nodes_of, served_by

ROW = {"name": "gpu", "token": "tok-gpu", "price_per_request_msat": 7}


@pytest.fixture
def at(tmp_path):
    """Run the command with its files in a folder of the test."""

    def run(*arguments, **settings):
        environment = {f"LCP_GATEWAY_{name.upper()}": str(value) for name, value in settings.items()}
        places = {"XDG_CONFIG_HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path)}
        return run_command("join", *arguments, env=environment | places)

    return run


def test_a_node_in_the_background_is_started_shown_and_stopped(at, tmp_path):
    token = tmp_path / "token"
    token.write_text("tok-gpu\n")
    with HttpNodeThread("alpha", ("m",)) as backend, served_by(dialin_nodes=[ROW]) as gateway:
        url = f"ws://127.0.0.1:{gateway.port}"
        given = ("--name", "box", "--token-file", str(token), "--backend", backend.base_url)
        try:
            started = at("start", url, *given)
            assert started.returncode == 0, started.stderr
            assert "joined to ws://127.0.0.1" in started.stdout
            assert "runs already" in at("start", url, *given).stdout
            eventually(lambda: nodes_of(gateway)["gpu"]["models"] == 1)
            answer = post(gateway.port, CHAT, document(CHAT, "m", "hello"))
            assert answer.status == 200 and answer.headers["x-lcp-peer-id"] == "node:gpu"
            eventually(lambda: _status(at)["delivered"] == 1)
            shown = at("status", "--name", "box")
            assert shown.returncode == 0
            assert "0.007 sat for 1 results" in shown.stdout and "Models offered  m" in shown.stdout
            assert "hello" not in at("logs", "--name", "box").stdout
        finally:
            stopped = at("stop", "--name", "box")
        assert stopped.returncode == 0 and "Stopped the node" in stopped.stdout
        assert at("status", "--name", "box").returncode == 3
        eventually(lambda: not nodes_of(gateway)["gpu"]["up"])


def test_a_node_serves_models_that_it_runs_itself(at, tmp_path):
    models = {"chatty": {"path": str(model_file(tmp_path, "chatty"))}}
    settings = {"models": json.dumps(models), "llama_server": installed(tmp_path), "join_token": "tok-gpu"}
    with served_by(dialin_nodes=[ROW]) as gateway:
        try:
            started = at("start", f"ws://127.0.0.1:{gateway.port}", "--name", "box", **settings)
            assert started.returncode == 0, started.stderr
            eventually(lambda: nodes_of(gateway)["gpu"]["models"] == 1)
            answer = post(gateway.port, CHAT, document(CHAT, "chatty", "hello"))
            assert answer.status == 200, answer.body
            assert answer.headers["x-lcp-peer-id"] == "node:gpu"
        finally:
            at("stop", "--name", "box")


@pytest.mark.parametrize(
    ("arguments", "settings", "code", "says"),
    [
        ((), {"join_token": "t"}, 2, "which gateway?"),
        (("ws://gateway.example",), {"join_token": "t"}, 2, "wss://"),
        (("wss://gateway.example",), {}, 2, "token"),
        (("wss://t:x@gateway.example",), {"join_token": "t"}, 2, "does not belong in the address"),
        (("ftp://gateway.example",), {"join_token": "t"}, 2, "wss://gateway.example.com"),
        (("wss://gateway.example", "--name", "no good"), {"join_token": "t"}, 2, "no name for a node"),
        (("wss://gateway.example",), {"join_token": "t", "models": '{"x": {"path": "/no/such.gguf"}}'}, 2, "such"),
    ],
)
def test_what_is_wrong_is_one_line_and_no_token(at, arguments, settings, code, says):
    done = at(*arguments, **settings)
    assert done.returncode == code and says in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1


def test_a_token_that_the_gateway_does_not_know_ends_the_node(at):
    with served_by(dialin_nodes=[ROW], embedded=True) as gateway:
        done = at(f"ws://127.0.0.1:{gateway.port}", join_token="wrong")
        assert done.returncode == 1 and "token is not known" in done.stderr
        assert "wrong" not in done.stderr + done.stdout


def test_a_process_that_has_the_number_of_a_dead_node_is_not_the_node(at, tmp_path):
    left_behind = {"pid": os.getpid(), "started": "another time", "state": "connected"}
    (tmp_path / "node-box.status").write_text(json.dumps(left_behind))
    shown = at("status", "--name", "box", state_dir=tmp_path)
    assert shown.returncode == 1 and "dead" in shown.stdout


def _status(at) -> dict:
    return json.loads(at("status", "--name", "box", "--json").stdout)
