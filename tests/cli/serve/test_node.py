"""``lcp-gateway node`` runs the node alone."""

import signal
import socket

import pytest


def test_it_runs_until_sigterm(start, tmp_path):
    process = start("node", "--listen", f"unix:{tmp_path}/n.sock")
    assert process.stdout.readline().startswith(f"node ready on unix:{tmp_path}/n.sock")
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")


def test_it_listens_where_the_settings_say(start, tmp_path):
    process = start("node", LCP_GATEWAY_NODE_LISTEN=f"unix:{tmp_path}/e.sock")
    assert f"unix:{tmp_path}/e.sock" in process.stdout.readline()


def test_it_reads_its_peers_from_a_file(start, run, tmp_path):
    peers = tmp_path / "peers.toml"
    peers.write_text('[[peers]]\nalias = "Zoe"\n[[peers.models]]\nname = "zoe-1"\n')
    address = f"unix:{tmp_path}/p.sock"
    process = start("node", "--listen", address, "--peers", str(peers))
    assert "node ready" in process.stdout.readline()
    assert "zoe-1" in run("models", "--lcpd-grpc-addr", address).out


def test_a_mistake_in_the_file_of_peers_names_file_and_key(run, tmp_path):
    peers = tmp_path / "peers.toml"
    peers.write_text('[[peers]]\nalias = "Zoe"\ncolour = "red"\n')
    outcome = run("node", "--peers", str(peers))
    assert outcome.code == 2
    assert outcome.err.count("\n") == 1
    assert str(peers) in outcome.err
    assert "colour" in outcome.err


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--listen", "nowhere"), ("--backend", "x"), ("--tokens-per-second", "-1"), ("--peers", "/none")],
)
def test_a_bad_flag_is_named_as_it_was_typed(run, flag, value):
    outcome = run("node", flag, value)
    assert outcome.code == 2
    assert outcome.err.startswith(f"lcp-gateway: {flag}: ")


def test_a_port_that_is_taken_is_one_line(start):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        process = start("node", "--listen", f"127.0.0.1:{taken.getsockname()[1]}")
        out, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert out == ""
    assert "cannot listen on 127.0.0.1" in err
    assert "Traceback" not in err


def test_a_missing_backend_is_one_line(start, tmp_path):
    process = start("node", "--listen", f"unix:{tmp_path}/b.sock", "--backend", "http://127.0.0.1:9/v1")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert err.startswith("lcp-gateway: node: ")
    assert "Traceback" not in err


def test_it_takes_the_flags_of_serve_too(start, run, tmp_path):
    """Regression: ``--node-listen`` was no option."""
    process = start("node", "--node-listen", f"unix:{tmp_path}/n.sock", "--node-faults")
    assert process.stdout.readline().startswith(f"node ready on unix:{tmp_path}/n.sock")
    for flag in ("--node-backend", "--node-peers-file", "--node-tokens-per-second"):
        assert run("node", flag, "/none").code == 2
