"""The embedded node: a child process of the gateway that is started early, restarted when it dies, and ended with it."""

import contextlib
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from lcp_gateway.cli.output import USAGE_ERROR, CommandFailed
from lcp_gateway.cli.serve.node_process import CONFIG_ERROR, FOLDER_PREFIX, KEY_VARIABLE, NodeOptions
from lcp_gateway.config import Settings

NO_REAL_MONEY = "embedded node: its Lightning is simulated and its answers are a stand-in. No real money moves."

MAX_SOCKET_BYTES = 103
"""The longest path of a socket on any system, without the byte that ends it."""
# Variables of systemd that are for the gateway alone: a child with the socket could send messages in its name.
_SYSTEMD_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
_DAEMON_SETTINGS = (
    *("lcpd_grpc_addr", "lcpd_tls", "lcpd_tls_ca", "lcpd_tls_cert", "lcpd_tls_key"),
    *("lcpd_tls_server_name", "lcpd_metadata"),
)


@contextlib.contextmanager
def daemon_for(settings: Settings) -> Iterator[Settings]:
    """Yield settings whose daemon runs for the block: the embedded node's address where that is asked for."""
    if not settings.embedded:
        yield settings
        return
    options = node_options(settings)
    check_node(settings)
    handler = _SigtermHandler()
    before = signal.signal(signal.SIGTERM, handler)
    try:
        with EmbeddedNode(options, tell=_log) as node, handler:
            usual = settings_of_daemon(Settings())
            yield settings.model_copy(update={**usual, "lcpd_grpc_addr": node.address})
    finally:
        signal.signal(signal.SIGTERM, before)


def settings_of_daemon(settings: Settings) -> dict[str, Any]:
    """Return the settings that say where the daemon is: with an embedded node they are its own, not the configured ones."""
    return {name: getattr(settings, name) for name in _DAEMON_SETTINGS}


def node_options(settings: Settings, *, listen: str = "", protocol_version: int = 0) -> NodeOptions:
    """Return the settings that describe the node; ``listen`` is used where they name no address."""
    return NodeOptions(
        listen=settings.node_listen or listen,
        backend=settings.node_backend,
        backend_api_key=settings.node_backend_api_key,
        peers_file=str(settings.node_peers_file or ""),
        faults=settings.node_faults,
        events_file=str(settings.node_events_file or ""),
        tokens_per_second=settings.node_tokens_per_second,
        protocol_version=protocol_version,
    )


def check_node(settings: Settings) -> None:
    """Check the description of an embedded node here, where an error is one line and not a daemon that does not answer."""
    if not settings.embedded:
        return
    from lcp_gateway.node.config import ConfigError  # noqa: PLC0415 - needed for an embedded node only

    try:
        node_options(settings).node_config()
    except ConfigError as error:
        raise CommandFailed(f"node: {error}", exit_code=USAGE_ERROR) from None


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """When to start a dead node again: pauses double from the first to the longest, for so many failures in a row.

    A run of ``settled_s`` ends a row of failures.
    """

    first_pause_s: float = 0.1
    longest_pause_s: float = 5.0
    in_a_row: int = 8
    settled_s: float = 30.0


class EmbeddedNode:
    """Runs a node in a child process while the ``with`` block lasts.

    The child holds our end of a pipe as its standard input and leaves when that ends, so it cannot outlive a gateway
    that was killed. ``address`` is the target that a gRPC client dials. ``tell`` is called at every end and restart, from
    a thread.
    """

    def __init__(
        self,
        options: NodeOptions,
        *,
        tell: Callable[[str], None],
        restarts: RestartPolicy = RestartPolicy(),
        stop_timeout_s: float = 3.0,
    ) -> None:
        self._folder: Path | None = None
        if not options.listen:
            self._folder = _private_folder()
            options = dataclasses.replace(options, listen=f"unix:{self._folder / 'node.sock'}")
        self._options = options
        self._tell = tell
        self._restarts = restarts
        self._stop_timeout_s = stop_timeout_s
        self._stopping = threading.Event()
        self._guard = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._watcher = threading.Thread(target=self._watch, name="embedded-node", daemon=True)

    @property
    def address(self) -> str:
        """Where the node is reached, as a gRPC target."""
        listen = self._options.listen
        return f"127.0.0.1{listen}" if listen.startswith(":") else listen

    @property
    def pid(self) -> int | None:
        """The child's process id, while there is one."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def __enter__(self) -> Self:
        """Start the child; it becomes ready while the caller continues."""
        self._start_child()
        self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the child and remove its socket."""
        self._stopping.set()
        with self._guard:
            process = self._process
        if process is not None:
            _end(process, self._stop_timeout_s)
        self._watcher.join(self._stop_timeout_s)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _start_child(self) -> None:
        environment = dict(os.environ)
        for name in (KEY_VARIABLE, *_SYSTEMD_VARIABLES):
            environment.pop(name, None)
        if self._options.backend_api_key:
            environment[KEY_VARIABLE] = self._options.backend_api_key
        with self._guard:
            if self._stopping.is_set():
                return
            if self._folder is not None:
                # A node that ended in good order removed it.
                self._folder.mkdir(mode=0o700, exist_ok=True)
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [sys.executable, "-m", "lcp_gateway.cli.serve.node_process", self._options.to_json()],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                env=environment,
                # Ctrl-C in a terminal reaches a whole process group: the gateway drains first, and needs the node for that.
                start_new_session=True,
            )

    def _watch(self) -> None:
        failures = 0
        while (process := self._process) is not None:
            started = time.monotonic()
            code = process.wait()
            if self._stopping.is_set():
                return
            ran_s = time.monotonic() - started
            failures = 1 if ran_s >= self._restarts.settled_s else failures + 1
            if code == CONFIG_ERROR or failures > self._restarts.in_a_row:
                self._tell(f"the embedded node ended with code {code} and is not started again")
                return
            pause_s = min(self._restarts.first_pause_s * 2.0 ** (failures - 1), self._restarts.longest_pause_s)
            self._tell(f"the embedded node ended with code {code}; it starts again in {pause_s:g} s")
            if self._stopping.wait(pause_s):
                return
            try:
                self._start_child()
            except OSError as error:
                self._tell(f"the embedded node cannot be started again: {error.strerror}")
                return


def _private_folder() -> Path:
    """Make a folder for a socket: where temporary files go, unless that path is longer than a socket's may be."""
    folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX))
    if len(str(folder / "node.sock").encode()) <= MAX_SOCKET_BYTES:
        return folder
    folder.rmdir()
    return Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX, dir="/tmp"))


def _end(process: subprocess.Popen[bytes], timeout_s: float) -> None:
    """End the node: close its standard input, then send SIGTERM, then SIGKILL."""
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()
    for insist in (process.terminate, process.kill):
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            insist()
        else:
            return
    process.wait()


class _SigtermHandler:
    """Handles SIGTERM before the gateway's own handlers are set: it ends the ``with`` block, never the code around it.

    A signal while the node is being started or ended is delayed, so that no process and no socket is left behind.
    """

    def __init__(self) -> None:
        self._inside = False
        self._received = 0

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        self._received = number
        if self._inside:
            raise SystemExit(128 + number)

    def __enter__(self) -> None:
        self._inside = True
        if self._received:
            raise SystemExit(128 + self._received)

    def __exit__(self, *_error: object) -> None:
        self._inside = False


def _log(message: str) -> None:
    from lcp_gateway.telemetry.logs import get_logger  # noqa: PLC0415 - needed only when a node has died

    get_logger("embedded").warning(message)
