"""Runs `python -m MODULE` without the second of its imports: forked from a process that has loaded them.

The same program runs in a process of its own, with its own arguments, environment, folder and pipes. Real starts
are what tests of starting, packaging and the command line have; so has every test where `LCP_TEST_REAL_STARTS` is set.
"""

import atexit
import gc
import importlib
import json
import os
import queue
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[2]
START_TIMEOUT_S = 120.0
_MESSAGE_BYTES = 1 << 20
# Read by the interpreter or the C library when they start: a fork cannot change them any more.
_READ_AT_START = ("PYTHON", "LC_", "LANG", "LD_", "GRPC_")
# Set where coverage is measured: it follows processes from their start.
_COVERAGE = "COVERAGE_PROCESS_CONFIG"


class ForkedProcess:
    """The part of ``subprocess.Popen`` that tests use; the process is a child of the template, which waits for it."""

    def __init__(self, stdin: IO | None, stdout: IO | None, stderr: IO | None) -> None:
        self.stdin, self.stdout, self.stderr = stdin, stdout, stderr
        self.pid = 0
        self.returncode: int | None = None
        self._ended = threading.Event()
        self._readers: list[threading.Thread] = []
        self._read_so_far: dict[IO, str | bytes] = {}

    def set_ended(self, code: int) -> None:
        self.returncode = code
        self._ended.set()

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if not self._ended.wait(timeout):
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def communicate(self, timeout: float | None = None) -> tuple:
        """Return standard output and standard error once the process has ended."""
        if self.stdin is not None:
            self.stdin.close()
        if not self._readers:
            for stream in (self.stdout, self.stderr):
                reader = threading.Thread(target=self._read, args=(stream,), daemon=True)
                self._readers.append(reader)
                reader.start()
        self.wait(timeout)
        for reader in self._readers:
            reader.join(timeout)
            if reader.is_alive():
                raise subprocess.TimeoutExpired(f"output of process {self.pid}", timeout)
        return self._read_so_far.get(self.stdout), self._read_so_far.get(self.stderr)

    def _read(self, stream: IO | None) -> None:
        if stream is not None and not stream.closed:
            with stream:
                self._read_so_far[stream] = stream.read()

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start_module(
    module: str,
    *arguments: str,
    env: Mapping[str, str],
    cwd: Path | None = None,
    stdin: int = subprocess.DEVNULL,
    stdout: int = subprocess.DEVNULL,
    stderr: int = subprocess.DEVNULL,
    text: bool = False,
) -> ForkedProcess | subprocess.Popen:
    """Start `python -m MODULE`; the streams are ``PIPE`` or ``DEVNULL``."""
    is_real = os.environ.get("LCP_TEST_REAL_STARTS") or _COVERAGE in os.environ
    if is_real or _at_start(env) != _at_start(os.environ):
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=env,
            cwd=cwd,
            text=text,
        )
    streams = {"stdin": stdin, "stdout": stdout, "stderr": stderr}
    ours, theirs = {}, []
    for name, kind in streams.items():
        if kind == subprocess.PIPE:
            reading, writing = os.pipe()
            mine, mode = (writing, "w") if name == "stdin" else (reading, "r")
            ours[name] = os.fdopen(mine, mode if text else f"{mode}b", 1 if text else -1)
            theirs.append(reading if name == "stdin" else writing)
        else:
            ours[name] = None
            theirs.append(os.open(os.devnull, os.O_RDWR))
    process = ForkedProcess(**ours)
    request = {"module": module, "arguments": arguments, "environment": dict(env), "folder": str(cwd or Path.cwd())}
    try:
        _template().fork(request, theirs, process)
    finally:
        for descriptor in theirs:
            os.close(descriptor)
    return process


def _at_start(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if name.startswith(_READ_AT_START)}


class _Template:
    """pytest's handle of the process that the others are forked from."""

    def __init__(self) -> None:
        self._socket, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.forked", str(far.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            cwd=ROOT,
            pass_fds=[far.fileno()],
        )
        far.close()
        self._running: dict[int, ForkedProcess] = {}
        self._started: queue.Queue[int] = queue.Queue()
        self._asking = threading.Lock()
        self._waiting: ForkedProcess | None = None
        threading.Thread(target=self._listen, name="forked processes", daemon=True).start()

    def fork(self, request: dict, streams: list[int], process: ForkedProcess) -> None:
        with self._asking:
            self._waiting = process
            socket.send_fds(self._socket, [json.dumps(request).encode()], streams)
            process.pid = self._started.get(timeout=START_TIMEOUT_S)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_WR)
        self._process.wait(60)

    def _listen(self) -> None:
        while message := self._socket.recv(_MESSAGE_BYTES):
            reported = json.loads(message)
            if reported["code"] is None:
                self._running[reported["pid"]] = self._waiting
                self._started.put(reported["pid"])
            else:
                self._running.pop(reported["pid"]).set_ended(reported["code"])


@cache
def _template() -> _Template:
    atexit.register(close_template)
    return _Template()


def close_template() -> None:
    """End the template process, if it runs; processes forked from it go on."""
    if _template.cache_info().currsize:
        _template().close()
        _template.cache_clear()


def _load() -> None:
    """Import what a gateway and a node have loaded once they run, and the migrations that a new journal needs."""
    for name in (
        "lcp_gateway.cli.program",
        "lcp_gateway.cli.serve",
        "lcp_gateway.app",
        "lcp_gateway.node.server",
        "lcp_gateway.store.database.sqlite",
        "lcp_gateway.telemetry.log_output",
        "alembic.context",
    ):
        importlib.import_module(name)


def _serve(control: socket.socket) -> dict:
    """Fork a process for each request; returns in those processes, with their request."""
    wake_reading, wake_writing = socket.socketpair()
    wake_reading.setblocking(False)
    wake_writing.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.set_wakeup_fd(wake_writing.fileno())
    selector = selectors.DefaultSelector()
    selector.register(control, selectors.EVENT_READ)
    selector.register(wake_reading, selectors.EVENT_READ)
    while True:
        ready = {key.fileobj for key, _ in selector.select()}
        if wake_reading in ready:
            with suppress(BlockingIOError):
                wake_reading.recv(4096)
        _tell_of_ends(control)
        if control not in ready:
            continue
        message, streams, _, _ = socket.recv_fds(control, _MESSAGE_BYTES, 3)
        if not message:
            os._exit(0)
        pid = os.fork()
        if not pid:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            for opened in (selector, control, wake_reading, wake_writing):
                opened.close()
            for number, descriptor in enumerate(streams):
                os.dup2(descriptor, number)
                os.close(descriptor)
            return json.loads(message)
        for descriptor in streams:
            os.close(descriptor)
        control.send(json.dumps({"pid": pid, "code": None}).encode())


def _tell_of_ends(control: socket.socket) -> None:
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            pid, status = ended
            code = os.waitstatus_to_exitcode(status)
            with suppress(OSError):
                control.send(json.dumps({"pid": pid, "code": code}).encode())


def _main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    _load()
    gc.collect()
    gc.freeze()
    request = _serve(control)
    os.environ.clear()
    os.environ.update(request["environment"])
    time.tzset()
    os.chdir(request["folder"])
    sys.argv = ["", *request["arguments"]]
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main()
