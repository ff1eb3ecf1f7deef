"""Runs `python -m MODULE` without the second of its imports: forked from a process that has loaded them.

The same program runs in a process of its own, with its own arguments, environment, folder and pipes; so do those that it starts
itself: an embedded node, workers, a gateway in the background. Real starts are what tests of starting, packaging and the command
line have; so has every test where `LCP_TEST_REAL_STARTS` is set.
"""

import atexit
import fcntl
import gc
import importlib
import inspect
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
import warnings
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO, Any, NoReturn

ROOT = Path(__file__).parents[2]
START_TIMEOUT_S = 120.0
REAL_START = {"PYTHONHASHSEED": "0"}
"""Variables with which a program and all that it starts are interpreters of their own."""
_PATIENCE_S = 60.0
_MESSAGE_BYTES = 1 << 20
_MOST_DESCRIPTORS = 100
_CHILDS_ENDS = ("p2cread", "c2pwrite", "errwrite")
_PIPES = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
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
    read = {name: value for name, value in env.items() if name.startswith(_READ_AT_START)}
    # Our modules are loaded already, whichever folder they would be looked for in.
    read.pop("PYTHONSAFEPATH", None)
    return read


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
    """Import what gateways, nodes and commands load once they run, with the extras, and the migrations that a new journal needs."""
    for name in (
        "lcp_gateway.cli.program",
        "lcp_gateway.cli.serve",
        "lcp_gateway.cli.serve.serve",
        "lcp_gateway.cli.service.start",
        "lcp_gateway.cli.service.status",
        "lcp_gateway.cli.node.program",
        "lcp_gateway.cli.node.assembly",
        "lcp_gateway.app",
        "lcp_gateway.lightning.lnd.invoice_issuer",
        "lcp_gateway.lightning.lnd.payouts",
        "lcp_gateway.node.server",
        "lcp_gateway.store.accounts.nodes",
        "lcp_gateway.store.accounts.refunds",
        "lcp_gateway.store.accounts.registrations",
        "lcp_gateway.store.accounts.sessions",
        "lcp_gateway.store.accounts.withdrawals",
        "lcp_gateway.store.database.creation",
        "lcp_gateway.store.database.leader",
        "lcp_gateway.store.database.postgres",
        "lcp_gateway.store.database.sqlite",
        "lcp_gateway.telemetry.log_output",
        "lcp_gateway.upstreams.lcpd.http2_transport",
        "alembic.context",
        "encodings.idna",
        "lndgrpc.compiled",
        "pydantic.type_adapter",
        "redis.asyncio",
        "sqlalchemy.dialects.postgresql.asyncpg",
        "tenacity.asyncio",
        "typer._adapters",
        "typer._click.decorators",
    ):
        importlib.import_module(name)


def _wait_longer() -> None:
    """Give Redis, databases, lnd and gateways a minute to answer, as `tests/conftest.py` does; tests of these limits use REAL_START."""
    for module, limit in (
        ("accounts.shared.outage", "_ANSWER_S"),
        ("cli.service.status", "_JOURNAL_TIMEOUT_S"),
        ("cli.gateway_client", "_READY_TIMEOUT_S"),
        ("http.gateway.api_limits", "_READ_S"),
        ("http.openai.charges", "_BALANCE_S"),
        ("http.openai.charges", "_REFUND_S"),
        ("store.database.leader", "_ANSWER_S"),
        ("store.database.postgres", "_RESERVED_READ_S"),
        ("store.database.sqlite", "_RESERVED_READ_S"),
        ("upstreams.openai.adapter", "_CONNECT_TIMEOUT_S"),
        ("upstreams.openai.input_tokens", "_CONNECT_TIMEOUT_S"),
    ):
        loaded = sys.modules[f"lcp_gateway.{module}"]
        assert isinstance(getattr(loaded, limit), float)
        setattr(loaded, limit, _PATIENCE_S)
    limits = sys.modules["lcp_gateway.store.database.engines"].open_database.__kwdefaults__
    limits.update(busy_timeout_s=_PATIENCE_S, write_timeout_s=_PATIENCE_S)
    for module, client in (("client", "LndClient"), ("invoices", "LndInvoices")):
        of_lnd = getattr(sys.modules[f"lcp_gateway.lightning.lnd.{module}"], client)
        of_lnd.__init__.__kwdefaults__["timeout_s"] = _PATIENCE_S
    writer = sys.modules["lcp_gateway.store.journal.writer"]
    # A gateway's tests wait for its end no longer than for an answer.
    patient = writer.JournalLimits(wait_s=_PATIENCE_S, close_s=_PATIENCE_S / 2)
    writer.JournalWriter.__init__.__kwdefaults__["limits"] = patient
    # The last default is the patience with other quotes.
    rules = sys.modules["lcp_gateway.purchase.quoting"].QuotingRules.__init__
    rules.__defaults__ = (*rules.__defaults__[:-1], _PATIENCE_S)
    sys.modules["lcp_gateway.cli.gateway_client"].call.__kwdefaults__["timeout_s"] = _PATIENCE_S


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
    _wait_longer()
    gc.collect()
    gc.freeze()
    _become(_serve(control))


def _become(request: dict) -> None:
    """Run the module of a request, with its arguments, environment and folder, to its end."""
    os.environ.clear()
    os.environ.update(request["environment"])
    time.tzset()
    os.chdir(request["folder"])
    sys.argv = ["", *request["arguments"]]
    _prepare_children(_modules_started_by(request))
    # It was loaded with the modules that import it: a start of its own would load it later.
    warnings.filterwarnings("ignore", ".* found in sys.modules after import of package", RuntimeWarning)
    code: object = 0
    try:
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        code = ended.code or 0
        if not isinstance(code, int):
            raise
    _end(code)


def _end(code: int) -> NoReturn:
    """End as the interpreter does, but for taking all objects apart.

    They lie in pages that are shared with the template: to touch each would copy them, which takes longer than a start.
    """
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            # The reader is gone, or the program has closed it: 120 is the interpreter's own code for the first.
            code = code if stream.closed else 120
    os._exit(code & 0xFF)


def _modules_started_by(request: dict) -> int:
    """Return how many programs of ours a command starts itself."""
    arguments = " ".join(request["arguments"]).replace("=", " ").split()
    if arguments[:1] in (["start"], ["restart"]):
        return 1
    workers = request["environment"].get("LCP_GATEWAY_WORKERS", "1")
    if "--workers" in arguments[:-1]:
        workers = arguments[arguments.index("--workers") + 1]
    is_several = arguments[:1] == ["serve"] and workers.isdigit() and int(workers) > 1
    has_models = arguments[:1] == ["serve"] and bool(request["environment"].get("LCP_GATEWAY_MODELS"))
    return ("--embedded" in arguments) + has_models + (int(workers) if is_several else 0)


def _prepare_children(count: int) -> None:
    """Fork processes now, while there are no threads, to become the first modules that this process starts.

    Each is a child as any other to this process, which waits for it; those that are not needed end with this process.
    """
    spare: list[tuple[int, socket.socket]] = []
    for _ in range(count):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if not pid:
            for opened in (ours, *(other for _, other in spare)):
                opened.close()
            _be_a_child(theirs)
        theirs.close()
        spare.append((pid, ours))
    really = subprocess.Popen._execute_child

    def execute(process: subprocess.Popen, *given: Any) -> None:
        asked = inspect.signature(really).bind(process, *given).arguments
        arguments, env = asked["args"], asked["env"] or os.environ
        is_module = isinstance(arguments, list | tuple) and [*arguments[:2]] == [sys.executable, "-m"]
        if not is_module or not spare or _at_start(env) != _at_start(os.environ):
            really(process, *given)
            return
        pid, control = spare.pop()
        # -1 stands for the stream of this process.
        streams = [asked[name] if asked[name] != -1 else own for own, name in enumerate(_CHILDS_ENDS)]
        passed = sorted(map(int, asked["pass_fds"]))
        request = {
            "module": arguments[2],
            "arguments": arguments[3:],
            "environment": dict(env),
            "folder": str(asked["cwd"] or Path.cwd()),
            "session": asked["start_new_session"],
            "descriptors": [0, 1, 2, *passed],
        }
        with control:
            socket.send_fds(control, [json.dumps(request).encode()], [*streams, *passed])
        process.pid, process._child_created = pid, True
        process._close_pipe_fds(*(asked[name] for name in _PIPES))

    if spare:
        subprocess.Popen._execute_child = execute


def _be_a_child(control: socket.socket) -> None:
    """Wait for the request of the process that this one was forked from; then run its module to its end."""
    nothing = os.open(os.devnull, os.O_RDWR)
    # A reader of the other process's output must not wait for this one.
    for number in range(3):
        os.dup2(nothing, number)
    os.close(nothing)
    message, received, _, _ = socket.recv_fds(control, _MESSAGE_BYTES, _MOST_DESCRIPTORS)
    control.close()
    if not message:
        os._exit(0)
    request = json.loads(message)
    # Out of the way of the numbers that they are to have.
    away = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, _MOST_DESCRIPTORS + 3) for descriptor in received]
    for descriptor in received:
        os.close(descriptor)
    for descriptor, number in zip(away, request["descriptors"], strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)
    if request["session"]:
        os.setsid()
    with suppress(OSError):
        # As its module is called: its command line is that of the template.
        Path("/proc/self/comm").write_text(request["module"].rpartition(".")[2])
    _become(request)


if __name__ == "__main__":
    _main()
