"""The programs that a run needs, each in a process of its own, and what they use of CPU and memory."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.workload import Load, Workload
from tests.support.ports import free_port

_ROOT = Path(__file__).resolve().parent.parent
_TIMEOUT_S = 120.0
_POLL_S = 0.002
# Streams whose clients left at the end of one turn would run on in the next.
_NO_GRACE = {"LCP_GATEWAY_JOIN_GRACE_S": "0"}


def _environment(**extra: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("LCP_GATEWAY_", "OPENAI_"))}
    return {**kept, "PYTHONPATH": str(_ROOT), **extra}


@contextlib.contextmanager
def running(*arguments: str, program: str = sys.executable, output: int = subprocess.DEVNULL, **environment: str):
    process = subprocess.Popen(
        [program, *arguments],
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=subprocess.DEVNULL,
        cwd=_ROOT,
        env=_environment(**environment),
    )
    try:
        yield process
    finally:
        process.stdin.close()
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


@contextlib.contextmanager
def stand_in(folder: Path, pause_s: float, paid: Path | str = "") -> Iterator[str]:
    """Run the stand-in daemon; yield its address. It writes the preimages of paid jobs to the file ``paid``, if one is named."""
    path = folder / "standin.sock"
    with running("-m", "bench.standin", f"unix:{path}", str(pause_s), str(paid)):
        wait_for_socket(path)
        yield f"unix:{path}"


@contextlib.contextmanager
def stand_in_on_port() -> Iterator[str]:
    """Run the stand-in daemon on a port of loopback, as daemons have it by default; yield its address."""
    address = f"127.0.0.1:{free_port()}"
    with running("-m", "bench.standin", address):
        _wait_for_port(int(address.rpartition(":")[2]))
        yield address


@contextlib.contextmanager
def program(module: str, *arguments: str) -> Iterator[None]:
    """Run a module of the bench for the block."""
    with running("-m", module, *arguments):
        yield


@contextlib.contextmanager
def lnd_stand_in(certificate: Path, key: Path, paid: Path) -> Iterator[str]:
    """Run the stand-in for lnd, which knows the stand-in daemon's payments; yield its address."""
    port = free_port()
    arguments = [str(it) for it in (certificate, key, paid, port)]
    with running("-m", "bench.lnd_standin", *arguments):
        _wait_for_port(port)
        yield f"127.0.0.1:{port}"


@contextlib.contextmanager
def embedded_node(folder: Path, pause_s: float) -> Iterator[str]:
    """Run the embedded node by itself; yield its address."""
    path = folder / "node.sock"
    pace = ("--tokens-per-second", str(1 / pause_s)) if pause_s else ()
    listen = ("--listen", f"unix:{path}", "--exit-with-stdin")
    with running("-m", "lcp_gateway", "node", *listen, *pace, XDG_CONFIG_HOME=str(folder)):
        wait_for_socket(path)
        yield f"unix:{path}"


@dataclass(frozen=True, slots=True)
class Server:
    """A program that answers HTTP, with the processes that it started; ``start_s`` is how long it took to be ready."""

    address: str
    start_s: float
    process: psutil.Process

    def cpu_s(self) -> float:
        return sum(times.user + times.system for times in (it.cpu_times() for it in self._tree()))

    def rss_bytes(self) -> int:
        return sum(it.memory_info().rss for it in self._tree())

    def _tree(self) -> list[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)]


@contextlib.contextmanager
def gateway(folder: Path, daemon: str | None, *, port: int = 0, **settings: str) -> Iterator[Server]:
    """Run the gateway over a daemon, or with its embedded node if None; ``settings`` are more of its environment."""
    port = port or free_port()
    where = ("--embedded",) if daemon is None else ("--lcpd-grpc-addr", daemon)
    address = f"127.0.0.1:{port}"
    started = time.perf_counter()
    with running(
        "-m", "lcp_gateway", "serve", "--http-addr", address, *where,
        XDG_CONFIG_HOME=str(folder), XDG_STATE_HOME=str(folder), LCP_GATEWAY_LOG_FORMAT="json",
        LCP_GATEWAY_MAX_CONCURRENT_REQUESTS="0", **{**_NO_GRACE, **settings},
    ) as process:  # fmt: skip
        while not _is_ready(port):
            if process.poll() is not None or time.perf_counter() - started > _TIMEOUT_S:
                raise SystemExit("the gateway did not start")
            time.sleep(_POLL_S)
        yield Server(address, time.perf_counter() - started, psutil.Process(process.pid))


@contextlib.contextmanager
def floor(daemon: str) -> Iterator[Server]:
    """Run the ruler: forty lines without a check."""
    port, started = free_port(), time.perf_counter()
    with running("-m", "bench.floor", str(port), daemon) as process:
        _wait_for_port(port)
        yield Server(f"127.0.0.1:{port}", time.perf_counter() - started, psutil.Process(process.pid))


@contextlib.contextmanager
def openai_serve(program: str, daemon: str) -> Iterator[Server]:
    """Run the Go program that this gateway replaces."""
    port, started = free_port(), time.perf_counter()
    address = f"127.0.0.1:{port}"
    settings = {"OPENAI_SERVE_HTTP_ADDR": address, "OPENAI_SERVE_LCPD_GRPC_ADDR": daemon}
    with running(program=program, **settings) as process:
        _wait_for_port(port)
        yield Server(address, time.perf_counter() - started, psutil.Process(process.pid))


@dataclass(frozen=True, slots=True)
class Used:
    """The use of the program under test during a load: CPU seconds of its processes, and its largest resident size."""

    cpu_s: float
    peak_rss_bytes: int


def load(kind: str, where: str, workload: Workload, under_test: Server | None) -> tuple[Load, Used]:
    """Run a load generator against ``where``, and watch the program under test while it measures."""
    arguments = ("-m", "bench.generator", kind, where, workload.to_json())
    peaks = [0]
    over = threading.Event()

    def watch() -> None:
        while under_test is not None and not over.wait(0.05):
            peaks[0] = max(peaks[0], under_test.rss_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with running(*arguments, output=subprocess.PIPE) as process:
            if process.stdout.readline().strip() != b"measuring":
                raise SystemExit(f"the load generator for {kind} did not start")
            before = under_test.cpu_s() if under_test is not None else 0.0
            line = process.stdout.readline()
            after = under_test.cpu_s() if under_test is not None else 0.0
    finally:
        over.set()
        watcher.join()
    return Load.from_json(line.decode()), Used(after - before, peaks[0])


def wait_for_socket(path: Path) -> None:
    deadline = time.monotonic() + _TIMEOUT_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
            probe.connect(str(path))
            return
        time.sleep(0.01)
    raise SystemExit(f"nothing listens on {path}")


def _wait_for_port(port: int) -> None:
    deadline = time.monotonic() + _TIMEOUT_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.01)
    raise SystemExit(f"nothing listens on port {port}")


def _is_ready(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as probe:
        probe.sendall(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        return probe.recv(64).startswith(b"HTTP/1.1 200")
    return False
