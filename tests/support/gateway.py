"""Runs the gateway as its own process, as a user would, and ends it."""

import json
import os
import re
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.support.forked import ForkedProcess, start_module

START_TIMEOUT_S = 120.0
COMMAND_TIMEOUT_S = 120.0
IN_PROCESS = "in-process"
PATIENT = {
    # A daemon on a machine with other work may be listening only after a while.
    "LCP_GATEWAY_PREFLIGHT_TIMEOUT_S": "60",
    # On such a machine a quote may take longer than the default; tests of its limit set their own.
    "LCP_GATEWAY_TIMEOUT_QUOTE_S": "60",
}
_OF_OPENAI_SERVE = {
    "OPENAI_SERVE_HTTP_ADDR": "LCP_GATEWAY_HTTP_ADDR",
    "OPENAI_SERVE_TIMEOUT_QUOTE": "LCP_GATEWAY_TIMEOUT_QUOTE_S",
}
_LISTENING = re.compile(r"listening on https?://\S+?:(\d+) ")


def node_is_in_process() -> bool:
    """Return whether tests with an embedded node have it in the gateway's process, as with ``serve --lnd``."""
    return os.environ.get("LCP_TEST_NODE", "") == IN_PROCESS


def clean_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """The environment without anything that configures a gateway or a client, plus ``extra``."""
    ours = ("LCP_GATEWAY_", "OPENAI_", "OPENCLAW_", "CODEX_")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    return {**kept, **extra}


def run_command(*arguments: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run `lcp-gateway` with these arguments to its end; ``env`` is added to a clean environment."""
    process = start_module(
        "lcp_gateway",
        *arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=clean_environment(env or {}),
        text=True,
    )
    try:
        out, err = process.communicate(timeout=COMMAND_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


@dataclass
class RunningGateway:
    """A gateway process. ``logs`` is everything it wrote to standard error, ``output`` to standard output."""

    process: ForkedProcess | subprocess.Popen[bytes]
    port: int
    events_file: Path | None
    output: list[str] = field(default_factory=list)
    log_lines: list[str] = field(default_factory=list)
    readers: list[threading.Thread] = field(default_factory=list)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def api_url(self) -> str:
        return f"{self.base_url}/v1"

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def logs(self) -> str:
        return "\n".join(self.log_lines)

    def json_logs(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.log_lines if line.startswith("{")]

    def rss_bytes(self) -> int:
        return int(psutil.Process(self.pid).memory_info().rss)

    def node_pids(self) -> list[int]:
        return [child.pid for child in psutil.Process(self.pid).children()]

    def events(self, kind: str | None = None) -> list[dict[str, object]]:
        """The embedded node's events: quotes, accepts, payments…"""
        assert self.events_file is not None
        if not self.events_file.exists():
            return []
        # Up to the last line end: the node may be writing the line after it.
        whole = self.events_file.read_text().rpartition("\n")[0]
        found = [json.loads(line) for line in whole.splitlines()]
        return [event for event in found if kind is None or event["kind"] == kind]

    def wait_for_log(self, text: str, timeout_s: float = 120.0) -> None:
        deadline = time.monotonic() + timeout_s
        while text not in self.logs:
            assert time.monotonic() < deadline, f"{text!r} was not logged:\n{self.logs}"
            time.sleep(0.02)

    def stop(self, sig: int = signal.SIGTERM, timeout_s: float = 60.0) -> int:
        if self.process.poll() is None:
            self.process.send_signal(sig)
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(60)
            raise
        # What it wrote last is in the pipes.
        for reader in self.readers:
            reader.join(60)
        return code


@contextmanager
def gateway(
    *, embedded: bool = True, args: Sequence[str] = (), env: Mapping[str, str] | None = None
) -> Iterator[RunningGateway]:
    """Run `lcp-gateway serve` on a free port; with ``embedded`` on a node whose events are kept."""
    with tempfile.TemporaryDirectory(prefix="lcp-gateway-test-") as folder:
        events_file = Path(folder) / "events.jsonl" if embedded else None
        settings = {
            "LCP_GATEWAY_HTTP_ADDR": "127.0.0.1:0",
            "LCP_GATEWAY_LOG_FORMAT": "json",
            "XDG_CONFIG_HOME": folder,
            "XDG_STATE_HOME": folder,
            # Tests of failures would open the breaker; those of the breaker turn it on.
            "LCP_GATEWAY_BREAKER_FAILURES": "0",
            # Short, so that tests of clients that leave need not wait; those of joining set their own.
            "LCP_GATEWAY_JOIN_GRACE_S": "0.2",
            # A machine that stands still for three of them would cut every node that has dialled in.
            "LCP_GATEWAY_DIALIN_HEARTBEAT_S": "60",
            **PATIENT,
            # A cancellation that is given up never comes in.
            "LCP_GATEWAY_CANCEL_TIMEOUT_S": "60",
            # It may stand still for longer than keys are accepted after they were read; tests of that set their own.
            "LCP_GATEWAY_KEYS_STALE_S": "60",
        }
        if embedded:
            settings["LCP_GATEWAY_NODE_EVENTS_FILE"] = str(events_file)
        settings = _with_defaults(settings, env or {})
        command, module = ["serve", *args], "lcp_gateway"
        if embedded and node_is_in_process():
            module = "tests.support.gateway_with_node"
        elif embedded:
            command.append("--embedded")
        process = start_module(
            module, *command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=clean_environment(settings)
        )
        running = RunningGateway(process, 0, events_file)
        running.readers += [_collect(process.stdout, running.output), _collect(process.stderr, running.log_lines)]
        try:
            running.port = _wait_for_port(running)
            yield running
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(60)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait(60)
            for reader in running.readers:
                reader.join(60)
            # To close a pipe that is being read would wait for its writer.
            assert not any(reader.is_alive() for reader in running.readers), (
                f"a process that it started still runs:\n{running.logs}"
            )
            for pipe in (process.stdout, process.stderr):
                pipe.close()


def _with_defaults(defaults: Mapping[str, str], given: Mapping[str, str]) -> dict[str, str]:
    """Return the settings of a test: ours would win over those of openai-serve that mean the same."""
    replaced = {ours for theirs, ours in _OF_OPENAI_SERVE.items() if theirs in given}
    return {name: value for name, value in defaults.items() if name not in replaced} | dict(given)


def _collect(pipe, lines: list[str]) -> threading.Thread:
    def read() -> None:
        lines.extend(line.decode("utf-8", "replace").rstrip("\n") for line in pipe)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    return thread


def _wait_for_port(running: RunningGateway) -> int:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        for line in list(running.output):
            if found := _LISTENING.search(line):
                return int(found[1])
        if running.process.poll() is not None:
            time.sleep(0.2)
            raise AssertionError(
                f"the gateway ended with {running.process.returncode}:\n{running.output}\n{running.logs}"
            )
        time.sleep(0.01)
    raise AssertionError(f"the gateway did not start:\n{running.output}\n{running.logs}")
