"""A machine for gateways in the background: folders of its own, commands as a user types them, and a check of left-over files and processes."""

import json
import os
import signal
import subprocess
import time
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.support.forked import ForkedProcess, start_module
from tests.support.gateway import PATIENT, clean_environment

TIMEOUT_S = 120
PATIENCE = {
    # A real start, with the node's, takes half a minute on a busy machine; a command that waits for it has TIMEOUT_S.
    "LCP_GATEWAY_START_TIMEOUT_S": "100",
    **PATIENT,
}
_MARK = "BACKGROUND_TEST_MARK"


@dataclass(frozen=True)
class Outcome:
    """A command's exit code and output. ``said`` is everything that it printed."""

    code: int
    out: str
    err: str

    @property
    def said(self) -> str:
        return self.out + self.err


@dataclass
class Machine:
    folder: Path
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    commands: list[ForkedProcess | subprocess.Popen[str]] = field(default_factory=list)

    @property
    def run_folder(self) -> Path:
        return self.folder / "state" / "lcp-gateway" / "run"

    @property
    def config_file(self) -> Path:
        return self.folder / "config" / "lcp-gateway" / "config.toml"

    def environment(self, **extra: str) -> dict[str, str]:
        return clean_environment(
            {
                "XDG_STATE_HOME": str(self.folder / "state"),
                "XDG_CONFIG_HOME": str(self.folder / "config"),
                "TMPDIR": str(self.folder),
                **PATIENCE,
                _MARK: self.mark,
                **extra,
            }
        )

    def launch(self, *arguments: str, **variables: str) -> ForkedProcess | subprocess.Popen[str]:
        """Begin a command, and do not wait for it."""
        command = start_module(
            "lcp_gateway",
            *arguments,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment(**variables),
            cwd=self.folder,
        )
        self.commands.append(command)
        return command

    def run(self, *arguments: str, **variables: str) -> Outcome:
        return ended(self.launch(*arguments, **variables))

    def start(self, port: int, *arguments: str, **variables: str) -> Outcome:
        """Start a gateway with an embedded node."""
        address = ("--http-addr", f"127.0.0.1:{port}")
        return self.run("start", "--embedded", *address, *arguments, **variables)

    def status(self, port: int) -> tuple[int, dict]:
        outcome = self.run("status", "--json", "--http-addr", f"127.0.0.1:{port}")
        return outcome.code, json.loads(outcome.out)

    def pid_file(self, port: int) -> Path:
        return self.run_folder / f"gateway-127.0.0.1-{port}.pid"

    def log_file(self, port: int) -> Path:
        return self.run_folder / f"gateway-127.0.0.1-{port}.log"

    def pid(self, port: int) -> int:
        return json.loads(self.pid_file(port).read_text())["process"]["pid"]

    def files(self) -> set[str]:
        """The files of gateways, except the logs and the file that a restart after a stop reads."""
        if not self.run_folder.exists():
            return set()
        names = {path.name for path in self.run_folder.iterdir()}
        return {name for name in names if ".log" not in name and not name.endswith(".last")}

    def processes(self) -> list[psutil.Process]:
        """Every process of this machine that still runs: commands, gateways and nodes."""
        commands = {command.pid for command in self.commands if command.poll() is None}
        return [process for process in psutil.process_iter() if process.pid in commands or _is_of(process, self)]

    def wait_empty(self, timeout_s: float = 60.0) -> list[psutil.Process]:
        """Wait until all processes have ended, and return those that have not."""
        deadline = time.monotonic() + timeout_s
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.05)
        return left


@contextmanager
def machine(folder: Path) -> Iterator[Machine]:
    """Return a machine. Every test checks that no process is left on it at the end."""
    made = Machine(folder)
    try:
        yield made
        left = [(process.pid, process.cmdline()) for process in made.wait_empty()]
        assert not left, f"left behind: {left}"
    finally:
        for process in made.processes():
            process.send_signal(signal.SIGKILL)


def ended(process: ForkedProcess | subprocess.Popen[str]) -> Outcome:
    try:
        out, err = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    return Outcome(process.returncode, out, err)


def answers(port: int) -> bool:
    """Whether a gateway answers at a port."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=60) as response:
            return response.status == 200
    except OSError:
        return False


def post_chat(port: int, words: str) -> dict:
    """Buy an answer from the first model."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=TIMEOUT_S) as response:
        model = json.load(response)["data"][0]["id"]
    body = {"model": model, "messages": [{"role": "user", "content": words}]}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
        return json.load(response)


def wait_for_answer(port: int) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not answers(port):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def kill(pid: int) -> None:
    """Kill a process as the kernel does when memory runs out, and wait until it has ended."""
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + TIMEOUT_S
    with suppress(psutil.NoSuchProcess):
        while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def _is_of(process: psutil.Process, machine: Machine) -> bool:
    """Whether a process was started for a machine; one that was forked shows the environment of another, but its own folder."""
    try:
        return (
            process.pid != os.getpid()
            and process.status() != psutil.STATUS_ZOMBIE
            and (process.environ().get(_MARK) == machine.mark or process.cwd() == str(machine.folder))
        )
    except psutil.Error:
        return False
