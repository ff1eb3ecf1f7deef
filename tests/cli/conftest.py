"""A clean environment, a node for the commands, and a way to run the program as a process."""

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from lcp_gateway.cli import gateway_client, main, probe
from tests.support.gateway import PATIENT
from tests.support.written_purchases import written

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 120


@pytest.fixture(autouse=True)
def clean_environment(request, monkeypatch, tmp_path):
    for name in list(os.environ):
        if name.startswith(("LCP_GATEWAY_", "OPENAI_SERVE_", "OPENCLAW_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    # On a busy machine daemons, nodes and lnds answer slowly. Tests right in this folder show the settings in force.
    if request.path.parent != Path(__file__).parent:
        for name, value in PATIENT.items():
            monkeypatch.setenv(name, value)


@pytest.fixture(autouse=True)
def _patient_commands(monkeypatch):
    """Give a gateway or server a minute to answer."""
    monkeypatch.setattr(gateway_client, "_READY_TIMEOUT_S", 60.0)
    monkeypatch.setitem(gateway_client.call.__kwdefaults__, "timeout_s", 60.0)
    monkeypatch.setattr(probe, "_TIMEOUT_S", 60.0)


@dataclass
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture
def run(capfd):
    """Run a command line in this process."""

    def call(*arguments):
        code = main(arguments)
        captured = capfd.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call


@pytest.fixture
def start():
    """Start the program as a process of its own; it is killed if it still runs at the end."""
    started = []

    def launch(*arguments, **environment):
        process = subprocess.Popen(
            [sys.executable, "-m", "lcp_gateway", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | environment,
        )
        started.append(process)
        return process

    yield launch
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.communicate(timeout=TIMEOUT_S)


@dataclass(frozen=True)
class NodeProcess:
    address: str
    events: Path


@pytest.fixture(scope="session")
def node(tmp_path_factory):
    """A node in a process of its own, for the whole session."""
    folder = tmp_path_factory.mktemp("node")
    events = folder / "events.jsonl"
    process = subprocess.Popen(
        [
            sys.executable, "-m", "lcp_gateway", "node", "--exit-with-stdin",
            "--listen", f"unix:{folder}/n.sock", "--events", str(events),
        ],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "XDG_CONFIG_HOME"}
        | {"XDG_CONFIG_HOME": str(folder)},
    )  # fmt: skip
    assert "node ready on" in process.stdout.readline()
    yield NodeProcess(f"unix:{folder}/n.sock", events)
    # It exits when its standard input ends.
    process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0


@pytest.fixture
def journal(tmp_path):
    """An empty journal at the configured path."""
    path = tmp_path / "state" / "lcp-gateway" / "journal.db"
    written(path)
    return path
